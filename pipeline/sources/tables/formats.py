"""Open one table file by its format: Parquet, delimited text, json, a workbook, or an address a line.

`TableFile` is the one answer. It streams batches of strings from a file that may be packed. Raises what parsers and
unpackers raise.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.services.untrusted import UNREADABLE, bounded, check_packing
from manifests.services.workbook import MAX_BOOK_BYTES, Sheet, open_sheet
from manifests.stores import storage
from pipeline.sources.files import zip_fault
from pipeline.sources.limits import MAX_BATCH_BYTES, MAX_RECORD_BYTES
from pipeline.sources.rows import BATCH_ROWS, as_text
from pipeline.sources.tables.columns import is_address
from pipeline.sources.tables.delimited import (
    HEAD_BYTES,
    NOT_TEXT,
    Dialect,
    RawBatch,
    only_texts,
    read_delimited,
    read_header,
    sniff_dialect,
)
from pipeline.sources.tables.json_items import json_keys, read_json
from pipeline.store.foreign import columns_of_bytes
from pipeline.store.foreign import read_rows as read_foreign

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}
URL_OF_LINE = "url"  # what the column of a list of addresses, one a line, is called
_NO_DELIMITER = "\x1f"  # no address holds it
_LOOKED_AT = 500  # lines
_CHUNK_BYTES = 1 << 20
_MOST_EXACT = 1 << 53  # the whole numbers up to here are each a float of their own
DELIMITERS = {"csv": ",", "tsv": "\t", "urls": _NO_DELIMITER}


@dataclass(frozen=True)
class TableFile:
    """A file that holds a table, its format, and of a workbook the sheet (see `open_sheet`)."""

    path: str
    form: str
    sheet: str | int | None = None

    def columns(self) -> list[str]:
        """Return the names of the columns; for json and jsonl the keys of the first 10,000 objects."""
        if self.form == "urls":
            return [URL_OF_LINE]
        if self.form in ("json", "jsonl"):
            return json_keys(partial(open_table, self.path), self.form)
        if self.form == "xlsx":
            return self.open_sheet().columns
        if self.form == "parquet":
            with open_table(self.path, compressed=False) as stream:
                return list(pq.read_schema(stream).names)
        dialect = dialect_of(self.path, self.form)
        with open_table(self.path) as stream:
            return read_header(stream, dialect, dialect.lines_before)

    def rows(self, columns: list[str]) -> Iterator[RawBatch]:
        """Every row, these columns only, in order."""
        if self.form == "xlsx":
            return _read_sheet(self.open_sheet(), columns)
        return _READERS[self.form](self.path, self.form, columns)

    def how_written(self) -> str:
        """Return how a csv is written, where it is not with commas in UTF-8; of a workbook, which sheet is read."""
        if self.form == "xlsx":
            sheet = self.open_sheet()
            more = f", while {', '.join(map(repr, sheet.others))} hold rows too" if sheet.others else ""
            return f" of the sheet {sheet.name!r}{more}"
        if self.form not in ("csv", "tsv"):
            return ""
        dialect = dialect_of(self.path, self.form)
        mark = {",": "", ";": "semicolons", "\t": "tabs", "|": "pipes"}.get(dialect.delimiter, dialect.delimiter)
        words = [f"separated by {mark}"] * bool(mark) + [f"in {dialect.encoding}"] * (dialect.encoding != "utf-8")
        return f" {' '.join(words)}" if words else ""

    def open_sheet(self) -> Sheet:
        """Return the sheet of a workbook. Raises: ValueError."""
        content = bytearray()
        with open_table(self.path) as stream:
            while len(content) <= MAX_BOOK_BYTES and (chunk := stream.read(_CHUNK_BYTES)):
                content += chunk
        return open_sheet(bytes(content), self.sheet)


def _read_sheet(sheet: Sheet, columns: list[str]) -> Iterator[RawBatch]:
    """Yield the rows below the header, by their numbers in the sheet; a row that is too long is malformed."""
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
            yield _batch_of(columns, held, numbers, malformed)
            held, numbers, malformed, num_bytes = [], [], [], 0
    yield _batch_of(columns, held, numbers, malformed)


def _batch_of(
    columns: list[str], rows: list[list[str | None]], numbers: list[int], malformed: list[tuple[int, str]]
) -> RawBatch:
    table = pa.table({name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate(columns)})
    return RawBatch(table, np.array(numbers, np.int64), malformed)


def _read_parquet(file: str, form: str, columns: list[str]) -> Iterator[RawBatch]:
    with open_table(file, compressed=False) as stream:
        for some in read_foreign(stream, columns, BATCH_ROWS, MAX_BATCH_BYTES, MAX_RECORD_BYTES):
            rows = pa.table({name: _marked_strings(some.rows.column(name)) for name in columns})
            too_long = [(number, f"a row of {num_bytes:,} bytes") for number, num_bytes in some.too_long]
            yield only_texts(RawBatch(rows, some.numbers, too_long))


def as_strings(column: pa.Array) -> pa.Array:
    """Return a column of Parquet as texts; lists and structs as json, whole numbers without a point or exponent."""
    if pa.types.is_nested(column.type):
        return pa.array([as_text(value) for value in column.to_pylist()], pa.string())
    texts = column.cast(pa.string())
    if not pa.types.is_floating(column.type):
        return texts
    values = column.cast(pa.float64())
    is_whole = pc.and_(pc.equal(pc.floor(values), values), pc.less_equal(pc.abs(values), _MOST_EXACT))
    return pc.coalesce(pc.if_else(is_whole, values, None).cast(pa.int64()).cast(pa.string()), texts)


def _marked_strings(column: pa.Array) -> pa.Array:
    """Return a column as texts, with a mark in place of a value that is no UTF-8."""
    try:
        texts = as_strings(column)
        texts.validate(full=True)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return pa.array(map(_text_or_mark, column), pa.string())
    return texts


def _text_or_mark(value: pa.Scalar) -> str | None:
    try:
        held = value.as_py()
        return held.decode() if isinstance(held, bytes) else as_text(held)
    except UnicodeDecodeError:
        return NOT_TEXT


def _read_delimited(file: str, form: str, columns: list[str]) -> Iterator[RawBatch]:
    dialect = dialect_of(file, form)
    with open_table(file) as stream:
        names = read_header(stream, dialect, dialect.lines_before)
    with open_table(file) as stream:
        yield from read_delimited(stream, names, columns, dialect, skip_rows=1 + dialect.lines_before)


def _read_json(file: str, form: str, columns: list[str]) -> Iterator[RawBatch]:
    return read_json(partial(open_table, file), form, columns)


def _read_urls(file: str, form: str, columns: list[str]) -> Iterator[RawBatch]:
    dialect = Dialect(_NO_DELIMITER, quote=None, encoding=dialect_of(file, form).encoding)
    with open_table(file) as stream:
        yield from read_delimited(stream, [URL_OF_LINE], columns, dialect)


def dialect_of(file: str, form: str) -> Dialect:
    """Return how a csv or tsv is delimited and encoded, told by its first bytes."""
    with open_table(file) as stream:
        return sniff_dialect(stream.read(HEAD_BYTES), DELIMITERS[form])


@contextmanager
def open_table(file: str, compressed: bool = True) -> Iterator[Any]:
    """Open a stream of the plain bytes of a file, unpacked on the way where its name says so."""
    packing = COMPRESSIONS.get("." + file.lower().rpartition(".")[2]) if compressed else None
    with ExitStack() as stack:
        by_fsspec = packing if packing not in ("zstd", "zip") else None
        stream = stack.enter_context(storage.open_file(file, compression=by_fsspec))
        if packing is None:
            yield stream
            return
        num_bytes = storage.size_of(file)
        if packing == "zstd":
            stream = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
        if packing != "zip":
            yield bounded(stream, num_bytes)
            return
        try:
            archive = stack.enter_context(zipfile.ZipFile(stream))
        except zipfile.BadZipFile:
            raise ValueError(f"it {zip_fault(file)}") from None
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
        if len(names) != 1:
            raise ValueError(f"a zip of one table is read, this one holds {len(names)} files; unpack it into a folder")
        check_packing(num_bytes, archive.getinfo(names[0]).file_size)
        yield stack.enter_context(archive.open(names[0]))


def bytes_in(file: str) -> list[str]:
    """Columns of a Parquet table that hold bytes."""
    if not file.lower().endswith((".parquet", ".pq")):
        return []
    with open_table(file, compressed=False) as stream:
        return columns_of_bytes(stream)


def is_list_of_addresses(file: str) -> bool:
    """Return whether a text holds an address a line, by its first lines."""
    if not file.lower().endswith(".txt"):
        return False
    try:
        batch = next(_read_urls(file, "urls", [URL_OF_LINE]), None)
    except UNREADABLE:
        return False
    lines = batch.rows[URL_OF_LINE].to_pylist()[:_LOOKED_AT] if batch and not batch.malformed else []
    return bool(lines) and all(is_address(line) for line in lines)


_READERS = {
    "parquet": _read_parquet,
    "csv": _read_delimited,
    "tsv": _read_delimited,
    "json": _read_json,
    "jsonl": _read_json,
    "urls": _read_urls,
}
