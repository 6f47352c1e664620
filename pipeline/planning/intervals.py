"""Prediction intervals that a user can trust: jackknife+ around the held-out errors, and their measured coverage.

Held-out errors are divided by the doubt of a Gaussian process where they were made, and multiplied by its doubt
where a prediction is asked for: an interval far from the tried ratios is wider than one among them.

Reads and writes nothing. Axes: G folds, N runs, Q queries.

Source: Barber, Candes, Ramdas, Tibshirani 2021, "Predictive inference with the jackknife+" (jackknife+ and CV+).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.planning.descent import Array

LEVEL = 0.90
MOST_DOUBT_SHARE = 0.9  # of a width, see doubt_share


def jackknife_plus(
    by_fold_GQ: Array,
    residual_N: Array,
    fold_of_run: NDArray[np.intp],
    width_Q: Array | None = None,
    level: float = LEVEL,
) -> tuple[Array, Array]:
    """Lower and upper ends at `level` for each query.

    `by_fold_GQ` are the predictions of the fits that left one fold out, `residual_N` the absolute held-out errors
    in units of the width where they were made, `width_Q` the width at each query (1 where it is not given).
    With fewer than 1 / (1 - level) - 1 runs no distribution-free interval exists; then the extremes are taken with
    the errors widened by `small_sample_factor`.
    """
    num_runs = len(residual_N)
    width = np.ones(by_fold_GQ.shape[1]) if width_Q is None else width_Q
    widened = residual_N[:, None] * small_sample_factor(num_runs, level) * width[None, :]
    centre_NQ = by_fold_GQ[fold_of_run]
    low = -_ranked(-(centre_NQ - widened), level)
    return low, _ranked(centre_NQ + widened, level)


def _ranked(values_NQ: Array, level: float) -> Array:
    """The value at rank level (N + 1), between two ranks their mean by distance.

    The theorem rounds up to a whole rank. With 12 runs that is the largest of them and covers 12/13 = 92 %, with 18
    the largest again and 95 %: rounding, not caution. Between the ranks a nominal 90 % stays near 90 %.
    """
    num_runs = len(values_NQ)
    ordered = np.sort(values_NQ, axis=0)
    rank = min(max(level * (num_runs + 1), 1.0), float(num_runs))
    below = math.floor(rank)
    share = rank - below
    result: Array = (1.0 - share) * ordered[below - 1] + share * ordered[min(below, num_runs - 1)]
    return result


def small_sample_factor(num_runs: int, level: float = LEVEL) -> float:
    """1 where a distribution-free interval exists, above 1 where there are too few runs for one."""
    needed = level * (num_runs + 1)
    return max(1.0, needed / num_runs) ** 2


def measured_coverage(residual_N: Array, level: float = LEVEL) -> float:
    """Share of runs whose held-out error lies within the interval made from the other runs' held-out errors."""
    num_runs = len(residual_N)
    covered = 0
    for run in range(num_runs):
        others = np.delete(residual_N, run)[:, None] * small_sample_factor(num_runs - 1, level)
        covered += bool(residual_N[run] <= _ranked(others, level)[0])
    return covered / num_runs


def tempered(doubt: Array, typical: float, share: float) -> Array:
    """Widths, 1 for a typical doubt; `share` says how far they follow the doubt (0: one width everywhere)."""
    result: Array = np.sqrt(share * doubt**2 + (1.0 - share) * typical**2) / typical
    return result


def doubt_share(residuals: Sequence[Array], doubts: Sequence[Array], typicals: Sequence[float]) -> float:
    """How far held-out errors grow with the doubt: the mean of `share` under their Gaussian likelihood, 0 to
    `MOST_DOUBT_SHARE`.

    One entry a loss; all losses say the share together, since one loss of a dozen runs says little. Where noise
    rules, the errors are as large among the tried ratios as at the edge (share 0); without noise they follow the doubt.
    """
    shares = np.linspace(0.0, MOST_DOUBT_SHARE, 10)
    likelihood = np.zeros(len(shares))
    for residual, doubt, typical in zip(residuals, doubts, typicals, strict=True):
        for s, share in enumerate(shares):
            width = tempered(doubt, typical, share)
            spread = np.mean((residual / width) ** 2) + 1e-300
            likelihood[s] -= np.sum(np.log(width)) + 0.5 * len(residual) * np.log(spread)
    weights = np.exp(likelihood - likelihood.max())
    return float(shares @ weights / weights.sum())
