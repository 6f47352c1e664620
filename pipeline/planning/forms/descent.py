"""Minimise many small smooth problems at once: damped Newton steps within bounds, in NumPy.

A form is fitted once on all runs and once for each fold. The fits differ in their losses and weights only, so they
share one call: every array has a leading axis of fits. Reads and writes nothing. A fit that cannot improve keeps
its best point so far. Axes: F fits, N runs, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.planning.arrays import Array, Index

Objective = Callable[[Array, Index], tuple[Array, Array, Array]]
"""(theta_FP, numbers of these fits) -> cost_F, its downhill direction FP, its curvature FPP."""

Model = Callable[[Array], tuple[Array, Callable[[], Array]]]
"""theta_FP -> predictions FN, and a function that gives their derivatives FNP."""

_MOST_STEPS = 40
_LARGEST_STEP = 2.0
_TOLERANCE = 1e-5
_HOPELESS_DAMPING = 1e6


@dataclass(frozen=True)
class Prior:
    """Independent Gaussian priors and hard bounds of the P parameters. Equal bounds hold a parameter fixed."""

    mean: Array
    sd: Array
    lower: Array
    upper: Array


def minimise(objective: Objective, start_FP: Array, prior: Prior) -> tuple[Array, Array]:
    """Minimise the objective plus the prior's penalty for each fit; returns theta_FP and cost_F."""
    theta = np.clip(start_FP, prior.lower, prior.upper)
    open_fits = np.arange(len(theta))
    diagonal = np.arange(theta.shape[1])
    precision = 1.0 / prior.sd**2

    def penalised(point_FP: Array, fits: Index) -> tuple[Array, Array, Array]:
        cost, downhill, curvature = objective(point_FP, fits)
        off = point_FP - prior.mean
        curvature[:, diagonal, diagonal] += precision
        return cost + 0.5 * np.sum(precision * off**2, axis=1), downhill - precision * off, curvature

    cost, downhill, curvature = penalised(theta, open_fits)
    damping = np.full(len(theta), 1e-2)
    for _ in range(_MOST_STEPS):
        here = theta[open_fits]
        step = _newton_step(here, downhill[open_fits], curvature[open_fits], damping[open_fits], prior)
        trial = np.clip(here + np.clip(step, -_LARGEST_STEP, _LARGEST_STEP), prior.lower, prior.upper)
        tried = penalised(trial, open_fits)
        gain = cost[open_fits] - np.where(np.isfinite(tried[0]), tried[0], np.inf)
        better = gain > 0
        won = open_fits[better]
        theta[won] = trial[better]
        cost[won], downhill[won], curvature[won] = (part[better] for part in tried)
        damping[open_fits] = np.clip(damping[open_fits] * np.where(better, 0.25, 6.0), 1e-7, None)
        converged = better & (gain < _TOLERANCE * (1e-3 + np.abs(cost[open_fits])))
        open_fits = open_fits[~(converged | (damping[open_fits] > _HOPELESS_DAMPING))]
        if open_fits.size == 0:
            break
    return theta, cost


def _newton_step(here: Array, downhill: Array, curvature: Array, damping: Array, prior: Prior) -> Array:
    """One damped step; a parameter that presses against its bound stays where it is."""
    pressed = ((here <= prior.lower) & (downhill < 0)) | ((here >= prior.upper) & (downhill > 0))
    free = ~pressed
    matrix = curvature * (free[:, :, None] & free[:, None, :])
    index = np.arange(here.shape[1])
    matrix[:, index, index] = matrix[:, index, index] * (1.0 + damping[:, None]) + 1e-9 + pressed
    return np.asarray(np.linalg.solve(matrix, (downhill * free)[:, :, None])[:, :, 0], dtype=np.float64)


def minimise_from(objective: Objective, starts: list[Array], prior: Prior) -> Array:
    """Return the parameters of least cost over several starts, fit by fit."""
    best_theta, best_cost = minimise(objective, starts[0], prior)
    for start in starts[1:]:
        theta, cost = minimise(objective, start, prior)
        better = cost < best_cost
        best_theta[better], best_cost[better] = theta[better], cost[better]
    return best_theta


def least_squares(model: Model, target_FN: Array, weight_FN: Array, noise: float, huber: float) -> Objective:
    """Weighted squared residuals over twice `noise` squared; residuals beyond `huber` count linearly."""

    def objective(theta: Array, fits: Index) -> tuple[Array, Array, Array]:
        value, derivatives = model(theta)
        jacobian = derivatives()
        residual = target_FN[fits] - value
        size = np.abs(residual)
        weight = weight_FN[fits] / noise**2
        loss = np.where(size <= huber, 0.5 * size**2, huber * (size - 0.5 * huber))
        weighted = jacobian * (weight * np.minimum(1.0, huber / np.maximum(size, 1e-12)))[:, :, None]
        downhill = np.einsum("fnp,fn->fp", weighted, residual)
        return np.sum(weight * loss, axis=1), downhill, np.swapaxes(weighted, 1, 2) @ jacobian

    return objective
