"""The parametric mixing laws: the exponential law and the family of power laws.

All are fitted by penalised Huber least squares from a few starts, in standardised units: the runs of a fit have mean 0
and standard deviation 1. Reads and writes nothing. Axes: F fits, N runs, Q queries, K domains, P parameters.

Source: exponential from Ye et al. 2024 (arXiv 2403.16952); additive from Shukor et al. 2025 ("Scaling Laws for
Optimal Data Mixtures"). The floor s0, the shared exponent g and the priors are ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.planning.arrays import Array
from pipeline.planning.forms.descent import Model, Prior, least_squares, minimise_from
from pipeline.planning.forms.fitted import Fitted, as_losses, standardise

_SMALLEST_SHARE = 1e-12
Range = tuple[float, float]


@dataclass(frozen=True)
class ParametricForm(ABC):
    """A form given by its model, its prior and its starting points.

    `noise` is the residual that a good fit leaves, in standardised units: the larger, the more the prior counts.
    Residuals beyond `huber` count linearly, so that one failed run does not bend the law.
    """

    name: str
    noise: float
    huber: float

    @abstractmethod
    def prior(self, num_domains: int) -> Prior:
        """Priors and bounds of the parameters."""

    @abstractmethod
    def starts(self, shares_NK: Array, z_FN: Array, weights_FN: Array) -> list[Array]:
        """Return starting points, each of shape F x P."""

    @abstractmethod
    def model(self, shares_QK: Array) -> Model:
        """Predictions in standardised units, and their derivatives by the parameters."""

    def fit(self, shares_NK: Array, losses_FN: Array, weights_FN: Array, warm: Fitted | None = None) -> Fitted:
        """Fit every row of losses under its weights."""
        z, units = standardise(losses_FN, weights_FN)
        starts = [warm.arrays["theta"]] if warm else self.starts(shares_NK, z, weights_FN)
        objective = least_squares(self.model(shares_NK), z, weights_FN, self.noise, self.huber)
        theta = minimise_from(objective, starts, self.prior(shares_NK.shape[1]))
        return Fitted({"theta": theta, **units})

    def predict(self, fitted: Fitted, shares_QK: Array) -> Array:
        """Losses, shape F x Q, held within their bounds; shares may sum to less than 1."""
        return as_losses(fitted, self.model(shares_QK)(fitted.arrays["theta"])[0])


@dataclass(frozen=True)
class ExponentialLaw(ParametricForm):
    """c + exp(t . r), the published form. Parameters: c, then t_1 to t_K (their factor k is a common shift of t).

    The search starts from a profile over c with a log-linear solution for t.

    `slope_sd` is the width of the prior of each t. The default is so wide that the runs alone decide, as published.
    """

    name: str = "exponential"
    noise: float = 0.02
    huber: float = 0.06
    slope_sd: float = 10.0

    def prior(self, num_domains: int) -> Prior:
        """Wide bounds that only prevent overflow."""
        slopes = np.ones(num_domains)
        return Prior(
            mean=np.r_[-2.0, 0.0 * slopes],
            sd=np.r_[10.0, self.slope_sd * slopes],
            lower=np.r_[-1e3, -60.0 * slopes],
            upper=np.r_[5.0, 15.0 * slopes],
        )

    def starts(self, shares_NK: Array, z_FN: Array, weights_FN: Array) -> list[Array]:
        """Four levels c below the lowest loss, and for each the weighted log-linear solution."""
        lowest = np.where(weights_FN > 0, z_FN, np.inf).min(axis=1)
        starts = []
        for offset in (0.03, 0.2, 1.0, 5.0):
            level = lowest - offset
            height = np.maximum(z_FN - level[:, None], 1e-3)
            weighted = shares_NK.T[None] * (weights_FN * height**2)[:, None, :]
            normal = weighted @ shares_NK + 1e-4 * np.eye(shares_NK.shape[1])
            slope = np.linalg.solve(normal, weighted @ np.log(height)[:, :, None])[:, :, 0]
            starts.append(np.concatenate([level[:, None], slope], axis=1))
        return starts

    def model(self, shares_QK: Array) -> Model:
        """c + exp(t . r)."""

        def evaluate(theta_FP: Array) -> tuple[Array, Callable[[], Array]]:
            height = np.exp(np.clip(theta_FP[:, 1:] @ shares_QK.T, -50.0, 20.0))

            def derivatives() -> Array:
                jacobian = np.ones((*height.shape, theta_FP.shape[1]))
                jacobian[:, :, 1:] = height[:, :, None] * shares_QK[None]
                return jacobian

            return theta_FP[:, :1] + height, derivatives

        return evaluate


@dataclass(frozen=True)
class PowerLaw(ParametricForm):
    """c + (s0 + sum_j s_j r_j^g_j)^(-a) with all s >= 0.

    Parameters: c, log s0, log a, log s_1 to log s_K, then log g: one for all domains when `shared`, else K.

    An `inner_range` of one value fixes g, and an `outer_range` of one value fixes a. A share of 0 is a real point:
    r^g is exactly 0 there. The log-normal priors keep the law finite with few runs. Their centres and widths were
    chosen on the public 3-domain runs and on simulated tables of 2, 5 and 7 domains. A `noise` of 0.05 in place of
    0.02 took the error of the shared exponent from 0.049 to 0.045 on splits of the 3-domain runs that were not used
    to choose it (8 of 32 runs).
    """

    name: str
    noise: float = 0.05
    huber: float = 0.06
    shared: bool = True
    inner_centre: float = 0.5
    inner_sd: float = 0.2
    inner_range: Range = (0.05, 1.5)
    outer_centre: float = 0.5
    outer_sd: float = 0.2
    outer_range: Range = (0.05, 8.0)
    source_sd: float = 2.0
    floor_log_centre: float = -1.5

    def prior(self, num_domains: int) -> Prior:
        """Log-normal priors of s0, a, s and g."""
        sources, inners = np.ones(num_domains), np.ones(1 if self.shared else num_domains)
        (least_inner, most_inner), (least_outer, most_outer) = np.log(self.inner_range), np.log(self.outer_range)
        return Prior(
            mean=np.r_[
                -1.8, self.floor_log_centre, np.log(self.outer_centre), -3.0 * sources,
                np.log(self.inner_centre) * inners,
            ],
            sd=np.r_[10.0, 2.0, self.outer_sd, self.source_sd * sources, self.inner_sd * inners],
            lower=np.r_[-30.0, -12.0, least_outer, -12.0 * sources, least_inner * inners],
            upper=np.r_[3.0, 8.0, most_outer, 12.0 * sources, most_inner * inners],
        )  # fmt: skip

    def starts(self, shares_NK: Array, z_FN: Array, weights_FN: Array) -> list[Array]:
        """Three levels c below the lowest loss; the sources s by a ridge solution of (z - c)^(-1/a), made positive."""
        lowest = np.where(weights_FN > 0, z_FN, np.inf).min(axis=1)
        num_domains = shares_NK.shape[1]
        mean = self.prior(num_domains).mean
        features = shares_NK**self.inner_centre
        starts = []
        for offset in (0.1, 0.5, 2.0):
            theta = np.repeat(mean[None], len(z_FN), axis=0)
            theta[:, 0] = lowest - offset
            amount = np.maximum(z_FN - theta[:, :1], 0.02) ** (-1.0 / self.outer_centre)
            weighted = features.T[None] * (weights_FN / amount.mean(axis=1)[:, None])[:, None, :]
            normal = weighted @ features + 1e-2 * np.eye(num_domains)
            source = np.linalg.solve(normal, weighted @ amount[:, :, None])[:, :, 0]
            least = 0.03 * np.abs(source).max(axis=1, keepdims=True) + 1e-6
            theta[:, 3 : 3 + num_domains] = np.log(np.maximum(source, least))
            starts.append(theta)
        return starts

    def model(self, shares_QK: Array) -> Model:
        """c + (s0 + sum_j s_j r_j^g_j)^(-a)."""
        num_domains = shares_QK.shape[1]
        present = shares_QK > 0
        log_share = np.log(np.maximum(shares_QK, _SMALLEST_SHARE))
        sources = slice(3, 3 + num_domains)

        def evaluate(theta: Array) -> tuple[Array, Callable[[], Array]]:
            floor, outer = np.exp(theta[:, 1])[:, None], np.exp(theta[:, 2])[:, None]
            inner = np.exp(theta[:, None, 3 + num_domains :])
            terms = np.exp(theta[:, None, sources] + inner * log_share) * present
            amount = floor + terms.sum(axis=2)
            height = np.exp(-outer * np.log(amount))

            def derivatives() -> Array:
                slope = -outer * height / amount
                jacobian = np.empty((*height.shape, theta.shape[1]))
                jacobian[:, :, 0] = 1.0
                jacobian[:, :, 1] = slope * floor
                jacobian[:, :, 2] = -outer * np.log(amount) * height
                jacobian[:, :, sources] = slope[:, :, None] * terms
                by_inner = jacobian[:, :, sources] * log_share * inner
                jacobian[:, :, 3 + num_domains :] = by_inner.sum(axis=2, keepdims=True) if self.shared else by_inner
                return jacobian

            return theta[:, :1] + height, derivatives

        return evaluate
