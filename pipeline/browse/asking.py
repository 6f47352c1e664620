"""The SQL box: one statement that reads, for a limited time, its first rows shown.

DuckDB itself is locked by snapshot.py: no file but the tables can be read, no setting changed.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import Any

import duckdb

MAX_ROWS = 200
SECONDS = 30.0
MAX_SQL_CHARS = 10_000
_EXPLAIN = re.compile(r"\s*explain\s+(?:analyze\s+|\((?:\s*(?:analyze|format\s+\w+)\s*,?)+\)\s*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """Columns and rows of a statement, or what was wrong with it."""

    columns: list[str] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    more: bool = False
    error: str = ""


def ask(connection: Any, statement: str, seconds: float = SECONDS) -> Answer:
    """Run one SELECT (or EXPLAIN of one) on a cursor of its own."""
    if len(statement) > MAX_SQL_CHARS:
        return Answer(error=f"a statement may have {MAX_SQL_CHARS:,} characters, this one has {len(statement):,}")
    with connection.cursor() as sql:
        late = threading.Event()

        def stop() -> None:
            late.set()
            sql.interrupt()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            kinds = _kinds(sql, statement)
            if kinds != ["SELECT"]:
                return Answer(error=f"one SELECT statement is needed, given: {', '.join(kinds) or 'none'}")
            found = sql.execute(statement)
            rows = found.fetchmany(MAX_ROWS + 1)
            return Answer([column[0] for column in found.description], rows[:MAX_ROWS], len(rows) > MAX_ROWS)
        except duckdb.Error as error:
            return Answer(error=f"stopped after {seconds:g} s; ask for less" if late.is_set() else str(error).strip())
        finally:
            timer.cancel()


def _kinds(sql: Any, statement: str) -> list[str]:
    """What kinds of statements these are. EXPLAIN ANALYZE runs what it explains, so that is looked at instead."""
    statements = sql.extract_statements(statement)
    kinds = [one.type.name for one in statements]
    if kinds == ["EXPLAIN"]:
        kinds = [one.type.name for one in sql.extract_statements(_EXPLAIN.sub("", statements[0].query, count=1))]
    return kinds
