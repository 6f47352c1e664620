"""Limits on what a reader takes from outside. What is larger ends as a row with a reason, or with the place.

Real lists stay far below every number here. Without them one hostile line, member or header takes all the memory that
there is. The limits of tar headers, names and json are those of `manifests/services/untrusted.py`, that of a text
member that of `manifests/samples/tars.py`.
"""

from __future__ import annotations

MAX_RECORD_BYTES = 4 << 20
"""Of one row of a table: a csv record, a line or an item of json, the mapped values of a Parquet row."""
MAX_ROW_BYTES = 256 << 10
"""Of all mapped texts of a row together. DuckDB holds 2,048 rows at once whatever their length, several times."""
MAX_COLUMNS = 4096
"""Of a table, and of the rows of a Darwin Core Archive."""
MAX_SIDE_ROWS = 250_000
"""Of the Parquet file beside a shard, which is held in memory; img2dataset writes 10,000."""
MAX_SIDE_BYTES = 256 << 20
"""Of all texts of that file that are asked for."""
MAX_BATCH_BYTES = 64 << 20
"""Of the rows that a reader hands on at once."""
MAX_OPEN_FILES = 64
"""Files of a source that are open at once while pictures are read."""
