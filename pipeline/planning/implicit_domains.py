"""The exponential law of a validation set that is itself an unknown mix: a sum of exponentials.

Axes: F fits, N runs, Q queries, K domains, M implicit domains. Reads and writes nothing.

Source: Ye et al. 2024 (arXiv 2403.16952): L(r) = sum_m s_m (c_m + k_m exp(t_m . r)) over M implicit domains. All c_m
make one level, and s_m k_m is absorbed by a common shift of t_m.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.planning.descent import Array, Model, Prior
from pipeline.planning.fitted import Fitted, bounded, standardise
from pipeline.planning.parametric import ExponentialLaw, best_of, finish

_HEIGHT = (-50.0, 20.0)  # of a logarithm before it is raised: no overflow


@dataclass(frozen=True)
class ImplicitDomains:
    """c + sum_m exp(t_m . r): 1 + M K parameters, started from the plain exponential law split at random in M.

    Priors and noise in standardised units. With three terms it errs by 0.025 on the public 3-domain runs (24 of 32),
    the plain exponential law by 0.052 on the same splits.
    """

    name: str
    num_terms: int = 3
    noise: float = 0.02
    huber: float = 0.06
    floor_sd: float = 10.0
    slope_mean: float = -0.7
    slope_sd: float = 4.0
    num_starts: int = 3

    def num_params(self, num_domains: int) -> int:
        """Free parameters a loss column."""
        return 1 + self.num_terms * num_domains

    def fit(self, shares_NK: Array, losses_FN: Array, weights_FN: Array, warm: Fitted | None = None) -> Fitted:
        """Fit every row of `losses_FN` under its weights; `warm` gives one starting point a fit."""
        centre, scale, z = standardise(losses_FN, weights_FN)
        num_slopes = self.num_terms * shares_NK.shape[1]
        prior = Prior(
            mean=np.r_[-2.0, np.full(num_slopes, self.slope_mean)],
            precision=1.0 / np.r_[self.floor_sd, np.full(num_slopes, self.slope_sd)] ** 2,
            lower=np.r_[-1e3, np.full(num_slopes, -60.0)],
            upper=np.r_[5.0, np.full(num_slopes, 15.0)],
        )
        starts = [warm.arrays["theta"]] if warm else self._split(shares_NK, losses_FN, weights_FN)
        theta = best_of(self._model(shares_NK), starts, z, weights_FN, prior, self.noise, self.huber)
        return finish(theta, centre, scale, z, weights_FN)

    def predict(self, fitted: Fitted, shares_QK: Array) -> Array:
        """Losses, shape F x Q, held within the bounds of `fitted.prediction_bounds`."""
        theta = fitted.arrays["theta"]
        return bounded(fitted, theta[:, :1] + self._heights(theta, shares_QK).sum(axis=1))

    def _split(self, shares: Array, losses: Array, weights: Array) -> list[Array]:
        """The plain law's slopes, an equal part of its height a term, moved apart at random (always alike)."""
        plain = ExponentialLaw().fit(shares, losses, weights).arrays["theta"]
        slopes = np.clip(plain[:, None, 1:], -8.0, 3.0) - np.log(self.num_terms)
        rng = np.random.default_rng(0)
        starts = []
        for _ in range(self.num_starts):
            apart = rng.normal(size=(self.num_terms, shares.shape[1]))
            moved = slopes + (apart - apart.mean(axis=0))
            starts.append(np.concatenate([plain[:, :1], moved.reshape(len(plain), -1)], axis=1))
        return starts

    def _heights(self, theta: Array, shares: Array) -> Array:
        """exp(t_m . r), shape F x M x Q; shares of shape Q x K, or F x Q x K."""
        slopes = theta[:, 1:].reshape(len(theta), self.num_terms, -1)
        power = slopes @ (shares.T if shares.ndim == 2 else np.swapaxes(shares, 1, 2))
        heights: Array = np.exp(np.clip(power, *_HEIGHT))
        return heights

    def _model(self, shares_NK: Array) -> Model:
        """Columns of theta: c, then t_m1..t_mK for each term."""

        def model(theta: Array) -> tuple[Array, Array]:
            heights = self._heights(theta, shares_NK)
            jacobian = np.empty((len(theta), len(shares_NK), theta.shape[1]))
            jacobian[:, :, 0] = 1.0
            slopes = np.swapaxes(heights, 1, 2)[:, :, :, None] * shares_NK[None, :, None, :]
            jacobian[:, :, 1:] = slopes.reshape(*jacobian.shape[:2], -1)
            return theta[:, :1] + heights.sum(axis=1), jacobian

        return model
