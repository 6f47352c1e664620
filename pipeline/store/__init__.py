"""How tables and bytes lie on disk: Parquet parts, DuckDB scratch, pool files, tar."""
