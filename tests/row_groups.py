"""How a Parquet file is cut, and where DuckDB would cut it."""

from __future__ import annotations

import pyarrow.parquet as pq

DUCKDB_ROW_GROUP = 122_880  # where it cuts its batches when it sorts on more than one thread


def groups(path: str) -> list[int]:
    """How many rows each row group has."""
    metadata = pq.ParquetFile(path).metadata
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
