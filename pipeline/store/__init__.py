"""Tables and bytes on disk: Parquet parts, DuckDB scratch, pool files, tar."""
