"""Open a release that a user named, and find the work folder it lies in."""

from __future__ import annotations

from pathlib import Path

from manifests import storage
from manifests.catalog import CATALOG_FILE
from manifests.errors import ConfigError, IntegrityError
from manifests.release import RECORD_FILE, Release


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
    """The work folder that a release lies in, if it does."""
    parent = Path(release.path).absolute().parent
    if storage.is_remote(release.path) or parent.name != "releases" or not (parent.parent / CATALOG_FILE).is_file():
        return None
    return str(parent.parent)
