"""What every reader gives to ingest: rows in the columns of the contract, and rows that ended in the reader.

Pure: tables in, tables out. No row is lost in silence; what a reader leaves out stands in `lost` with a reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.settings import CONTRACT_COLUMNS, RowColumns

BATCH_ROWS = 20_000
MAX_VALUE_CHARS = 200

Scratch = Callable[[], AbstractContextManager[Any]]
"""Opens an in-memory DuckDB that spills to disk, for a reader that has to join."""

ROWS = pa.schema([(name, pa.string()) for name in CONTRACT_COLUMNS])

LOST = pa.schema(
    [
        ("row_number", pa.int64()),
        ("record_key", pa.string()),
        ("url", pa.string()),
        ("reason", pa.string()),
        ("value", pa.string()),
    ]
)
PLAIN = tuple(name for name in CONTRACT_COLUMNS if name not in ("record_key", "url", "locator", "caption", "extra"))


@dataclass
class Batch:
    """Rows of a source.

    `rows` has the columns of ROWS; `numbers` int64 (rows,) holds the 0-based place of each in the source; `lost` has
    the columns of LOST: rows that are not among `rows`, and why.
    """

    rows: pa.Table
    numbers: np.ndarray
    lost: pa.Table


@dataclass(frozen=True)
class Lost:
    """A row that ends in the reader."""

    row_number: int
    reason: str
    value: str | None = None
    record_key: str | None = None
    url: str | None = None


def make_batch(columns: Mapping[str, Any], numbers: Sequence[int] | np.ndarray, lost: Sequence[Lost] = ()) -> Batch:
    """A batch of whatever columns there are; the others are null."""
    num_rows = len(numbers)
    rows = pa.table(
        [columns[name] if name in columns else pa.nulls(num_rows, pa.string()) for name in ROWS.names], ROWS.names
    ).cast(ROWS)
    return Batch(rows, np.asarray(numbers, np.int64), lost_table(lost))


def lost_table(lost: Sequence[Lost]) -> pa.Table:
    """Rows with a reason as a table; long values are cut to 200 characters."""
    if not lost:
        return LOST.empty_table()
    names = LOST.names
    columns = {name: [getattr(row, name) for row in lost] for name in names}
    columns["value"] = [value and value[:MAX_VALUE_CHARS] for value in columns["value"]]
    return pa.table(columns, schema=LOST)


def map_columns(rows: pa.Table, columns: RowColumns) -> dict[str, Any]:
    """Contract columns out of a table of strings, as the config maps them; what is not mapped is absent."""
    found: dict[str, Any] = {
        name: rows[column] for name in (*PLAIN, "record_key") if (column := getattr(columns, name)) is not None
    }
    if columns.caption:
        found["caption"] = _caption(rows, columns.caption)
    if columns.extra:
        found["extra"] = pa.array(extra_json(rows.select(columns.extra)), pa.string())
    return found


def extra_json(rows: pa.Table) -> list[str]:
    """One json object a row."""
    return [json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows.to_pylist()]


def _caption(rows: pa.Table, columns: str | list[str]) -> pa.ChunkedArray:
    if isinstance(columns, str):
        return rows[columns]
    # the empty text in front: without it pyarrow 26 leaves rows of nulls alone out of its answer
    joined = pc.binary_join_element_wise("", *(rows[name] for name in columns), " ", null_handling="skip")
    return pc.utf8_slice_codeunits(joined, 1)
