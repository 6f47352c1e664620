"""Fields of another table for the rows of a source: ranks, licence, owner, group, whatever its columns hold.

The rows of the source are staged on disk as they come. `keyed.py` pairs them with those of each table. The values are
then sorted by the rows of the source, and both files are read side by side: memory holds one batch of each. A value of
the source counts before one of a table, and a table before the next. Where rows with one key differ, a field stays
empty, but all of their owners count, and their licences, each in a line of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import model_validator

from manifests.contract.settings import ConfigPath
from manifests.masking import hide_secrets
from manifests.names.sql import identifier
from pipeline.sources.rows import (
    BATCH_ROWS,
    LICENCE_PAIR,
    ROWS,
    Batch,
    RowColumns,
    Scratch,
    extra_json,
    make_batch,
    map_columns,
)
from pipeline.sources.table import TableReader
from pipeline.sources.tables.joining import StagedTable, staging, text
from pipeline.sources.tables.keyed import JoinedTable, keys_that_share, pair_rows, stage_partners

_KEPT = "extra."  # in front of the name of a column that `extra` keeps
_OWNERS = ("rights_holder", "creator")


class FieldColumns(RowColumns):
    """Columns of a joined table, and what they fill where the source says nothing."""

    @model_validator(mode="after")
    def _fill_something(self) -> FieldColumns:
        if self.record_key is not None:
            raise ValueError("record_key: the key of a row is the source's own; `on` says how the table names it")
        if not self.names():
            raise ValueError("name at least one column of the table")
        return self


class JoinedFields(JoinedTable):
    """A table whose columns belong to the rows of a source.

    The source's own value of a row counts first, then the tables in their order, then `defaults`. Where several rows
    have one key, a field counts if none of them says something else; their licences must all be allowed, and their
    owners are all named.
    """

    table: ConfigPath
    """The table: parquet, csv, tsv, json, jsonl or xlsx; a file, a folder of them, or a glob."""
    columns: FieldColumns
    """Which of its columns holds what."""

    section: ClassVar[str] = "join"
    gives: ClassVar[str] = "row"

    @property
    def path(self) -> str:
        """The table."""
        return self.table

    @property
    def values(self) -> list[str]:
        """The columns that hold something for a row."""
        return self.columns.names()

    def identity(self) -> dict[str, Any]:
        """Return the values that the rows depend on besides the table."""
        return self.model_dump(mode="json", exclude={"table"}, exclude_none=True)

    def staged(self, rows: pa.Table) -> dict[str, Any]:
        """Values of rows of the table, by columns of ROWS and the names that `extra` keeps; null where it has none."""
        mapped = map_columns(rows, self.columns.model_copy(update={"extra": []}))
        mapped |= {_KEPT + name: rows[name] for name in self.columns.extra}
        trimmed = {name: pc.utf8_trim_whitespace(values) for name, values in mapped.items()}
        return {name: pc.if_else(pc.equal(values, ""), None, values) for name, values in trimmed.items()}

    def names(self) -> list[str]:
        """Return the names of the values that `staged` gives."""
        return [*sorted(self.columns.fills()), *(_KEPT + name for name in self.columns.extra)]


def join_fields(
    batches: Iterator[Batch],
    source: str,
    joins: Sequence[JoinedFields],
    of_tars: bool,
    scratch: Scratch,
    tell: Callable[[dict[str, Any]], None],
) -> Iterator[Batch]:
    """Yield the rows of a source with what the tables of `joins` hold for them. `tell` gets the counts of each join.

    `of_tars`: the rows are samples of tars, whose names may stand in several.
    """
    with staging(scratch) as (sql, folder):
        with StagedTable(folder, "rows", ROWS.names) as rows:
            for batch in batches:
                rows.write(batch.numbers, {name: batch.rows[name] for name in ROWS.names})
                if batch.lost.num_rows:
                    yield Batch(ROWS.empty_table(), np.arange(0), batch.lost)
        found = []
        for entry, joined in enumerate(joins, 1):
            key = f"SELECT file_row_number AS id, {joined.sql_of_key()} AS key"
            sql.execute(
                f"CREATE OR REPLACE VIEW pictures AS {key} FROM read_parquet({text(rows.path)}, file_row_number = true)"
            )
            Path(of_entry := f"{folder}/{entry}").mkdir()
            table = joined.reader(f"sources.{source}.join[{entry}]")
            values, counts = _values_by_row(sql, of_entry, table, joined, of_tars)
            found.append(_InOrder(values))
            tell({"source": source, "entry": entry, **counts})
        yield from _filled(rows.path, joins, found)


def _values_by_row(
    sql: Any, folder: str, table: TableReader, joined: JoinedFields, of_tars: bool
) -> tuple[str, dict[str, Any]]:
    """Return a file of the values for the rows of the view `pictures`, in their order, and the counts of the join."""
    names = joined.names()
    odd = stage_partners(sql, folder, table, names, joined.staged)
    counts = pair_rows(sql, odd, keys_that_share(joined, of_tars), once=True)
    agreed = ", ".join(f"{_agreed(name, names)} AS {identifier(name)}" for name in names)
    differ = " OR ".join(f"min(u.{identifier(name)}) <> max(u.{identifier(name)})" for name in names)
    sql.execute(
        f"CREATE OR REPLACE TABLE agreed AS SELECT r.first, min(r.key) AS key, coalesce({differ}, false) AS differ, "
        f"{agreed} FROM usable u JOIN repeated r USING (key) GROUP BY r.first"
    )
    query = "SELECT count(*), count(*) FILTER (differ), min(left(key, 80)) FILTER (differ) FROM agreed"
    ((num_repeated, num_differing, differing_key),) = sql.execute(query).fetchall()
    counts |= {"num_repeated": num_repeated, "num_differing": num_differing}
    ((num_of_none,),) = sql.execute("SELECT count(*) FROM usable ANTI JOIN pictures USING (key)").fetchall()
    counts |= {"num_of_no_picture": num_of_none} if num_of_none else {}
    counts |= {"differing_key": hide_secrets(differing_key)} if num_differing else {}
    values = ", ".join(
        f"if(a.first IS NULL, p.{identifier(name)}, a.{identifier(name)}) AS {identifier(name)}" for name in names
    )
    query = f"SELECT p.n, {values} FROM partners p LEFT JOIN agreed a ON a.first = p.n"
    rows = sql.sql(f"SELECT * EXCLUDE (n) FROM ({query}) JOIN pairs USING (n) ORDER BY id").to_arrow_reader(BATCH_ROWS)
    with StagedTable(folder, "values", names) as staged:
        for batch in rows:
            staged.write(batch["id"].to_numpy(), {name: batch[name] for name in names})
    return staged.path, counts


def _agreed(name: str, names: Sequence[str]) -> str:
    """Return SQL of what rows with one key say together. Rights that they state in two ways are not left to `defaults`.

    A licence and its address are a line in each of two columns, so that every row's are read beside each other.
    """
    value = f"u.{identifier(name)}"
    if name in LICENCE_PAIR:
        pair = [
            f"""coalesce(regexp_replace(u.{identifier(part)}, '\\s+', ' ', 'g'), '')"""
            for part in names
            if part in LICENCE_PAIR
        ]
        stated = f"list_sort(list(DISTINCT [{', '.join(pair)}]) FILTER (concat({', '.join(pair)}) <> ''))"
        place = [part for part in names if part in LICENCE_PAIR].index(name) + 1
        return f"if(max({value}) IS NULL, NULL, array_to_string([line[{place}] for line in {stated}], chr(10)))"
    together = f"string_agg(DISTINCT {value}, '; ' ORDER BY {value})" if name in _OWNERS else "NULL"
    return f"if(min({value}) = max({value}), min({value}), {together})"


def _filled(path: str, joins: Sequence[JoinedFields], found: Sequence[_InOrder]) -> Iterator[Batch]:
    """Yield the staged rows, with the values that were found for them."""
    start = 0
    for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS):
        rows = pa.Table.from_batches([batch])
        filled: dict[str, Any] = {name: rows[name] for name in ROWS.names}
        for joined, in_order in zip(joins, found, strict=True):
            values = in_order.rows(start, start + rows.num_rows)
            for name in joined.columns.fills():
                filled[name] = _first_value(filled[name], values[name])
            if kept := joined.columns.extra:
                filled["extra"] = _with_kept(filled["extra"], {name: values[_KEPT + name] for name in kept})
        start += rows.num_rows
        yield make_batch(filled, rows["n"].to_numpy())


def _first_value(given: pa.ChunkedArray, joined: pa.ChunkedArray) -> Any:
    """Return the given values; where a row has none, the joined one."""
    if given.null_count == len(given):
        return joined
    return pc.if_else(pc.equal(pc.fill_null(pc.utf8_trim_whitespace(given), ""), ""), joined, given)


def _with_kept(extra: pa.ChunkedArray, values: Mapping[str, pa.ChunkedArray]) -> pa.Array:
    """Return the column `extra`, with values under their names where it holds none."""
    columns = [values[name].to_pylist() for name in values]
    texts = []
    for held, *row in zip(extra.to_pylist(), *columns, strict=True):
        record = json.loads(held) if held else {}
        missing = {name: value for name, value in zip(values, row, strict=True) if record.get(name) in (None, "")}
        texts.append(extra_json(record | missing))
    return pa.array(texts, pa.string())


class _InOrder:
    """Values for rows of a source, read from a file in the order of the rows."""

    def __init__(self, path: str) -> None:
        file = pq.ParquetFile(path)
        self._batches = file.iter_batches(BATCH_ROWS)
        self._held = file.schema_arrow.empty_table()

    def rows(self, start: int, stop: int) -> pa.Table:
        """Return the values for the rows from `start` to `stop`, null where there are none.

        `start` is the last `stop`.
        """
        held = [self._held]
        while not held[-1].num_rows or held[-1]["n"][-1].as_py() < stop:
            if (batch := next(self._batches, None)) is None:
                break
            held.append(pa.Table.from_batches([batch]))
        values = pa.concat_tables(held).combine_chunks()
        numbers = values["n"].to_numpy()
        num = int(np.searchsorted(numbers, stop))
        self._held = values.slice(num)
        index = np.full(stop - start, -1)
        index[numbers[:num] - start] = np.arange(num)
        return values.take(pa.array(index, pa.int64(), mask=index < 0))
