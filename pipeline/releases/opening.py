"""Open a release that a user named, ask SQL over its tables, and find its work folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manifests.contract.catalog_file import CATALOG_FILE
from manifests.contract.reader import MEMORY_GB
from manifests.contract.release import RECORD_FILE, SAMPLES_FILE, Release
from manifests.contract.session import at_hand
from manifests.errors import ConfigError, IntegrityError
from manifests.stores import storage
from manifests.stores.storage import read_if_there
from pipeline.store.sql import open_scratch, view_parquet


def open_release(path: str) -> Release:
    """Open a release that a user named.

    Raises: ConfigError when there is none, or with what is wrong with it.
    """
    try:
        release = Release.open(path)
    except IntegrityError as error:
        raise ConfigError(str(error)) from None
    lacking = [name for name in ("counts", "recipe") if not isinstance(release.record.get(name), dict)]
    if lacking:
        raise ConfigError(f"{release.path}/{RECORD_FILE}: not a whole record, without {' and '.join(lacking)}")
    return release


def work_folder_of(release: Release) -> str | None:
    """Return the work folder that a release is in, or None. One in a store is brought here."""
    folder = release.workdir
    if folder and storage.is_remote(folder):
        with contextlib.suppress(ConfigError):
            return at_hand(folder)
        return None
    return folder if folder and Path(folder, CATALOG_FILE).is_file() else None


def read_json(release: Release, name: str) -> Any:
    """One of the JSON files of a release.

    Raises: IntegrityError for one that is not as it was sealed.
    """
    path = storage.join(release.path, name)
    content = read_if_there(path) or b""
    if hashlib.sha256(content).hexdigest() != release.record["files"].get(name, {}).get("sha256"):
        raise IntegrityError(f"{path}: other content than when it was sealed: take a whole copy of the release")
    return json.loads(content)


@contextmanager
def open_sql(workdir: str | None = None) -> Iterator[Any]:
    """Open an empty DuckDB that spills into `workdir`, or into a temporary folder when None."""
    with tempfile.TemporaryDirectory() as folder, open_scratch(workdir or folder, MEMORY_GB) as sql:
        yield sql


def samples_path(release: Release) -> str:
    """Path of the samples table of a release."""
    return storage.join(release.path, SAMPLES_FILE)


def view_samples(sql: Any, release: Release, name: str = "samples") -> None:
    """Create a view over the samples table of a release."""
    view_parquet(sql, name, [samples_path(release)])
