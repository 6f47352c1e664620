"""Tables of URLs: parquet, csv, tsv, json and jsonl; one file, a folder or a glob; compressed or not, local or fsspec.

Rows are streamed as Arrow batches of strings, so memory does not grow with the table. A row that cannot be read is
given back as malformed. Raises ConfigError, which names the file, for a table that cannot be read at all.
"""

from __future__ import annotations

import codecs
import difflib
import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage
from manifests.errors import ConfigError
from pipeline.sources.delimited import (
    HEAD_BYTES,
    MAX_SHOWN_CHARS,
    Broken,
    Dialect,
    RawBatch,
    read_delimited,
    read_header,
    read_lines,
    sniff_dialect,
)
from pipeline.sources.files import WORKBOOK, WORKBOOK_CURE, kind_of_place, reading, where_it_looked, zip_fault
from pipeline.sources.limits import MAX_BATCH_BYTES, MAX_COLUMNS, MAX_DEPTH, MAX_RECORD_BYTES
from pipeline.sources.rows import (
    BATCH_ROWS,
    Batch,
    Scratch,
    as_text,
    check_unicode,
    in_batches,
    json_object_of,
    make_batch,
    malformed_rows,
    map_columns,
    parse_json,
)
from pipeline.sources.settings import ColumnMap, Origin, given
from pipeline.store.foreign import read_rows as read_foreign

JSON_HEAD_ROWS = 10_000  # objects whose keys are looked at: a key may be missing from most of them
_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}


def list_files(source: Origin) -> list[str]:
    """The files of a source in name order.

    Raises: ConfigError when there are none.
    """
    path = given(source.table)
    fs, inner = storage.filesystem(path)
    if any(sign in path for sign in "*?[") and (storage.is_remote(path) or not fs.exists(inner)):
        found = sorted(fs.glob(inner))
    elif fs.isdir(inner):
        found = sorted(str(name) for name in fs.ls(inner, detail=False) if _format_of(str(name), source))
        # beside tables of another kind a json file is a side file, as img2dataset's 00000_stats.json
        others = [name for name in found if _format_of(name, source) != "json"]
        found = others or found
    else:
        found = [inner] if fs.exists(inner) else []
    if not found:
        raise ConfigError(f"{source.where}: {path}: {_no_table(path)}")
    if not storage.is_remote(path) and (odd := [name for name in found if not Path(name).is_file()]):
        raise ConfigError(f"{source.where}: {odd[0]} is no regular file; give a file, a folder or a glob of tables")
    return [str(fs.unstrip_protocol(name)) if storage.is_remote(path) else str(name) for name in found]


_CURE_OF_KIND = {
    "webdataset": "write `webdataset: {path: ...}` in place of `table` and `columns`",
    "folder": "for pictures write `folder: {path: ...}` with their folder, in place of `table` and `columns`",
}


def _no_table(path: str) -> str:
    kind = kind_of_place(path)
    if kind == "folder":
        return f"holds pictures and no table; write `folder: {{path: {path}}}` in place of `table` and `columns`"
    if kind == "webdataset":
        return f"holds tars and no table; write `webdataset: {{path: {path}}}` in place of `table` and `columns`"
    if kind == "dwca":
        return f"holds a Darwin Core Archive; write `dwca: {{path: {path}}}` in place of `table` and `columns`"
    return f"no such table; give a file, a folder or a glob{where_it_looked(path)}"


def digest_inputs(source: Origin, hash_file: Callable[[str], str]) -> list[str]:
    """Hashes of the files that the rows are read from."""
    return [hash_file(file) for file in list_files(source)]


def read_rows(source: Origin, scratch: Scratch) -> Iterator[Batch]:
    """Every row of the table, its columns mapped; rows that cannot be read are `malformed_row`."""
    for raw in read_batches(source):
        yield map_batch(raw, given(source.columns))


def map_batch(raw: RawBatch, columns: ColumnMap) -> Batch:
    """A raw batch with our column names. The URL is the key of a row, unless another column is mapped to it."""
    url = raw.rows[columns.url]
    found = {"record_key": url, "url": url} | map_columns(raw.rows, columns)
    return make_batch(found, raw.numbers, malformed_rows(raw.malformed))


def check_source(source: Origin) -> None:
    """Open the head of every file, and check that the mapped columns are there.

    Raises: ConfigError for a missing or unreadable table and for a missing column, with the nearest one there is.
    """
    for file in list_files(source):
        there = read_columns(file, source)
        missing = [column for column in mapped_columns(source) if column not in there]
        if missing:
            by_lower = {name.lower(): name for name in there}
            near = difflib.get_close_matches(missing[0].lower(), by_lower, n=1, cutoff=0.4)
            hint = f" (did you mean '{by_lower[near[0]]}'?)" if near else ""
            raise ConfigError(
                f"{source.where}: {file} has no column {', '.join(repr(column) for column in missing)}{hint}; "
                f"it has {', '.join(there)}"
            )


