"""Tables of runs of any kind: csv, Parquet, or the runs recorded in a work folder; filtered by SQL.

DuckDB reads Parquet and evaluates the filter. Writes nothing. Gives up with ConfigError.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError
from pipeline.planning.runs.run_table import RunsTable, build_runs
from pipeline.planning.runs.tables import ROW, Columns, is_csv, no_such_table, read_csv, refuse_doubled_names


def read_runs(path: str | Path, where: str | None = None) -> RunsTable:
    """Read and check the proxy runs at `path`; `where` is a DuckDB filter such as "step = 60000".

    Raises: ConfigError for an unreadable file, a filter that fails or keeps nothing, and every fault of a row.
    """
    from manifests.stores.session import at_hand

    file = Path(at_hand(str(path)))
    if not file.exists():
        raise no_such_table(file)
    if is_csv(file):
        columns, sha256 = read_csv(file)
    elif file.is_dir():
        columns, sha256 = _read_recorded(file)
    else:
        columns, sha256 = {}, hashlib.sha256(file.read_bytes()).hexdigest()
    if where or not columns:
        columns = _select(file, columns, where)
    return build_runs(list(columns), columns, Path(path).name, sha256, where or "")


def _read_recorded(workdir: Path) -> tuple[Columns, str]:
    """The columns of the catalogue of a work folder, and the sha256 of its rows."""
    import pyarrow as pa

    from manifests.contract.reader import read_proxy_runs

    rows = read_proxy_runs(str(workdir))
    columns: Columns = {ROW: list(range(1, len(rows) + 1)), **pa.Table.from_pylist(rows).to_pydict()}
    return columns, hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _select(file: Path, columns: Columns, where: str | None) -> Columns:
    """The rows that the filter keeps, of the columns, or of a Parquet file when there are none.

    Raises: ConfigError when the file or the filter cannot be read.
    """
    import duckdb
    import pyarrow as pa

    with duckdb.connect() as database:
        database.execute("SET threads = 1")
        if columns:
            database.register("given", pa.table(columns))
            database.execute("CREATE TABLE runs AS FROM given")
            database.unregister("given")
        else:
            _load_parquet(database, file)
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


def _load_parquet(database: Any, file: Path) -> None:
    import duckdb

    try:
        schema = "SELECT name FROM parquet_schema(?) WHERE num_children IS NULL"
        refuse_doubled_names(file, [name for (name,) in database.execute(schema, [str(file)]).fetchall()])
        rows = f"SELECT row_number() OVER () AS {ROW}, * FROM read_parquet(?)"
        database.execute(f"CREATE TABLE runs AS {rows}", [str(file)])
    except duckdb.Error as error:
        raise ConfigError(f"{file}: cannot be read as a table: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
