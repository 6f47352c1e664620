"""The SQL box: one statement that reads, for a limited time, its first rows shown.

Each statement runs in a process of its own, which is killed when its time is over: DuckDB sees no interrupt within one
call of a function. DuckDB itself is locked by snapshot.py: no file but the tables can be read, no setting changed.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from manifests.reader import kinds_of
from manifests.services.child import Child
from pipeline.browse.snapshot import ASKING_MB, IMAGES_FILE, Snapshot, open_snapshot, spill_folder

MAX_ROWS = 200
SECONDS = 30.0
MAX_SQL_CHARS = 10_000
MAX_CELL_CHARS = 300

_one_at_a_time = threading.Lock()  # each may take all memory that is meant for statements


@dataclass(frozen=True)
class Answer:
    """Columns and rows of a statement, or what was wrong with it."""

    columns: list[str] = field(default_factory=list)
    rows: list[tuple[str, ...]] = field(default_factory=list)
    more: bool = False
    error: str = ""


def ask(snapshot: Snapshot, statement: str, seconds: float = SECONDS) -> Answer:
    """Run one SELECT (or EXPLAIN of one) over the tables and the index of a snapshot."""
    if len(statement) > MAX_SQL_CHARS:
        return Answer(error=f"a statement may have {MAX_SQL_CHARS:,} characters, this one has {len(statement):,}")
    try:
        kinds = kinds_of(snapshot.connection, statement)
    except duckdb.Error as error:
        return Answer(error=str(error).strip())
    if kinds != ["SELECT"]:
        return Answer(error=f"give one SELECT statement, not {', '.join(kinds) or 'an empty text'}")
    child = Child(_answer, str(snapshot.folder), snapshot.private, snapshot.index, statement, memory_mb=2 * ASKING_MB)
    try:
        with _one_at_a_time, child:
            child.receive()  # the tables are open
            answer: Answer = child.receive(seconds)
            return answer
    except TimeoutError:
        return Answer(error=f"stopped after {seconds:g} s; ask for less")
    except EOFError:
        return Answer(error="its process was killed, perhaps because memory ran out; ask for less")
    finally:
        shutil.rmtree(spill_folder(snapshot.private, child.process.pid), ignore_errors=True)


def cut(text: object, num_chars: int = MAX_CELL_CHARS) -> str:
    """A value as text, cut with an ellipsis."""
    shown = "" if text is None else str(text)
    return shown if len(shown) <= num_chars else shown[: num_chars - 1] + "…"


def _answer(send: Callable[[object], None], folder: str, private: Path, index: Path, statement: str) -> None:
    with (
        open_snapshot(folder, private, index.parent) as snapshot,
        snapshot.attached(index / IMAGES_FILE, read_only=True),
    ):
        send("open")
        send(_run(snapshot.connection, statement))


def _run(connection: Any, statement: str) -> Answer:
    try:
        result = connection.execute(statement)
        columns = [column[0] for column in result.description]
        rows = [tuple(map(cut, row)) for row in result.fetchmany(MAX_ROWS + 1)]
        return Answer(columns, rows[:MAX_ROWS], len(rows) > MAX_ROWS)
    except duckdb.Error as error:
        return Answer(error=str(error).strip())
