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
from pipeline.commands.parsing import WORKDIR_HELP, Commands, add_command
from pipeline.commands.tables import aligned

MAX_CELL_CHARS = 60


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `query` to the command line."""
    parser = add_command(
        commands,
        "query",
        "ask SQL of everything that a build knows",
        'plantmix query data/demo "SELECT reason, count(*) FROM decisions GROUP BY ALL"\n'
        'views:   plantmix query data/demo "SELECT * FROM views"',
        reads="catalogue and tables of the work folder",
        writes="nothing: only statements that read are taken",
    )
    parser.add_argument("dir", metavar="DIR", help=WORKDIR_HELP)
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
        print("\n".join(layout_rows(table)))
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
    """Column names made distinct: a second id becomes id_1."""
    found: list[str] = []
    for name in names:
        free = (name, *(f"{name}_{number}" for number in range(1, len(names) + 1)))
        found.append(next(one for one in free if one not in found))
    return found


def _flat(table: pa.Table) -> list[Any]:
    """Columns for csv: lists and structs as JSON."""
    return [
        pa.array([json.dumps(value, default=str, ensure_ascii=False) for value in column.to_pylist()])
        if pa.types.is_nested(column.type)
        else column
        for column in table.columns
    ]


def layout_rows(table: pa.Table) -> list[str]:
    """Rows as aligned text under their column names; long cells are cut with an ellipsis."""
    head = [(">" if _is_number(field.type) else "<") + field.name for field in table.schema]
    lines = aligned(head, [[_cell(value) for value in row.values()] for row in table.to_pylist()])
    rule = "-" * max(len(line) for line in lines)
    return [lines[0], rule, *lines[1:], f"({table.num_rows:,} {'row' if table.num_rows == 1 else 'rows'})"]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _cell(value: Any) -> str:
    text = "" if value is None else " ".join(str(value).split())
    return text if len(text) <= MAX_CELL_CHARS else text[: MAX_CELL_CHARS - 1] + "…"
