"""What the metadata steps share: a scratch DuckDB that spills, sorted Parquet out, order-free fingerprints.

Every step reads Parquet parts and writes Parquet parts; nothing here decides anything.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from manifests import storage
from pipeline.store.writing import PrivateFile, TableWriter


def facet(connection: Any, columns: Sequence[str], table: str) -> str:
    """Fingerprint of a set of rows, whatever their order: count, xor and sum of the rows' md5 numbers."""
    # lengths in front: no text can look like a border between columns, or like a null
    joined = ", ".join(f"coalesce(strlen({column}::VARCHAR) || ':' || {column}::VARCHAR, '-')" for column in columns)
    (row,) = connection.execute(
        f"SELECT count(*), to_hex(bit_xor(h)), sum((h >> 64)::HUGEINT % 1000000007) "
        f"FROM (SELECT md5_number(concat({joined})) AS h FROM {table})"
    ).fetchall()
    return "-".join(str(value) for value in row)


@contextmanager
def open_scratch(payload: dict[str, Any]) -> Iterator[Any]:
    """An in-memory DuckDB for one step, bounded in memory, spilling into a private folder that is removed after."""
    import duckdb  # heavy; plans do without it

    folder = storage.join(payload["workdir"], "scratch", uuid.uuid4().hex[:12])
    storage.make_folder(folder)  # DuckDB makes one level alone, and only when it must spill
    connection = duckdb.connect(
        config={
            "memory_limit": f"{max(256, int(payload['memory_gb'] * 1000))}MB",
            "temp_directory": folder,
            "preserve_insertion_order": False,
        }
    )
    try:
        yield connection
    finally:
        connection.close()
        shutil.rmtree(folder, ignore_errors=True)


def view_parquet(connection: Any, name: str, paths: Sequence[str]) -> None:
    """A view over Parquet files, at least one of them; remote ones are read through fsspec."""
    for path in paths:
        if storage.is_remote(path):
            fs, _ = storage.filesystem(path)
            protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
            if not protocols & set(connection.list_filesystems()):
                connection.register_filesystem(fs)
    listed = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet([{listed}])")


def copy_sorted(connection: Any, query: str, order: str, writer: TableWriter, batch_rows: int = 100_000) -> PrivateFile:
    """Stream a query's rows, sorted, into a table file; columns are picked by the writer's schema."""
    names = ", ".join(f'"{name}"' for name in writer.schema.names)
    reader = connection.sql(f"SELECT {names} FROM ({query}) ORDER BY {order}").to_arrow_reader(batch_rows)
    for batch in reader:
        writer.write(pa.Table.from_batches([batch]))
    return writer.close()
