"""Tables of URLs: parquet, csv, tsv, json and jsonl, one file, a folder or a glob, compressed or not, local or fsspec.

Rows are streamed as Arrow batches of strings, so memory does not grow with the table. A row that cannot be
read is given back as malformed, never dropped in silence. Gives up with ConfigError that names the file.
"""

from __future__ import annotations

import codecs
import difflib
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage
from manifests.errors import ConfigError
from pipeline.sources.delimited import MAX_SHOWN_CHARS, Dialect, RawBatch, read_delimited, read_header
from pipeline.sources.files import reading
from pipeline.sources.rows import BATCH_ROWS, Batch, Lost, Scratch, lost_table, make_batch, map_columns
from pipeline.sources.settings import ColumnMap, Origin

JSON_HEAD_ROWS = 10_000  # objects looked at for their keys: a key may be absent from most of them
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
_DIALECTS = {"csv": Dialect(","), "tsv": Dialect("\t")}


def list_files(source: Origin) -> list[str]:
    """The files of a source in name order.

    Raises: ConfigError when there are none.
    """
    path = _path(source)
    fs, inner = storage.filesystem(path)
    if any(sign in path for sign in "*?["):
        found = sorted(fs.glob(inner))
    elif fs.isdir(inner):
        found = sorted(str(name) for name in fs.ls(inner, detail=False) if _format_of(str(name), source))
        # beside tables of another kind a json file is a side file, as img2dataset's 00000_stats.json
        others = [name for name in found if _format_of(name, source) != "json"]
        found = others or found
    else:
        found = [inner] if fs.exists(inner) else []
    if not found:
        raise ConfigError(f"{source.where}: {path}: no such table; give a file, a folder or a glob")
    return [str(fs.unstrip_protocol(name)) if storage.is_remote(path) else str(name) for name in found]


def digest_inputs(source: Origin, hash_file: Callable[[str], str]) -> list[str]:
    """Hashes of the files that the rows are read from."""
    return [hash_file(file) for file in list_files(source)]


def read_rows(source: Origin, scratch: Scratch) -> Iterator[Batch]:
    """Every row of the table, its columns mapped; rows that cannot be read are `malformed_row`."""
    for raw in read_batches(source):
        yield map_batch(raw, _columns(source))


def map_batch(raw: RawBatch, columns: ColumnMap) -> Batch:
    """A raw batch in the columns of the contract."""
    found = map_columns(raw.rows, columns) | {"url": raw.rows[columns.url]}
    found.setdefault("record_key", raw.rows[columns.url])
    batch = make_batch(found, raw.numbers)
    return Batch(
        batch.rows, batch.numbers, lost_table([Lost(number, "malformed_row", text) for number, text in raw.malformed])
    )


def check_source(source: Origin) -> None:
    """Open every file's head and see that the mapped columns are there.

    Raises: ConfigError for a missing or unreadable table and for a missing column, with the nearest one there is.
    """
    for file in list_files(source):
        there = read_columns(file, source)
        missing = [column for column in mapped_columns(source) if column not in there]
        if missing:
            near = difflib.get_close_matches(missing[0], there, n=1, cutoff=0.4)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ConfigError(
                f"{source.where}: {file} has no column {', '.join(repr(column) for column in missing)}{hint}; "
                f"it has {', '.join(there)}"
            )


def mapped_columns(source: Origin) -> list[str]:
    """Columns of the table that the config maps, each once."""
    return _columns(source).names()


def read_columns(file: str, source: Origin) -> list[str]:
    """Names of the columns of one file; for json and jsonl the keys of its first 10,000 objects.

    Raises: ConfigError when the file cannot be read as what it should be, or names a column twice.
    """
    kind = _known_format(file, source)
    with _reading(file, source):
        if kind == "parquet":
            with _open(file, compressed=False) as stream:
                return _each_once(list(pq.read_schema(stream).names), file, source)
        if kind in ("json", "jsonl"):
            return _json_columns(file, kind)
        with _open(file) as stream:
            return _each_once(read_header(stream, _DIALECTS[kind]), file, source)


def _each_once(names: list[str], file: str, source: Origin) -> list[str]:
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ConfigError(f"{source.where}: {file} names the column {', '.join(map(repr, twice))} twice; rename one")
    return names


def _json_columns(file: str, kind: str) -> list[str]:
    with _open(file) as stream:
        is_array = kind == "json" and _is_array(stream)
    with _open(file) as stream:
        return _keys_of(_items_of(stream) if is_array else _lines_of(stream))


def read_batches(source: Origin) -> Iterator[RawBatch]:
    """Every row of a source, mapped columns only, in file and row order.

    Raises: ConfigError when a file breaks off or is not what it should be.
    """
    first_row = 0
    for file in list_files(source):
        kind = _known_format(file, source)
        reader = {"parquet": _read_parquet, "json": _read_json, "jsonl": _read_jsonl}.get(kind, _read_delimited)
        end = first_row
        with _reading(file, source):
            for batch in reader(file, kind, mapped_columns(source)):
                batch.numbers = batch.numbers + first_row
                batch.malformed = [(number + first_row, text) for number, text in batch.malformed]
                end = max(end, batch.end)
                yield batch
        first_row = end


