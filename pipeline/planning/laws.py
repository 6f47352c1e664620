"""A fitted mixing law: every form's parameters, the form chosen for each loss, errors, intervals and warnings.

`fit_law` turns a checked table into a `Law`; `Law.predict` gives losses with 90 % intervals. Files are written
and read by `law_files`. Reads and writes nothing. Axes: C loss columns, N runs, Q queries, K domains, G folds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from manifests.errors import ConfigError
from pipeline.planning.checks import check_runs, noise_floor, outside_hull
from pipeline.planning.crossval import Choice, Folded, FoldPlan, choose_form, fit_folds, pick_rule
from pipeline.planning.descent import Array
from pipeline.planning.fitted import Fitted, lowest_loss
from pipeline.planning.forms import EXPONENTIAL, FORMS, MEAN, PROCESS, members_of, predict_form
from pipeline.planning.intervals import doubt_share, jackknife_plus, measured_coverage, tempered
from pipeline.planning.runs import RunsTable

# A law whose held-out error is not below this share of the mean's is called no better than the mean.
NO_BETTER_THAN_MEAN = 0.9
FEWEST_FOR_INTERVAL = 9


@dataclass(frozen=True)
class ColumnLaw:
    """The law of one loss: the chosen form, all forms' fits, and what the held-out runs said."""

    loss: str
    form: str
    weights: Array  # of the three members of the weighted ensemble
    errors: dict[str, float]  # candidate -> cross-validated mean absolute error
    whole: dict[str, Fitted]  # form -> one fit on all runs
    folds: dict[str, Fitted]  # members of the chosen form -> G fits
    residuals: Array  # absolute held-out errors of the chosen form, runs with this loss only
    residual_folds: NDArray[np.intp]  # the fold that held each of them out
    residual_widths: Array  # the doubt about each of them, 1 for a typical one
    typical_doubt: float  # of a new loss, nats
    doubt_share: float  # how far the interval follows the doubt, see intervals.doubt_share
    noise_floor: float  # nan without replicates
    coverage: float  # of the 90 % interval on the runs themselves

    def predict(self, shares_QK: Array) -> tuple[Array, Array, Array]:
        """Loss and the ends of its 90 % interval, each of shape Q."""
        value = predict_form(self.form, self.whole, self.weights, shares_QK)[0]
        by_fold = predict_form(self.form, self.folds, self.weights, shares_QK)
        doubt = PROCESS.doubt(self.whole[PROCESS.name], shares_QK)[0]
        width = tempered(doubt, self.typical_doubt, self.doubt_share)
        low, high = jackknife_plus(by_fold, self.residuals / self.residual_widths, self.residual_folds, width)
        if lowest_loss(self.whole[MEAN]) > 0:  # such a loss is never below 0, however little is known of it
            low = np.maximum(low, 0.0)
        return value, np.minimum(low, value), np.maximum(high, value)


