"""Write tables and bytes under private names, beside their final place. The driver publishes them.

`storage.sweep` removes private files that a killed process left behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.contract import tables
from manifests.errors import PartError
from manifests.stores import storage

ROW_GROUP_ROWS = 100_000
DICTIONARY_BYTES = 2.5
"""Of a column's dictionary, for each row of a row group. pyarrow begins one for every column, and drops it above this.

Its own limit is 1 MiB: where no two captions of 57 bytes are alike, it fills a dictionary with the first 18,000 of
100,000 rows in vain. Where each stands five times, one saves a tenth of the bytes and no time; where each stands
twenty times, it would save three quarters of both, and is too large all the same (2026-11-27).
"""
ROW_GROUP_BYTES = 256 << 20
"""Of the texts of a row group. Rows of up to 2.6 kB never get there; rows of 4 MiB would fill the memory."""
_WRITTEN_BYTES = 1 << 20  # at a time


@dataclass(frozen=True)
class PrivateFile:
    """A file a worker wrote under a private name, to be published as `path` (relative to the work folder)."""

    table: str
    path: str
    temp: str
    num_rows: int
    num_bytes: int
    sha256: str


class _Hashed:
    """A stream that hashes what is written to it; Parquet is written from the front to the end."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    @property
    def closed(self) -> bool:
        return bool(self._stream.closed)

    def write(self, content: Any) -> int:
        self._stream.write(content)
        self.digest.update(content)
        self.num_bytes += len(content)
        return len(content)

    def tell(self) -> int:
        return self.num_bytes

    def flush(self) -> None:
        """Nothing: what is written counts when the file is closed."""

    def close(self) -> None:
        self._stream.close()


class TableWriter:
    """Stream Arrow tables of one schema into a private Parquet file.

    `small` is for what a release carries: zstd, where the work folder's own tables have lz4. Those are read and written
    many times: a sample in shard order takes 1.0 us less in all, for twice the bytes. lz4 finds nothing in hashes (66
    of 68 bytes are left), and takes five times what writing them as they are does (2026-11-27). Most texts of a release
    have no statistics: to compare them took an eighth of the time to encode samples. DuckDB needs those of the work
    folder's tables: without them, arranging 1 M candidates took 3.3 GiB instead of 2.1 (2026-11-28).

    A row group ends after `row_group_rows` rows, or with the row that brings its texts above `row_group_bytes`, however
    the rows come: DuckDB cuts its batches at its own 122,880 rows when it sorts on more than one thread, and a file may
    not depend on the number of cores.

    A thread encodes one row group while the caller makes the next one, so that a step of one part keeps two cores busy.
    """

    def __init__(
        self,
        workdir: str,
        table: str,
        path: str,
        schema: pa.Schema,
        row_group_rows: int = ROW_GROUP_ROWS,
        row_group_bytes: int = ROW_GROUP_BYTES,
        small: bool = False,
    ) -> None:
        self.table, self._path = table, path
        final = storage.join(workdir, path)
        storage.make_folder(final.rpartition("/")[0])
        self._temp = storage.temp_path(final)
        self.schema = schema
        self._stream = _Hashed(Path(self._temp).open("wb"))  # noqa: SIM115  (`close` closes it)
        # pyarrow writes 25 kB at a time, and would wait for the interpreter's lock for each
        self._buffered = pa.BufferedOutputStream(pa.PythonFile(self._stream, "w"), _WRITTEN_BYTES)
        stored = _stored(schema)
        counted = [path for path, is_text in stored.items() if not is_text or path in tables.SOUGHT]
        self._writer = pq.ParquetWriter(
            self._buffered,
            schema,
            compression="zstd" if small else {path: "none" if path in tables.HASHES else "lz4" for path in stored},
            write_statistics=counted if small else True,
            dictionary_pagesize_limit=int(row_group_rows * DICTIONARY_BYTES),
        )
        self._num_rows = 0
        self._row_group_rows, self._row_group_bytes = row_group_rows, row_group_bytes
        self._waiting: list[pa.Table] = []
        self._num_waiting = self._num_bytes = 0
        self._thread = ThreadPoolExecutor(1)  # it starts with the first row group
        self._encoding: Future[None] | None = None

    def write(self, rows: pa.Table) -> None:
        """Append rows; columns are put in the order of the schema and cast to it."""
        rows = self._cast(rows)
        self._waiting.append(rows)
        self._num_waiting += rows.num_rows
        self._num_rows += rows.num_rows
        self._num_bytes += rows.nbytes
        if self._num_waiting >= self._row_group_rows or self._num_bytes > self._row_group_bytes:
            self._write_groups()

    def write_group(self, rows: pa.Table) -> None:
        """Write rows as one row group of their own; not to be mixed with `write`."""
        rows = self._cast(rows)
        self._num_rows += rows.num_rows
        self._encode(rows)

    def _cast(self, rows: pa.Table) -> pa.Table:
        require_columns(self.table, self.schema, rows.column_names)
        return rows.select(self.schema.names).cast(self.schema)

    def close(self) -> PrivateFile:
        """Finish the file and say what it is."""
        self._write_groups()
        for rest in self._waiting:
            self._encode(rest)
        if self._encoding:
            self._encoding.result()
        self._thread.shutdown()
        self._writer.close()
        self._buffered.close()  # and the stream below it
        num_bytes, sha256 = self._stream.num_bytes, self._stream.digest.hexdigest()
        return PrivateFile(self.table, self._path, self._temp, self._num_rows, num_bytes, sha256)

    def _write_groups(self) -> None:
        """Write the row groups that are full; one table at most keeps waiting."""
        if not self._waiting:
            return
        rows = pa.concat_tables(self._waiting)
        texts = text_bytes(rows) if self._num_bytes > self._row_group_bytes else np.zeros(rows.num_rows, np.int64)
        start = 0
        while True:
            ends = np.cumsum(texts[start : start + self._row_group_rows]) > self._row_group_bytes
            num = int(ends.argmax()) + 1 if ends.any() else self._row_group_rows
            if start + num > rows.num_rows:
                break
            self._encode(rows.slice(start, num))
            start += num
        rest = rows.slice(start)
        self._waiting = [rest] if rest.num_rows else []
        self._num_waiting, self._num_bytes = rest.num_rows, rest.nbytes

    def _encode(self, rows: pa.Table) -> None:
        """Write a row group behind the one that is being written, which must be done first: two are in memory at most.

        Raises: what writing the row group before raised, such as a full disk.
        """
        rows = rows.combine_chunks()  # because Parquet ends a page where a chunk ends
        if self._encoding:
            self._encoding.result()
        self._encoding = self._thread.submit(self._writer.write_table, rows, max(1, rows.num_rows))


