"""A fitted mixing law: the forms' parameters and weights, held-out errors, intervals and warnings.

`fit_law` turns a checked table into a `Law`; `Law.predict` gives losses with 90 % intervals. This module
touches no file; `files` writes and reads laws. Axes: C losses, N runs, Q queries, K domains, G folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.arrays import Array, Index, Mask
from pipeline.planning.crossval import Folded, Weighing, Weights, choose_weights, fit_folds, predict_weighted
from pipeline.planning.forms.catalogue import FORMS, MEAN, PROCESS
from pipeline.planning.forms.fitted import Fitted
from pipeline.planning.intervals import jackknife_plus, level_of, noise_slopes, relative_widths
from pipeline.planning.runs.checks import check_runs, noise_floor
from pipeline.planning.runs.run_table import RunsTable

# A law whose held-out error is not below this part of the mean's is called no better than the mean.
NO_BETTER_THAN_MEAN = 0.9
FEWEST_FOR_INTERVAL = 9
_NOTABLE_WEIGHT = 0.1
# The part of a held-out error that is the law's; the rest is noise. With 0.6 the interval of the optimum
# covers it in 94 % of simulated tables of 2 to 7 domains, with 0.5 in about 88 %. This is the middle.
ERROR_PART = 0.55
_MOST_KEPT = 0.7  # of a held-out error in the fit on all runs; without noise up to 0.8 was seen
# Times the median held-out error. A lone corner that no other run predicts changes by 1 nat when it is left out, and
# says nothing of how far the law is off elsewhere.
LARGEST_CHANGE = 3.7

Prediction = tuple[Array, Array, Array]
"""Loss and the ends of its 90 % interval, each of shape Q."""


@dataclass(frozen=True)
class ColumnLaw:
    """The law of one loss: a weighted mean of fitted forms, and what the held-out runs say of it."""

    loss: str
    weights: Weights  # form -> part; the same for all losses of a law
    error: float  # mean absolute held-out error
    form_errors: dict[str, float]  # the same for each form alone
    whole: dict[str, Fitted]  # form -> one fit on all runs
    folds: dict[str, Fitted]  # forms with a weight -> G fits
    residuals: Array  # absolute held-out errors, runs with this loss only
    residual_folds: Index  # the fold that held each of them out
    residual_widths: Array  # see intervals
    typical_deviation: float  # of the Gaussian process at the runs it has not seen, nats
    fit_error: float  # median absolute error on the runs themselves
    lowest_loss: float  # among the runs
    highest_loss: float
    noise_slope: float  # see intervals.noise_slopes
    noise_floor: float  # standard deviation between replicates; nan without them

    def value(self, shares_QK: Array) -> Array:
        """Predicted losses, shape Q; none is negative where no run has a loss below 0."""
        value: Array = predict_weighted(self.whole, self.weights, shares_QK)[0]
        return np.maximum(value, 0.0) if self.lowest_loss > 0 else value

    def predict(self, shares_QK: Array) -> Prediction:
        """Predicted losses and the ends of their 90 % intervals."""
        value = self.value(shares_QK)
        by_fold = predict_weighted(self.folds, self.weights, shares_QK)
        deviation = PROCESS.deviation(self.whole[PROCESS.name], shares_QK)[0]
        level = level_of(value, self.lowest_loss, self.highest_loss)
        width = relative_widths(deviation, self.typical_deviation) * np.exp(self.noise_slope * level)
        low, high = jackknife_plus(by_fold, self.residuals / self.residual_widths, self.residual_folds, width)
        if self.lowest_loss > 0:  # such a loss is never negative, however little is known of it
            low = np.maximum(low, 0.0)
        return value, np.minimum(low, value), np.maximum(high, value)

    @property
    def num_folds(self) -> int:
        """Folds of the cross-validation."""
        return len(next(iter(self.folds.values())).arrays["centre"])

    def changes(self, shares_QK: Array) -> Array:
        """Return the change of the loss that each left-out fold stands for, in units of a jackknife, shape G x Q.

        Where a form cannot follow the losses, it errs the same way with and without a run, and the changes are too
        small. So they are scaled to a fixed part of the held-out errors.
        """
        by_fold = predict_weighted(self.folds, self.weights, shares_QK)
        typical = max(float(np.median(self.residuals)), 1e-12)
        largest = LARGEST_CHANGE * typical
        scale = ERROR_PART / (1.0 - min(self.fit_error / typical, _MOST_KEPT)) * np.sqrt(1 - 1 / self.num_folds)
        return np.asarray(scale * np.clip(by_fold - by_fold.mean(axis=0), -largest, largest))

    def sample_values(self, shares_QK: Array, multipliers_BG: Array) -> Array:
        """Losses under B laws that the runs allow, shape B x Q; the multipliers are standard normal numbers.

        Each law is this one plus a random sum of the changes that leaving out one fold makes (the jackknife).
        """
        values: Array = self.value(shares_QK) + multipliers_BG @ self.changes(shares_QK)
        return values

    def describe_weights(self) -> str:
        """Return the forms with a weight of 0.05 or more, in words, e.g. "0.71 gaussian_process + 0.29 additive"."""
        parts = sorted(self.weights.items(), key=lambda part: -part[1])
        shown = [f"{weight:.2f} {name}" for name, weight in parts if weight >= 0.05]
        return " + ".join(shown)


@dataclass(frozen=True)
class Law:
    """Laws of all losses over one set of domains, the runs they stand on, and the warnings that go with them."""

    domains: tuple[str, ...]
    columns: tuple[ColumnLaw, ...]
    runs: RunsTable
    warnings: tuple[str, ...] = ()

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses, as in the table without `loss_`."""
        return tuple(column.loss for column in self.columns)

    def column(self, loss: str) -> ColumnLaw:
        """Return the law of one loss.

        Raises: ConfigError for a name that is none of the table's losses.
        """
        for column in self.columns:
            if column.loss == loss:
                return column
        several = ",".join(f"{name}=1" for name in self.losses[:2])
        raise ConfigError(
            f"the law has no loss '{loss}'; it knows {', '.join(self.losses)} (an objective is written as in {several})"
        )

    def predict(self, shares_QK: Array) -> dict[str, Prediction]:
        """For each loss: value, lower and upper end of the 90 % interval."""
        return {column.loss: column.predict(shares_QK) for column in self.columns}