def _read_parquet(file: str, kind: str, columns: list[str]) -> Iterator[RawBatch]:
    first_row = 0
    with _open(file, compressed=False) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS, columns=columns):
            rows = pa.table({name: _as_strings(batch.column(name)) for name in columns})
            yield RawBatch(rows, np.arange(first_row, first_row + rows.num_rows))
            first_row += rows.num_rows


def _read_delimited(file: str, kind: str, columns: list[str]) -> Iterator[RawBatch]:
    dialect = _DIALECTS[kind]
    with _open(file) as stream:
        names = read_header(stream, dialect)
    with _open(file) as stream:
        yield from read_delimited(stream, names, columns, dialect, skip_rows=1)


def _read_json(file: str, kind: str, columns: list[str]) -> Iterator[RawBatch]:
    """One array of objects, read object by object; what is no array is taken as one object a line."""
    with _open(file) as stream:
        if not _is_array(stream):
            yield from _read_jsonl(file, kind, columns)
            return
    rows: list[list[str | None]] = []
    numbers: list[int] = []
    bad: list[tuple[int, str]] = []
    with _open(file) as stream:
        for number, value in enumerate(_items_of(stream)):
            try:
                rows.append(_row_of(value, columns))
                numbers.append(number)
            except ValueError:
                bad.append((number, ascii(value)[:MAX_SHOWN_CHARS]))
            if len(rows) + len(bad) >= BATCH_ROWS:
                yield _json_batch(rows, columns, numbers, bad)
                rows, numbers, bad = [], [], []
    if rows or bad:
        yield _json_batch(rows, columns, numbers, bad)


def _read_jsonl(file: str, kind: str, columns: list[str]) -> Iterator[RawBatch]:
    with _open(file) as stream:
        rows: list[list[str | None]] = []
        numbers: list[int] = []
        bad: list[tuple[int, str]] = []
        for number, line in enumerate(stream):
            if not line.strip():
                continue
            try:
                rows.append(_json_row(line, columns))
                numbers.append(number)
            except ValueError:
                bad.append((number, line[:200].decode("utf-8", "replace").strip()))
            if len(rows) + len(bad) >= BATCH_ROWS:
                yield _json_batch(rows, columns, numbers, bad)
                rows, numbers, bad = [], [], []
        if rows or bad:
            yield _json_batch(rows, columns, numbers, bad)


def _json_batch(
    rows: list[list[str | None]], columns: list[str], numbers: list[int], bad: list[tuple[int, str]]
) -> RawBatch:
    table = pa.table({name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate(columns)})
    return RawBatch(table, np.array(numbers, np.int64), bad)


def _json_row(line: bytes, columns: list[str]) -> list[str | None]:
    """Raises: ValueError for what is no object, or holds half a surrogate pair, which no UTF-8 can."""
    return _row_of(json.loads(line), columns)


def _row_of(value: Any, columns: list[str]) -> list[str | None]:
    found = _object(value)
    row = [_json_text(found.get(name)) for name in columns]
    "".join(text for text in row if text).encode()
    return row


def _keys_of(values: Iterable[Any]) -> list[str]:
    """Keys of the first objects; a ValueError among them stands for one that is none."""
    keys: dict[str, None] = {}
    num_values = num_broken = 0
    for _, value in zip(range(JSON_HEAD_ROWS), values, strict=False):
        num_values += 1
        try:
            keys.update(dict.fromkeys(_object(value)))
        except ValueError as error:  # one broken line is counted later; nothing but broken lines is no jsonl
            num_broken, last = num_broken + 1, error
    if num_values == num_broken:
        raise last if num_values else ValueError("the file is empty")
    return list(keys)


def _lines_of(stream: Iterable[bytes]) -> Iterator[Any]:
    for line in stream:
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                yield error


def _items_of(stream: Any) -> Iterator[Any]:
    """The values of one json array, one by one.

    Raises: ValueError where the text is no json.
    """
    import ijson  # its backend loads a C library

    try:
        yield from ijson.items(_WithoutMark(stream), "item", use_float=True)
    except ijson.JSONError as error:
        raise ValueError(str(error)) from None


class _WithoutMark:
    """A stream without the byte order mark in front."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._head: bytes | None = stream.read(3).removeprefix(codecs.BOM_UTF8)

    def read(self, num_bytes: int) -> bytes:
        """The next bytes, none at the end; the first three as they are."""
        if self._head and num_bytes:
            head, self._head = self._head, None
            return head
        content: bytes = self._stream.read(num_bytes)
        return content


def _is_array(stream: Any) -> bool:
    return bool(stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[")


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, ValueError):
        raise value
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _as_strings(column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_nested(column.type):
        return pa.array([_json_text(value) for value in column.to_pylist()], pa.string())
    return column.cast(pa.string())


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
        archive = stack.enter_context(zipfile.ZipFile(stream))
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
        if len(names) != 1:
            raise ValueError(f"a zip of one table is read, this one holds {len(names)} files; unpack it into a folder")
        yield stack.enter_context(archive.open(names[0]))


def _reading(file: str, source: Origin) -> AbstractContextManager[None]:
    return reading(f"{source.where}: {file}", f"as {_format_of(file, source)}")


def _path(source: Origin) -> str:
    assert source.table is not None
    return source.table


def _columns(source: Origin) -> ColumnMap:
    assert source.columns is not None
    return source.columns
