"""Tables of URLs: parquet, csv, tsv and jsonl, one file, a folder or a glob, compressed or not, local or fsspec.

Rows are streamed as Arrow batches of strings, so memory does not grow with the table. A row that cannot be
read is given back as malformed, never dropped in silence. Gives up with ConfigError that names the file.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from manifests import storage
from manifests.errors import ConfigError
from pipeline.sources.rows import BATCH_ROWS, Batch, Lost, Scratch, lost_table, make_batch, map_columns
from pipeline.sources.settings import ColumnMap, Origin

JSONL_HEAD_ROWS = 10_000  # objects looked at for their keys: a key may be absent from most of them
_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}


@dataclass
class RawBatch:
    """Rows of a source: string columns as the table names them, and rows that could not be read.

    `numbers` int64 (rows,) holds the 0-based row of the source of each of `rows`; `malformed` (number, text) the
    rows that are not among them.
    """

    rows: pa.Table
    numbers: np.ndarray
    malformed: list[tuple[int, str]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The number after the last one in this batch."""
        last = int(self.numbers[-1]) if len(self.numbers) else -1
        return 1 + max([last, *(number for number, _ in self.malformed)])


def list_files(source: Origin) -> list[str]:
    """The files of a source in name order.

    Raises: ConfigError when there are none.
    """
    path = _path(source)
    fs, inner = storage.filesystem(path)
    if any(sign in path for sign in "*?["):
        found = sorted(fs.glob(inner))
    elif fs.isdir(inner):
        found = sorted(name for name in fs.ls(inner, detail=False) if _format_of(name, source))
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
    """Names of the columns of one file; for jsonl the keys of its first 10,000 objects.

    Raises: ConfigError when the file cannot be read as what it should be.
    """
    kind = _known_format(file, source)
    with _reading(file, source):
        if kind == "parquet":
            with _open(file, compressed=False) as stream:
                return list(pq.read_schema(stream).names)
        with _open(file) as stream:
            if kind == "jsonl":
                return _keys_of(stream)
            head = stream.readline().decode("utf-8-sig")
            if not head.strip():
                raise ValueError("the file is empty")
            table = pacsv.read_csv(
                pa.BufferReader(head.encode()), parse_options=pacsv.ParseOptions(delimiter=_delimiter(kind))
            )
            return list(table.column_names)


def read_batches(source: Origin) -> Iterator[RawBatch]:
    """Every row of a source, mapped columns only, in file and row order.

    Raises: ConfigError when a file breaks off or is not what it should be.
    """
    first_row = 0
    for file in list_files(source):
        kind = _known_format(file, source)
        reader = {"parquet": _read_parquet, "jsonl": _read_jsonl}.get(kind, _read_delimited)
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
    malformed: list[tuple[int, str]] = []

    def note(row: Any) -> str:
        malformed.append((row.number - 2, (row.text or "")[:200]))  # it counts from 1, the header included
        return "skip"

    with _open(file) as stream:
        reader = pacsv.open_csv(
            stream,
            # only one thread numbers the malformed rows; it is as fast: 3 M rows in 1.4 s, threads 1.5 s (2 cores)
            read_options=pacsv.ReadOptions(use_threads=False),
            parse_options=pacsv.ParseOptions(
                delimiter=_delimiter(kind), newlines_in_values=True, invalid_row_handler=note
            ),
            convert_options=pacsv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(columns, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
        first_row = 0
        skipped: list[int] = []  # the reader is a block ahead: some lie behind the batch they are told with
        for batch in reader:
            rows = pa.Table.from_batches([batch])
            bad, malformed[:] = list(malformed), []
            skipped = [number for number in [*skipped, *(number for number, _ in bad)] if number >= first_row]
            free = np.arange(first_row, first_row + rows.num_rows + len(skipped))
            numbers = free[~np.isin(free, skipped)][: rows.num_rows]
            yield RawBatch(rows, numbers, bad)
            first_row = int(numbers[-1]) + 1 if len(numbers) else first_row
        if malformed:
            none = pa.table({name: pa.array([], pa.string()) for name in columns})
            yield RawBatch(none, np.arange(0), list(malformed))


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
    found = _object(line)
    row = [_json_text(found.get(name)) for name in columns]
    "".join(text for text in row if text).encode()
    return row


def _keys_of(stream: Iterable[bytes]) -> list[str]:
    keys: dict[str, None] = {}
    num_lines = num_broken = 0
    for _, line in zip(range(JSONL_HEAD_ROWS), stream, strict=False):
        if line.strip():
            num_lines += 1
            try:
                keys.update(dict.fromkeys(_object(line)))
            except ValueError as error:  # one broken line is counted later; nothing but broken lines is no jsonl
                num_broken, last = num_broken + 1, error
    if num_lines == num_broken:
        raise last if num_lines else ValueError("the file is empty")
    return list(keys)


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _object(line: bytes) -> dict[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"expected one JSON object a line, found {type(value).__name__}")
    return value


def _as_strings(column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_nested(column.type):
        return pa.array([_json_text(value) for value in column.to_pylist()], pa.string())
    return column.cast(pa.string())


def _delimiter(kind: str) -> str:
    return "\t" if kind == "tsv" else ","


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
            f"{source.where}: {file}: the name does not tell the format; set `format` to parquet, csv, tsv or jsonl"
        )
    return kind


def _open(file: str, compressed: bool = True) -> Any:
    fs, inner = storage.filesystem(file)
    suffix = "." + file.lower().rpartition(".")[2]
    return fs.open(inner, "rb", compression=_COMPRESSIONS.get(suffix) if compressed else None)


class _reading:  # noqa: N801  # reads as a statement
    """Turn what a reader throws at a bad file into one line that names it."""

    def __init__(self, file: str, source: Origin) -> None:
        self._file, self._source = file, source

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (OSError, ValueError, pa.ArrowException, EOFError)) and not isinstance(error, ConfigError):
            text = " ".join(str(error).split())
            raise ConfigError(
                f"{self._source.where}: {self._file} cannot be read as "
                f"{_format_of(self._file, self._source)}: {text:.300}"
            ) from None


def _path(source: Origin) -> str:
    assert source.table is not None
    return source.table


def _columns(source: Origin) -> ColumnMap:
    assert source.columns is not None
    return source.columns
