"""Choose a ratio: minimise a stated objective under pools, epochs and constraints, and say how sure it is.

Takes a law and a goal, gives a `Choice`, which `files` writes. Reads and writes nothing. Gives up with
ConfigError when the goal contradicts itself. Axes: B sampled laws, Q points, K domains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from pipeline.planning.arrays import Array
from pipeline.planning.gains import Gain, advise, gains_over
from pipeline.planning.goals import NEAR_OPTIMAL_NATS, PENALTY, Goal, Scorer, most_allowed
from pipeline.planning.laws import Law, bound_hits
from pipeline.planning.limits import Box, epochs_of, natural_shares, share_box
from pipeline.planning.runs.checks import held_domains, outside_hull
from pipeline.planning.runs.groups import expand_domains, merge_limits, merge_shares
from pipeline.planning.search import Score, cloud, minimise_each, minimise_score, neighbours, project

_CLOUD_POINTS = 1800
_CURVE_POINTS = 21
_NUM_NEIGHBOURS = 4000
_EDGE = 1e-3  # a share this near to an end lies at it
_MANY_EPOCHS = 4.0
# tests/benchmarks/results/mixing_law.md, small image-text models: the formula of limits.py foretold runs of 5 passes,
# none of 10. What proxies of cut pools foretell beyond 10 was seen, but by a look that no protocol announced.
MOST_EPOCHS_BY_FORMULA = 5.0
MOST_EPOCHS_MATCHED = 10.0


@dataclass(frozen=True)
class TradeOff:
    """Mixtures along the best attainable pairs of two losses; the first loss goes from best to worst."""

    losses: tuple[str, str]
    shares: Array
    predicted: Array  # a row for each mixture, a column for each of the two losses


@dataclass(frozen=True)
class Choice:
    """The chosen mixture with everything that qualifies it."""

    shares: Array
    optimum: Array | None  # where it is not the chosen mixture: of least objective, however far from the natural shares
    interval: Array  # 5 % and 95 % of the optimum over the sampled laws, K x 2
    near_optimal: Array  # least and largest share among near-optimal mixtures, K x 2
    objective: tuple[float, float, float]  # value, low, high at 90 %
    losses: dict[str, tuple[float, float, float]]
    allowed: dict[str, float]  # loss -> the most that its constraint allows
    gains: tuple[Gain, ...]  # over the best run tried, the natural ratio, equal shares; those that the limits allow
    advice: str  # one sentence: take the choice, the best run tried, or make more runs
    trade_off: TradeOff | None  # None with one loss
    epochs: Array  # nan where the pool or the samples are not given
    binding: tuple[str, ...]
    warnings: tuple[str, ...]


def choose_mixture(law: Law, goal: Goal) -> Choice:
    """Minimise the goal's objective over all mixtures that its limits allow.

    Raises: ConfigError for unknown losses, limits that no mixture meets, or constraints that cannot be met.
    """
    goal.check(law)
    everything = expand_domains(law.domains, law.runs.groups)
    equal = merge_shares(everything, np.full((1, len(everything)), 1.0 / len(everything)), law.runs.groups)[1]
    natural = None
    if goal.near_pools_nats is not None or all(domain in goal.limits.pools for domain in everything):
        parts = np.array([list(natural_shares(everything, goal.limits).values())])
        natural = merge_shares(everything, parts, law.runs.groups)[1]
    goal = replace(goal, limits=merge_limits(goal.limits, law.runs.groups))
    box = share_box(law.domains, goal.limits, held_domains(law.runs.shares))
    rng = np.random.default_rng(goal.seed)
    points = cloud(box, _CLOUD_POINTS, rng)
    scorer = Scorer(law, goal)
    allowed = scorer.allowed(points, box)
    score = partial(scorer.score, allowed=allowed)
    best = minimise_score(score, points, box)
    optima = sample_optima(law, goal, np.concatenate([points, best[None]]), box, rng)
    low, high = np.quantile(optima, [0.05, 0.95], axis=0)
    interval = np.stack([np.minimum(low, best), np.maximum(high, best)], axis=1)
    nearby = np.concatenate([points, neighbours(best[None], box, 0.5, _NUM_NEIGHBOURS, rng), best[None]])
    scores = score(nearby)
    near = nearby[scores <= scores[-1] + NEAR_OPTIMAL_NATS]
    optimum = None
    if natural is not None and goal.near_pools_nats is not None:
        optimum, best = best, _nearest(natural, score, best, goal.near_pools_nats, points, box)
    losses = {name: _at(scorer, name, best) for name in law.losses}
    least = {name: float(most) for name, most in allowed.items()}
    gains = gains_over(scorer, best, None if natural is None else natural[0], equal[0], box, least)
    return Choice(
        shares=best,
        optimum=optimum,
        interval=interval,
        near_optimal=np.stack([near.min(axis=0), near.max(axis=0)], axis=1),
        objective=_objective(goal, losses),
        losses=losses,
        allowed=least,
        gains=gains,
        advice=advise(gains, law),
        trade_off=_trade_off(scorer, points, box),
        epochs=epochs_of(law.domains, best[None], goal.limits)[0],
        binding=_binding(law, box, best, losses, least),
        warnings=_warnings(law, goal, best),
    )


def _nearest(natural_1K: Array, score: Score, best: Array, nats: float, points: Array, box: Box) -> Array:
    """Return the mixture nearest to the natural shares (by square roots) that costs at most `nats` over the best."""
    most = score(best[None])[0] + nats

    def distance(shares_QK: Array) -> Array:
        far = np.sum((np.sqrt(shares_QK) - np.sqrt(natural_1K)) ** 2, axis=1)
        return np.asarray(far + PENALTY * np.maximum(score(shares_QK) - most, 0.0))

    return minimise_score(distance, np.concatenate([points, best[None], project(natural_1K, box)]), box)


def sample_optima(law: Law, goal: Goal, points: Array, box: Box, rng: np.random.Generator) -> Array:
    """Return the optimum of each of many laws that the runs allow, shape B x K.

    How often the spread of these optima covers the true one is measured in tests/benchmarks/results/planning.md.
    """
    shape = goal.num_sampled_laws, law.columns[0].num_folds
    scorer = Scorer(law, goal, {name: rng.normal(size=shape) for name in goal.losses})
    allowed: dict[str, Array] = {}
    for constraint in goal.constraints:
        least = scorer.loss(constraint.loss, points).min(axis=1)[:, None]
        most = np.maximum(most_allowed(constraint, least), least)
        allowed[constraint.loss] = np.minimum(most, allowed.get(constraint.loss, most))
    return minimise_each(partial(scorer.score, allowed=allowed), points, box)


def _at(scorer: Scorer, name: str, shares_K: Array) -> tuple[float, float, float]:
    value, low, high = scorer.with_interval(name, shares_K[None])
    return float(value[0]), float(low[0]), float(high[0])


def _objective(goal: Goal, losses: dict[str, tuple[float, float, float]]) -> tuple[float, float, float]:
    """Return the weighted losses, with their 90 % half-widths added in quadrature.

    The spread of sampled laws at their optima is too narrow for this (it covered 0.5 to 0.9 of simulated truths):
    the chosen point is the one where errors look best.
    """
    parts = [(weight, *losses[name]) for name, weight in goal.weights.items()]
    value = sum(weight * loss for weight, loss, _, _ in parts)
    below = float(np.sqrt(sum((weight * (loss - low)) ** 2 for weight, loss, low, _ in parts)))
    above = float(np.sqrt(sum((weight * (high - loss)) ** 2 for weight, loss, _, high in parts)))
    return value, value - below, value + above


def _trade_off(scorer: Scorer, points: Array, box: Box) -> TradeOff | None:
    """Optima of many weightings of two losses: the heaviest of the objective, and a constrained or the next one."""
    goal = scorer.goal
    first = max(goal.weights, key=lambda name: goal.weights[name])
    others = [constraint.loss for constraint in goal.constraints]
    others += [*sorted(goal.weights, key=lambda name: -goal.weights[name]), *scorer.law.losses]
    second = next((name for name in others if name != first), None)
    if second is None:
        return None
    spans = [float(np.ptp(scorer.loss(name, points))) or 1.0 for name in (first, second)]
    part_B1 = np.linspace(0.98, 0.02, _CURVE_POINTS)[:, None]

    def weighed(shares_QK: Array) -> Array:
        one, two = (scorer.loss(name, shares_QK) / span for name, span in zip((first, second), spans, strict=True))
        return part_B1 * one + (1.0 - part_B1) * two

    optima = minimise_each(weighed, points, box)
    predicted = np.stack([scorer.loss(name, optima) for name in (first, second)], axis=1)
    order = np.lexsort((predicted[:, 1], predicted[:, 0]))
    lowest = np.minimum.accumulate(np.r_[np.inf, predicted[order, 1][:-1]])
    front = order[predicted[order, 1] < lowest]  # no other of them is better in both losses
    return TradeOff((first, second), optima[front], predicted[front])


def _binding(
    law: Law, box: Box, best: Array, losses: dict[str, tuple[float, float, float]], allowed: dict[str, float]
) -> tuple[str, ...]:
    """Name what holds the optimum where it is."""
    lines, absent = [], []
    for k, domain in enumerate(law.domains):
        if best[k] >= box.high[k] - _EDGE and box.reasons[k]:
            lines.append(f"{domain} at {best[k]:.4f}: {box.reasons[k]}")
        elif best[k] <= box.low[k] + _EDGE and box.low[k] > 0:
            lines.append(f"{domain} at {best[k]:.4f}: least share allowed")
        elif best[k] <= _EDGE:
            absent.append(domain)
    if absent:
        lines.append(f"{', '.join(absent)} at zero: a share of it would not lower the objective")
    for name, most in allowed.items():
        if losses[name][0] >= most - 1e-3:
            lines.append(f"loss of {name} at {losses[name][0]:.4f}: its constraint allows {most:.4f}")
    return tuple(lines)


def _warnings(law: Law, goal: Goal, best: Array) -> tuple[str, ...]:
    serious = ("DO NOT TRUST", "cannot be known", "cannot be told apart", "left out of the law")
    warnings = [line for line in law.warnings if any(words in line for words in serious)]
    tried = law.runs.shares
    if outside_hull(tried, best[None])[0]:
        nearest = float(np.abs(tried - best).max(axis=1).min())
        warnings.append(
            f"the chosen ratio lies outside the tried region (nearest tried ratio differs by {nearest:.3f} in a "
            "share): the law is extrapolating; run this ratio, fit again, and only then use it"
        )
    for k, domain in enumerate(law.domains):
        low, high = tried[:, k].min(), tried[:, k].max()
        if high > low and (best[k] <= low + _EDGE or best[k] >= high - _EDGE) and _EDGE < best[k] < 1 - _EDGE:
            warnings.append(f"{domain} is at the edge of its tried shares ({low:.3f} to {high:.3f})")
    warnings += [
        f"the law of loss_{name} is at the bound of its predictions at this ratio: do not trust it"
        for name in goal.losses
        if bound_hits(law.column(name), best[None])[0]
    ]
    if goal.limits.pools and goal.limits.num_samples is None:
        warnings.append("pools are given without --samples: repetition was not looked at")
    matched = goal.limits.repetition_scale_epochs is None
    most = MOST_EPOCHS_MATCHED if matched else MOST_EPOCHS_BY_FORMULA
    cure = "" if matched else ", or cut the proxies' pools (`plan design --pool`) and give --repetition-scale none"
    for domain, epochs in zip(law.domains, epochs_of(law.domains, best[None], goal.limits)[0], strict=True):
        if np.isfinite(epochs) and epochs > most * (1 + 1e-6):  # --max-epochs meets it but for rounding
            warnings.append(
                f"DO NOT TRUST this choice: {domain} would be seen {epochs:.1f} times, and a law was shown to hold to "
                f"about {most:g} passes over a pool; keep below with --max-epochs {most:g}{cure}"
            )
        elif np.isfinite(epochs) and epochs > _MANY_EPOCHS:
            warnings.append(
                f"{domain} would be seen {epochs:.1f} times: beyond about 4 epochs repeated data loses value, and "
                "small image-text models lost far more than this law says"
            )
    return tuple(warnings)
