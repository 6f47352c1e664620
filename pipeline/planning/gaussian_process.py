"""A Gaussian process over mixtures: Matern 5/2 on r^q plus a linear kernel on r^q plus a constant.

The five hyper-parameters (amplitude, length, q, linear variance, noise) are set by the marginal likelihood with
log-normal priors, by damped Fisher scoring, many fits at once. Reads and writes nothing.
Axes: F fits, N runs, Q queries, K domains, H hyper-parameters.

Source: Rasmussen and Williams 2006, chapters 2, 4 and 5 for the equations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.planning.descent import Array
from pipeline.planning.fitted import Fitted, bounded, prediction_bounds, standardise

_ROOT_FIVE = np.sqrt(5.0)
_LOWER = np.log(np.array([1e-3, 0.05, 0.1, 1e-4, 1e-7]))
_UPPER = np.log(np.array([1e3, 20.0, 1.2, 1e3, 0.3]))
_JITTER = 1e-9


@dataclass(frozen=True)
class GaussianProcess:
    """Matern 5/2 + linear + constant on r^q in standardised units; gives a standard deviation of its own.

    Columns of theta are logarithms of: Matern variance, length, q, linear variance, noise variance of one unit of
    weight. Prior centres and widths were chosen on the public 3-domain runs.
    """

    name: str = "gaussian_process"
    centres: tuple[float, ...] = (3.0, 2.0, 0.5, 5.0, 0.02**2)
    spreads: tuple[float, ...] = (1.0, 1.0, 1.0, 1.5, 2.0)
    constant: float = 4.0
    max_steps: int = 25

    def num_params(self, num_domains: int) -> int:
        """Hyper-parameters; the process itself has no fixed number."""
        return len(self.centres)

    def fit(self, shares_NK: Array, losses_FN: Array, weights_FN: Array, warm: Fitted | None = None) -> Fitted:
        """Fit every row of `losses_FN`; a run of weight w has noise variance 1/w of the unit."""
        _, _, z = standardise(losses_FN, weights_FN)
        root_weight = np.sqrt(weights_FN)
        prior_mean = np.log(np.array(self.centres))
        if warm is not None:
            theta = self._optimise(warm.arrays["theta"], shares_NK, z, root_weight)[0]
        else:
            theta = self._from_starts(prior_mean, shares_NK, z, root_weight)
        return self._fitted(theta, shares_NK, losses_FN, weights_FN)

    def condition(self, fitted: Fitted, shares_NK: Array, losses_FN: Array, weights_FN: Array) -> Fitted:
        """The process of `fitted` (one fit) given other losses: its hyper-parameters stay as they are."""
        return self._fitted(fitted.arrays["theta"], shares_NK, losses_FN, weights_FN)

    def _fitted(self, theta_HP: Array, shares_NK: Array, losses_FN: Array, weights_FN: Array) -> Fitted:
        """`theta_HP` has one row a fit, or one for all where the weights are the same."""
        centre, scale, z = standardise(losses_FN, weights_FN)
        root_weight = np.sqrt(weights_FN)
        _, _, alpha = self._posterior(theta_HP, shares_NK, z, root_weight[: len(theta_HP)])
        return Fitted(
            {
                "theta": np.repeat(theta_HP, len(z) // len(theta_HP), axis=0),
                "centre": centre,
                "scale": scale,
                "alpha": alpha * root_weight,
                "root_weight": root_weight,
                **prediction_bounds(z, weights_FN),
            },
            shares_NK,
        )

    def predict(self, fitted: Fitted, shares_QK: Array) -> Array:
        """Posterior mean, shape F x Q, held within the bounds of `fitted.prediction_bounds`."""
        arrays = fitted.arrays
        if fitted.anchors is None:
            raise ValueError("a Gaussian process cannot predict without its training shares")
        theta = arrays["theta"]
        alike = bool((theta == theta[:1]).all())  # fits of `condition` share one kernel
        kernel = self._kernel(theta[:1] if alike else theta, shares_QK, fitted.anchors)
        standard = (kernel @ arrays["alpha"][:, :, None])[:, :, 0]
        return bounded(fitted, standard)

    def deviation(self, fitted: Fitted, shares_QK: Array) -> Array:
        """Posterior standard deviation of the noise-free loss, shape F x Q."""
        arrays = fitted.arrays
        theta = arrays["theta"]
        cross, inverse = self._explaining(fitted, shares_QK)
        explained = np.sum((cross @ inverse) * cross, axis=2)
        features = _powers(shares_QK, np.exp(theta[:, 2]))[0]
        own = np.exp(theta[:, :1]) + np.exp(theta[:, 3:4]) * np.sum(features**2, axis=2) + self.constant
        result: Array = arrays["scale"][:, None] * np.sqrt(np.maximum(own - explained, 0.0))
        return result

    def covariance(self, fitted: Fitted, left_QK: Array, right_PK: Array) -> Array:
        """Prior covariance of the noise-free losses of two sets of mixtures, shape F x Q x P."""
        kernel: Array = fitted.arrays["scale"][:, None, None] ** 2 * self._kernel(
            fitted.arrays["theta"], left_QK, right_PK
        )
        return kernel

    def posterior_covariance(self, fitted: Fitted, shares_QK: Array) -> Array:
        """Covariance of the noise-free losses given the runs, shape F x Q x Q; its diagonal is `deviation` squared."""
        cross, inverse = self._explaining(fitted, shares_QK)
        explained = cross @ inverse @ np.swapaxes(cross, 1, 2)
        own = self._kernel(fitted.arrays["theta"], shares_QK, shares_QK)
        result: Array = fitted.arrays["scale"][:, None, None] ** 2 * (own - explained)
        return result

    def _explaining(self, fitted: Fitted, shares_QK: Array) -> tuple[Array, Array]:
        """Weighted covariance of the asked mixtures with the runs, and the inverse of that among the runs."""
        if fitted.anchors is None:
            raise ValueError("a Gaussian process cannot predict without its training shares")
        theta, root = fitted.arrays["theta"], fitted.arrays["root_weight"]
        _, inverse, _ = self._posterior(theta, fitted.anchors, np.zeros_like(root), root)
        return self._kernel(theta, shares_QK, fitted.anchors) * root[:, None, :], inverse

    def doubt(self, fitted: Fitted, shares_QK: Array) -> Array:
        """Standard deviation of a new noisy loss, shape F x Q."""
        noise = fitted.arrays["scale"][:, None] * np.exp(0.5 * fitted.arrays["theta"][:, 4:5])
        result: Array = np.hypot(self.deviation(fitted, shares_QK), noise)
        return result

    def _from_starts(self, prior_mean: Array, shares: Array, z: Array, root_weight: Array) -> Array:
        best_theta, best_value = np.empty((len(z), 5)), np.full(len(z), np.inf)
        for length_shift, noise_shift in ((0.0, 0.0), (-0.7, -2.0), (0.7, 2.0)):
            start = np.repeat(prior_mean[None], len(z), axis=0)
            start[:, 1] += length_shift
            start[:, 4] += noise_shift
            theta, value = self._optimise(start, shares, z, root_weight)
            better = value < best_value
            best_theta[better], best_value[better] = theta[better], value[better]
        return best_theta

    def _optimise(self, start: Array, shares: Array, z: Array, root_weight: Array) -> tuple[Array, Array]:
        """Damped Fisher scoring on the negative log posterior of the hyper-parameters."""
        theta = np.clip(start, _LOWER, _UPPER)
        damping = np.full(len(theta), 1e-2)
        value, gradient, information = self._objective(theta, shares, z, root_weight)
        open_fits = np.arange(len(theta))
        diagonal = np.arange(5)
        for _ in range(self.max_steps):
            here, ascent, curve = theta[open_fits], gradient[open_fits], information[open_fits].copy()
            pressed = ((here <= _LOWER) & (ascent < 0)) | ((here >= _UPPER) & (ascent > 0))
            ascent = np.where(pressed, 0.0, ascent)
            curve *= (~pressed)[:, :, None] & (~pressed)[:, None, :]
            curve[:, diagonal, diagonal] *= 1.0 + damping[open_fits, None]
            curve[:, diagonal, diagonal] += 1e-9 + pressed
            step = np.linalg.solve(curve, ascent[:, :, None])[:, :, 0]
            trial = np.clip(here + np.clip(step, -1.5, 1.5), _LOWER, _UPPER)
            tried = self._objective(trial, shares, z[open_fits], root_weight[open_fits])
            gain = value[open_fits] - tried[0]
            better = gain > 0
            won = open_fits[better]
            theta[won] = trial[better]
            value[won], gradient[won], information[won] = (part[better] for part in tried)
            damping[open_fits] = np.clip(damping[open_fits] * np.where(better, 0.2, 6.0), 1e-6, 1e9)
            open_fits = open_fits[~((better & (gain < 1e-3)) | (damping[open_fits] > 1e4))]
            if open_fits.size == 0:
                break
        return theta, value

    def _posterior(self, theta: Array, shares: Array, z: Array, root_weight: Array) -> tuple[Array, Array, Array]:
        """The weighted covariance S K S + noise, its inverse, and alpha; left-out runs become identity rows."""
        covariance = self._kernel(theta, shares, shares) * root_weight[:, :, None] * root_weight[:, None, :]
        noisy = self._with_noise(covariance, theta, root_weight)
        inverse = np.asarray(np.linalg.inv(noisy), dtype=np.float64)
        alpha = (inverse @ (z * root_weight)[:, :, None])[:, :, 0]
        return covariance, inverse, alpha

    def _with_noise(self, covariance: Array, theta: Array, root_weight: Array) -> Array:
        noisy = covariance.copy()
        index = np.arange(covariance.shape[1])
        noisy[:, index, index] += np.where(root_weight > 0, np.exp(theta[:, 4])[:, None], 1.0) + _JITTER
        return noisy

    def _objective(self, theta: Array, shares: Array, z: Array, root_weight: Array) -> tuple[Array, Array, Array]:
        """Negative log posterior, its descent direction and Fisher information, each with a leading axis F."""
        num_fits, num_hyper = theta.shape
        kernel, slopes = self._kernel_slopes(theta, shares)
        outer = root_weight[:, :, None] * root_weight[:, None, :]
        noisy = self._with_noise(kernel * outer, theta, root_weight)
        inverse = np.linalg.inv(noisy)
        scaled = z * root_weight
        alpha = (inverse @ scaled[:, :, None])[:, :, 0]
        mean, spread = np.log(np.array(self.centres)), np.array(self.spreads)
        off = (theta - mean) / spread
        value = 0.5 * (np.sum(scaled * alpha, axis=1) + np.linalg.slogdet(noisy)[1] + np.sum(off**2, axis=1))
        noise_slope = np.zeros_like(noisy)
        index = np.arange(z.shape[1])
        noise_slope[:, index, index] = np.where(root_weight > 0, np.exp(theta[:, 4])[:, None], 0.0)
        all_slopes = [*(slope * outer for slope in slopes), noise_slope]
        moved = [inverse @ slope for slope in all_slopes]
        gradient = np.empty((num_fits, num_hyper))
        information = np.empty((num_fits, num_hyper, num_hyper))
        for a in range(num_hyper):
            quadratic = np.einsum("fn,fnm,fm->f", alpha, all_slopes[a], alpha)
            gradient[:, a] = 0.5 * (quadratic - np.trace(moved[a], axis1=1, axis2=2))
            for b in range(a, num_hyper):
                shared = 0.5 * np.sum(moved[a] * np.swapaxes(moved[b], 1, 2), axis=(1, 2))
                information[:, a, b] = information[:, b, a] = shared
        gradient -= off / spread
        information[:, np.arange(num_hyper), np.arange(num_hyper)] += 1.0 / spread**2
        return np.where(np.isfinite(value), value, np.inf), gradient, information

    def _kernel(self, theta: Array, left_AK: Array, right_BK: Array) -> Array:
        variance, length, power, linear, _ = np.exp(theta).T
        left, right = _powers(left_AK, power)[0], _powers(right_BK, power)[0]
        product = left @ np.swapaxes(right, 1, 2)
        distance = np.sqrt(_squared_distance(left, right, product) + 1e-14) / length[:, None, None]
        matern = (1.0 + _ROOT_FIVE * distance + 5.0 / 3.0 * distance**2) * np.exp(-_ROOT_FIVE * distance)
        result: Array = variance[:, None, None] * matern + linear[:, None, None] * product + self.constant
        return result

    def _kernel_slopes(self, theta: Array, shares: Array) -> tuple[Array, list[Array]]:
        """The kernel among the runs and its derivatives by the first four columns of theta."""
        variance, length, _, linear, _ = np.exp(theta)[:, :, None, None].swapaxes(0, 1)
        features, by_power = _powers(shares, np.exp(theta[:, 2]))
        product = features @ np.swapaxes(features, 1, 2)
        distance = np.sqrt(_squared_distance(features, features, product) + 1e-14) / length
        decay = variance * np.exp(-_ROOT_FIVE * distance)
        matern = (1.0 + _ROOT_FIVE * distance + 5.0 / 3.0 * distance**2) * decay
        base = -5.0 / 3.0 * (1.0 + _ROOT_FIVE * distance) * decay  # d matern / d distance, over distance
        own = np.sum(features * by_power, axis=2)
        crossed = features @ np.swapaxes(by_power, 1, 2)
        crossed = crossed + np.swapaxes(crossed, 1, 2)
        squared_by_power = 2.0 * (own[:, :, None] + own[:, None, :] - crossed)
        by_q = base * squared_by_power / (2.0 * length**2) + linear * crossed
        return matern + linear * product + self.constant, [matern, -base * distance**2, by_q, linear * product]


def _powers(shares: Array, power_F: Array) -> tuple[Array, Array]:
    """r^q a fit, shape F x N x K, and its derivative by log q; both are 0 where r is 0."""
    present: NDArray[np.bool_] = shares > 0
    log_share = np.log(np.maximum(shares, 1e-12))
    features = np.exp(power_F[:, None, None] * log_share) * present
    return features, features * log_share * power_F[:, None, None]


def _squared_distance(left: Array, right: Array, product: Array) -> Array:
    lengths = np.sum(left**2, axis=2)[:, :, None] + np.sum(right**2, axis=2)[:, None, :]
    result: Array = np.maximum(lengths - 2.0 * product, 0.0)
    return result
