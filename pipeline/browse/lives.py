"""The life of one image, without walking through every table: where its rows lie is looked up.

The index holds for each table of a work folder which row of which file belongs to which image. A life is asked of a few
rows that are copied into temporary tables, by the same questions as `plantmix explain` asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from manifests.reader import SAMPLE_VIEWS, literals, paths_of_current
from pipeline.answers.lives import find_lives
from pipeline.browse.index import ROWS_OF, as_id
from pipeline.browse.snapshot import Snapshot

MAX_STAND_FOR = 200  # images dropped for one, of which a life tells


class Lives:
    """Finds the rows of an image. Safe for threads: each question has a cursor of its own."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        sql, folder = snapshot.connection, str(snapshot.folder.resolve())
        self._paths = {table: paths_of_current(sql, folder, SAMPLE_VIEWS[table][0], table) for table in ROWS_OF}
        views = (files("manifests") / "views.sql").read_text(encoding="utf-8")
        create = "CREATE VIEW samples "
        (self._samples,) = (part for part in views.split(";") if part.strip().startswith(create))

    def find(self, sample_id: str) -> dict[str, Any]:
        """What the tables know of an image; as `find_lives` returns it."""
        with self._snapshot.connection.cursor() as sql:
            stands_for = sql.execute(
                "SELECT sample_id::VARCHAR FROM session.images WHERE other = $1::UUID ORDER BY place LIMIT $2",
                [sample_id, MAX_STAND_FOR],
            ).fetchall()
            ids = [sample_id, *(row[0].replace("-", "") for row in stands_for)]
            self._copy_rows(sql, "decisions", ids)
            row = sql.execute("SELECT other_sample_id FROM decisions WHERE sample_id = $1", [sample_id]).fetchone()
            kept = [row[0]] if row and row[0] else []
            self._copy_rows(sql, "candidates", [*ids, *kept])
            for table in ROWS_OF:
                if table not in ("decisions", "candidates"):
                    self._copy_rows(sql, table, [sample_id, *kept])
            if kept:
                self._copy_rows(sql, "decisions", [*ids, *kept])
            sql.execute(self._samples.replace("CREATE VIEW", "CREATE TEMP VIEW", 1))
            return find_lives(sql, sample_id)[0]

    def _copy_rows(self, sql: Any, table: str, ids: Sequence[str]) -> None:
        """A temporary table of the same name, which hides the whole one from this cursor."""
        sql.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT * FROM main.{table} LIMIT 0")
        paths = self._paths[table]
        if not paths:
            return
        listed = ", ".join(f"'{as_id(one)}'" for one in ids)
        own = sql.execute(f"SELECT place FROM session.images WHERE sample_id IN ({listed})").fetchall()
        if not own:
            return
        rows_of: dict[int, list[str]] = {}
        for file, row in sql.execute(
            f"SELECT file, row FROM session.rows WHERE of = {ROWS_OF.index(table)} "
            f"AND place IN ({', '.join(str(place) for (place,) in own)})"
        ).fetchall():
            rows_of.setdefault(file, []).append(str(row))
        for file, rows in rows_of.items():
            sql.execute(
                f"INSERT INTO {table} BY NAME SELECT * FROM read_parquet([{literals([paths[file]])}]) "
                f"WHERE file_row_number IN ({', '.join(rows)})"
            )
