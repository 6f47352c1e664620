"""The stamp of a file: what another content changes, without reading it. It answers one question: hash it again?

On a disk: size, time of change, time of the last change of its inode, and inode. So a content of the same size whose
time was put back has another stamp. In a store: size and the version that the store names, or else the time.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manifests.stores.clients import filesystem, is_remote
from manifests.stores.faults import ask

_TICK_NS = 20_000_000  # clocks of file systems go in steps of 1 to 10 ms: a second write within one would not show
_VERSIONS = ("ETag", "etag", "blob_id", "Last-Modified")  # S3 and web servers, Google, the Hub, other web servers


def of_disk(info: os.stat_result) -> str:
    """Return the stamp of a file of this machine."""
    return f"{info.st_size}-{info.st_mtime_ns}-{info.st_ctime_ns}-{info.st_ino}"


def of_entry(entry: Mapping[str, Any]) -> str | None:
    """Return the stamp of a file by its entry in a store's listing; None where nothing would show a change."""
    version = next((entry[name] for name in _VERSIONS if entry.get(name)), None) or changed_ns(entry)
    return f"{entry.get('size')}-{version}" if version else None


def look(path: str, store: tuple[Any, str] | None = None, now: bool = False) -> tuple[str | None, int | None]:
    """Stamp and size of a file; None where a store does not tell.

    Listings of the store that were kept count, unless it is asked `now`. `store` is `filesystem(path)`, for a client
    that keeps its listings a thread.

    Raises: FileNotFoundError and other errors of the file system or the store.
    """
    fs, inner = store or filesystem(path)
    if is_remote(path):
        if now:
            fs.invalidate_cache(inner)
        entry = ask(path, lambda: fs.info(inner))
        return of_entry(entry), entry.get("size")
    info = Path(inner).stat()
    return of_disk(info), info.st_size


def to_keep(path: str) -> str | None:
    """Return the stamp to keep beside a hash; None where nothing would show a change, or not yet.

    Raises: as `look`.
    """
    if is_remote(path):
        return look(path)[0]
    info = Path(path if path.startswith("/") else filesystem(path)[1]).stat()
    return of_disk(info) if time.time_ns() - info.st_ctime_ns > _TICK_NS else None


def changed_ns(info: Mapping[str, Any]) -> int:
    """When a file last changed. Each file system names the time in its own way; 0 where it gives none."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, str):
            try:
                value = datetime.datetime.fromisoformat(value)
            except ValueError:
                continue
        if isinstance(value, datetime.datetime):
            value = value.timestamp()
        if value:
            return int(float(value) * 1e9)
    return 0
