"""Read and check a table of proxy runs: csv, parquet or the catalogue of a work folder in, a `RunsTable` out.

Columns: `mix_<domain>` shares (sum 1), `loss_<name>` validation losses (empty = not measured); optional `run`,
`model_size`, `step`, `seed`, `samples_seen`, `weight`. Reads one file, or the runs that `dalip proxies` recorded in a
work folder (through an in-memory DuckDB, which also evaluates the filter). Writes nothing. Gives up with ConfigError
that names the row; row 1 is the first data row of the file, before any filter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.errors import ConfigError
from pipeline.planning.descent import Array
from pipeline.planning.tables import ROW, read_table

MIN_DOMAINS, MAX_DOMAINS = 2, 20
# Shares written with three decimals can miss 1 by half of the last digit in every domain.
SHARE_ROUNDING = 0.0005
# Columns that say how a loss was measured: runs that differ in one of them are not comparable.
_MEASURED_HOW = (
    "tokenizer", "tokeniser", "validation_set", "validation_size", "val_size", "validation_samples",
    "num_validation_samples", "validation_batch_size", "eval_batch_size", "validation_release", "loss_kind",
    "vocab_size", "study",
)  # fmt: skip


@dataclass(frozen=True)
class RunsTable:
    """Checked runs. N rows, K domains, C loss columns; `losses_NC` holds nan where a loss was not measured."""

    domains: tuple[str, ...]
    losses: tuple[str, ...]
    shares: Array  # rows sum to exactly 1 up to float rounding
    loss_values: Array
    weights: Array  # > 0, mean 1
    rows: NDArray[np.int64]  # 1-based data row in the file
    model_sizes: tuple[str, ...]  # "" where the table has none
    steps: Array  # nan where the table has none
    seeds: tuple[str, ...]  # "" where the table has none
    samples_seen: Array  # nan where the table has none
    derived: NDArray[np.bool_]  # true for losses carried over from another size or step
    source: str = ""
    sha256: str = ""
    where: str = ""
    warnings: tuple[str, ...] = field(default=())

    @property
    def num_runs(self) -> int:
        """Rows."""
        return len(self.shares)

    def mixture_groups(self) -> NDArray[np.intp]:
        """Number of the mixture of each run; replicates share one."""
        _, group = np.unique(np.round(self.shares, 6), axis=0, return_inverse=True)
        return np.asarray(group, dtype=np.intp).reshape(-1)

    def take(self, rows: NDArray[Any]) -> RunsTable:
        """The runs at the given positions (or where a mask is true)."""
        at = np.arange(self.num_runs)[rows]
        return RunsTable(
            self.domains, self.losses, self.shares[at], self.loss_values[at], self.weights[at],
            self.rows[at], tuple(self.model_sizes[i] for i in at), self.steps[at],
            tuple(self.seeds[i] for i in at), self.samples_seen[at], self.derived[at],
            self.source, self.sha256, self.where, self.warnings,
        )  # fmt: skip


def read_runs(path: str | Path, where: str | None = None) -> RunsTable:
    """Read and check the proxy runs at `path`; `where` is a DuckDB filter such as "step = 60000".

    Raises: ConfigError for an unreadable file, a filter that fails or keeps nothing, and every fault of a row.
    """
    names, columns, sha256 = read_table(path, where)
    return build_runs(names, columns, source=Path(path).name, sha256=sha256, where=where or "")


def build_runs(
    names: list[str], columns: dict[str, list[Any]], *, source: str, sha256: str = "", where: str = ""
) -> RunsTable:
    """Check raw columns and make the table.

    Raises: ConfigError, naming the row, for shares or losses that cannot be used.
    """
    rows = np.array(columns.get(ROW, range(1, len(next(iter(columns.values()))) + 1)), dtype=np.int64)
    domains = tuple(name.removeprefix("mix_") for name in names if name.startswith("mix_"))
    losses = tuple(name.removeprefix("loss_") for name in names if name.startswith("loss_"))
    _check_columns(domains, losses, names, source)
    shares = _shares(columns, domains, rows, source)
    loss_values = _losses(columns, losses, rows, source)
    measured = np.flatnonzero(np.isfinite(loss_values).any(axis=0))
    empty = ", ".join(f"loss_{losses[i]}" for i in range(len(losses)) if i not in measured)
    if not measured.size:
        raise ConfigError(f"{source}: {empty} has no value in any row: nothing was measured")
    losses = tuple(losses[i] for i in measured)
    warnings = (f"{empty} has no value in any of these rows: it is left out",) if empty else ()
    _check_comparable(columns, rows, source)
    weights = _weights(columns, rows, source)
    return RunsTable(
        domains, losses, shares, loss_values[:, measured], weights / weights.mean(), rows,
        _texts(columns, "model_size", len(rows)), _numbers(columns, "step", rows, source),
        _texts(columns, "seed", len(rows)), _numbers(columns, "samples_seen", rows, source),
        np.zeros(len(rows), dtype=bool), source, sha256, where, warnings,
    )  # fmt: skip


def read_mixtures(path: str | Path, domains: tuple[str, ...]) -> tuple[list[str], dict[str, list[Any]], Array]:
    """Mixtures to predict for: the table as it is, and the shares in the order of `domains`.

    Raises: ConfigError for a missing or unknown domain column, or shares that are not shares.
    """
    names, columns, _ = read_table(path, as_written=True)
    source = Path(path).name
    given = [name.removeprefix("mix_") for name in names if name.startswith("mix_")]
    missing = [domain for domain in domains if domain not in given]
    unknown = [domain for domain in given if domain not in domains]
    if missing:
        raise ConfigError(
            f"{source}: missing column(s) {', '.join('mix_' + m for m in missing)}; "
            f"the law was fitted on {', '.join(domains)}"
        )
    if unknown:
        raise ConfigError(
            f"{source}: mix_{unknown[0]} is not a domain of the law ({', '.join(domains)}); drop the column"
        )
    rows = np.array(columns[ROW], dtype=np.int64)
    shares = _shares(columns, domains, rows, source)
    return [name for name in names if name != ROW], columns, shares


def _check_columns(domains: tuple[str, ...], losses: tuple[str, ...], names: list[str], source: str) -> None:
    given = [name for name in names if name != ROW]
    found = ", ".join(given[:8]) + (f" and {len(given) - 8} more" if len(given) > 8 else "")
    if not MIN_DOMAINS <= len(domains) <= MAX_DOMAINS:
        raise ConfigError(
            f"{source}: {len(domains)} mix_<domain> column(s) found; a mixture needs {MIN_DOMAINS} to {MAX_DOMAINS} "
            f"(the columns are: {found})"
        )
    for name in ("mix_", "loss_"):
        if name in given:
            raise ConfigError(f"{source}: the column '{name}' names no {'domain' if name == 'mix_' else 'loss'}")
    if not losses:
        raise ConfigError(
            f"{source}: no loss_<name> column found; add the validation losses of the runs (the columns are: {found})"
        )


def _number(value: Any, column: str, row: int, source: str) -> float:
    """A cell as a float; nan for an empty one."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{source}: row {row}: {column} is {value!r}, not a number") from None


