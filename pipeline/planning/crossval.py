"""Cross-validation of every form on one set of runs: which form, how good, and what is left for the intervals.

Held-out units are mixtures, never runs: replicates of a mixture stay together, else a replicate would betray its
twin. Up to MAX_FOLDS mixtures it is leave-one-out, beyond that k-fold. Reads and writes nothing.
Axes: C loss columns, G folds, F fits (the C fits on all runs first, then column by column the G folds).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.planning.descent import Array
from pipeline.planning.fitted import Fitted
from pipeline.planning.forms import (
    ANYWHERE,
    AVERAGE,
    DEFAULT,
    ENSEMBLES,
    FORMS,
    IMPLICIT_DOMAINS,
    PROCESS,
    REGULARISED_EXPONENTIAL,
    combine_predictions,
    member_weights,
)

MAX_FOLDS = 36
# A form other than the weighted three is taken only when its error is below this share of theirs: with few runs
# the smallest of a dozen cross-validated errors is small by luck. 0.9 was best or equal of 0.7 to 1.0 on the public
# 3-domain runs (8, 14 and 24 of 32) and on simulated tables of 2, 5 and 7 domains.
SWITCH_BELOW = 0.9
# With at most 2 k + 2 mixtures held-out errors are too rough even to weigh the three: their plain average is taken
# unless another form has a quarter of its error. Public 2-domain runs, each of 5 ratios left out (160M at 30k; 70M at
# 10k, 14k, 20k, 30k steps): the average errs by 0.0054, 0.0074, 0.0169, 0.0080, 0.0064, and switching at half of the
# error by 0.0066, 0.0075, 0.0170, 0.0081, 0.0079.
FEW_SWITCH_BELOW = 0.25
# With so few mixtures of two domains, all at least this far from the ends, every form bends alike and what errs is its
# freedom: the exponential law with a prior is taken. Over all 22 settings of those runs it errs by 0.0107, the average
# by 0.0116, the law without prior by 0.0141. Nearer to the ends the power laws know better (simulated runs "few" in
# tests/benchmarks/results/planning.md: from 0.2 to 0.8 both err alike, from 0.02 to 0.98 the average a tenth less).
MIDDLE = 0.2
# A single form is taken only with this many mixtures more than it has parameters.
SPARE_MIXTURES = 2
# Nearly as many parameters as runs: small held-out errors owe more to luck, so they must be smaller by this as well.
# Simulated runs of 3 and 5 domains: sums of exponentials without noise are foretold 2 to 6 times as well with it as
# without; at 1, noise of 2 % made it be taken wrongly now and then (errors up to 8 % larger), at 0.5 never.
MORE_FOR = {IMPLICIT_DOMAINS: 0.5}
SAME_SHARE = 1e-6  # 1 - 0.8 is a little less than 0.2


@dataclass(frozen=True)
class Folded:
    """All fits of all forms on one table: `whole[form]` has C fits, `folds[form]` has C * G fits."""

    fold_of_run: NDArray[np.intp]
    num_folds: int
    whole: dict[str, Fitted]
    folds: dict[str, Fitted]
    held_out: dict[str, Array]  # form -> C x N predictions of each run by the fit that left it out
    doubt: Array  # C x N standard deviation of a new loss at each run, by the process that left it out

    def fold_rows(self, column: int) -> slice:
        """The fits of one column in `folds`."""
        return slice(column * self.num_folds, (column + 1) * self.num_folds)


@dataclass(frozen=True)
class Choice:
    """The form chosen for one loss column, and every candidate's cross-validated mean absolute error."""

    form: str
    errors: dict[str, float]
    weights: Array  # of the three, for the weighted ensemble
    held_out: Array  # for each run, by the form that the other folds alone would have chosen, not fitted on it


def assign_folds(shares_NK: Array, max_folds: int = MAX_FOLDS) -> tuple[NDArray[np.intp], int]:
    """Fold of every run; equal mixtures share one. Deterministic, and the same for any order of the runs."""
    _, group = np.unique(np.round(shares_NK, 6), axis=0, return_inverse=True)
    group = np.asarray(group, dtype=np.intp).reshape(-1)
    num_groups = int(group.max()) + 1
    num_folds = min(num_groups, max_folds)
    shuffled = np.random.default_rng(0).permutation(num_groups)
    return (shuffled % num_folds)[group], num_folds


@dataclass(frozen=True)
class FoldPlan:
    """What every fold trains on. G folds, C columns, N runs; a run left out has weight 0 in its fold."""

    fold_of_run: NDArray[np.intp]  # the fold whose fits predict the run
    losses: Array  # G x C x N; they differ between folds only where nesting carried losses over
    weights: Array  # G x C x N


def plan_folds(shares_NK: Array, losses_CN: Array, weights_CN: Array) -> FoldPlan:
    """Leave one mixture out at a time (or one of MAX_FOLDS groups of mixtures)."""
    fold_of_run, num_folds = assign_folds(shares_NK)
    mask_GN = (fold_of_run[None, :] != np.arange(num_folds)[:, None]).astype(float)
    losses = np.repeat(losses_CN[None], num_folds, axis=0)
    return FoldPlan(fold_of_run, losses, weights_CN[None] * mask_GN[:, None, :])