def fit_law(table: RunsTable) -> Law:
    """Fit, cross-validate and weigh all forms for every loss.

    Raises: ConfigError when the runs cannot carry a law (see `checks.check_runs`).
    """
    warnings = [*table.warnings, *check_runs(table)]
    measured_NC = np.isfinite(table.loss_values)
    losses_CN = np.where(measured_NC, table.loss_values, 0.0).T
    weights_CN = (measured_NC * table.weights[:, None]).T
    folded = fit_folds(table.shares, losses_CN, weights_CN)
    weighing = choose_weights(folded, table.shares, losses_CN, weights_CN)
    floors = noise_floor(table)
    columns = tuple(
        _column_law(table, c, weighing, folded, measured_NC[:, c], float(floors[c])) for c in range(len(table.losses))
    )
    for column in columns:
        warnings += _column_warnings(column)
    fewest = min(len(column.residuals) for column in columns)
    if fewest < FEWEST_FOR_INTERVAL:
        warnings.append(
            f"{fewest} runs are too few for a guaranteed 90 % interval ({FEWEST_FOR_INTERVAL} are needed); the widest "
            "seen error was stretched instead"
        )
    if np.isnan(floors).all():
        warnings.append(
            "no mixture was run twice: the noise between seeds is unknown; repeat one or two with other seeds"
        )
    return Law(table.domains, columns, table, tuple(warnings))


def _column_law(
    table: RunsTable, c: int, weighing: Weighing, folded: Folded, measured: Mask, floor: float
) -> ColumnLaw:
    deviation = folded.deviation[c, measured]
    typical = max(float(np.median(deviation)), 1e-12)
    residuals, losses = weighing.residuals[c, measured], table.loss_values[measured, c]
    lowest, highest = float(losses.min()), float(losses.max())
    widths = relative_widths(deviation, typical)
    level = level_of(weighing.predicted[c, measured], lowest, highest)
    slope, slope_of_others = noise_slopes(residuals / widths, level)
    widths = widths * np.exp(slope_of_others * level)
    whole = {name: folded.whole[name].take([c]) for name in FORMS}
    fitted = predict_weighted(whole, weighing.weights, table.shares[measured])[0]
    return ColumnLaw(
        loss=table.losses[c],
        weights=weighing.weights,
        error=float(np.average(residuals, weights=table.weights[measured])),
        form_errors=weighing.errors[c],
        whole=whole,
        folds={
            name: folded.folds[name].take(slice(c * folded.num_folds, (c + 1) * folded.num_folds))
            for name in weighing.weights
        },
        residuals=residuals,
        residual_folds=folded.fold_of_run[measured],
        residual_widths=widths,
        typical_deviation=typical,
        fit_error=float(np.median(np.abs(fitted - losses))),
        lowest_loss=lowest,
        highest_loss=highest,
        noise_slope=slope,
        noise_floor=floor,
    )


def _column_warnings(column: ColumnLaw) -> list[str]:
    warnings = []
    mean = column.form_errors[MEAN]
    if column.error >= NO_BETTER_THAN_MEAN * mean:  # both are 0 for a loss that never moves
        warnings.append(
            f"DO NOT TRUST the law of loss_{column.loss}: on held-out runs it errs by {column.error:.4g}, the mean by "
            f"{mean:.4g}; the runs do not show that the mixture moves this loss"
        )
    if np.isfinite(column.noise_floor) and column.error < 0.5 * column.noise_floor:
        warnings.append(
            f"loss_{column.loss}: the held-out error {column.error:.4g} is below the noise between replicates "
            f"{column.noise_floor:.4g}: a replicate went wrong, or a few mixtures are much noisier than the rest"
        )
    return warnings


def bound_hits(column: ColumnLaw, shares_QK: Array) -> Mask:
    """Return true where a form of notable weight was held at the bounds of its predictions."""
    hit = np.zeros(len(shares_QK), dtype=bool)
    for name in (name for name, weight in column.weights.items() if weight >= _NOTABLE_WEIGHT):
        arrays = column.whole[name].arrays
        floor, ceiling = arrays["floor"][0], arrays["ceiling"][0]
        if ceiling > floor:  # they are equal for a loss that never moves
            value = FORMS[name].predict(column.whole[name], shares_QK)[0]
            standard = (value - arrays["centre"][0]) / arrays["scale"][0]
            hit |= (standard <= floor + 1e-9) | (standard >= ceiling - 1e-9)
    return hit
