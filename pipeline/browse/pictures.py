"""The stored bytes of one picture: from the pool of a work folder, or from a shard of a release.

Offsets and names come from the tables. A name that leads out of the folder it belongs to is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manifests.contract.release import SPLIT_FOLDERS
from manifests.stores.faults import is_storage_error
from manifests.stores.folder import place_of, store_of
from manifests.stores.ranges import read_range
from pipeline.browse.snapshot import Snapshot

MAX_PICTURE_BYTES = 64 << 20


def read_picture(snapshot: Snapshot, row: Mapping[str, Any]) -> bytes | None:
    """Return the JPEG of a row of `images`, or None where nothing is stored."""
    if row["pool_file"] is not None:
        body = _read(snapshot.folder, "pool", row["pool_file"], row["pool_offset"], row["pool_length"])
        if body is not None:
            return body
    if row["shard"] is None or row["shard_split"] not in SPLIT_FOLDERS:
        return None
    release = "." if snapshot.release else _newest_release(snapshot)
    if release is None:
        return None
    folder = f"{release}/{SPLIT_FOLDERS[row['shard_split']]}"
    return _read(snapshot.folder, folder, row["shard"], row["jpg_offset"], row["jpg_length"])


def _newest_release(snapshot: Snapshot) -> str | None:
    row = (
        snapshot.connection.cursor()
        .execute("SELECT path FROM releases JOIN current_stages USING (fingerprint) WHERE stage = 'pack'")
        .fetchone()
    )
    if row is None:
        return None
    path = (snapshot.folder / row[0]).resolve()
    return str(row[0]) if path.is_relative_to(snapshot.folder.resolve()) else None


def _read(base: Path, folder: str, name: str, offset: int, length: int) -> bytes | None:
    """Bytes of a file that lies below `folder` of a work folder or release, or of the store behind it."""
    top, path = (base / folder).resolve(), (base / folder / name).resolve()
    if not path.is_relative_to(top) or not 0 < length <= MAX_PICTURE_BYTES or offset < 0:
        return None
    address = place_of(str(base), str(path.relative_to(base.resolve()))) if store_of(str(base)) else str(path)
    try:
        content = read_range(address, offset, length)
    except Exception as error:
        if not is_storage_error(error):
            raise
        return None
    return content if len(content) == length and content[:2] == b"\xff\xd8" else None
