"""Many laws from one, so that a choice can say how sure it is: refits on disturbed runs, and departures.

A refit moves every run's loss by a random amount of the size of its noise, and takes in turn each form that
cross-validation cannot tell from the chosen one. A departure is the law itself plus a smooth random function that the
runs leave open (`departures`): where noise is small, what errs is the form, and refits all err alike.
Reads and writes nothing. Axes: B laws, N runs, Q queries.

Measured choice of both (coverage of simulated optima): tests/benchmarks/results/planning.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.planning.departures import Departures, draw_departures
from pipeline.planning.descent import Array
from pipeline.planning.fitted import Fitted
from pipeline.planning.forms import ENSEMBLES, FORMS, PROCESS, RIVALS, members_of, predict_form
from pipeline.planning.intervals import MOST_DOUBT_SHARE
from pipeline.planning.laws import ColumnLaw, Law

# Forms whose held-out error is within 1 + this / sqrt(runs) times the chosen form's take part.
RIVAL_ERROR = 1.5
NORMAL_PER_MEDIAN = 1.4826  # standard deviation over median absolute error of a normal distribution
WILD = 2.5  # no error and no doubt counts as more than this many typical ones
# Student's t below 2 degrees of freedom has no variance; above 4 times the estimate a draw only says "unknown".
_FEWEST_DEGREES = 2.0
_MOST_LUCK = 4.0


@dataclass(frozen=True)
class Share:
    """The laws of a set that use one form: a fit each, or one fit for all and a departure each."""

    form: str
    fits: Mapping[str, Fitted]
    laws: NDArray[np.intp]  # their numbers in the set
    departures: Departures | None = None


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
            values = predict_form(part.form, part.fits, self.weights[loss], asked)
            result[part.laws] = values if part.departures is None else values + part.departures.at(asked)
        return result


def whole(law: Law) -> LawSet:
    """The law itself as a set of one."""
    one = np.zeros(1, dtype=np.intp)
    by_loss = {column.loss: (Share(column.form, column.whole, one),) for column in law.columns}
    return LawSet(1, by_loss, {column.loss: column.weights for column in law.columns})


def resample(law: Law, losses: tuple[str, ...], count: int, rng: np.random.Generator) -> LawSet:
    """`count` laws of the given losses, the last of them departures."""
    columns = [law.column(loss) for loss in losses]
    by_loss = {}
    for column in columns:
        luck = _luck(law, column, count, rng)
        num_refits = count - round(count * departing_share(column))
        refits, departing = np.split(np.arange(count), [num_refits])
        by_loss[column.loss] = _refit(law, column, luck[refits], rng) + _depart(column, departing, luck, rng)
    return LawSet(count, by_loss, {column.loss: column.weights for column in columns})


def departing_share(column: ColumnLaw) -> float:
    """Share of departures in a set: 0 where held-out errors are as large everywhere (noise), 1 where they follow doubt.

    The square of how far they follow it: a dozen noisy runs seem to follow it to a quarter.
    """
    return (column.doubt_share / MOST_DOUBT_SHARE) ** 2


def rivals(column: ColumnLaw) -> list[str]:
    """The chosen form, and every single form that held-out runs cannot tell from it."""
    most = (1.0 + RIVAL_ERROR / np.sqrt(len(column.residuals))) * column.errors[column.form]
    others = [name for name in RIVALS if name != column.form and name not in ENSEMBLES and column.errors[name] <= most]
    return [column.form, *others]


def _refit(law: Law, column: ColumnLaw, luck_B: Array, rng: np.random.Generator) -> tuple[Share, ...]:
    table, count = law.runs, len(luck_B)
    c = law.losses.index(column.loss)
    measured = np.isfinite(table.loss_values[:, c])
    shares, losses = table.shares[measured], table.loss_values[measured, c]
    size = _disturbance(_noise(law, column), ~table.derived[measured])
    disturbed = losses + rng.normal(size=(count, len(losses))) * size * luck_B[:, None]
    weights = np.repeat(table.weights[measured][None], count, axis=0)
    parts = []
    forms = rivals(column)[:count]
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


def _depart(column: ColumnLaw, laws: NDArray[np.intp], luck_B: Array, rng: np.random.Generator) -> tuple[Share, ...]:
    """The law itself plus departures as large as held-out errors are for their doubt."""
    if len(laws) == 0:
        return ()
    scale = NORMAL_PER_MEDIAN * float(np.median(column.residuals / (column.residual_widths * column.typical_doubt)))
    drawn = draw_departures(column.whole[PROCESS.name], scale * luck_B[laws], WILD * column.typical_doubt, rng)
    return (Share(column.form, column.whole, laws, drawn),)


def _noise(law: Law, column: ColumnLaw) -> Array:
    """Absolute error of each run without the share of the fit: geometric mean of its errors in and out of the fit.

    For a linear fit of leverage h the first is (1 - h) times the second, and the mean of their product the noise's
    variance: held-out errors alone are too large for it, by the error of the fit without the run.
    """
    result: Array = np.sqrt(_errors_in_fit(law, column) * column.residuals)
    return result


def _errors_in_fit(law: Law, column: ColumnLaw) -> Array:
    table, c = law.runs, law.losses.index(column.loss)
    own = np.isfinite(table.loss_values[:, c]) & ~table.derived
    fitted = predict_form(column.form, column.whole, column.weights, table.shares[own])[0]
    result: Array = np.abs(fitted - table.loss_values[own, c])
    return result


def _luck(law: Law, column: ColumnLaw, count: int, rng: np.random.Generator) -> Array:
    """How much larger than estimated the errors may be, one factor a law: a dozen runs say it only roughly.

    Drawn as for Student's t: root of the degrees of freedom over a chi-square of as many. Their number is that of the
    runs times the typical ratio of errors in and out of the fit, which is 1 - h.
    """
    typical = max(float(np.median(column.residuals)), 1e-12)
    kept = min(1.0, float(np.median(_errors_in_fit(law, column))) / typical)
    degrees = max(_FEWEST_DEGREES, kept * len(column.residuals))
    return np.minimum(np.sqrt(degrees / rng.chisquare(degrees, count)), _MOST_LUCK)


def _disturbance(noise_O: Array, own_N: NDArray[np.bool_]) -> Array:
    """Standard deviation of each run's disturbance: half the typical error's square, half its own.

    Typical is the median: a lone corner that no other run foretells errs by 1 nat when it is left out, and says
    nothing of the noise of the others. For the same reason no run counts more than `WILD` times the typical error.
    Runs that are not `own` (carried over from another size) have no error of their own.
    """
    typical = NORMAL_PER_MEDIAN * float(np.median(noise_O))
    size = np.full(len(own_N), typical)
    size[own_N] = np.sqrt(0.5 * (typical**2 + np.minimum(noise_O, WILD * typical) ** 2))
    return size
