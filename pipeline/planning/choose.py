"""Choose a ratio: minimise a stated objective under pools, epochs and constraints, and say how sure it is.

Pure core: law and wishes in, `Chosen` out; `mixture_files` writes it. Gives up with ConfigError when the wishes
contradict each other. Axes: B laws drawn from one, Q points, K domains, N runs, C losses.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.checks import held_domains
from pipeline.planning.descent import Array
from pipeline.planning.forms import FORMS, SHARED_EXPONENT
from pipeline.planning.laws import ColumnLaw, Law, bound_hits
from pipeline.planning.limits import Box, Limits, effective_shares, epochs_of, share_box
from pipeline.planning.resample import LawSet, resample
from pipeline.planning.resample import whole as resample_whole
from pipeline.planning.search import around, cloud, descend_each, exchanges, minimise_score

# Refits on bootstrap samples choose ratios that lose a median of 0.004 nats: what is nearer is as good.
NEAR_OPTIMAL_NATS = 0.005
NUM_BOOTSTRAP = 120
_CLOUD_POINTS = 1800
_PENALTY = 1e3  # a nat over a constraint costs more than any objective can gain


@dataclass(frozen=True)
class Constraint:
    """An upper limit on one loss: a share above its best (0.01 = 1 %), or an absolute value in nats."""

    loss: str
    limit: float
    relative: bool


@dataclass(frozen=True)
class Wish:
    """What to minimise and what to keep."""

    weights: dict[str, float]  # loss -> weight, all > 0
    constraints: tuple[Constraint, ...] = ()
    limits: Limits = field(default_factory=Limits)
    near_optimal_nats: float = NEAR_OPTIMAL_NATS
    num_bootstrap: int = NUM_BOOTSTRAP
    seed: int = 0


@dataclass(frozen=True)
class Chosen:
    """The chosen mixture with everything that qualifies it."""

    shares: Array
    interval: Array  # 5 % and 95 % of the optimum over the drawn laws
    region: Array  # least and largest share among near-optimal mixtures
    region_points: Array  # near-optimal mixtures themselves (a sample)
    objective: float
    objective_interval: tuple[float, float]
    losses: dict[str, tuple[float, float, float]]  # value, low, high at 90 %
    allowed: dict[str, float]  # loss -> the most that its constraint allows
    curve_losses: tuple[str, str] | None
    curve_points: Array  # mixtures along the trade-off, first loss from best to worst
    curve: dict[str, tuple[Array, Array, Array]]
    epochs: Array
    binding: tuple[str, ...]
    warnings: tuple[str, ...]
    optima: Array


def choose_mixture(law: Law, wish: Wish) -> Chosen:
    """Minimise the wish over all mixtures the limits allow.

    Raises: ConfigError for unknown losses, limits that no mixture meets, or constraints that cannot be met.
    """
    for name, weight in wish.weights.items():
        law.column(name)
        if not weight > 0:
            raise ConfigError(f"--objective: the weight of {name} is {weight:g}; it must be above 0")
    for constraint in wish.constraints:
        law.column(constraint.loss)
    box = share_box(law.domains, wish.limits, held_domains(law.runs.shares))
    rng = np.random.default_rng(wish.seed)
    points = cloud(box, _CLOUD_POINTS, rng)
    whole = _Predictor(law, wish, resample_whole(law))
    allowed = _allowed(whole, wish, points, box)

    def score(shares_QK: Array) -> Array:
        first: Array = whole.score(shares_QK, allowed)[0]
        return first

    best = minimise_score(score, points, box)
    points = np.concatenate([points, around(best, box, 1000, rng), best[None]])
    optima = _bootstrap(law, wish, points, box, rng)
    nearby = np.concatenate([exchanges(best, box), points])
    scores = score(nearby)
    near = nearby[scores <= scores[-1] + wish.near_optimal_nats]
    losses = {name: _at(whole, law.column(name), best) for name in law.losses}
    pair = _curve_losses(law, wish)
    curve_points = _front(whole, points, pair, box) if pair else best[None]
    binding = _binding(law, wish, box, best, losses, allowed)
    return Chosen(
        shares=best,
        interval=_span(optima, best),
        region=np.stack([near.min(axis=0), near.max(axis=0)], axis=1),
        region_points=near[:: max(1, len(near) // 400)],
        objective=float(whole.objective(best[None])[0, 0]),
        objective_interval=_objective_interval(wish, losses),
        losses=losses,
        allowed={name: float(value[0]) for name, value in allowed.items()},
        curve_losses=pair,
        curve_points=curve_points,
        curve={name: whole.with_interval(law.column(name), curve_points) for name in law.losses},
        epochs=epochs_of(law.domains, best[None], wish.limits)[0],
        binding=binding,
        warnings=_warnings(law, wish, best, box),
        optima=optima,
    )


@dataclass(frozen=True)
class _Predictor:
    """Losses of B laws at once, with what repetition costs added."""

    law: Law
    wish: Wish
    laws: LawSet

    def loss(self, column: ColumnLaw, shares_QK: Array) -> Array:
        """Predicted loss, shape B x Q; shares may be B x Q x K, mixtures of its own for every law."""
        result: Array = self.laws.losses(column.loss, shares_QK) + self.repetition_cost(column, shares_QK)
        return result

    def repetition_cost(self, column: ColumnLaw, shares_QK: Array) -> Array:
        """What the loss rises because repeated samples are worth less, by the shared-exponent law.

        Only the power laws know amounts apart from shares (the exponential and the Gaussian process are defined
        on shares that sum to 1), so theirs is the difference whichever form predicts.
        """
        worth = effective_shares(self.law.domains, shares_QK, self.wish.limits)
        if worth is shares_QK:
            return np.zeros((1, shares_QK.shape[-2]))
        fit, form = column.whole[SHARED_EXPONENT], FORMS[SHARED_EXPONENT]
        cost: Array = np.maximum(form.predict(fit, worth) - form.predict(fit, shares_QK), 0.0)
        return cost

    def objective(self, shares_QK: Array) -> Array:
        """The weighted sum of losses, shape B x Q."""
        total: Array = np.sum(
            [w * self.loss(self.law.column(name), shares_QK) for name, w in self.wish.weights.items()], axis=0
        )
        return total

    def score(self, shares_QK: Array, allowed: dict[str, Array]) -> Array:
        """The objective plus a steep penalty for every nat above what a constraint allows, shape B x Q."""
        total = self.objective(shares_QK)
        for name, most_B in allowed.items():
            over = self.loss(self.law.column(name), shares_QK) - most_B[:, None]
            total = total + _PENALTY * np.maximum(over, 0.0)
        return total

    def with_interval(self, column: ColumnLaw, shares_QK: Array) -> tuple[Array, Array, Array]:
        """Value, low and high at 90 % with the cost of repetition added to all three."""
        cost = self.repetition_cost(column, shares_QK)[0]
        value, low, high = column.predict(shares_QK)
        return value + cost, low + cost, high + cost


def _at(whole: _Predictor, column: ColumnLaw, shares_K: Array) -> tuple[float, float, float]:
    value, low, high = whole.with_interval(column, shares_K[None])
    return float(value[0]), float(low[0]), float(high[0])


def _allowed(whole: _Predictor, wish: Wish, points: Array, box: Box) -> dict[str, Array]:
    """The most each constrained loss may be, from its best under the limits."""
    allowed: dict[str, Array] = {}
    for constraint in wish.constraints:
        column = whole.law.column(constraint.loss)

        def alone(shares_QK: Array, column: ColumnLaw = column) -> Array:
            loss_Q: Array = whole.loss(column, shares_QK)[0]
            return loss_Q

        best = minimise_score(alone, points, box)
        least = float(whole.loss(column, best[None])[0, 0])
        most = least + constraint.limit * abs(least) if constraint.relative else constraint.limit
        if most < least:
            raise ConfigError(
                f"--constraint {constraint.loss}<={constraint.limit:g} cannot be met: the least {constraint.loss} "
                f"loss within the limits is {least:.4f}"
            )
        previous = allowed.get(constraint.loss)
        allowed[constraint.loss] = np.array([most if previous is None else min(most, float(previous[0]))])
    if len(allowed) > 1:
        _check_together(whole, allowed, points, box)
    return allowed


def _check_together(whole: _Predictor, allowed: dict[str, Array], points: Array, box: Box) -> None:
    def over(shares_QK: Array) -> Array:
        total: Array = np.sum(
            [
                np.maximum(whole.loss(whole.law.column(name), shares_QK)[0] - most[0], 0.0)
                for name, most in allowed.items()
            ],
            axis=0,
        )
        return total

    best = minimise_score(over, points, box)
    if float(over(best[None])[0]) > 1e-6:
        raise ConfigError(
            f"the constraints on {', '.join(allowed)} cannot be met together within the limits; loosen one "
            f"(the nearest mixture misses them by {float(over(best[None])[0]):.4f} nats)"
        )


def _objective_interval(wish: Wish, losses: dict[str, tuple[float, float, float]]) -> tuple[float, float]:
    """The weighted losses with their 90 % half-widths added in quadrature.

    The spread of refitted laws at their common optimum is too narrow for this (it covered 0.5 to 0.9 of simulated
    truths): the chosen point is the one where errors look best.
    """
    parts = [(weight, *losses[name]) for name, weight in wish.weights.items()]
    value = sum(weight * loss for weight, loss, _, _ in parts)
    below = float(np.sqrt(sum((weight * (loss - low)) ** 2 for weight, loss, low, _ in parts)))
    above = float(np.sqrt(sum((weight * (high - loss)) ** 2 for weight, loss, _, high in parts)))
    return value - below, value + above


def _bootstrap(law: Law, wish: Wish, points: Array, box: Box, rng: np.random.Generator) -> Array:
    """The optimum of each of many laws that the runs allow (`resample`), shape B x K."""
    used = tuple(loss for loss in law.losses if _used(wish, loss))
    laws = _Predictor(law, wish, resample(law, used, wish.num_bootstrap, rng))
    allowed: dict[str, Array] = {}
    for constraint in wish.constraints:
        least = laws.loss(law.column(constraint.loss), points).min(axis=1)
        limit = least + constraint.limit * np.abs(least) if constraint.relative else constraint.limit
        most = np.maximum(limit, least)
        allowed[constraint.loss] = np.minimum(most, allowed.get(constraint.loss, most))

    def score(shares: Array) -> Array:
        return laws.score(shares, allowed)

    return descend_each(points[np.argmin(score(points), axis=1)], score, box, rng)


def _used(wish: Wish, loss: str) -> bool:
    return loss in wish.weights or any(constraint.loss == loss for constraint in wish.constraints)


def _span(optima: Array, best: Array) -> Array:
    low, high = np.quantile(optima, [0.05, 0.95], axis=0)
    return np.stack([np.minimum(low, best), np.maximum(high, best)], axis=1)


def _curve_losses(law: Law, wish: Wish) -> tuple[str, str] | None:
    """The two losses traded against each other: the heaviest of the objective, then a constrained or the next."""
    first = max(wish.weights, key=lambda name: wish.weights[name])
    others = [c.loss for c in wish.constraints] + sorted(wish.weights, key=lambda n: -wish.weights[n])
    others += list(law.losses)
    second = next((name for name in others if name != first), None)
    return (first, second) if second is not None else None


def _front(whole: _Predictor, points: Array, pair: tuple[str, str], box: Box, most: int = 25) -> Array:
    """Mixtures that no other beats in both losses, thinned to at most `most`, first loss from best to worst.

    The cloud is too thin for this beyond three domains: optima of eleven weightings of the two losses join it.
    """
    columns = [whole.law.column(name) for name in pair]
    spans = [float(np.ptp(whole.loss(column, points)[0])) or 1.0 for column in columns]

    def weighed(share: float) -> Array:
        def score(shares_QK: Array) -> Array:
            first, second = (whole.loss(column, shares_QK)[0] for column in columns)
            total: Array = share * first / spans[0] + (1.0 - share) * second / spans[1]
            return total

        return minimise_score(score, points, box, num_starts=2)

    points = np.concatenate([points, np.stack([weighed(share) for share in np.linspace(0.02, 0.98, 11)])])
    first, second = (whole.loss(column, points)[0] for column in columns)
    order = np.lexsort((second, first))
    lowest = np.minimum.accumulate(np.r_[np.inf, second[order][:-1]])
    front = order[second[order] < lowest]
    if len(front) > most:
        along = np.r_[0.0, np.cumsum(np.hypot(np.diff(first[front]), np.diff(second[front])))]
        nearest = np.abs(along[:, None] - np.linspace(0.0, along[-1], most)).argmin(axis=0)
        front = front[np.unique(nearest)]
    result: Array = points[front]
    return result


def _binding(
    law: Law,
    wish: Wish,
    box: Box,
    best: Array,
    losses: dict[str, tuple[float, float, float]],
    allowed: dict[str, Array],
) -> tuple[str, ...]:
    """What holds the optimum where it is, in words."""
    lines, absent = [], []
    for k, domain in enumerate(law.domains):
        if best[k] >= box.high[k] - 1e-3 and box.reasons[k]:
            lines.append(f"{domain} at {best[k]:.4f}: {box.reasons[k]}")
        elif best[k] <= box.low[k] + 1e-3 and box.low[k] > 0:
            lines.append(f"{domain} at {best[k]:.4f}: least share allowed")
        elif best[k] <= 1e-3:
            absent.append(domain)
    if absent:
        lines.append(f"{', '.join(absent)} at zero: a share of it would not lower the objective")
    for name, most in allowed.items():
        if losses[name][0] >= float(most[0]) - 1e-3:
            lines.append(f"loss of {name} at {losses[name][0]:.4f}: its constraint allows {float(most[0]):.4f}")
    return tuple(lines)


def _warnings(law: Law, wish: Wish, best: Array, box: Box) -> tuple[str, ...]:
    warnings = [line for line in law.warnings if line.startswith("DO NOT TRUST")]
    warnings += [line for line in law.warnings if "cannot be known" in line or "cannot be told apart" in line]
    tried = law.runs.shares
    if law.outside_tried(best[None])[0]:
        nearest = float(np.abs(tried - best).max(axis=1).min())
        warnings.append(
            f"the chosen ratio lies outside the tried region (nearest tried ratio differs by {nearest:.3f} in a "
            "share): the law is extrapolating; run this ratio, fit again, and only then use it"
        )
    for k, domain in enumerate(law.domains):
        low, high = tried[:, k].min(), tried[:, k].max()
        if high > low and (best[k] <= low + 1e-3 or best[k] >= high - 1e-3) and 1e-3 < best[k] < 1 - 1e-3:
            warnings.append(f"{domain} is at the edge of its tried shares ({low:.3f} to {high:.3f})")
    for name in law.losses:
        if _used(wish, name) and bound_hits(law.column(name), best[None])[0]:
            warnings.append(f"the law of loss_{name} is at the bound of its predictions at this ratio: do not trust it")
    if wish.limits.pools and wish.limits.num_samples is None:
        warnings.append("pools are given without --samples: repetition was not looked at")
    epochs = epochs_of(law.domains, best[None], wish.limits)[0]
    for k, domain in enumerate(law.domains):
        if np.isfinite(epochs[k]) and epochs[k] > 4.0:
            warnings.append(
                f"{domain} would be seen {epochs[k]:.1f} times: beyond about 4 epochs repeated data loses value"
            )
    return tuple(warnings)
