"""The base of every form: its fitted parameters, and the units and bounds of its predictions.

Reads and writes nothing. Axes: F fits, N runs, Q queries, K domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.planning.arrays import Array, Index

# A prediction may lie at most this many ranges of the fitted losses above the highest or below the lowest one.
# An unbounded exponential law with 6 to 10 runs errs by 100 nats and more outside the tried ratios.
CEILING_RANGES = 3.0
FLOOR_RANGES = 0.5


@dataclass(frozen=True)
class Fitted:
    """Parameters of F fits of one form: named arrays with a leading axis of fits.

    `anchors` are the training shares. Only the Gaussian process needs them.
    """

    arrays: dict[str, Array]
    anchors: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def take(self, fits: Sequence[int] | Index | slice) -> Fitted:
        """Return the given fits, in the given order; a fit may be named more than once."""
        return Fitted({name: values[fits] for name, values in self.arrays.items()}, self.anchors)


def join_fits(parts: Sequence[Fitted]) -> Fitted:
    """Fits of one form on the same runs, one after the other."""
    names = parts[0].arrays
    return Fitted({name: np.concatenate([part.arrays[name] for part in parts]) for name in names}, parts[0].anchors)


def standardise(losses_FN: Array, weights_FN: Array) -> tuple[Array, dict[str, Array]]:
    """Return the losses in units of each fit's standard deviation around its mean, and the inverse transform.

    That is centre, scale, and the bounds floor and ceiling.
    """
    total = weights_FN.sum(axis=1)
    centre = (weights_FN * losses_FN).sum(axis=1) / total
    off = losses_FN - centre[:, None]
    scale = np.maximum(np.sqrt((weights_FN * off**2).sum(axis=1) / total), 1e-9)
    z = off / scale[:, None]
    lowest = np.where(weights_FN > 0, z, np.inf).min(axis=1)
    highest = np.where(weights_FN > 0, z, -np.inf).max(axis=1)
    floor, ceiling = lowest - FLOOR_RANGES * (highest - lowest), highest + CEILING_RANGES * (highest - lowest)
    return z, {"centre": centre, "scale": scale, "floor": floor, "ceiling": ceiling}


def as_losses(fitted: Fitted, standard_FQ: Array) -> Array:
    """Standardised predictions as losses, held within floor and ceiling."""
    arrays = fitted.arrays
    held = np.clip(standard_FQ, arrays["floor"][:, None], arrays["ceiling"][:, None])
    return arrays["centre"][:, None] + arrays["scale"][:, None] * held
