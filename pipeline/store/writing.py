"""Write tables and bytes under private names, beside their final place. The driver publishes them.

`storage.sweep` removes private files that a killed process left behind.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage

ROW_GROUP_ROWS = 100_000


@dataclass(frozen=True)
class PrivateFile:
    """A file a worker wrote under a private name, to be published as `path` (relative to the work folder)."""

    table: str
    path: str
    temp: str
    num_rows: int
    num_bytes: int
    sha256: str


class TableWriter:
    """Stream Arrow tables of one schema into a private Parquet file (zstd).

    Row groups hold exactly `row_group_rows` rows, however the rows come: DuckDB cuts its batches at its own
    122,880 rows when it sorts on more than one thread, and a file may not depend on the number of cores.
    """

    def __init__(
        self, workdir: str, table: str, path: str, schema: pa.Schema, row_group_rows: int = ROW_GROUP_ROWS
    ) -> None:
        self._table, self._path = table, path
        final = storage.join(workdir, path)
        storage.make_folder(final.rpartition("/")[0])
        self._temp = storage.temp_path(final)
        self.schema = schema
        self._writer = pq.ParquetWriter(self._temp, schema, compression="zstd")
        self._num_rows = 0
        self._row_group_rows = row_group_rows
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0

    def write(self, rows: pa.Table) -> None:
        """Append rows; columns are put in the order of the schema and cast to it."""
        rows = rows.select(self.schema.names).cast(self.schema)
        self._waiting.append(rows)
        self._num_waiting += rows.num_rows
        self._num_rows += rows.num_rows
        if self._num_waiting >= self._row_group_rows:
            self._write_groups(self._num_waiting - self._num_waiting % self._row_group_rows)

    def write_group(self, rows: pa.Table) -> None:
        """Write rows as one row group of their own; not to be mixed with `write`."""
        rows = rows.select(self.schema.names).cast(self.schema).combine_chunks()
        self._num_rows += rows.num_rows
        self._writer.write_table(rows, row_group_size=rows.num_rows)

    def close(self) -> PrivateFile:
        """Finish the file and say what it is."""
        if self._num_waiting:
            self._write_groups(self._num_waiting)
        self._writer.close()
        return private_file(self._table, self._path, self._temp, self._num_rows)

    def _write_groups(self, num_rows: int) -> None:
        rows = pa.concat_tables(self._waiting)
        # one chunk a column, because Parquet ends a page where a chunk ends
        self._writer.write_table(rows.slice(0, num_rows).combine_chunks(), row_group_size=self._row_group_rows)
        rest = rows.slice(num_rows)
        self._waiting, self._num_waiting = [rest], rest.num_rows


def write_table(workdir: str, table: str, path: str, rows: pa.Table, schema: pa.Schema) -> PrivateFile:
    """Write one Arrow table to a private Parquet file."""
    writer = TableWriter(workdir, table, path, schema)
    writer.write(rows)
    return writer.close()


def private_file(table: str, path: str, temp: str, num_rows: int) -> PrivateFile:
    """Describe a finished private file by its content."""
    written = storage.hash_file(temp)
    return PrivateFile(table, path, temp, num_rows, written.num_bytes, written.sha256)


def private_bytes(workdir: str, table: str, path: str, content: bytes, num_rows: int = 0) -> PrivateFile:
    """Write bytes to a private file that will be published as `path`."""
    final = storage.join(workdir, path)
    storage.make_folder(final.rpartition("/")[0])
    temp = storage.temp_path(final)
    Path(temp).write_bytes(content)
    return PrivateFile(table, path, temp, num_rows, len(content), hashlib.sha256(content).hexdigest())