def fit_folds(shares_NK: Array, losses_CN: Array, weights_CN: Array, plan: FoldPlan | None = None) -> Folded:
    """Fit every form on all runs and on every fold; empty losses must carry weight 0 and any finite value."""
    plan = plan or plan_folds(shares_NK, losses_CN, weights_CN)
    num_folds, num_columns, num_runs = plan.losses.shape
    losses_FN = np.swapaxes(plan.losses, 0, 1).reshape(-1, num_runs)
    weights_FN = np.swapaxes(plan.weights, 0, 1).reshape(-1, num_runs)
    own_fold_CN = np.arange(num_columns)[:, None] * num_folds + plan.fold_of_run[None, :]
    whole, folds, held_out = {}, {}, {}
    for name, form in FORMS.items():
        whole[name] = form.fit(shares_NK, losses_CN, weights_CN)
        warm = whole[name].take(np.repeat(np.arange(num_columns), num_folds))
        folds[name] = form.fit(shares_NK, losses_FN, weights_FN, warm)
        predicted_FN = form.predict(folds[name], shares_NK)
        held_out[name] = predicted_FN[own_fold_CN, np.arange(num_runs)[None, :]]
    own_run_N = np.arange(num_runs)[None, :]
    doubt = PROCESS.doubt(folds[PROCESS.name], shares_NK)[own_fold_CN, own_run_N]
    return Folded(plan.fold_of_run, num_folds, whole, folds, held_out, doubt)


@dataclass(frozen=True)
class PickRule:
    """The form to take unless the held-out error of one of `others` is below `switch_below` times its own."""

    default: str
    switch_below: float
    others: tuple[str, ...]


def pick_rule(shares_NK: Array) -> PickRule:
    """The rule for runs of these mixtures: by how many there are, and where."""
    num_mixtures, num_domains = len(np.unique(np.round(shares_NK, 6), axis=0)), shares_NK.shape[1]
    few_enough = [
        name
        for name in ANYWHERE
        if name in ENSEMBLES or FORMS[name].num_params(num_domains) + SPARE_MIXTURES <= num_mixtures
    ]
    if num_mixtures > 2 * num_domains + 2:
        return PickRule(DEFAULT, SWITCH_BELOW, tuple(few_enough))
    in_the_middle = num_domains == 2 and shares_NK.min() >= MIDDLE - SAME_SHARE
    return PickRule(REGULARISED_EXPONENTIAL if in_the_middle else AVERAGE, FEW_SWITCH_BELOW, tuple(few_enough))


def choose_form(
    folded: Folded, column: int, losses_N: Array, weights_N: Array, judged_N: NDArray[np.bool_], rule: PickRule
) -> Choice:
    """Compare all candidates on the runs marked in `judged_N` and pick one.

    The form with the smallest held-out errors owes some of that to luck, and intervals made from them would be too
    narrow. So each fold is predicted once more by the form (and weights) that the errors of the other folds choose.
    """
    counted_N = weights_N * judged_N
    by_form = {name: held[column] for name, held in folded.held_out.items()}
    without = folded.fold_of_run[None, :] != np.arange(folded.num_folds)[:, None]
    masks = np.concatenate([np.ones((1, len(losses_N))), without]) * counted_N  # all runs, then without each fold
    alone = masks.sum(axis=1) <= 0  # nothing judged is left: then the choice of all runs stands
    masks[alone] = counted_N
    errors, weights = _candidate_errors(by_form, losses_N, masks)
    forms = [_pick({name: float(error[m]) for name, error in errors.items()}, rule) for m in range(len(masks))]
    held_out = np.empty(len(losses_N))
    for fold in range(folded.num_folds):
        here = folded.fold_of_run == fold
        parts = {name: predicted[here] for name, predicted in by_form.items()}
        held_out[here] = combine_predictions(forms[fold + 1], parts, weights[fold + 1])
    return Choice(forms[0], {name: float(error[0]) for name, error in errors.items()}, weights[0], held_out)


def _pick(errors: dict[str, float], rule: PickRule) -> str:
    best = min(rule.others, key=lambda name: errors[name] / MORE_FOR.get(name, 1.0))
    below = rule.switch_below * MORE_FOR.get(best, 1.0)
    return best if errors[best] < below * errors[rule.default] else rule.default


def _candidate_errors(
    by_form: dict[str, Array], losses_N: Array, masks_MN: Array
) -> tuple[dict[str, Array], list[Array]]:
    """Mean absolute held-out error of every candidate under M weightings of the runs, and the weights of the three."""
    total = masks_MN.sum(axis=1)

    def error(predicted: Array) -> Array:
        """`predicted` of shape N, or M x N where it depends on the weighting."""
        result: Array = np.sum(masks_MN * np.abs(predicted - losses_N), axis=1) / total
        return result

    errors = {name: error(predicted) for name, predicted in by_form.items()}
    weights = [member_weights({name: float(errors[name][m]) for name in by_form}) for m in range(len(masks_MN))]
    for name in ENSEMBLES:
        combined = [combine_predictions(name, by_form, own) for own in weights]
        errors[name] = error(np.stack(combined))
    return errors, weights
