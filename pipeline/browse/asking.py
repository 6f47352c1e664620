"""The SQL box: one statement that reads, for a limited time, its first rows shown.

DuckDB itself is locked by snapshot.py: no file but the tables can be read, no setting changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import duckdb

from manifests.reader import kinds_of, time_limit

MAX_ROWS = 200
SECONDS = 30.0
MAX_SQL_CHARS = 10_000


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
    with connection.cursor() as sql, time_limit(sql, seconds) as late:
        try:
            kinds = kinds_of(sql, statement)
            if kinds != ["SELECT"]:
                return Answer(error=f"one SELECT statement is needed, given: {', '.join(kinds) or 'none'}")
            found = sql.execute(statement)
            rows = found.fetchmany(MAX_ROWS + 1)
            return Answer([column[0] for column in found.description], rows[:MAX_ROWS], len(rows) > MAX_ROWS)
        except duckdb.Error as error:
            return Answer(error=f"stopped after {seconds:g} s; ask for less" if late.is_set() else str(error).strip())
