"""Prediction intervals that a user can trust: jackknife+ around the held-out errors, and their measured coverage.

Reads and writes nothing. Axes: G folds, N runs, Q queries.

Source: Barber, Candes, Ramdas, Tibshirani 2021, "Predictive inference with the jackknife+" (jackknife+ and CV+).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.planning.descent import Array

LEVEL = 0.90


def jackknife_plus(
    by_fold_GQ: Array, residual_N: Array, fold_of_run: NDArray[np.intp], level: float = LEVEL
) -> tuple[Array, Array]:
    """Lower and upper ends at `level` for each query.

    `by_fold_GQ` are the predictions of the fits that left one fold out, `residual_N` the absolute held-out errors.
    With fewer than 1 / (1 - level) - 1 runs no distribution-free interval exists; then the extremes are taken with
    the errors widened by `small_sample_factor`.
    """
    num_runs = len(residual_N)
    widened = residual_N * small_sample_factor(num_runs, level)
    centre_NQ = by_fold_GQ[fold_of_run]
    rank = min(math.ceil(level * (num_runs + 1)), num_runs)
    low = np.sort(centre_NQ - widened[:, None], axis=0)[num_runs - rank]
    high = np.sort(centre_NQ + widened[:, None], axis=0)[rank - 1]
    return low, high


def small_sample_factor(num_runs: int, level: float = LEVEL) -> float:
    """1 where a distribution-free interval exists, above 1 where there are too few runs for one."""
    needed = level * (num_runs + 1)
    return max(1.0, needed / num_runs) ** 2


def measured_coverage(residual_N: Array, level: float = LEVEL) -> float:
    """Share of runs whose held-out error lies within the interval made from the other runs' held-out errors."""
    num_runs = len(residual_N)
    covered = 0
    for run in range(num_runs):
        others = np.sort(np.delete(residual_N, run)) * small_sample_factor(num_runs - 1, level)
        rank = min(math.ceil(level * num_runs), num_runs - 1)
        covered += bool(residual_N[run] <= others[rank - 1])
    return covered / num_runs
