"""A checked table of proxy runs.

Columns: `mix_<domain>` shares (sum 1) and `loss_<name>` validation losses (empty = not measured). A column
`accuracy_<name>` (0 to 1, higher is better) becomes the loss `error_<name>`: 1 less the accuracy. Optional are `run`,
`model_size`, `step`, `seed`, `samples_seen` and `weight`. Reads and writes nothing. Gives up with ConfigError that
names the row of the file, before any filter.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.arrays import Array, Index, Mask, Texts
from pipeline.planning.runs.groups import Groups, find_groups, merge_shares
from pipeline.planning.runs.tables import ROW, Columns

MIN_DOMAINS, MAX_DOMAINS = 2, 200
# Shares written with three decimals can miss 1 by half of the last digit in every domain.
SHARE_ROUNDING = 0.0005
# Columns that say how a loss was measured. Losses of runs that differ in one of them are not comparable.
_MEASURED_HOW = (
    "tokenizer", "tokeniser", "validation_set", "validation_size", "val_size", "validation_samples",
    "num_validation_samples", "validation_batch_size", "eval_batch_size", "validation_release", "loss_kind",
    "vocab_size", "study",
)  # fmt: skip
_PER_RUN = ("shares", "loss_values", "weights", "rows", "model_sizes", "steps", "seeds", "samples_seen")


@dataclass(frozen=True)
class RunsTable:
    """Checked runs. N rows, K domains, C losses. A text is "" and a number nan where the table does not say."""

    domains: tuple[str, ...]
    losses: tuple[str, ...]
    shares: Array  # N x K; rows sum to 1 up to float rounding
    loss_values: Array  # N x C; nan where a loss was not measured
    weights: Array  # > 0, mean 1
    rows: Index  # 1-based data row in the file
    model_sizes: Texts
    steps: Array
    seeds: Texts
    samples_seen: Array
    source: str = ""
    sha256: str = ""
    where: str = ""
    warnings: tuple[str, ...] = ()
    groups: Groups = field(default_factory=dict)  # domains of the file that are planned as one

    @property
    def num_runs(self) -> int:
        """Rows."""
        return len(self.shares)

    @property
    def num_mixtures(self) -> int:
        """Different mixtures; replicates count once."""
        return int(self.mixture_groups().max()) + 1

    def mixture_groups(self) -> Index:
        """Return the number of each run's mixture; replicates share one."""
        return mixture_groups(self.shares)

    def take(self, rows: Index | Mask) -> RunsTable:
        """Return the runs at the given positions, or where a mask is true."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _PER_RUN})


def mixture_groups(shares_NK: Array) -> Index:
    """Return the number of each row's mixture; equal mixtures share one."""
    _, group = np.unique(np.round(shares_NK, 6), axis=0, return_inverse=True)
    return np.asarray(group, dtype=np.intp).reshape(-1)


def build_runs(names: list[str], columns: Columns, source: str, sha256: str = "", where: str = "") -> RunsTable:
    """Check raw columns and make the table; `source`, `sha256` and `where` say where they are from.

    Raises: ConfigError when there is no row; and, naming the row, for shares or losses that cannot be used.
    """
    if not any(columns.values()):
        raise ConfigError(f"{source}: no rows" + (f' are left by --where "{where}"' if where else ""))
    rows = np.array(columns.get(ROW, range(1, len(next(iter(columns.values()))) + 1)), dtype=np.intp)
    names, columns = _accuracies_as_losses(names, _Cells(columns, rows, source))
    cells = _Cells(columns, rows, source)
    domains = tuple(name.removeprefix("mix_") for name in names if name.startswith("mix_"))
    losses = tuple(name.removeprefix("loss_") for name in names if name.startswith("loss_"))
    _check_columns(domains, losses, names, source)
    shares = cells.shares(domains)
    warnings = []
    groups = find_groups(domains, shares)
    domains, shares = merge_shares(domains, shares, groups)
    for group, inside in groups.items():
        ratio = " : ".join(f"{part:.4g}" for part in inside.values())
        warnings.append(
            f"{', '.join(inside)} have one ratio in all runs ({ratio}) and cannot be told apart: they are planned as "
            f"one domain, {group}, and keep that ratio"
        )
    loss_values = cells.losses(losses)
    measured = np.flatnonzero(np.isfinite(loss_values).any(axis=0))
    unmeasured = ", ".join(f"loss_{loss}" for i, loss in enumerate(losses) if i not in measured)
    if not measured.size:
        raise ConfigError(f"{source}: {unmeasured} has no value in any row: nothing was measured")
    if unmeasured:
        warnings.append(f"{unmeasured} has no value in any of these rows: it is left out")
    cells.check_comparable()
    weights = cells.weights()
    return RunsTable(
        domains=domains,
        losses=tuple(losses[i] for i in measured),
        shares=shares,
        loss_values=loss_values[:, measured],
        weights=weights / weights.mean(),
        rows=rows,
        model_sizes=cells.texts("model_size"),
        steps=cells.numbers("step"),
        seeds=cells.texts("seed"),
        samples_seen=cells.numbers("samples_seen"),
        source=source,
        sha256=sha256,
        where=where,
        warnings=tuple(warnings),
        groups=groups,
    )


