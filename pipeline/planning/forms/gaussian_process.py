"""A Gaussian process over mixtures: Matern 5/2 on r^q, plus a linear kernel on r^q, plus a constant.

The five hyper-parameters maximise the marginal likelihood under log-normal priors, many fits at once. The process
also says how uncertain it is, which scales the prediction intervals.
Reads and writes nothing. Axes: F fits, N runs, Q queries, K domains, H hyper-parameters.

Source: Rasmussen and Williams 2006, chapters 2, 4 and 5 for the equations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.planning.arrays import Array, Index
from pipeline.planning.forms.descent import Objective, Prior, minimise_from
from pipeline.planning.forms.fitted import Fitted, as_losses, standardise

_ROOT_FIVE = np.sqrt(5.0)
_JITTER = 1e-9
_CONSTANT = 4.0
# Logarithms of: Matern variance, length, power q, linear variance, noise variance of one unit of weight.
# Centres and widths were chosen on the public 3-domain runs.
PRIOR = Prior(
    mean=np.log([3.0, 2.0, 0.5, 5.0, 0.02**2]),
    sd=np.array([1.0, 1.0, 1.0, 1.5, 2.0]),
    lower=np.log([1e-3, 0.05, 0.1, 1e-4, 1e-7]),
    upper=np.log([1e3, 20.0, 1.2, 1e3, 0.3]),
)
# The centre of the prior, a short length with little noise, and a long length with much.
_STARTS = PRIOR.mean + np.array([[0.0] * 5, [0.0, -0.7, 0.0, 0.0, -2.0], [0.0, 0.7, 0.0, 0.0, 2.0]])

# The hyper-parameters are few. Beyond this many runs, folds keep those of the fit on all runs.
LEARNT_ONCE_ABOVE = 36
# A step of learning takes time with the cube of the runs: of more, a draw of this many is learnt from.
MOST_LEARNT_FROM = 192


@dataclass(frozen=True)
class GaussianProcess:
    """Matern 5/2 + linear + constant on r^q, in standardised units."""

    name: str = "gaussian_process"

    def fit(self, shares_NK: Array, losses_FN: Array, weights_FN: Array, warm: Fitted | None = None) -> Fitted:
        """Fit every row of losses; a run of weight w has 1/w times the noise variance of a run of weight 1."""
        z, units = standardise(losses_FN, weights_FN)
        root = np.sqrt(weights_FN)
        if warm and len(shares_NK) > LEARNT_ONCE_ABOVE:
            theta = warm.arrays["theta"]
        elif warm or len(shares_NK) <= MOST_LEARNT_FROM:
            starts = [warm.arrays["theta"]] if warm else [np.repeat(start[None], len(z), axis=0) for start in _STARTS]
            theta = minimise_from(_likelihood(shares_NK, z, root), starts, PRIOR)
        else:
            theta = np.concatenate([_learn_from_some(shares_NK, *pair) for pair in zip(z, root, strict=True)])
        alpha = np.empty_like(z)
        for kernel, fits in _kernels(theta, shares_NK, shares_NK):
            for f in fits:
                noisy = _noisy_covariance(kernel[None], theta[[f]], root[[f]])[0]
                alpha[f] = root[f] * np.linalg.solve(noisy, z[f] * root[f])
        return Fitted({"theta": theta, "alpha": alpha, "root_weight": root, **units}, shares_NK)

    def predict(self, fitted: Fitted, shares_QK: Array) -> Array:
        """Posterior mean, shape F x Q, held within its bounds."""
        theta, alpha = fitted.arrays["theta"], fitted.arrays["alpha"]
        standard = np.empty((len(theta), len(shares_QK)))
        for kernel, fits in _kernels(theta, shares_QK, fitted.anchors):
            standard[fits] = alpha[fits] @ kernel.T
        return as_losses(fitted, standard)

    def deviation(self, fitted: Fitted, shares_QK: Array) -> Array:
        """Posterior standard deviation of a new noisy loss, shape F x Q."""
        theta, root, anchors = fitted.arrays["theta"], fitted.arrays["root_weight"], fitted.anchors
        variance = np.empty((len(theta), len(shares_QK)))
        for f, one in enumerate(theta[:, None]):
            noisy = _noisy_covariance(_kernel(one, anchors, anchors), one, root[[f]])[0]
            cross = _kernel(one, anchors, shares_QK)[0] * root[f][:, None]
            features, _ = _powers(shares_QK, np.exp(one[:, 2]))
            prior = np.exp(one[0, 0]) + np.exp(one[0, 3]) * np.sum(features[0] ** 2, axis=1) + _CONSTANT
            unexplained = prior - np.sum(cross * np.linalg.solve(noisy, cross), axis=0)
            variance[f] = np.maximum(unexplained, 0.0) + np.exp(one[0, 4])
        return fitted.arrays["scale"][:, None] * np.sqrt(variance)


def _learn_from_some(shares_NK: Array, z_N: Array, root_weight_N: Array) -> Array:
    """Hyper-parameters of one fit, learnt from a fixed draw of its runs."""
    order = np.random.default_rng(0).permutation(len(shares_NK))
    some = order[root_weight_N[order] > 0][:MOST_LEARNT_FROM]
    objective = _likelihood(shares_NK[some], z_N[None, some], root_weight_N[None, some])
    return minimise_from(objective, [start[None] for start in _STARTS], PRIOR)


def _kernels(theta: Array, left_AK: Array, right_BK: Array) -> Iterator[tuple[Array, Index]]:
    """Each different kernel, A x B, with the fits that have it: the folds of a large table share one."""
    different, which = np.unique(theta, axis=0, return_inverse=True)
    for number, one in enumerate(different):
        yield _kernel(one[None], left_AK, right_BK)[0], np.flatnonzero(which.reshape(-1) == number)


def _noisy_covariance(kernel: Array, theta: Array, root_weight: Array) -> Array:
    """Return the weighted kernel plus noise; a run that is left out becomes a row of the identity matrix."""
    noisy = kernel * root_weight[:, :, None] * root_weight[:, None, :]
    index = np.arange(noisy.shape[1])
    noisy[:, index, index] += np.where(root_weight > 0, np.exp(theta[:, 4])[:, None], 1.0) + _JITTER
    return noisy


def _likelihood(shares: Array, z_FN: Array, root_weight_FN: Array) -> Objective:
    """Negative log marginal likelihood with its downhill direction and Fisher information."""

    def objective(theta: Array, fits: Index) -> tuple[Array, Array, Array]:
        root, scaled = root_weight_FN[fits], z_FN[fits] * root_weight_FN[fits]
        kernel, slopes = _kernel_slopes(theta, shares)
        noisy = _noisy_covariance(kernel, theta, root)
        inverse = np.linalg.inv(noisy)
        alpha = (inverse @ scaled[:, :, None])[:, :, 0]
        cost = 0.5 * (np.sum(scaled * alpha, axis=1) + np.linalg.slogdet(noisy)[1])
        index = np.arange(noisy.shape[1])
        noise_slope = np.zeros_like(noisy)
        noise_slope[:, index, index] = np.where(root > 0, np.exp(theta[:, 4])[:, None], 0.0)
        outer = root[:, :, None] * root[:, None, :]
        slopes_HFNN = np.stack([*(slope * outer for slope in slopes), noise_slope])
        moved_HFNN = inverse @ slopes_HFNN
        quadratic_HF = np.sum((slopes_HFNN @ alpha[:, :, None])[:, :, :, 0] * alpha, axis=2)
        downhill = 0.5 * (quadratic_HF - np.trace(moved_HFNN, axis1=2, axis2=3)).T
        information = 0.5 * np.einsum("afnm,bfmn->fab", moved_HFNN, moved_HFNN)
        return cost, downhill, information

    return objective


def _kernel(theta: Array, left_AK: Array, right_BK: Array) -> Array:
    """Covariance of standardised losses, shape F x A x B."""
    variance, length, power, linear, _ = np.exp(theta).T
    left, right = _powers(left_AK, power)[0], _powers(right_BK, power)[0]
    product = left @ np.swapaxes(right, 1, 2)
    distance = _distance(left, right, product) / length[:, None, None]
    matern = (1.0 + _ROOT_FIVE * distance + 5.0 / 3.0 * distance**2) * np.exp(-_ROOT_FIVE * distance)
    result: Array = variance[:, None, None] * matern + linear[:, None, None] * product + _CONSTANT
    return result


def _kernel_slopes(theta: Array, shares: Array) -> tuple[Array, list[Array]]:
    """Return the kernel among the runs and its derivatives by the first four columns of theta."""
    variance, length, _, linear, _ = np.exp(theta)[:, :, None, None].swapaxes(0, 1)
    features, by_power = _powers(shares, np.exp(theta[:, 2]))
    product = features @ np.swapaxes(features, 1, 2)
    distance = _distance(features, features, product) / length
    decay = variance * np.exp(-_ROOT_FIVE * distance)
    matern = (1.0 + _ROOT_FIVE * distance + 5.0 / 3.0 * distance**2) * decay
    base = -5.0 / 3.0 * (1.0 + _ROOT_FIVE * distance) * decay  # derivative of matern by distance, over distance
    squared = np.sum(features * by_power, axis=2)
    crossed = features @ np.swapaxes(by_power, 1, 2)
    crossed = crossed + np.swapaxes(crossed, 1, 2)
    squared_by_power = 2.0 * (squared[:, :, None] + squared[:, None, :] - crossed)
    by_q = base * squared_by_power / (2.0 * length**2) + linear * crossed
    return matern + linear * product + _CONSTANT, [matern, -base * distance**2, by_q, linear * product]


def _powers(shares: Array, power_F: Array) -> tuple[Array, Array]:
    """r^q for each fit, shape F x N x K, and its derivative by log q; both are 0 where r is 0."""
    log_share = np.log(np.maximum(shares, 1e-12))
    features = np.exp(power_F[:, None, None] * log_share) * (shares > 0)
    return features, features * log_share * power_F[:, None, None]


def _distance(left: Array, right: Array, product: Array) -> Array:
    lengths = np.sum(left**2, axis=2)[:, :, None] + np.sum(right**2, axis=2)[:, None, :]
    result: Array = np.sqrt(np.maximum(lengths - 2.0 * product, 0.0) + 1e-14)
    return result
