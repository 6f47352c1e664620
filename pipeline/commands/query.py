"""`plantmix query`: read-only SQL over the catalogue's tables and the per-sample views."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv as pacsv

from manifests.errors import ConfigError
from manifests.reader import open_reader
from pipeline.commands.parsing import Commands, add_command

MAX_CELL_CHARS = 60


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `query` to the command line."""
    parser = add_command(
        commands,
        "query",
        "read-only SQL over the catalogue's views",
        'plantmix query data/demo "SELECT reason, count(*) FROM decisions GROUP BY ALL"\n'
        'views:   plantmix query data/demo "SELECT * FROM views"',
    )
    parser.add_argument("dir", metavar="DIR", help="work folder of a build")
    parser.add_argument("sql", metavar="SQL", help="one SELECT statement")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="how to print (table)")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    return print_query(args.dir, args.sql, args.format)


def print_query(workdir: str, sql: str, layout: str) -> int:
    """Run one statement and print its rows as a table, csv or json; returns the exit code.

    Raises: ConfigError for SQL that DuckDB refuses, and for anything but one statement that only reads.
    """
    with open_reader(workdir) as connection:
        try:
            _check_reads(connection, sql)
            table = connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise ConfigError(
                f'query: {str(error).strip()}\nviews and tables: plantmix query {workdir} "SELECT * FROM views"'
            ) from None
    table = table.rename_columns(_distinct(table.column_names))
    if layout == "csv":
        pacsv.write_csv(pa.table(dict(zip(table.column_names, _flat(table), strict=True))), sys.stdout.buffer)
    elif layout == "json":
        print(json.dumps(table.to_pylist(), default=str, ensure_ascii=False, indent=1))
    else:
        print("\n".join(layout_rows(table.column_names, [list(row.values()) for row in table.to_pylist()])))
    return 0


def _check_reads(connection: Any, sql: str) -> None:
    """The catalogue is attached read-only; this also refuses COPY ... TO, SET and the like."""
    statements = connection.extract_statements(sql)
    kinds = [statement.type.name for statement in statements]
    if len(kinds) != 1 or kinds[0] not in ("SELECT", "EXPLAIN"):
        raise ConfigError(
            f"query: one SELECT statement is needed, given: {', '.join(kinds) or 'none'}; nothing is written here"
        )


def _distinct(names: list[str]) -> list[str]:
    """The names of a join's columns, told apart: id, id_1."""
    found: list[str] = []
    for name in names:
        free = (name, *(f"{name}_{number}" for number in range(1, len(names) + 1)))
        found.append(next(one for one in free if one not in found))
    return found


def _flat(table: pa.Table) -> list[Any]:
    return [
        pa.array([json.dumps(value, default=str, ensure_ascii=False) for value in column.to_pylist()])
        if pa.types.is_nested(column.type)
        else column
        for column in table.columns
    ]


def layout_rows(names: list[str], rows: list[list[Any]]) -> list[str]:
    """Rows as aligned text under their column names; long cells are cut with an ellipsis."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[at]) for row in cells)]) for at, name in enumerate(names)]
    lines = ["  ".join(name.ljust(width) for name, width in zip(names, widths, strict=True)).rstrip()]
    lines.append("  ".join("-" * width for width in widths))
    for row, values in zip(cells, rows, strict=True):
        padded = [
            text.rjust(width) if isinstance(value, (int, float)) and not isinstance(value, bool) else text.ljust(width)
            for text, width, value in zip(row, widths, values, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    lines.append(f"({len(rows):,} {'row' if len(rows) == 1 else 'rows'})")
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = " ".join(str(value).split())
    return text if len(text) <= MAX_CELL_CHARS else text[: MAX_CELL_CHARS - 1] + "…"