def _accuracies_as_losses(names: list[str], cells: _Cells) -> tuple[list[str], Columns]:
    """Columns `accuracy_<name>` as `loss_error_<name>`: 1 less the accuracy, so that lower is better everywhere.

    Raises: ConfigError for an accuracy beyond 0 to 1.
    """
    accuracies = [name for name in names if name.startswith("accuracy_")]
    errors: Columns = {}
    for name in accuracies:
        accuracy = cells.numbers(name)
        for n in np.flatnonzero((accuracy < 0) | (accuracy > 1)):
            raise cells.fault(
                int(n), f"{name} is {accuracy[n]:g}; an accuracy lies in 0 to 1; percent must be divided by 100"
            )
        error = f"loss_error_{name.removeprefix('accuracy_')}"
        if error in names:
            raise ConfigError(f"{cells.source}: {name} and {error} say the same; keep one of them")
        errors[error] = [None if np.isnan(value) else 1.0 - value for value in accuracy.tolist()]
    kept = [name for name in names if name not in accuracies]
    return [*kept, *errors], {name: held for name, held in cells.columns.items() if name not in accuracies} | errors


def _check_columns(domains: tuple[str, ...], losses: tuple[str, ...], names: list[str], source: str) -> None:
    columns = [name for name in names if name != ROW]
    listed = ", ".join(columns[:8]) + (f" and {len(columns) - 8} more" if len(columns) > 8 else "")
    if not MIN_DOMAINS <= len(domains) <= MAX_DOMAINS:
        raise ConfigError(
            f"{source}: {len(domains)} mix_<domain> column(s) found; a mixture needs {MIN_DOMAINS} to {MAX_DOMAINS} "
            f"(the columns are: {listed})"
        )
    for name in ("mix_", "loss_"):
        if name in columns:
            raise ConfigError(f"{source}: the column '{name}' names no {'domain' if name == 'mix_' else 'loss'}")
    if not losses:
        raise ConfigError(
            f"{source}: no loss_<name> or accuracy_<name> column; add the validation losses of the runs (the columns "
            f"are: {listed})"
        )


@dataclass(frozen=True)
class _Cells:
    """The raw cells of a table, read as numbers and texts."""

    columns: Columns
    rows: Index
    source: str

    def number(self, column: str, n: int) -> float:
        """One cell; nan for an empty one."""
        value = self.columns[column][n]
        if value is None or (isinstance(value, str) and not value.strip()):
            return float("nan")
        try:
            return float(value)
        except (TypeError, ValueError):
            raise self.fault(n, f"{column} is {value!r}, not a number") from None

    def fault(self, n: int, what: str) -> ConfigError:
        return ConfigError(f"{self.source}: row {self.rows[n]}: {what}")

    def numbers(self, column: str) -> Array:
        if column not in self.columns:
            return np.full(len(self.rows), np.nan)
        return np.array([self.number(column, n) for n in range(len(self.rows))])

    def texts(self, column: str) -> Texts:
        values: list[Any] = self.columns.get(column, [None] * len(self.rows))
        return np.array(["" if value is None else str(value) for value in values], dtype=np.str_)

    def shares(self, domains: tuple[str, ...]) -> Array:
        shares = np.stack([self.numbers(f"mix_{domain}") for domain in domains], axis=1)
        for n, k in np.argwhere(~((shares >= 0.0) & (shares <= 1.0 + 1e-9))):
            share = shares[n, k]
            if not np.isfinite(share):
                raise self.fault(n, f"mix_{domains[k]} is empty; write 0 where a domain takes no part")
            percent = "; percent must be divided by 100" if 1.0 < share <= 100.0 else ""
            raise self.fault(n, f"mix_{domains[k]} is {share:g}; a share lies in 0 to 1{percent}")
        totals = shares.sum(axis=1)
        off = np.flatnonzero(np.abs(totals - 1.0) > SHARE_ROUNDING * len(domains) + 1e-9)
        if off.size:
            total = totals[off[0]]
            more = f" ({off.size} rows are off by more than rounding)" if off.size > 1 else ""
            raise self.fault(
                int(off[0]), f"the shares sum to {total:.6g}, off by {total - 1.0:+.6g}; they must sum to 1{more}"
            )
        result: Array = shares / totals[:, None]
        return result

    def losses(self, losses: tuple[str, ...]) -> Array:
        values = np.stack([self.numbers(f"loss_{loss}") for loss in losses], axis=1)
        for n, c in np.argwhere(~np.isfinite(values)):
            cell = self.columns[f"loss_{losses[c]}"][n]
            if cell is not None and str(cell).strip():
                raise self.fault(
                    n,
                    f"loss_{losses[c]} is {cell}; a run that diverged cannot be used: drop the row, or leave the cell "
                    "empty if it was not measured",
                )
        return values

    def weights(self) -> Array:
        if "weight" not in self.columns:
            return np.ones(len(self.rows))
        weights = self.numbers("weight")
        for n in np.flatnonzero(~(np.isfinite(weights) & (weights > 0))):
            raise self.fault(int(n), f"weight is {weights[n]:g}; it must be above 0")
        return weights

    def check_comparable(self) -> None:
        for name in _MEASURED_HOW:
            seen: dict[str, int] = {}
            for row, value in zip(self.rows, self.columns.get(name, []), strict=False):
                seen.setdefault(str(value), int(row))
            if len(seen) > 1:
                shown = ", ".join(f"{value} (row {row})" for value, row in list(seen.items())[:3])
                raise ConfigError(
                    f"{self.source}: the losses are not comparable: {name} differs: {shown}; keep one kind with --where"
                )