def require_columns(table: str, schema: pa.Schema, columns: Collection[str]) -> None:
    """Raise PartError when the table lacks columns of its schema: a fault of the step that gives it."""
    if lacking := [name for name in schema.names if name not in columns]:
        raise PartError(f"the table {table} lacks {', '.join(lacking)}: its step says that it gives them")


@cache
def _stored(schema: pa.Schema) -> dict[str, bool]:
    """Return the columns that Parquet stores of a schema, and whether they are texts.

    What lists and maps hold is one, too.
    """
    empty = pa.BufferOutputStream()
    pq.ParquetWriter(empty, schema).close()
    stored = pq.ParquetFile(pa.BufferReader(empty.getvalue())).schema
    columns = [stored.column(number) for number in range(len(stored))]
    return {column.path: column.physical_type == "BYTE_ARRAY" for column in columns}


def text_bytes(rows: pa.Table) -> np.ndarray:
    """Return how many bytes of text each row has, int64 (rows,); never more than Arrow holds for it."""
    total = np.zeros(rows.num_rows, np.int64)
    for column in rows.columns:
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            total += pc.fill_null(pc.binary_length(column), 0).to_numpy()
    return total


def write_table(workdir: str, table: str, path: str, rows: pa.Table, schema: pa.Schema) -> PrivateFile:
    """Write one Arrow table to a private Parquet file."""
    writer = TableWriter(workdir, table, path, schema)
    writer.write(rows)
    return writer.close()


def private_pool(path: str, temp: str, num_rows: int) -> PrivateFile:
    """Describe a finished pool file by its content."""
    written = storage.hash_file(temp)
    return PrivateFile("pool", path, temp, num_rows, written.num_bytes, written.sha256)


def private_bytes(workdir: str, table: str, path: str, content: bytes) -> PrivateFile:
    """Write bytes to a private file that will be published as `path`."""
    final = storage.join(workdir, path)
    storage.make_folder(final.rpartition("/")[0])
    temp = storage.temp_path(final)
    Path(temp).write_bytes(content)
    return PrivateFile(table, path, temp, 0, len(content), hashlib.sha256(content).hexdigest())
