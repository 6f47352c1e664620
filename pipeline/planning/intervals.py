"""Prediction intervals: normalised jackknife+ around the held-out errors.

Held-out errors are divided by a width where they were made, and multiplied by the width where a prediction is asked
for. The width follows the uncertainty of a Gaussian process: an interval far from the tried ratios is wider than one
among them. It also follows the predicted loss: runs that lack a domain have a high loss of it, which is noisier.
Reads and writes nothing. Axes: G folds, N runs, Q queries.

Source: Barber, Candes, Ramdas, Tibshirani 2021, "Predictive inference with the jackknife+" (jackknife+ and CV+).
"""

from __future__ import annotations

import numpy as np

from pipeline.planning.arrays import Array, Index

LEVEL = 0.90
# How far a width follows the process: its square is this part of the local variance, the rest of a typical one.
# Simulated tables of 2 to 7 domains: 0.5 covers 0.85 to 0.97 in every setting and is the narrowest of 0, 0.25, 0.5,
# 0.75 and 0.9 that does; from 0.75 on, intervals among noisy runs are too narrow.
LOCAL_PART = 0.5
_BEYOND = 0.25  # ranges of the losses: further out the width stays
_LEAST_ERROR = 0.05  # of the median one: a run that was hit by chance says little about the noise there
# With a prior of 2, intervals of our CLIP runs are 0.6 to 0.75 times as wide as without a slope, those of RegMix 0.8
# times, those of Olmix as wide. All cover as before. Priors of 0.5 to 4 differ little.
_SLOPE_PRIOR = 2.0


def relative_widths(deviation: Array, typical: float) -> Array:
    """Widths at places where the process has this standard deviation; 1 where it is the typical one."""
    return np.sqrt(LOCAL_PART * (deviation / typical) ** 2 + 1.0 - LOCAL_PART)


def level_of(loss: Array, lowest: float, highest: float) -> Array:
    """Where losses lie between the lowest (0) and the highest (1) of the runs."""
    return np.clip((loss - lowest) / max(highest - lowest, 1e-12), -_BEYOND, 1.0 + _BEYOND)


def noise_slopes(residual_N: Array, level_N: Array) -> tuple[float, Array]:
    """Return the slope of a held-out error's logarithm from the lowest to the highest loss, with a prior around 0.

    Also what each run would be told by the others: a slope that follows a run's own error makes that error look small.
    """
    size = np.log(np.maximum(residual_N, _LEAST_ERROR * np.median(residual_N) + 1e-12))
    off = level_N - level_N.mean()
    along, squares = off * (size - size.mean()), off**2
    others: Array = (along.sum() - along) / (squares.sum() - squares + _SLOPE_PRIOR)
    return float(along.sum() / (squares.sum() + _SLOPE_PRIOR)), others


def jackknife_plus(by_fold_GQ: Array, residual_N: Array, fold_of_run: Index, width_Q: Array) -> tuple[Array, Array]:
    """Lower and upper ends of the 90 % interval for each query.

    `by_fold_GQ` are the predictions of the fits that left one fold out, `residual_N` the absolute held-out errors
    in units of the width where they were made, `width_Q` the width at each query. With fewer than 9 runs no
    distribution-free interval exists; then the largest errors are taken and stretched by `small_sample_factor`.
    """
    stretched = residual_N[:, None] * small_sample_factor(len(residual_N)) * width_Q[None, :]
    centre_NQ = by_fold_GQ[fold_of_run]
    return -_ranked(stretched - centre_NQ), _ranked(stretched + centre_NQ)


def _ranked(values_NQ: Array) -> Array:
    """Return the value at rank 0.9 (N + 1), by linear interpolation between two ranks.

    The theorem rounds up to a whole rank, which covers more than it should: 95 % with 18 runs. Between the ranks a
    nominal 90 % stays near 90 %.
    """
    return np.asarray(np.quantile(values_NQ, LEVEL, axis=0, method="weibull"))


def small_sample_factor(num_runs: int) -> float:
    """1 where a distribution-free interval exists, above 1 where there are too few runs for one."""
    return max(1.0, LEVEL * (num_runs + 1) / num_runs) ** 2
