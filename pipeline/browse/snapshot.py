"""Open a work folder or a release for looking, without holding its catalogue.

A build holds the catalogue for as long as it runs, and a reader would keep a build from starting. So the catalogue is
copied into a private folder, its tables are read from the copy, and the Parquet parts are read where they lie. A copy
counts only when neither file of the catalogue changed meanwhile; otherwise it is made again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from manifests.catalog_file import CATALOG_FILE
from manifests.errors import ConfigError, RunError
from manifests.reader import SAMPLE_VIEWS, open_reader, paths_of_current
from manifests.release import RECORD_FILE, Release
from manifests.sql import lock_down
from pipeline.releases.opening import open_release, samples_path

COPY_TRIES = 40
SECONDS_BETWEEN_TRIES = 0.25
MEMORY_MB = 1_100  # the facets of codes.py and Python itself come on top


@dataclass(frozen=True)
class Snapshot:
    """What a session looks at: one DuckDB with the views, and where the pictures lie."""

    connection: Any
    folder: Path  # the work folder or the release
    release: Release | None  # set when a release alone is looked at
    radius: int | None  # of the last dedup

    @property
    def name(self) -> str:
        """What the pages call it."""
        return self.release.name if self.release else self.folder.resolve().name


@contextmanager
def open_snapshot(given: str, private: Path) -> Iterator[Snapshot]:
    """Views over a work folder or release as they are now. `private` takes the copy, the index and what spills.

    DuckDB itself is locked: it reaches the tables of `given` and `private`, and no setting can be changed.

    Raises: ConfigError when there is neither catalogue nor release; RunError when the catalogue never stood still.
    """
    folder = Path(given)
    if (folder / CATALOG_FILE).is_file():
        connection, release, tables = _open_catalogue(folder, private), None, folder / "tables"
    else:
        release = _open_release(given)
        folder = Path(release.path)
        connection, tables = _open_samples(release), folder
    try:
        radius = None if release else _radius(connection)
        connection.execute("ATTACH $1 AS session", [str(private / "session.duckdb")])
        connection.execute("SET preserve_insertion_order = false")
        allowed = [str(tables.resolve()), str(private.resolve())]  # DuckDB follows links before it compares
        lock_down(connection, MEMORY_MB, str(private.resolve() / "spill"), "allowed_directories", allowed)
        yield Snapshot(connection, folder, release, radius)
    finally:
        connection.close()


def _open_release(given: str) -> Release:
    try:
        return open_release(given)
    except ConfigError:
        if (Path(given) / RECORD_FILE).exists():
            raise
        raise ConfigError(
            f"{given}: neither a work folder (no {CATALOG_FILE}) nor a release (no {RECORD_FILE}); give one of them"
        ) from None


def _open_samples(release: Release) -> Any:
    connection = duckdb.connect()
    samples = connection.read_parquet(samples_path(release))
    if "language" not in samples.columns:  # an older release does not tell it
        samples = samples.project("*, NULL::VARCHAR AS language")
    samples.create_view("samples")
    connection.execute("COMMENT ON VIEW samples IS 'One row a placed sample, as samples.parquet has it.'")
    connection.execute("CREATE VIEW views AS SELECT 'samples' AS name, 'One row a placed sample.' AS about")
    return connection


def _open_catalogue(folder: Path, private: Path) -> Any:
    """The views of the reader over a copy of the catalogue, whose small tables are taken into memory."""
    work = private / "work"
    work.mkdir()
    (work / "tables").symlink_to((folder / "tables").absolute(), target_is_directory=True)
    _copy_catalogue(folder, work)
    connection = open_reader(str(work))
    names = connection.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'catalog'").fetchall()
    for (name,) in names:
        connection.execute(f'DROP VIEW "{name}"')
        connection.execute(f'CREATE TABLE "{name}" AS SELECT * FROM catalog.main."{name}"')
    for view, (stage, _, _) in SAMPLE_VIEWS.items():
        if not paths_of_current(connection, str(work), stage, view):  # empty: seen by this connection alone so far
            connection.execute(f"CREATE TABLE empty AS SELECT * FROM {view}")
            connection.execute(f"DROP VIEW {view}")
            connection.execute(f"ALTER TABLE empty RENAME TO {view}")
    connection.execute("DETACH catalog")
    return connection


def _copy_catalogue(folder: Path, work: Path) -> None:
    names = (CATALOG_FILE, f"{CATALOG_FILE}.wal")
    for _ in range(COPY_TRIES):
        before = [_state(folder / name) for name in names]
        for name in names:
            (work / name).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):  # without changes that wait there is no .wal
                shutil.copyfile(folder / name, work / name)
        if before == [_state(folder / name) for name in names]:
            return
        time.sleep(SECONDS_BETWEEN_TRIES)
    raise RunError(f"{folder / CATALOG_FILE}: a build writes it all the time; try again in a minute")


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _radius(connection: Any) -> int | None:
    row = connection.execute(
        "SELECT notes FROM stages JOIN current_stages USING (fingerprint) WHERE current_stages.stage = 'dedup'"
    ).fetchone()
    radius = json.loads(row[0] or "{}").get("radius") if row else None
    return None if radius is None else int(radius)
