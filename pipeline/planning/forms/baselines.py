"""Linear ridge regression on the shares: the baseline that every law has to beat, and with it the plain mean.

Reads and writes nothing. Axes: F fits, N runs, Q queries, K domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.planning.arrays import Array
from pipeline.planning.forms.fitted import Fitted, as_losses, standardise


@dataclass(frozen=True)
class RidgeForm:
    """The penalty is in standardised units and does not touch the mean: a boundless one leaves the mean alone."""

    name: str
    penalty: float

    def fit(self, shares_NK: Array, losses_FN: Array, weights_FN: Array, warm: Fitted | None = None) -> Fitted:
        """Closed form."""
        z, units = standardise(losses_FN, weights_FN)
        weighted = shares_NK.T[None] * weights_FN[:, None, :]
        normal = weighted @ shares_NK + self.penalty * np.eye(shares_NK.shape[1])
        slopes = np.linalg.solve(normal, weighted @ z[:, :, None])[:, :, 0]
        return Fitted({"theta": np.asarray(slopes, dtype=np.float64), **units})

    def predict(self, fitted: Fitted, shares_QK: Array) -> Array:
        """Losses, shape F x Q."""
        return as_losses(fitted, fitted.arrays["theta"] @ shares_QK.T)
