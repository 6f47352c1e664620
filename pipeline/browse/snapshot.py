"""Open a work folder or a release for looking, without holding its catalogue.

A build holds the catalogue for as long as it runs, and a reader would keep a build from starting. So the catalogue is
copied into a private folder, its tables are read from the copy, and the Parquet parts are read where they lie.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from manifests.contract.catalog_file import CATALOG_FILE
from manifests.contract.reader import (
    SAMPLE_VIEWS,
    copy_catalogue,
    literals,
    lock_down,
    open_reader,
    paths_of_current,
    sealed_version,
)
from manifests.contract.release import RECORD_FILE, Release
from manifests.errors import ConfigError
from manifests.names.sql import identifier
from manifests.stores.folder import store_of
from manifests.stores.storage import hash_file
from pipeline.releases.opening import open_release, samples_path

MAKING_MB, ASKING_MB = 1_000, 800  # of memory for DuckDB; Python and the facets of codes.py come on top
INDEX_FOLDER, IMAGES_FILE, FACETS_FILE = "index", "images.duckdb", "facets.arrow"
INDEX_FORMAT = 2  # raise it when the same tables would give another index


@dataclass(frozen=True)
class Snapshot:
    """The material of a session: one DuckDB with the views, and where the pictures lie."""

    connection: Any
    folder: Path  # the work folder or the release
    release: Release | None  # set when a release alone is looked at
    radius: int | None  # of the last dedup
    private: Path  # the temporary folder of the session
    key: str  # of the index: of what it is made
    index: Path  # the folder where the index lies, or will

    @contextmanager
    def attached(self, images: Path, read_only: bool = False) -> Iterator[None]:
        """With the database of an index as `session`."""
        self.connection.execute(f"ATTACH {literals([str(images)])} AS session{' (READ_ONLY)' if read_only else ''}")
        try:
            yield
        finally:
            self.connection.execute("DETACH session")

    @property
    def name(self) -> str:
        """Its name on the pages."""
        return self.release.name if self.release else self.folder.resolve().name


@contextmanager
def open_snapshot(path: str, private: Path, kept: Path | None = None, memory_mb: int = ASKING_MB) -> Iterator[Snapshot]:
    """Open views over a work folder or release as they are now. `private` takes the copy, the index and what spills.

    An index of these tables that lies in `kept` is taken from there. A copy of the catalogue that lies in `private`
    already is taken too. DuckDB itself is locked: it reaches the tables of `path`, `private` and the index, and no
    setting can be changed.

    Raises: ConfigError when there is neither catalogue nor release; RunError when the catalogue never stood still.
    """
    folder = Path(path)
    if (folder / CATALOG_FILE).is_file():
        connection, release, tables = _open_catalogue(folder, private), None, folder / "tables"
    else:
        release = _open_release(path)
        folder = Path(release.path)
        connection, tables = _open_samples(release), folder
    try:
        dedup = None if release else sealed_version(connection, "dedup")
        key = _key(connection, release)
        index = private / INDEX_FOLDER
        if kept and (kept / key / FACETS_FILE).is_file():
            index = kept / key
        connection.execute("SET preserve_insertion_order = false")
        # DuckDB follows links before it compares
        allowed = [str(readable.resolve()) for readable in (tables, index, private)]
        lock_down(
            connection, memory_mb, str(private.resolve() / f"spill-{os.getpid()}"), "allowed_directories", allowed
        )
        yield Snapshot(connection, folder, release, dedup["notes"]["radius"] if dedup else None, private, key, index)
    finally:
        connection.close()


def _open_release(path: str) -> Release:
    try:
        return open_release(path)
    except ConfigError:
        if (Path(path) / RECORD_FILE).exists():
            raise
        raise ConfigError(
            f"{path}: neither a work folder (no {CATALOG_FILE}) nor a release (no {RECORD_FILE}); give one of them"
        ) from None


def _open_samples(release: Release) -> Any:
    connection = duckdb.connect()
    samples = connection.read_parquet(samples_path(release))
    if "language" not in samples.columns:  # an older release does not tell it
        samples = samples.project("*, NULL::VARCHAR AS language")
    samples.create_view("samples")
    return connection


def _open_catalogue(folder: Path, private: Path) -> Any:
    """Return the views of the reader over a copy of the catalogue, whose small tables are taken into memory."""
    work = private / "work"
    if not work.exists():
        work.mkdir()
        (work / "tables").symlink_to((folder / "tables").absolute(), target_is_directory=True)
        copy_catalogue(str(folder), str(work))
        if store_of(str(folder)):
            open_reader(str(folder)).close()  # brings the tables
    connection = open_reader(str(work))
    names = connection.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'catalog'").fetchall()
    for (name,) in names:
        connection.execute(f"DROP VIEW {identifier(name)}")
        connection.execute(f"CREATE TABLE {identifier(name)} AS SELECT * FROM catalog.main.{identifier(name)}")
    current = paths_of_current(connection, str(work))
    for view, (stage, _, _) in SAMPLE_VIEWS.items():
        if not current[stage, view]:  # empty: seen by this connection alone so far
            connection.execute(f"CREATE TABLE empty AS SELECT * FROM {view}")
            connection.execute(f"DROP VIEW {view}")
            connection.execute(f"ALTER TABLE empty RENAME TO {view}")
    connection.execute("DETACH catalog")
    return connection


def _key(connection: Any, release: Release | None) -> str:
    """Return a digest of all that an index is made from."""
    made_from: list[Any] = [INDEX_FORMAT, duckdb.__version__]
    if release:
        made_from.append(hash_file(str(Path(release.path) / RECORD_FILE)).sha256)
    else:
        made_from += connection.execute(
            "SELECT c.stage, c.fingerprint, f.table_name, f.path, f.num_rows, f.sha256 FROM current_stages c "
            "LEFT JOIN stage_parts USING (fingerprint) LEFT JOIN files f USING (part_key) ORDER BY ALL"
        ).fetchall()
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
