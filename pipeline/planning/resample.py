"""Many laws from one: refits on disturbed runs, so that a choice can say how sure it is.

Each refit moves every run's loss by a random amount of the size of the held-out errors (they hold both the noise
between seeds and what a form cannot follow), and takes in turn each form that cross-validation cannot tell from
the chosen one. Reads and writes nothing. Axes: B laws, N runs, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.planning.descent import Array
from pipeline.planning.fitted import Fitted
from pipeline.planning.forms import CANDIDATES, ENSEMBLES, FORMS, PROCESS, members_of, predict_form
from pipeline.planning.laws import ColumnLaw, Law

# Forms whose held-out error is within this factor of the chosen form's take part.
RIVAL_ERROR = 1.25
NORMAL_PER_MEDIAN = 1.4826  # standard deviation over median absolute error of a normal distribution
WILD = 2.5


@dataclass(frozen=True)
class Share:
    """The laws of a set that use one form."""

    form: str
    fits: Mapping[str, Fitted]
    laws: NDArray[np.intp]  # their numbers in the set


@dataclass(frozen=True)
class LawSet:
    """B laws of each loss; `whole` makes the set of one that holds the law itself."""

    count: int
    by_loss: Mapping[str, tuple[Share, ...]]
    weights: dict[str, Array]

    def losses(self, loss: str, shares_QK: Array) -> Array:
        """Predicted losses, shape B x Q; shares of shape B x Q x K give every law mixtures of its own."""
        own = shares_QK.ndim == 3
        result = np.empty((self.count, shares_QK.shape[-2]))
        for part in self.by_loss[loss]:
            asked = shares_QK[part.laws] if own else shares_QK
            result[part.laws] = predict_form(part.form, dict(part.fits), self.weights[loss], asked)
        return result


def whole(law: Law) -> LawSet:
    """The law itself as a set of one."""
    one = np.zeros(1, dtype=np.intp)
    by_loss = {column.loss: (Share(column.form, column.whole, one),) for column in law.columns}
    return LawSet(1, by_loss, {column.loss: column.weights for column in law.columns})


def resample(law: Law, losses: tuple[str, ...], count: int, rng: np.random.Generator) -> LawSet:
    """`count` refitted laws of the given losses."""
    columns = [law.column(loss) for loss in losses]
    by_loss = {column.loss: _refit(law, column, count, rng) for column in columns}
    return LawSet(count, by_loss, {column.loss: column.weights for column in columns})


def rivals(column: ColumnLaw) -> list[str]:
    """The chosen form, and every single form that held-out runs cannot tell from it."""
    most = RIVAL_ERROR * column.errors[column.form]
    others = [
        name for name in CANDIDATES if name != column.form and name not in ENSEMBLES and column.errors[name] <= most
    ]
    return [column.form, *others]


def _refit(law: Law, column: ColumnLaw, count: int, rng: np.random.Generator) -> tuple[Share, ...]:
    table = law.runs
    c = law.losses.index(column.loss)
    measured = np.isfinite(table.loss_values[:, c])
    shares, losses = table.shares[measured], table.loss_values[measured, c]
    size = _disturbance(column, ~table.derived[measured])
    disturbed = losses + rng.normal(size=(count, len(losses))) * size
    weights = np.repeat(table.weights[measured][None], count, axis=0)
    parts = []
    forms = rivals(column)
    for number, form in enumerate(forms):
        laws = np.arange(number, count, len(forms))
        fits = {}
        for name in members_of(form):
            if name == PROCESS.name:
                fits[name] = PROCESS.condition(column.whole[name], shares, disturbed[laws], weights[laws])
                continue
            warm = column.whole[name].take(np.zeros(len(laws), dtype=np.intp))
            fits[name] = FORMS[name].fit(shares, disturbed[laws], weights[laws], warm)
        parts.append(Share(form, fits, laws))
    return tuple(parts)


def _disturbance(column: ColumnLaw, own_N: NDArray[np.bool_]) -> Array:
    """Standard deviation of each run's disturbance: half the typical held-out error's square, half its own.

    Typical is the median: a lone corner that no other run foretells errs by 1 nat when it is left out, and says
    nothing of the noise of the others. For the same reason no run counts more than `WILD` times the typical error.
    """
    typical = NORMAL_PER_MEDIAN * float(np.median(column.residuals))
    size = np.full(len(own_N), typical)
    size[own_N] = np.sqrt(0.5 * (typical**2 + np.minimum(column.residuals, WILD * typical) ** 2))
    return size
