"""Say what a choice gains over mixtures that need no law: the best run tried, the natural ratio, equal shares.

A gain is the rival's objective less that of the choice. Its 90 % interval has two parts. One is the spread of the laws
that the runs allow; both mixtures are put into the same law, so that a common error cancels. The other is the bias of
the forms: where the losses bend in a way that no form follows, all those laws err alike. It is taken to be as large as
the held-out errors at both mixtures. Takes a law and a goal, gives numbers and a sentence; reads and writes nothing.
Axes: Q mixtures (the choice first, then its rivals), K domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.planning.arrays import Array
from pipeline.planning.goals import Scorer
from pipeline.planning.laws import Law
from pipeline.planning.limits import Box

BEST_RUN = "best run tried"
NATURAL = "natural ratio"
EQUAL = "equal shares"
_NORMAL_90 = 1.645  # half of a 90 % interval, in standard deviations
# Simulated truths that are smooth, interact, are noisy, have a crashed run, a kink or a threshold; 2 and 3 domains; 8,
# 12 and 36 runs. With 0.8 and 0.2 the interval holds the true gain in 0.9 or more of each; with a part of 0.6, or with
# a distance of 0.5, in 0.7 of the worst one. The figures: tests/benchmarks/results/planning.md.
_BIAS_PART = 0.8  # of the held-out errors
_SAME_BIAS = 0.2  # of the distance between neighbouring runs: mixtures this near are biased alike
_WORTH_MORE_RUNS = 4.0  # times the runs there are: more than so many are not proposed


@dataclass(frozen=True)
class Gain:
    """Nats of the objective that the choice saves over a rival, and the ends of a 90 % interval."""

    rival: str
    shares: Array  # of the rival, K
    value: float
    low: float
    high: float


def gains_over(
    scorer: Scorer, choice_K: Array, natural_K: Array | None, equal_K: Array, box: Box, allowed: Mapping[str, float]
) -> tuple[Gain, ...]:
    """Return the gain of a choice over each rival; a rival that the limits or constraints forbid is left out."""
    rivals = {BEST_RUN: _best_run(scorer, box, allowed), NATURAL: natural_K, EQUAL: equal_K}
    kept = {
        name: shares
        for name, shares in rivals.items()
        if shares is not None and _is_allowed(scorer, shares[None], box, allowed)[0]
    }
    if not kept:
        return ()
    shares_QK = np.stack([choice_K, *kept.values()])
    objective = scorer.objective(shares_QK)
    value, half = objective[1:] - objective[0], _half_widths(scorer, shares_QK)
    return tuple(
        Gain(name, shares, float(gain), float(gain - wide), float(gain + wide))
        for (name, shares), gain, wide in zip(kept.items(), value, half, strict=True)
    )


def advise(gains: tuple[Gain, ...], law: Law) -> str:
    """Return one sentence: take the choice, take the best run tried, or make more runs."""
    best = next((gain for gain in gains if gain.rival == BEST_RUN), None)
    if best is None:
        return "no run that was tried keeps the limits: run the choice once, fit again, and compare"
    if best.low > 0:
        return "take the choice: it is better than the best run tried"
    if best.high - best.low < 1e-9:
        return "the choice is the best run tried"
    line = "take the mixture of the best run tried: the choice cannot be told from it"
    wide = (best.high - best.low) / 2
    needed = math.ceil(law.runs.num_runs * ((wide / best.value) ** 2 - 1)) if best.value > 0 else math.inf
    if needed <= _WORTH_MORE_RUNS * law.runs.num_runs:
        line += f"; about {needed} more runs may tell (`plan design --runs RUNS --objective ...` says which)"
    return line


def _best_run(scorer: Scorer, box: Box, allowed: Mapping[str, float]) -> Array | None:
    """Return the tried mixture of least measured objective, among those that the limits allow."""
    law, table = scorer.law, scorer.law.runs
    group = table.mixture_groups()
    shares = np.stack([table.shares[group == number][0] for number in range(table.num_mixtures)])
    objective = np.zeros(len(shares))
    for name, weight in scorer.goal.weights.items():
        losses = table.loss_values[:, law.losses.index(name)]
        means = np.array([np.mean(losses[group == number]) for number in range(table.num_mixtures)])
        objective += weight * (means + scorer.repetition_cost(law.column(name), shares))
    usable = np.isfinite(objective) & _is_allowed(scorer, shares, box, allowed)
    return shares[np.argmin(np.where(usable, objective, np.inf))] if usable.any() else None


def _is_allowed(scorer: Scorer, shares_QK: Array, box: Box, allowed: Mapping[str, float]) -> Array:
    inside = ((shares_QK >= box.low - 1e-6) & (shares_QK <= box.high + 1e-6)).all(axis=1)
    most = {name: np.asarray(value) for name, value in allowed.items()}
    return np.asarray(inside & (scorer.excess(shares_QK, most) <= 1e-6))


def _half_widths(scorer: Scorer, shares_QK: Array) -> Array:
    """Return half of the 90 % interval of each rival's gain; 0 for a rival that is the choice."""
    from scipy.special import stdtrit  # the help of the commands does not wait for it

    law = scorer.law
    variance = np.zeros(len(shares_QK) - 1)
    alike = _same_bias(law.runs.shares, shares_QK)
    for name, weight in scorer.goal.weights.items():
        column = law.column(name)
        changes = column.changes(shares_QK)
        _, low, high = column.predict(shares_QK)
        bias = _BIAS_PART * (high - low) / 2 / _NORMAL_90
        spread = np.sum((changes[:, 1:] - changes[:, :1]) ** 2, axis=0)
        variance += weight**2 * (spread + bias[1:] ** 2 + bias[0] ** 2 - 2 * alike * bias[1:] * bias[0])
    freedom = max(1, law.runs.num_mixtures - len(law.domains) - 1)
    return np.asarray(stdtrit(freedom, 0.95) * np.sqrt(np.maximum(variance, 0.0)))


def _same_bias(tried_NK: Array, shares_QK: Array) -> Array:
    """Return the correlation of the bias at each rival with that at the choice, by their distance in root shares."""
    tried = np.sqrt(np.unique(np.round(tried_NK, 6), axis=0))
    apart = np.sqrt(np.sum((tried[:, None] - tried[None]) ** 2, axis=2))
    np.fill_diagonal(apart, np.inf)
    spacing = float(np.median(apart.min(axis=1)))
    root = np.sqrt(shares_QK)
    distance = np.sqrt(np.sum((root[1:] - root[0]) ** 2, axis=1))
    return np.asarray(np.exp(-((distance / (_SAME_BIAS * spacing)) ** 2)))
