"""Cross-validate every form on one set of runs, and weigh the forms by their held-out errors.

Reads and writes nothing. Axes: C losses, G folds, N runs, M member forms, F fits (for each loss its G folds).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.planning.arrays import Array, Index, Mask
from pipeline.planning.forms.catalogue import FORMS, MEMBERS, PROCESS, REGULARISED_EXPONENTIAL
from pipeline.planning.forms.fitted import Fitted, join_fits
from pipeline.planning.runs.run_table import mixture_groups

# A form's weight is a power of its likelihood, which is error^-mixtures for normal held-out errors. The power is below
# 1 because held-out errors of one table are not independent. On public runs and simulated tables of 2 to 7 domains 1/2
# errs least from 24 runs on, 1/3 below; both err up to a seventh less than the one form with the least error.
LIKELIHOOD_POWER = 0.5
MAX_FOLDS = 36
SMALLEST_WEIGHT = 1e-3  # a form of less weight is left out
# Few mixtures (at most 2 k + 2) of k = 2 domains, all at least this far from the ends, show no difference between the
# forms, and flexible ones overfit. So the exponential law with a prior on its slopes is used: on the 22 public settings
# of that kind it errs by 0.0109, the weighted mean by 0.0132.
MIDDLE = 0.2
_SAME_SHARE = 1e-6  # tolerance: 1 - 0.8 is a little less than 0.2
_SMALLEST_ERROR = 1e-9
_NUMBERS_AT_ONCE = 2_000_000

Weights = dict[str, float]
"""Form -> its part in the law; they sum to 1."""


@dataclass(frozen=True)
class Folded:
    """All fits of all forms: `whole[form]` has C fits, `folds[form]` has G fits for each of the C losses in turn."""

    fold_of_run: Index
    num_folds: int
    whole: dict[str, Fitted]
    folds: dict[str, Fitted]
    held_out: dict[str, Array]  # form -> C x N predictions of each run by the fit without it
    deviation: Array  # C x N standard deviation of a new loss at each run, by the process fitted without it


def assign_folds(shares_NK: Array) -> tuple[Index, int]:
    """Return the fold that leaves each run out, and the number of folds; the same for any order of the runs.

    A fold leaves out whole mixtures: replicates stay together, because a replicate would give its twin away. Up to
    MAX_FOLDS mixtures each is left out alone.
    """
    group = mixture_groups(shares_NK)
    num_groups = int(group.max()) + 1
    num_folds = min(num_groups, MAX_FOLDS)
    shuffled = np.random.default_rng(0).permutation(num_groups)
    return (shuffled % num_folds)[group], num_folds


def fit_folds(shares_NK: Array, losses_CN: Array, weights_CN: Array) -> Folded:
    """Fit every form on all runs and on every fold. An unmeasured loss must have weight 0 and any finite value."""
    fold_of_run, num_folds = assign_folds(shares_NK)
    num_columns, num_runs = losses_CN.shape
    trained_GN = fold_of_run != np.arange(num_folds)[:, None]
    losses_FN = np.repeat(losses_CN, num_folds, axis=0)
    weights_FN = (weights_CN[:, None, :] * trained_GN).reshape(-1, num_runs)
    whole, folds, held_out = {}, {}, {}
    # As many losses at once as leave room in memory for all derivatives of the largest form.
    num_at_once = max(1, _NUMBERS_AT_ONCE // (num_folds * num_runs * 2 * (shares_NK.shape[1] + 2)))
    for name, form in FORMS.items():
        some_whole, some_folds = [], []
        for at in range(0, num_columns, num_at_once):
            some, in_folds = slice(at, at + num_at_once), slice(at * num_folds, (at + num_at_once) * num_folds)
            some_whole.append(form.fit(shares_NK, losses_CN[some], weights_CN[some]))
            warm = some_whole[-1].take(np.repeat(np.arange(len(losses_CN[some])), num_folds))
            some_folds.append(form.fit(shares_NK, losses_FN[in_folds], weights_FN[in_folds], warm))
        whole[name], folds[name] = join_fits(some_whole), join_fits(some_folds)
        held_out[name] = np.empty(losses_CN.shape)
    deviation = np.empty(losses_CN.shape)
    for fold in range(num_folds):
        here = fold_of_run == fold
        fits = np.arange(num_columns) * num_folds + fold
        for name, form in FORMS.items():
            held_out[name][:, here] = form.predict(folds[name].take(fits), shares_NK[here])
        deviation[:, here] = PROCESS.deviation(folds[PROCESS.name].take(fits), shares_NK[here])
    return Folded(fold_of_run, num_folds, whole, folds, held_out, deviation)


@dataclass(frozen=True)
class Weighing:
    """The weights of the forms, and what cross-validation says of them."""

    weights: Weights
    errors: list[dict[str, float]]  # for each loss: form -> mean absolute held-out error
    predicted: Array  # C x N held-out predictions of the weighted mean
    residuals: Array  # C x N absolute errors of these


def choose_weights(folded: Folded, shares_NK: Array, losses_CN: Array, counted_CN: Array) -> Weighing:
    """Weigh the forms by their errors on the runs to which `counted_CN` gives a weight above 0.

    Weights chosen by an error make that error look too small. So each fold is predicted with the weights that the
    errors of the other folds give. A run counts by the inverse of the variance that the process predicts for it unseen:
    an error at a corner that no other run foretells says little about a form.
    On simulated designs with noise the law then errs 5 % less, on random mixtures 1 % more (2026-11-30).
    """
    trusted_CN = counted_CN / np.maximum(folded.deviation, _SMALLEST_ERROR) ** 2
    gaps = {name: np.abs(held - losses_CN) for name, held in folded.held_out.items()}
    predicted = np.empty(losses_CN.shape)
    for fold in range(folded.num_folds):
        here = folded.fold_of_run == fold
        weights = _law_weights(gaps, shares_NK, trusted_CN, ~here)
        predicted[:, here] = weighted_mean({name: folded.held_out[name][:, here] for name in weights}, weights)
    everywhere = np.ones(losses_CN.shape[1], dtype=bool)
    errors = {name: _mean_errors(gap, counted_CN) for name, gap in gaps.items()}
    by_loss = [{name: float(error[c]) for name, error in errors.items()} for c in range(len(losses_CN))]
    weights = _law_weights(gaps, shares_NK, trusted_CN, everywhere)
    return Weighing(weights, by_loss, predicted, np.abs(predicted - losses_CN))


def _law_weights(gaps: Mapping[str, Array], shares_NK: Array, counted_CN: Array, used_N: Mask) -> Weights:
    """Weights by the errors on the used runs: error^(-mixtures / 2), with the geometric mean of the losses' errors."""
    num_mixtures = int(mixture_groups(shares_NK).max()) + 1
    few = num_mixtures <= 2 * shares_NK.shape[1] + 2
    if few and shares_NK.shape[1] == 2 and shares_NK.min() >= MIDDLE - _SAME_SHARE:
        return {REGULARISED_EXPONENTIAL: 1.0}
    counted = counted_CN * used_N
    judged = counted.sum(axis=1) > 0
    errors_MC = np.stack([_mean_errors(gaps[name][judged], counted[judged]) for name in MEMBERS])
    log_error_M = np.log(np.maximum(errors_MC, _SMALLEST_ERROR)).mean(axis=1)
    likelihood = np.exp(-LIKELIHOOD_POWER * num_mixtures * (log_error_M - log_error_M.min()))
    weights = np.array(list(MEMBERS.values())) * likelihood
    weights[weights < SMALLEST_WEIGHT * weights.sum()] = 0.0
    weights /= weights.sum()
    return {name: float(weight) for name, weight in zip(MEMBERS, weights, strict=True) if weight > 0}


def _mean_errors(gaps_CN: Array, counted_CN: Array) -> Array:
    result: Array = np.sum(counted_CN * gaps_CN, axis=1) / counted_CN.sum(axis=1)
    return result


def weighted_mean(by_form: Mapping[str, Array], weights: Weights) -> Array:
    """Return the weighted mean of predictions of any shape."""
    total: Array = np.sum([weight * by_form[name] for name, weight in weights.items()], axis=0)
    return total


def predict_weighted(fits: Mapping[str, Fitted], weights: Weights, shares_QK: Array) -> Array:
    """Predictions of the weighted mean, shape F x Q."""
    return weighted_mean({name: FORMS[name].predict(fits[name], shares_QK) for name in weights}, weights)
