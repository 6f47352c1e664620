"""The base of readers that join tables: columns staged on disk, filters and ranks in SQL, candidates and lost rows out.

DuckDB joins Parquet files in a private folder. It spills to disk, so memory does not grow with a source.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BeforeValidator, Field

from manifests.contract.tables import TAXON_RANKS
from manifests.names.sql import identifier
from pipeline.judging.vocabulary.licences import CONFLICTING, KNOWN, UNKNOWN, LicenceSettings, normalise_licences
from pipeline.sources.rows import (
    BATCH_ROWS,
    LOST,
    MAX_VALUE_CHARS,
    ROWS,
    Batch,
    Scratch,
    binomials,
    make_batch,
    malformed_rows,
)
from pipeline.sources.table import TableReader

_STAGED_GROUP_ROWS = 50_000
MAX_LEVELS = 200  # the deepest branch of the tree of life as databases draw it has some 60


def _as_texts(where: Any) -> Any:
    """Convert lists of values to lists of texts; a single value is a list of one."""
    if not isinstance(where, dict):
        return where
    texts: dict[Any, Any] = {}
    for term, values in where.items():
        negated = isinstance(values, dict) and list(values) == [_NOT]
        values = values[_NOT] if negated else values
        listed = values if isinstance(values, list) else [values]
        if any(isinstance(value, bool) for value in listed):
            raise ValueError(f"{term}: YAML reads NO, yes, true as truth values; put the value in quotes")
        if None in listed:
            raise ValueError(f"{term}: null is no value; write '' for rows without one")
        if any(isinstance(value, dict) for value in listed):
            raise ValueError(f"{term}: write values, or `{{not: [VALUE, ...]}}` for all rows without these")
        if term == "licence":
            LicenceSettings(allow=tuple(str(value) for value in listed))  # its error names the right spelling
        texts[term] = {_NOT: [str(value) for value in listed]} if negated else [str(value) for value in listed]
    return texts


_NOT: Literal["not"] = "not"
_Values = Annotated[list[str], Field(min_length=1)]
Where = dict[str, _Values | dict[Literal["not"], _Values]]
WhereTerms = Annotated[Where, BeforeValidator(_as_texts)]
"""The filter of a source: of each term the values of which a row must have one, or `not` any."""


@dataclass(frozen=True)
class Case:
    """A filter: SQL that is true for the rows it drops, its reason, and SQL of the value that is written down."""

    drops: str
    reason: str
    value: str


@contextmanager
def staging(scratch: Scratch) -> Iterator[tuple[Any, str]]:
    """Open a connection and a private folder where it spills; remove both afterwards.

    A join holds its right side, where a key stands once. DuckDB would hold the side with fewer rows, and a key that a
    stranger repeats a million times there cannot be cut for spilling.
    """
    with scratch() as sql:
        sql.execute("SET disabled_optimizers = 'build_side_probe_side'")
        ((parent,),) = sql.execute("SELECT current_setting('temp_directory')").fetchall()
        Path(parent).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix="staged-") as folder:
            yield sql, folder
        sql.execute("RESET disabled_optimizers")


class StagedTable(AbstractContextManager["StagedTable"]):
    """A Parquet file that is being written: `n`, the row number, and columns of strings, in few large row groups."""

    def __init__(self, folder: str, name: str, columns: Sequence[str]) -> None:
        self.name = name
        self.path = f"{folder}/{name}.parquet"
        self.schema = pa.schema([("n", pa.int64()), *((column, pa.string()) for column in columns)])
        self._writer = pq.ParquetWriter(self.path, self.schema, compression="lz4")
        self._waiting: list[pa.Table] = []

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def write(self, numbers: np.ndarray, columns: Mapping[str, Any]) -> None:
        """Append rows; `numbers` are their row numbers in the source."""
        named = {"n": pa.array(numbers, pa.int64()), **columns}
        self._waiting.append(pa.table([named[name] for name in self.schema.names], schema=self.schema))
        if sum(rows.num_rows for rows in self._waiting) >= _STAGED_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks())
            self._waiting = []


def view_staged(sql: Any, staged: StagedTable) -> None:
    """Make a staged table known to SQL by its name."""
    sql.execute(f"CREATE OR REPLACE VIEW {staged.name} AS SELECT * FROM {text(staged.path)}")


def stage_table(
    sql: Any, folder: str, name: str, source: TableReader, names: Mapping[str, str] | None = None
) -> Iterator[Batch]:
    """Stage the mapped columns of a table as `name`; rows that cannot be read come back as lost.

    `names` gives the name in SQL of each column; the columns keep theirs without it.
    """
    names = names or {column: column for column in source.columns}
    with StagedTable(folder, name, list(names.values())) as staged:
        for raw in source.batches():
            staged.write(raw.numbers, {staged_name: raw.rows[column] for column, staged_name in names.items()})
            if raw.malformed:
                yield make_batch({}, [], malformed_rows(raw.malformed, name))
    view_staged(sql, staged)


def judged_rows(
    sql: Any, columns: Mapping[str, str], origin: str, number: str, cases: Sequence[Case]
) -> Iterator[Batch]:
    """Rows of a query in the columns of the contract; rows that a case drops end with its reason and value.

    `columns` gives SQL for each contract column that there is. `origin` is the FROM clause, `number` the SQL of the row
    number.
    """
    listed = ", ".join(f"({columns.get(name, 'NULL')})::VARCHAR AS {identifier(name)}" for name in ROWS.names)
    reason = " ".join(f"WHEN {case.drops} THEN {text(case.reason)}" for case in cases)
    value = " ".join(f"WHEN {case.drops} THEN ({case.value})::VARCHAR" for case in cases)
    judged = f"CASE {reason} END AS reason, left(CASE {value} END, {MAX_VALUE_CHARS}) AS value"
    if not cases:
        judged = "NULL::VARCHAR AS reason, NULL::VARCHAR AS value"
    query = f"SELECT {listed}, {number} AS row_number, {judged} FROM {origin}"
    for batch in sql.sql(query).to_arrow_reader(BATCH_ROWS):
        rows = pa.Table.from_batches([batch])
        good = rows.filter(pc.is_null(rows["reason"]))
        lost = rows.filter(pc.is_valid(rows["reason"]))
        kept = make_batch({name: good[name] for name in ROWS.names}, good["row_number"].to_numpy())
        yield replace(kept, lost=pa.concat_tables([lost.select(LOST.names).cast(LOST), kept.lost]))


def lost_rows(sql: Any, query: str) -> Iterator[Batch]:
    """Lost rows out of a query that has the columns of LOST."""
    for batch in sql.sql(query).to_arrow_reader(BATCH_ROWS):
        lost = pa.Table.from_batches([batch]).select(LOST.names).cast(LOST)
        yield Batch(ROWS.empty_table(), np.arange(0), lost)


def where_cases(
    sql: Any,
    where: Where,
    column: Callable[[str], str],
    licence: tuple[str, str],
    origin: str,
    meant: Mapping[str, str] = MappingProxyType({}),
) -> list[Case]:
    """Return the filters of a `where`.

    `column` gives the SQL of a term. `licence` is the SQL of the name and of the address of a licence in `origin`;
    `meant` as in `normalise_licence`.
    """
    return [
        _licence_case(sql, *licence, origin, values, meant)
        if name == "licence"
        else where_case(name, column(name), values)
        for name, values in where.items()
    ]


def where_case(name: str, column: str, values: Sequence[str] | Mapping[Literal["not"], Sequence[str]]) -> Case:
    """Return the case that drops a row: it has none of the values, or one of those in `not`.

    HUMAN_OBSERVATION and HumanObservation are the
    same. A row without a value has none of them.
    """
    drops, listed = ("IN", values[_NOT]) if isinstance(values, Mapping) else ("NOT IN", values)
    folded = ", ".join(_folded(text(value)) for value in listed)
    return Case(f"coalesce({_folded(column)}, '') {drops} ({folded})", f"where_{name}", column)


def _licence_case(
    sql: Any,
    name: str,
    url: str,
    origin: str,
    values: Sequence[str] | Mapping[Literal["not"], Sequence[str]],
    meant: Mapping[str, str],
) -> Case:
    """Return the filter of licences, read as ingest reads them. With `not` no part that must be allowed is listed."""
    if isinstance(values, Mapping):
        policy = LicenceSettings(allow=(KNOWN, UNKNOWN, CONFLICTING), deny=tuple(values[_NOT]))
    else:
        policy = LicenceSettings(allow=tuple(values), deny=())
    stated = sql.sql(
        f"SELECT DISTINCT ({name})::VARCHAR AS name, ({url})::VARCHAR AS url FROM {origin}"
    ).to_arrow_table()
    ids = normalise_licences(stated["name"], stated["url"], meant).to_pylist()
    passing = stated.filter(pa.array([policy.allows(licence) for licence in ids], pa.bool_()))
    sql.register("licences_of_where", passing)
    found = f"n.name IS NOT DISTINCT FROM {name} AND n.url IS NOT DISTINCT FROM {url}"
    return Case(f"NOT EXISTS (FROM licences_of_where n WHERE {found})", "where_licence", f"coalesce({name}, {url})")


def where_rows(
    batches: Iterator[Batch],
    where: Where,
    columns: Mapping[str, str],
    scratch: Scratch,
    meant: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Batch]:
    """Yield the rows of any reader that pass a `where`, and the others as lost.

    `columns` gives the SQL of each term, in rows that have the columns of ROWS and `binomial`; `meant` as in
    `normalise_licence`.
    """
    kept = {name: identifier(name) for name in ROWS.names}
    with scratch() as sql:
        for batch in batches:
            numbered = batch.rows.append_column("row_number", pa.array(batch.numbers, pa.int64()))
            sql.register("batch", numbered.append_column("binomial", binomials(batch.rows)))
            cases = where_cases(sql, where, columns.__getitem__, ("licence", "licence_url"), "batch", meant)
            yield from judged_rows(sql, kept, "batch", "row_number", cases)
            if batch.lost.num_rows:
                yield replace(batch, rows=ROWS.empty_table(), numbers=np.arange(0))


def make_lineages(sql: Any) -> None:
    """Make the table `lineages` (id, name, kingdom ... species) of the view `tree` (id, parent, rank, name): all texts.

    A taxon whose parent is missing counts as a root; one that is its own ancestor gets no ranks.
    """
    ranks = ", ".join(f"if(lower(t.rank) = '{rank}', t.name, NULL) AS {identifier(rank)}" for rank in TAXON_RANKS)
    inherited = ", ".join(f"""if(lower(t.rank) = '{rank}', t.name, p.{identifier(rank)})""" for rank in TAXON_RANKS)
    sql.execute(
        f"CREATE TABLE lineages AS WITH RECURSIVE lineage AS (SELECT t.id, t.name, {ranks}, 0 AS level FROM tree t "
        "WHERE t.parent IS NULL OR t.parent = t.id OR NOT EXISTS (SELECT 1 FROM tree p WHERE p.id = t.parent) "
        f"UNION ALL SELECT t.id, t.name, {inherited}, p.level + 1 FROM tree t JOIN lineage p ON p.id = t.parent "
        f"WHERE t.parent <> t.id AND p.level < {MAX_LEVELS - 1}) FROM lineage"
    )


def json_object(values: Mapping[str, str]) -> str:
    """Return SQL of a json object out of the SQL of its values, in the order of the keys; null when there are none."""
    pairs = ", ".join(f"{text(key)}, {value}" for key, value in sorted(values.items()))
    return f"json_object({pairs})" if pairs else "NULL"


def text(value: str) -> str:
    """Return an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def _folded(column: str) -> str:
    return f"lower(regexp_replace({column}, '[\\s_-]+', '', 'g'))"
