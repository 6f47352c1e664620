"""Tables of runs of any kind: csv, Parquet, or the runs recorded in a work folder; filtered by SQL.

Writes nothing. Gives up with ConfigError.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError
from pipeline.planning.runs.run_table import RunsTable, build_runs
from pipeline.planning.runs.tables import ROW, Columns, is_csv, read_csv, refuse_doubled_names


def read_runs(path: str | Path, where: str | None = None) -> RunsTable:
    """Read and check the proxy runs at `path`; `where` is a DuckDB filter such as "step = 60000".

    Raises: ConfigError for an unreadable file, a filter that fails or keeps nothing, and every fault of a row.
    """
    from manifests.contract.session import at_hand

    file = Path(at_hand(str(path)))
    if is_csv(file):
        columns, sha256 = read_csv(file)
        if where:
            columns = _select(file, columns, where)
    else:
        rows, sha256 = _read_recorded(file) if file.is_dir() else _read_parquet(file)
        columns = _select(file, {ROW: range(1, len(rows) + 1)} | dict(zip(rows.column_names, rows, strict=True)), where)
    return build_runs(list(columns), columns, Path(path).name, sha256, where or "")


def _read_recorded(workdir: Path) -> tuple[Any, str]:
    """Return the runs in the catalogue of a work folder, and the sha256 of them."""
    import pyarrow as pa

    from manifests.contract.reader import read_proxy_runs

    rows = read_proxy_runs(str(workdir))
    return pa.Table.from_pylist(rows), hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _read_parquet(file: Path) -> tuple[Any, str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.ParquetFile(file).read()
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{file}: cannot be read as a table: {_first_line(error)}") from None
    refuse_doubled_names(file, rows.column_names)
    return rows, hashlib.sha256(file.read_bytes()).hexdigest()


def _select(file: Path, columns: dict[str, Any], where: str | None) -> Columns:
    """Return the rows that the filter keeps.

    Raises: ConfigError when the filter cannot be read.
    """
    import duckdb
    import pyarrow as pa

    with duckdb.connect() as database:
        database.execute("SET threads = 1")
        database.register("runs", pa.table(columns))
        database.execute("SET enable_external_access = false")  # the filter must not read other files
        try:
            result = database.execute(f"FROM (FROM runs WHERE ({where or 'true'}\n)) ORDER BY {ROW}")
            names = [str(column[0]) for column in result.description or []]
            rows = result.fetchall()
        except duckdb.Error as error:
            raise ConfigError(
                f'{file}: the filter --where "{where}" fails: {_first_line(error)}; '
                "quote text values with single quotes, e.g. model_size = '410M'"
            ) from None
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
