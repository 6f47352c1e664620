"""The goal of a choice: losses to minimise, constraints and limits to keep, and the score of a mixture.

Reads and writes nothing. Axes: B sampled laws, Q points, K domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.arrays import Array
from pipeline.planning.forms.catalogue import FORMS, SHARED_EXPONENT
from pipeline.planning.laws import ColumnLaw, Law, Prediction
from pipeline.planning.limits import Box, Limits, effective_shares
from pipeline.planning.search import minimise_score

# The optimum is flat: refits on bootstrap samples of the public runs lose a median of 0.004 nats.
NEAR_OPTIMAL_NATS = 0.005
NUM_SAMPLED_LAWS = 120
PENALTY = 1e3  # a nat over a constraint costs more than any objective can gain


@dataclass(frozen=True)
class Constraint:
    """An upper limit on one loss: a part above its best (0.01 = 1 %), or an absolute value in nats."""

    loss: str
    limit: float
    relative: bool


@dataclass(frozen=True)
class Goal:
    """A goal: the loss to minimise, and the constraints to keep."""

    weights: dict[str, float]  # loss -> weight, all > 0
    constraints: tuple[Constraint, ...] = ()
    limits: Limits = field(default_factory=Limits)
    near_pools_nats: float | None = None  # how much of the objective may be given up to stay near the natural shares
    num_sampled_laws: int = NUM_SAMPLED_LAWS
    seed: int = 0

    @property
    def losses(self) -> tuple[str, ...]:
        """The losses that take part."""
        return tuple(dict.fromkeys([*self.weights, *(constraint.loss for constraint in self.constraints)]))

    def check(self, law: Law) -> None:
        """Raise ConfigError for a loss that the law does not know, or a weight that is not above 0."""
        for name in self.losses:
            law.column(name)
        for name, weight in self.weights.items():
            if not weight > 0:
                raise ConfigError(f"--objective: the weight of {name} is {weight:g}; it must be above 0")


@dataclass(frozen=True)
class Scorer:
    """Losses and scores of mixtures under one law, or under B sampled laws when there are `multipliers`."""

    law: Law
    goal: Goal
    multipliers: Mapping[str, Array] = field(default_factory=dict)  # see ColumnLaw.sample_values

    def loss(self, name: str, shares_QK: Array) -> Array:
        """Predicted loss, what repetition costs included, shape Q, or B x Q with multipliers."""
        column = self.law.column(name)
        sampled = name in self.multipliers
        value = column.sample_values(shares_QK, self.multipliers[name]) if sampled else column.value(shares_QK)
        return value + self.repetition_cost(column, shares_QK)

    def repetition_cost(self, column: ColumnLaw, shares_QK: Array) -> Array:
        """Return how much the loss rises because repeated samples are worth less, by the shared-exponent law.

        Only the power laws know amounts apart from shares (the exponential and the Gaussian process are defined
        on shares that sum to 1), so the shared exponent gives the difference for the whole law.
        """
        worth = effective_shares(self.law.domains, shares_QK, self.goal.limits)
        if worth is shares_QK:
            return np.zeros(len(shares_QK))
        fit, form = column.whole[SHARED_EXPONENT], FORMS[SHARED_EXPONENT]
        cost: Array = np.maximum(form.predict(fit, worth) - form.predict(fit, shares_QK), 0.0)[0]
        return cost

    def objective(self, shares_QK: Array) -> Array:
        """Return the weighted sum of losses."""
        total: Array = np.sum([w * self.loss(name, shares_QK) for name, w in self.goal.weights.items()], axis=0)
        return total

    def excess(self, shares_QK: Array, allowed: Mapping[str, Array]) -> Array:
        """Nats above what the constraints allow, summed; `allowed` holds one value, or one for each law."""
        over = [np.maximum(self.loss(name, shares_QK) - most, 0.0) for name, most in allowed.items()]
        return np.sum(over, axis=0) if over else np.zeros(())

    def score(self, shares_QK: Array, allowed: Mapping[str, Array]) -> Array:
        """Return the objective plus a steep penalty for every nat above what a constraint allows."""
        return self.objective(shares_QK) + PENALTY * self.excess(shares_QK, allowed)

    def with_interval(self, name: str, shares_QK: Array) -> Prediction:
        """Value, low and high at 90 %, with the cost of repetition added to all three."""
        column = self.law.column(name)
        cost = self.repetition_cost(column, shares_QK)
        value, low, high = column.predict(shares_QK)
        return value + cost, low + cost, high + cost

    def allowed(self, points_QK: Array, box: Box) -> dict[str, Array]:
        """Return the most that each constrained loss may be, from its best within the limits.

        Raises: ConfigError when a constraint, or all together, cannot be met.
        """
        allowed: dict[str, Array] = {}
        asked = []
        for constraint in self.goal.constraints:
            name = constraint.loss
            best = minimise_score(partial(self.loss, name), points_QK, box)
            least = self.loss(name, best[None])[0]
            most = most_allowed(constraint, least)
            allowed[name] = np.minimum(most, allowed.get(name, most))
            asked.append(f"{name}<={most:.4g} (its least is {least:.4f})")
        if allowed:
            nearest = minimise_score(partial(self.excess, allowed=allowed), points_QK, box)
            missed = self.excess(nearest[None], allowed)[0]
            if missed > 1e-6:
                raise ConfigError(
                    f"--constraint: {' and '.join(asked)} cannot be met within the limits; loosen one "
                    f"(the nearest mixture misses by {missed:.4f} nats)"
                )
        return allowed


def most_allowed(constraint: Constraint, least: Array) -> Array:
    """Return the highest loss that a constraint allows when the least possible loss is `least`."""
    return least + constraint.limit * np.abs(least) if constraint.relative else np.full_like(least, constraint.limit)
