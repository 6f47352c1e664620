"""Rows of a sheet of a workbook in batches, as every reader of tables gives them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from manifests.services.workbook import Sheet
from pipeline.sources.limits import MAX_BATCH_BYTES, MAX_RECORD_BYTES
from pipeline.sources.rows import BATCH_ROWS
from pipeline.sources.tables.delimited import RawBatch


def read_sheet(sheet: Sheet, columns: list[str]) -> Iterator[RawBatch]:
    """The rows below the header, by their numbers in the sheet; a row that is too long is malformed."""
    held, numbers, malformed, num_bytes = [], list[int](), list[tuple[int, str]](), 0
    for number, texts in sheet.rows(columns):
        length = sum(len(text) for text in texts if text)
        if length > MAX_RECORD_BYTES:
            malformed.append((number, f"a row of {length:,} characters"))
            continue
        held.append(texts)
        numbers.append(number)
        num_bytes += length
        if len(held) >= BATCH_ROWS or num_bytes > MAX_BATCH_BYTES:
            yield _batch(columns, held, numbers, malformed)
            held, numbers, malformed, num_bytes = [], [], [], 0
    yield _batch(columns, held, numbers, malformed)


def _batch(
    columns: list[str], rows: list[list[str | None]], numbers: list[int], malformed: list[tuple[int, str]]
) -> RawBatch:
    table = pa.table({name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate(columns)})
    return RawBatch(table, np.array(numbers, np.int64), malformed)
