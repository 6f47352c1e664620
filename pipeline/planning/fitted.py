"""What a fit leaves behind: named arrays with a leading axis of fits, and the contract of a form.

Reads and writes nothing. Axes: F fits, N runs, Q queries, K domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.planning.descent import Array

# Predictions are held within this many times the range of the fitted losses above the highest and below the
# lowest one: an unbounded exponential law errs by 1e2 and more outside the tried ratios with 6 to 10 runs.
CEILING_RANGES = 3.0
FLOOR_RANGES = 0.5


@dataclass(frozen=True)
class Fitted:
    """Parameters of F fits of one form; `anchors_NK` are the training shares of a form that keeps them."""

    arrays: dict[str, Array]
    anchors: Array | None = None

    @property
    def num_fits(self) -> int:
        """How many fits are held."""
        return len(next(iter(self.arrays.values())))

    def take(self, fits: Sequence[int] | NDArray[np.intp] | slice) -> Fitted:
        """The given fits, in the given order (repeats allowed)."""
        return Fitted({name: values[fits] for name, values in self.arrays.items()}, self.anchors)

    def to_json(self) -> dict[str, Any]:
        """Plain lists; floats survive json exactly."""
        return {name: values.tolist() for name, values in sorted(self.arrays.items())}


class Form(Protocol):
    """One functional form from shares to a loss; fits many weightings of the same runs at once."""

    @property
    def name(self) -> str:
        """The name in tables and in law files."""

    def num_params(self, num_domains: int) -> int:
        """Free parameters a loss column."""

    def fit(self, shares_NK: Array, losses_FN: Array, weights_FN: Array, warm: Fitted | None = None) -> Fitted:
        """Fit each row of losses under its own row weights (0 leaves a run out)."""

    def predict(self, fitted: Fitted, shares_QK: Array) -> Array:
        """Predicted losses, shape F x Q; shares of shape F x Q x K give every fit mixtures of its own."""


def standardise(losses_FN: Array, weights_FN: Array) -> tuple[Array, Array, Array]:
    """Weighted mean and standard deviation a fit, and the losses in those units: (centre_F, scale_F, z_FN)."""
    total = weights_FN.sum(axis=1, keepdims=True)
    centre = (weights_FN * losses_FN).sum(axis=1, keepdims=True) / total
    spread = np.sqrt((weights_FN * (losses_FN - centre) ** 2).sum(axis=1, keepdims=True) / total)
    scale = np.maximum(spread, 1e-9)
    return centre[:, 0], scale[:, 0], (losses_FN - centre) / scale


def prediction_bounds(z_FN: Array, weights_FN: Array) -> dict[str, Array]:
    """Lowest and highest prediction of each fit in standardised units, from the losses it was fitted on."""
    lowest = np.where(weights_FN > 0, z_FN, np.inf).min(axis=1)
    highest = np.where(weights_FN > 0, z_FN, -np.inf).max(axis=1)
    span = highest - lowest
    return {"floor": lowest - FLOOR_RANGES * span, "ceiling": highest + CEILING_RANGES * span}


def lowest_loss(fitted: Fitted) -> float:
    """The lowest loss that the first fit has seen, from its bounds."""
    floor, ceiling = fitted.arrays["floor"][0], fitted.arrays["ceiling"][0]
    lowest = floor + (ceiling - floor) * FLOOR_RANGES / (1.0 + FLOOR_RANGES + CEILING_RANGES)
    return float(fitted.arrays["centre"][0] + fitted.arrays["scale"][0] * lowest)


def bounded(fitted: Fitted, standard_FQ: Array) -> Array:
    """Standardised predictions as losses, held within the bounds of `prediction_bounds`."""
    arrays = fitted.arrays
    held = np.clip(standard_FQ, arrays["floor"][:, None], arrays["ceiling"][:, None])
    result: Array = arrays["centre"][:, None] + arrays["scale"][:, None] * held
    return result