def _shares(columns: dict[str, list[Any]], domains: tuple[str, ...], rows: NDArray[np.int64], source: str) -> Array:
    shares = np.empty((len(rows), len(domains)))
    for k, domain in enumerate(domains):
        column = f"mix_{domain}"
        for n, value in enumerate(columns[column]):
            shares[n, k] = share = _number(value, column, int(rows[n]), source)
            if not np.isfinite(share):
                raise ConfigError(f"{source}: row {rows[n]}: {column} is empty; write 0 where a domain takes no part")
            if not 0.0 <= share <= 1.0 + 1e-9:
                percent = "; percent must be divided by 100" if 1.0 < share <= 100.0 else ""
                raise ConfigError(f"{source}: row {rows[n]}: {column} is {share:g}; a share lies in 0 to 1{percent}")
    totals = shares.sum(axis=1)
    off = np.flatnonzero(np.abs(totals - 1.0) > SHARE_ROUNDING * len(domains) + 1e-9)
    if off.size:
        first = off[0]
        more = f" ({off.size} rows are off by more than rounding)" if off.size > 1 else ""
        raise ConfigError(
            f"{source}: row {rows[first]}: the shares sum to {totals[first]:.6g}, off by "
            f"{totals[first] - 1.0:+.6g}; they must sum to 1{more}"
        )
    result: Array = shares / totals[:, None]
    return result


def _losses(columns: dict[str, list[Any]], losses: tuple[str, ...], rows: NDArray[np.int64], source: str) -> Array:
    values = np.empty((len(rows), len(losses)))
    for c, loss in enumerate(losses):
        column = f"loss_{loss}"
        for n, value in enumerate(columns[column]):
            values[n, c] = number = _number(value, column, int(rows[n]), source)
            if np.isinf(number) or (np.isnan(number) and value is not None and str(value).strip()):
                raise ConfigError(
                    f"{source}: row {rows[n]}: {column} is {value}; a run that diverged cannot be used: "
                    "drop the row, or leave the cell empty if it was not measured"
                )
    return values


def _check_comparable(columns: dict[str, list[Any]], rows: NDArray[np.int64], source: str) -> None:
    for name in _MEASURED_HOW:
        seen: dict[str, int] = {}
        for row, value in zip(rows, columns.get(name, []), strict=False):
            seen.setdefault(str(value), int(row))
        if len(seen) > 1:
            shown = ", ".join(f"{value} (row {row})" for value, row in list(seen.items())[:3])
            raise ConfigError(
                f"{source}: the losses are not comparable: {name} differs: {shown}; keep one kind with --where"
            )


def _weights(columns: dict[str, list[Any]], rows: NDArray[np.int64], source: str) -> Array:
    if "weight" not in columns:
        return np.ones(len(rows))
    weights = _numbers(columns, "weight", rows, source)
    for row, weight in zip(rows, weights, strict=True):
        if not (np.isfinite(weight) and weight > 0):
            raise ConfigError(f"{source}: row {row}: weight is {weight:g}; it must be above 0")
    return weights


def _numbers(columns: dict[str, list[Any]], name: str, rows: NDArray[np.int64], source: str) -> Array:
    if name not in columns:
        return np.full(len(rows), np.nan)
    return np.array([_number(value, name, int(row), source) for row, value in zip(rows, columns[name], strict=True)])


def _texts(columns: dict[str, list[Any]], name: str, num_rows: int) -> tuple[str, ...]:
    if name not in columns:
        return ("",) * num_rows
    return tuple("" if value is None else str(value) for value in columns[name])