def mapped_columns(source: Origin) -> list[str]:
    """Columns of the table that the config maps, each once."""
    return given(source.columns).names()


def read_columns(file: str, source: Origin) -> list[str]:
    """Names of the columns of one file; for json and jsonl the keys of its first 10,000 objects.

    Raises: ConfigError when the file cannot be read as what it should be, or names a column twice.
    """
    kind = _known_format(file, source)
    with _reading(file, source):
        if kind in ("json", "jsonl"):
            return _json_keys(file, kind)
        if kind == "parquet":
            with _open(file, compressed=False) as stream:
                names = list(pq.read_schema(stream).names)
        else:
            dialect = dialect_of(file, kind)
            with _open(file) as stream:
                names = read_header(stream, dialect, dialect.lines_before)
    twice = sorted(name for name, num in Counter(names).items() if name and num > 1)
    if twice:
        raise ConfigError(f"{source.where}: {file} names the column {', '.join(map(repr, twice))} twice; rename one")
    return names


def read_batches(source: Origin) -> Iterator[RawBatch]:
    """Every row of a source, mapped columns only, in file and row order.

    Raises: ConfigError when a file breaks off or is not what it should be.
    """
    first_row = 0
    for file in list_files(source):
        kind = _known_format(file, source)
        reader = {"parquet": _read_parquet, "json": _read_json, "jsonl": _read_json}.get(kind, _read_delimited)
        end = first_row
        with _reading(file, source):
            for batch in reader(file, kind, mapped_columns(source)):
                batch.numbers = batch.numbers + first_row
                batch.malformed = [(number + first_row, text) for number, text in batch.malformed]
                end = max(end, batch.end)
                yield batch
        first_row = end


def _read_parquet(file: str, kind: str, columns: list[str]) -> Iterator[RawBatch]:
    with _open(file, compressed=False) as stream:
        for some in read_foreign(stream, columns, BATCH_ROWS, MAX_BATCH_BYTES, MAX_RECORD_BYTES):
            rows = pa.table({name: _as_strings(some.rows.column(name)) for name in columns})
            too_long = [(number, f"a row of {num_bytes:,} bytes") for number, num_bytes in some.too_long]
            yield RawBatch(rows, some.numbers, too_long)


def _as_strings(column: pa.Array) -> pa.Array:
    if pa.types.is_nested(column.type):
        return pa.array([as_text(value) for value in column.to_pylist()], pa.string())
    return column.cast(pa.string())


def _read_delimited(file: str, kind: str, columns: list[str]) -> Iterator[RawBatch]:
    dialect = dialect_of(file, kind)
    with _open(file) as stream:
        names = read_header(stream, dialect, dialect.lines_before)
    with _open(file) as stream:
        yield from read_delimited(stream, names, columns, dialect, skip_rows=1 + dialect.lines_before)


def dialect_of(file: str, kind: str) -> Dialect:
    """How a csv or tsv is delimited and encoded, told by its first bytes."""
    with _open(file) as stream:
        return sniff_dialect(stream.read(HEAD_BYTES), _DELIMITERS[kind])


# ---- json


def _read_json(file: str, kind: str, columns: list[str]) -> Iterator[RawBatch]:
    for items in in_batches(_json_items(file, kind), BATCH_ROWS):
        rows: list[list[str | None]] = []
        numbers: list[int] = []
        malformed: list[tuple[int, str]] = []
        for number, item in items:
            try:
                found = _object_of(item)
                row = [as_text(found.get(name)) for name in columns]
                check_unicode(row)
            except ValueError:
                shown = _shown(item)[:MAX_SHOWN_CHARS]
                malformed.append((number, shown.decode("utf-8", "replace").strip()))
            else:
                rows.append(row)
                numbers.append(number)
        table = pa.table({name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate(columns)})
        yield RawBatch(table, np.array(numbers, np.int64), malformed)


def _json_keys(file: str, kind: str) -> list[str]:
    """Keys of the first objects. One broken line is counted later; a file that holds only broken lines is no json.

    Raises: ValueError.
    """
    keys: dict[str, None] = {}
    error = ValueError("the file is empty")
    readable = False
    for _, item in islice(_json_items(file, kind), JSON_HEAD_ROWS):
        try:
            keys |= dict.fromkeys(_object_of(item))
            readable = True
        except ValueError as found:
            error = found
        if len(keys) > MAX_COLUMNS:
            raise ValueError(f"its objects have more than {MAX_COLUMNS:,} keys")
    if not readable:
        raise error
    return list(keys)