@dataclass(frozen=True)
class Law:
    """Laws of all losses over one set of domains, the runs they stand on, and the warnings that go with them."""

    domains: tuple[str, ...]
    columns: tuple[ColumnLaw, ...]
    runs: RunsTable
    warnings: tuple[str, ...] = field(default=())
    nesting: tuple[str, ...] = field(default=())  # how losses of other sizes or steps were carried over

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses, as in the table without `loss_`."""
        return tuple(column.loss for column in self.columns)

    def column(self, loss: str) -> ColumnLaw:
        """The law of one loss.

        Raises: ConfigError for a name that is none of the table's losses.
        """
        for column in self.columns:
            if column.loss == loss:
                return column
        several = ",".join(f"{name}=1" for name in self.losses[:2])
        raise ConfigError(
            f"the law has no loss '{loss}'; it knows {', '.join(self.losses)} (an objective is written as in {several})"
        )

    def predict(self, shares_QK: Array) -> dict[str, tuple[Array, Array, Array]]:
        """For each loss: value, lower and upper end of the 90 % interval."""
        return {column.loss: column.predict(shares_QK) for column in self.columns}

    def outside_tried(self, shares_QK: Array) -> NDArray[np.bool_]:
        """True where a mixture lies outside the convex hull of the tried ones."""
        return outside_hull(self.runs.shares, shares_QK)


def fit_law(table: RunsTable, nesting: tuple[str, ...] = (), plan: FoldPlan | None = None) -> Law:
    """Fit and cross-validate every form for every loss; `plan` replaces the folds where nesting made its own.

    Raises: ConfigError when the runs cannot carry a law (see `checks.check_runs`).
    """
    warnings = [*table.warnings, *check_runs(table)]
    measured_NC = np.isfinite(table.loss_values)
    losses_CN = np.where(measured_NC, table.loss_values, 0.0).T
    weights_CN = (measured_NC * table.weights[:, None]).T
    folded = fit_folds(table.shares, losses_CN, weights_CN, plan)
    floors = noise_floor(table)
    rule = pick_rule(table.shares)
    judged_CN = (measured_NC & ~table.derived[:, None]).T
    choices = [choose_form(folded, c, losses_CN[c], weights_CN[c], judged, rule) for c, judged in enumerate(judged_CN)]
    held = [_held_out(c, choices[c], folded, losses_CN[c], judged) for c, judged in enumerate(judged_CN)]
    share = doubt_share([h.residuals for h in held], [h.doubt for h in held], [h.typical for h in held])
    columns = [
        _column(loss, c, choices[c], folded, held[c], share, float(floors[c])) for c, loss in enumerate(table.losses)
    ]
    for column in columns:
        warnings.extend(_column_warnings(column))
    warnings.extend(_few_runs_warning(columns))
    if np.isnan(floors).all():
        warnings.append(
            "no mixture was run twice: the noise between seeds is unknown; repeat one or two with other seeds"
        )
    return Law(table.domains, tuple(columns), table, tuple(warnings), nesting)


@dataclass(frozen=True)
class _HeldOut:
    """What the runs of one loss say that a fit has not seen: errors, doubt there, and the typical doubt."""

    residuals: Array
    folds: NDArray[np.intp]
    doubt: Array
    typical: float


def _held_out(c: int, choice: Choice, folded: Folded, losses_N: Array, judged: NDArray[np.bool_]) -> _HeldOut:
    residuals = np.abs(choice.held_out - losses_N)[judged]
    doubt = folded.doubt[c, judged]
    return _HeldOut(residuals, folded.fold_of_run[judged], doubt, max(float(np.median(doubt)), 1e-12))


def _column(loss: str, c: int, choice: Choice, folded: Folded, held: _HeldOut, share: float, floor: float) -> ColumnLaw:
    widths = tempered(held.doubt, held.typical, share)
    return ColumnLaw(
        loss=loss,
        form=choice.form,
        weights=choice.weights,
        errors=choice.errors,
        whole={name: folded.whole[name].take([c]) for name in FORMS},
        folds={name: folded.folds[name].take(folded.fold_rows(c)) for name in members_of(choice.form)},
        residuals=held.residuals,
        residual_folds=held.folds,
        noise_floor=floor,
        residual_widths=widths,
        typical_doubt=held.typical,
        doubt_share=share,
        coverage=measured_coverage(held.residuals / widths),
    )


def _column_warnings(column: ColumnLaw) -> list[str]:
    warnings = []
    error, mean = column.errors[column.form], column.errors[MEAN]
    if error >= NO_BETTER_THAN_MEAN * mean:  # both are 0 for a loss that never moves
        warnings.append(
            f"DO NOT TRUST the law of loss_{column.loss}: held out it errs by {error:.4g}, the plain mean by "
            f"{mean:.4g}; the runs do not show that the mixture moves this loss"
        )
    if np.isfinite(column.noise_floor) and error < 0.5 * column.noise_floor:
        warnings.append(
            f"loss_{column.loss}: the held-out error {error:.4g} is below the noise between replicates "
            f"{column.noise_floor:.4g}: a replicate went wrong, or a few mixtures are much noisier than the rest"
        )
    return warnings


def _few_runs_warning(columns: list[ColumnLaw]) -> list[str]:
    few = [column for column in columns if len(column.residuals) < FEWEST_FOR_INTERVAL]
    if not few:
        return []
    names = ", ".join(f"loss_{column.loss}" for column in few)
    return [
        f"{names}: {min(len(column.residuals) for column in few)} runs are too few for a guaranteed 90 % interval "
        f"({FEWEST_FOR_INTERVAL} are needed); the widest seen error was stretched instead"
    ]


def bound_hits(column: ColumnLaw, shares_QK: Array) -> NDArray[np.bool_]:
    """True where a member of the chosen form was held at the bounds of its predictions."""
    hit = np.zeros(len(shares_QK), dtype=bool)
    for name in members_of(column.form):
        arrays = column.whole[name].arrays
        if (
            "ceiling" not in arrays or arrays["ceiling"][0] <= arrays["floor"][0]
        ):  # the same for a loss that never moves
            continue
        value = FORMS[name].predict(column.whole[name], shares_QK)[0]
        standard = (value - arrays["centre"][0]) / arrays["scale"][0]
        hit |= (standard <= arrays["floor"][0] + 1e-9) | (standard >= arrays["ceiling"][0] - 1e-9)
    return hit


def comparison(column: ColumnLaw) -> tuple[float, float]:
    """Held-out error of the chosen form over the mean's, and over the published exponential law's."""
    error = column.errors[column.form]
    return error / max(column.errors[MEAN], 1e-12), error / max(column.errors[EXPONENTIAL], 1e-12)
