"""`plantmix query`: read-only SQL over the catalogue's tables and the per-sample views.

The SQL is run in a sandbox: DuckDB's own locks keep it to the tables of the work folder, and it runs in a process of
its own, whose time and memory are limited. Control characters are not printed, so that no text steers a terminal.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from manifests.contract.reader import kinds_of, open_sandbox
from manifests.errors import ConfigError
from manifests.services.child import Child
from manifests.services.printable import printable, shown
from pipeline.answers.tables import aligned
from pipeline.commands import WORKDIR_HELP, Commands, add_command

MAX_CELL_CHARS = 60
_BATCH_ROWS = 10_000


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `query` to the command line."""
    parser = add_command(
        commands,
        "query",
        "query everything that a build knows, in SQL",
        'plantmix query data/demo "SELECT * FROM funnel"\nviews:   plantmix query data/demo "SELECT * FROM views"',
        reads="catalogue and tables of the work folder",
        writes="nothing: only SELECT statements are run",
    )
    parser.add_argument("dir", metavar="DIR", help=WORKDIR_HELP)
    parser.add_argument("sql", metavar="SQL", help="one SELECT statement")
    parser.add_argument(
        "--format",
        choices=("table", "csv", "json"),
        default="table",
        help="how to print (table); csv puts ' before a text that a spreadsheet would run as a formula, json does not",
    )
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="short for --format json")
    parser.add_argument("--memory-gb", type=float, default=4.0, metavar="GB", help="memory it may take (default: 4)")
    parser.add_argument("--seconds", type=float, default=600.0, metavar="N", help="time it may take (default: 600)")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    return print_query(args.dir, args.sql, args.format, args.memory_gb, args.seconds)


def print_query(workdir: str, sql: str, layout: str, memory_gb: float = 4.0, seconds: float = 600.0) -> int:
    """Run one statement and print its rows as a table, csv or json; returns the exit code.

    Raises: ConfigError for SQL that DuckDB refuses, for anything but one statement that only reads, and for one that
    takes more than its time or memory.
    """
    _check_reads(workdir, sql)
    with (
        tempfile.TemporaryDirectory(prefix="plantmix-query-") as spill,
        Child(_answer, workdir, sql, memory_gb, spill, memory_mb=int(2000 * memory_gb)) as child,
    ):
        try:
            child.receive()  # the tables are open
            table = _read_all(child, time.monotonic() + seconds, memory_gb)
        except TimeoutError:
            raise ConfigError(
                f"query: stopped after {seconds:g} s; ask for less, or allow more with --seconds"
            ) from None
        except EOFError:
            raise ConfigError("query: its process was killed, perhaps because memory ran out; ask for less") from None
    table = table.rename_columns(_distinct(table.column_names))
    if layout == "csv":
        pacsv.write_csv(pa.table([_cells(column) for column in table.columns], table.column_names), sys.stdout.buffer)
    elif layout == "json":
        print(printable(json.dumps(table.to_pylist(), default=str, ensure_ascii=False, indent=1), keep="\n"))
    else:
        print("\n".join(layout_rows(table)))
    return 0


def _answer(send: Callable[[Any], None], workdir: str, sql: str, memory_gb: float, spill: str) -> None:
    """Send a word when the tables are open, then the schema of the answer and its rows in batches."""
    with open_sandbox(workdir, memory_gb, spill) as connection:
        send("open")
        try:
            reader = connection.sql(sql).to_arrow_reader(_BATCH_ROWS)
            send(reader.schema)
            for batch in reader:
                send(batch)
        except (duckdb.Error, OSError) as error:  # Arrow's reader turns an error of DuckDB into an OSError
            raise _refused(workdir, error) from None


def _check_reads(workdir: str, sql: str) -> None:
    try:
        with duckdb.connect() as connection:
            kinds = kinds_of(connection, sql)
    except duckdb.Error as error:
        raise _refused(workdir, error) from None
    if kinds != ["SELECT"]:
        raise ConfigError(
            f"query: give one SELECT statement, not {', '.join(kinds) or 'an empty text'}; this command only reads"
        )


def _refused(workdir: str, error: Exception) -> ConfigError:
    return ConfigError(f'query: {str(error).strip()}\nviews and tables: plantmix query {workdir} "SELECT * FROM views"')


def _read_all(child: Child, deadline: float, memory_gb: float) -> pa.Table:
    """All rows of the answer. DuckDB does not hold them, so they need a limit of their own."""
    schema = child.receive(deadline - time.monotonic())
    batches, num_bytes = [], 0
    while (batch := child.receive(deadline - time.monotonic())) is not None:
        batches.append(batch)
        num_bytes += batch.nbytes
        if num_bytes > memory_gb * 1e9:
            raise ConfigError(
                f"query: the answer takes more than {memory_gb:g} GB; ask for less, or allow more with --memory-gb"
            )
    return pa.Table.from_batches(batches, schema)


def _distinct(names: list[str]) -> list[str]:
    """Column names made distinct: a second id becomes id_1."""
    distinct: list[str] = []
    for name in names:
        free = (name, *(f"{name}_{number}" for number in range(1, len(names) + 1)))
        distinct.append(next(one for one in free if one not in distinct))
    return distinct


def _cells(column: Any) -> Any:
    """Return a column for csv: lists and structs as JSON, and no text that a spreadsheet or a terminal would obey."""
    if pa.types.is_nested(column.type):
        texts = [json.dumps(value, default=str, ensure_ascii=False) for value in column.to_pylist()]
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = column.to_pylist()
    else:
        return column
    safe = pa.array([text and shown(text) for text in texts], pa.string())
    return pc.replace_substring_regex(safe, r"\A([=+\-@\t\n])", r"'\1")


def layout_rows(table: pa.Table) -> list[str]:
    """Rows as aligned text under their column names; long cells are cut with an ellipsis."""
    head = [(">" if _is_number(field.type) else "<") + _cell(field.name) for field in table.schema]
    lines = aligned(head, [[_cell(value) for value in row.values()] for row in table.to_pylist()])
    rule = "-" * max(len(line) for line in lines)
    return [lines[0], rule, *lines[1:], f"({table.num_rows:,} {'row' if table.num_rows == 1 else 'rows'})"]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _cell(value: Any) -> str:
    text = "" if value is None else printable(" ".join(str(value).split()))
    return text if len(text) <= MAX_CELL_CHARS else text[: MAX_CELL_CHARS - 1] + "…"
