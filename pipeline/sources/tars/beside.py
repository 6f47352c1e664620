"""The Parquet file beside a tar, as img2dataset writes it: a row a picture, also for those that did not come."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pyarrow.parquet as pq

from manifests.samples.endings import stem_of_tar
from manifests.services.untrusted import UNREADABLE
from manifests.stores import storage
from pipeline.sources.files import Shards, is_file_of
from pipeline.sources.limits import MAX_BATCH_BYTES, MAX_RECORD_BYTES, MAX_SIDE_BYTES, MAX_SIDE_ROWS
from pipeline.sources.rows import BATCH_ROWS
from pipeline.store.foreign import read_rows as read_foreign

_ALWAYS = ("key", "url", "status", "error_message")  # img2dataset's own columns


def parquet_rows(shards: Shards, shard: str, columns: list[str]) -> dict[str, dict[str, Any]]:
    """Rows of the Parquet file beside a shard by key; none where there is no such file, or it has no key.

    Raises: one of UNREADABLE for a file that is damaged, too long, or no file of the source.
    """
    parquet = parquet_of(shard)
    if parquet is None:
        return {}
    if not storage.is_remote(parquet) and not is_file_of(shards.root, parquet):
        raise ValueError(f"it is no regular file of {shards.root}")
    with storage.open_file(parquet) as stream:
        table = pq.ParquetFile(stream)
        if table.metadata.num_rows > MAX_SIDE_ROWS:
            raise ValueError(f"it has {table.metadata.num_rows:,} rows, more than {MAX_SIDE_ROWS:,}")
        names = table.schema_arrow.names
        if "key" not in names:
            return {}
        named = [name for name in dict.fromkeys([*_ALWAYS, *columns]) if name in names]
        rows: dict[str, dict[str, Any]] = {}
        num_bytes = 0
        for some in read_foreign(stream, named, BATCH_ROWS, MAX_BATCH_BYTES, MAX_RECORD_BYTES):
            num_bytes += some.num_bytes
            if some.too_long:
                raise ValueError("its row {} has {:,} bytes".format(*some.too_long[0]))
            if num_bytes > MAX_SIDE_BYTES:
                raise ValueError(f"its rows have more than {MAX_SIDE_BYTES:,} bytes")
            rows |= {str(row["key"]): row for row in some.rows.to_pylist()}
    return rows


def first_columns(shards: Shards) -> list[str] | None:
    """Columns of the Parquet file beside the first shard whose file can be read; None where no shard has one."""
    for name in shards.names:
        parquet = parquet_of(shards.path(name))
        if parquet is None:
            return None
        with suppress(*UNREADABLE), storage.open_file(parquet) as stream:
            return list(pq.read_schema(stream).names)
    return []


def parquet_of(shard: str) -> str | None:
    """Return the Parquet file beside a shard, if there is one."""
    if (stem := stem_of_tar(shard)) == shard:
        return None
    path = stem + ".parquet"
    return path if storage.exists(path) else None
