"""The forms every law has to beat: the mean, a linear ridge, and Scheffe's quadratic mixture polynomial.

Reads and writes nothing. Axes: F fits, N runs, Q queries, K domains, B features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.planning.descent import Array
from pipeline.planning.fitted import Fitted, bounded, prediction_bounds, standardise


@dataclass(frozen=True)
class LinearForm:
    """Ridge regression on `degree` 0 (the mean), 1 (shares) or 2 (shares and their products, Scheffe 1958).

    The penalty is in standardised units and does not touch the mean; predictions are held
    within the bounds of `fitted.prediction_bounds`.
    """

    name: str
    degree: int
    penalty: float

    def num_params(self, num_domains: int) -> int:
        """Free parameters a loss column."""
        return (1, num_domains, num_domains * (num_domains + 1) // 2)[self.degree]

    def fit(self, shares_NK: Array, losses_FN: Array, weights_FN: Array, warm: Fitted | None = None) -> Fitted:
        """Closed form; `warm` is not needed."""
        centre, scale, z = standardise(losses_FN, weights_FN)
        features = self._features(shares_NK)
        weighted = features.T[None] * weights_FN[:, None, :]
        normal = weighted @ features + self.penalty * np.eye(features.shape[1])
        solved = np.linalg.solve(normal, weighted @ z[:, :, None])
        coefficients = np.asarray(solved, dtype=np.float64)[:, :, 0]
        return Fitted({"theta": coefficients, "centre": centre, "scale": scale, **prediction_bounds(z, weights_FN)})

    def predict(self, fitted: Fitted, shares_QK: Array) -> Array:
        """Losses, shape F x Q."""
        theta, features = fitted.arrays["theta"], self._features(shares_QK)
        each = features.ndim == 3
        return bounded(fitted, (features @ theta[:, :, None])[:, :, 0] if each else theta @ features.T)

    def _features(self, shares: Array) -> Array:
        if self.degree == 0:
            return np.zeros((*shares.shape[:-1], 1))
        if self.degree == 1:
            return shares
        first, second = np.triu_indices(shares.shape[-1], k=1)
        return np.concatenate([shares, 4.0 * shares[..., first] * shares[..., second]], axis=-1)