def _json_items(file: str, kind: str) -> Iterator[tuple[int, Any]]:
    """Number and value of each item of an array; where there is no array, number and bytes of each line.

    An item or a line that is too deep or too long is `Broken`.

    Raises: ValueError where an array is no json.
    """
    with _open(file) as stream:
        head = stream.read(4096)
    mark = codecs.BOM_UTF8 if head.startswith(codecs.BOM_UTF8) else b""
    is_array = kind == "json" and head.removeprefix(mark).lstrip().startswith(b"[")
    with _open(file) as stream:
        stream.read(len(mark))
        if not is_array:
            lines = enumerate(read_lines(stream))
            yield from ((number, line) for number, line in lines if isinstance(line, Broken) or line.strip())
            return
        yield from enumerate(_array_items(stream))


def _array_items(stream: Any) -> Iterator[Any]:
    """The items of a json array; one that is nested too deeply is `Broken`, and is not held in memory.

    Raises: ValueError where the text is no json, or an item too long.
    """
    import ijson  # its backend loads a C library

    metered = _Metered(stream)
    depth, deepest = -1, 0  # of lists and objects within an item
    builder = ijson.ObjectBuilder()
    try:
        for event, value in ijson.basic_parse(metered, use_float=True):
            depth += event in ("start_map", "start_array")
            deepest = max(deepest, depth)
            of_item = depth > 0 or not event.endswith("_array")
            if of_item and depth <= MAX_DEPTH:
                builder.event(event, value)
            depth -= event in ("end_map", "end_array")
            if of_item and depth == 0:
                yield builder.value if deepest <= MAX_DEPTH else Broken(f"nested more than {MAX_DEPTH} deep".encode())
                builder, deepest, metered.num_bytes = ijson.ObjectBuilder(), 0, 0
    except ijson.JSONError as error:
        raise ValueError(str(error)) from None


class _Metered:
    """A stream that counts the bytes of the item that is being read.

    Raises: ValueError, from `read`, for an item that is too long.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        if self.num_bytes > MAX_RECORD_BYTES:
            raise ValueError(f"an item of more than {MAX_RECORD_BYTES:,} bytes")
        found: bytes = self._stream.read(size)
        self.num_bytes += len(found)
        return found


def _object_of(item: Any) -> dict[str, Any]:
    if isinstance(item, Broken):
        raise ValueError("too deep or too long")
    return parse_json(item) if isinstance(item, bytes) else json_object_of(item)


def _shown(item: Any) -> bytes:
    if isinstance(item, Broken):
        return item.text
    return item if isinstance(item, bytes) else ascii(item).encode()


# ---- files


def _format_of(file: str, source: Origin) -> str | None:
    if source.format != "auto":
        return source.format
    name = file.rpartition("/")[2].lower()
    for suffix in _COMPRESSIONS:
        name = name.removesuffix(suffix)
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)


def _known_format(file: str, source: Origin) -> str:
    kind = _format_of(file, source)
    if kind is None:
        if file.lower().endswith(WORKBOOK):
            raise ConfigError(f"{source.where}: {file} is an Excel workbook; {WORKBOOK_CURE}")
        other = kind_of_place(file)
        if other in ("webdataset", "folder"):
            raise ConfigError(f"{source.where}: {file} is no table; {_CURE_OF_KIND[other]}")
        raise ConfigError(
            f"{source.where}: {file}: the name does not tell the format; "
            "set `format` to parquet, csv, tsv, json or jsonl"
        )
    return kind


@contextmanager
def _open(file: str, compressed: bool = True) -> Iterator[Any]:
    """A stream of the plain bytes of a file, unpacked on the way where its name says so."""
    fs, inner = storage.filesystem(file)
    packing = _COMPRESSIONS.get("." + file.lower().rpartition(".")[2]) if compressed else None
    with ExitStack() as stack:
        if packing not in ("zstd", "zip"):
            yield stack.enter_context(fs.open(inner, "rb", compression=packing))
            return
        stream = stack.enter_context(fs.open(inner, "rb"))
        if packing == "zstd":
            unpacked = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
            yield stack.enter_context(io.BufferedReader(unpacked))
            return
        try:
            archive = stack.enter_context(zipfile.ZipFile(stream))
        except zipfile.BadZipFile:
            raise ValueError(f"it {zip_fault(file)}") from None
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
        if len(names) != 1:
            raise ValueError(f"a zip of one table is read, this one holds {len(names)} files; unpack it into a folder")
        yield stack.enter_context(archive.open(names[0]))


def _reading(file: str, source: Origin) -> AbstractContextManager[None]:
    return reading(f"{source.where}: {file}", file, f"as {_format_of(file, source)}")
