"""A table of runs as columns of plain values: a csv or parquet file, or the runs recorded in a work folder.

Reads it through an in-memory DuckDB, which also evaluates the filter. A csv may be separated by commas, semicolons
(then also with decimal commas) or tabs, with or without a byte-order mark. Writes nothing. Gives up with ConfigError.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError

ROW = "__row"
"""Name of the added column: the 1-based data row of the file, before any filter."""

Columns = dict[str, list[Any]]

_SEPARATORS = ",;\t|"
_DECIMAL_COMMA = re.compile(r"\s*-?\d+,\d+\s*")


def read_table(path: str | Path, where: str | None = None) -> tuple[list[str], Columns, str]:
    """Column names, columns (with the data row as `__row`) and the sha256 of the file.

    Raises: ConfigError when the file or the filter cannot be read.
    """
    import duckdb

    from manifests.stores.session import at_hand

    file = Path(at_hand(str(path)))
    if not file.exists():
        raise ConfigError(f"{file}: no such table of runs")
    with duckdb.connect() as database:
        database.execute("SET threads = 1")
        sha256 = _load_recorded(database, file) if file.is_dir() else _load_file(database, file)
        database.execute("SET enable_external_access = false")  # the filter must not read other files
        filtered = f"SELECT * FROM runs WHERE ({where}\n)" if where else "SELECT * FROM runs"
        try:
            result = database.execute(f"SELECT * FROM ({filtered}) ORDER BY {ROW}")
            names = [str(column[0]) for column in result.description or []]
            rows = result.fetchall()
        except duckdb.Error as error:
            raise ConfigError(
                f'{file}: the filter --where "{where}" fails: {_first_line(error)}; '
                "quote text values with single quotes, e.g. model_size = '410M'"
            ) from None
    if not rows:
        raise ConfigError(f"{file}: no rows" + (f' are left by --where "{where}"' if where else ""))
    return names, {name: [row[i] for row in rows] for i, name in enumerate(names)}, sha256


def _load_file(database: Any, file: Path) -> str:
    """Make the table `runs` from a csv or parquet file; returns the sha256 of the file."""
    import duckdb

    content = file.read_bytes()
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            reader, rows_before = "read_parquet(?)", 0
            schema = "SELECT name FROM parquet_schema(?) WHERE num_children IS NULL"
            _refuse_doubled_names(file, [name for (name,) in database.execute(schema, [str(file)]).fetchall()])
        else:
            separator, decimal = _csv_marks(file, content)
            marks = f"delim = '{separator}', decimal_separator = '{decimal}'"
            reader, rows_before = f"read_csv(?, header = true, sample_size = -1, {marks})", 1
        database.execute(
            f"CREATE TABLE runs AS SELECT row_number() OVER () + {rows_before} AS {ROW}, * FROM {reader}", [str(file)]
        )
    except duckdb.Error as error:
        raise ConfigError(f"{file}: cannot be read as a table: {_first_line(error)}") from None
    return hashlib.sha256(content).hexdigest()


def _csv_marks(file: Path, content: bytes) -> tuple[str, str]:
    """The separator (of which the header holds most) and the decimal mark.

    Raises: ConfigError for a column name that stands twice, and for a row of another length than the header.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError(f"{file}: the text is UTF-16; save it as UTF-8")
    text = io.StringIO(content.decode("utf-8-sig", errors="replace"), newline="")
    separator = max(_SEPARATORS, key=text.readline().count)
    text.seek(0)
    reader = csv.reader(text, delimiter=separator)
    try:
        rows = [cells for cells in reader if cells]
    except csv.Error as error:
        raise ConfigError(f"{file}: cannot be read as csv: {error} (line {reader.line_num})") from None
    names = [name.strip() for name in rows[0]] if rows else []
    _refuse_doubled_names(file, names)
    for row, cells in enumerate(rows[1:], start=2):
        if len(cells) != len(names):
            raise ConfigError(f"{file}: row {row} has {len(cells)} cells, the header {len(names)}")
    comma = separator == ";" and any(_DECIMAL_COMMA.fullmatch(cell) for cells in rows[1:] for cell in cells)
    return separator, "," if comma else "."


def _refuse_doubled_names(file: Path, names: list[str]) -> None:
    """DuckDB ignores the case of column names and would rename the second one."""
    folded = [name.casefold() for name in names]
    twice = sorted({name for name, key in zip(names, folded, strict=True) if name and folded.count(key) > 1})
    if twice:
        raise ConfigError(
            f"{file}: the column {' or '.join(twice)} stands more than once in the header (upper and lower case count "
            "as the same); rename one"
        )


def _load_recorded(database: Any, workdir: Path) -> str:
    """Make the table `runs` from the catalogue of a work folder; returns the sha256 of its rows."""
    import pyarrow as pa

    from manifests.contract.reader import read_proxy_runs

    rows = read_proxy_runs(str(workdir))
    database.register("recorded", pa.Table.from_pylist(rows))
    database.execute(f"CREATE TABLE runs AS SELECT row_number() OVER () AS {ROW}, * FROM recorded")
    database.unregister("recorded")
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
