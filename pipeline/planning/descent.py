"""Many small bounded nonlinear least-squares problems solved at once: batched Levenberg-Marquardt in NumPy.

A law is fitted once on all runs, once per held-out run and once per bootstrap draw. These fits differ only in
their row weights, so they share one call: every array has a leading axis of fits (F fits, N runs, P parameters).
Reads and writes nothing. Gives up on nothing: a fit that cannot improve keeps its best point so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Model = Callable[[Array], tuple[Array, Array]]
"""theta_FP -> (values_FN, jacobian_FNP)."""


@dataclass(frozen=True)
class Prior:
    """Independent Gaussian priors and hard bounds of the P parameters; precision 0 means no prior."""

    mean: Array
    precision: Array
    lower: Array
    upper: Array


def minimise(
    model: Model,
    start_FP: Array,
    target_FN: Array,
    weight_FN: Array,
    prior: Prior,
    *,
    noise: float,
    huber: float,
    max_steps: int = 40,
    tolerance: float = 1e-5,
) -> tuple[Array, Array]:
    """Maximise the posterior of every fit; returns (theta_FP, cost_F).

    `noise` is the standard deviation that one unit of weight stands for; residuals beyond `huber` (same unit as
    the target) count linearly. Rows of weight 0 take no part.
    """
    theta = np.clip(start_FP, prior.lower, prior.upper)
    num_fits, num_params = theta.shape
    damping = np.full(num_fits, 1e-2)
    value, jacobian = model(theta)
    cost = _cost(value, theta, target_FN, weight_FN, prior, noise, huber)
    open_fits = np.arange(num_fits)
    eye = np.eye(num_params, dtype=bool)
    for _ in range(max_steps):
        residual = target_FN[open_fits] - value[open_fits]
        row_weight = weight_FN[open_fits] / noise**2
        row_weight = row_weight * np.minimum(1.0, huber / np.maximum(np.abs(residual), 1e-12))
        jac = jacobian[open_fits]
        weighted = jac * row_weight[:, :, None]
        curvature = np.swapaxes(weighted, 1, 2) @ jac
        gradient = np.einsum("fnp,fn->fp", weighted, residual)
        here = theta[open_fits]
        curvature[:, eye] += prior.precision
        gradient += prior.precision * (prior.mean - here)
        # a parameter pressed against its bound is frozen for this step
        pressed = ((here <= prior.lower) & (gradient < 0)) | ((here >= prior.upper) & (gradient > 0))
        gradient = np.where(pressed, 0.0, gradient)
        keep = ~pressed
        curvature *= keep[:, :, None] & keep[:, None, :]
        diagonal = curvature[:, eye]
        curvature[:, eye] = diagonal * (1.0 + damping[open_fits, None]) + 1e-9 + pressed
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        trial = np.clip(here + np.clip(step, -2.0, 2.0), prior.lower, prior.upper)
        trial_value, trial_jacobian = model(trial)
        trial_cost = _cost(trial_value, trial, target_FN[open_fits], weight_FN[open_fits], prior, noise, huber)
        gain = cost[open_fits] - trial_cost
        better = gain > 0
        won = open_fits[better]
        theta[won] = trial[better]
        value[won] = trial_value[better]
        jacobian[won] = trial_jacobian[better]
        cost[won] = trial_cost[better]
        damping[open_fits] *= np.where(better, 0.25, 6.0)
        np.clip(damping, 1e-7, 1e9, out=damping)
        done = (better & (gain < tolerance * (1e-3 + cost[open_fits]))) | (damping[open_fits] > 1e6)
        open_fits = open_fits[~done]
        if open_fits.size == 0:
            break
    return theta, cost


def _cost(value: Array, theta: Array, target: Array, weight: Array, prior: Prior, noise: float, huber: float) -> Array:
    size = np.abs(target - value)
    loss = np.where(size <= huber, 0.5 * size**2, huber * (size - 0.5 * huber))
    pull = 0.5 * np.sum(prior.precision * (theta - prior.mean) ** 2, axis=1)
    total: Array = np.sum(weight * loss, axis=1) / noise**2 + pull
    return np.where(np.isfinite(total), total, np.inf)
