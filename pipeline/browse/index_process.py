"""Make the index in a process of its own, and keep it for the next session.

Its memory is free again when that process ends, and the pages answer meanwhile. Kept indexes lie
in the user's cache folder, one folder for each content, so the same tables are indexed once. Nothing is written into
the folder that is shown.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from manifests.errors import RunError
from manifests.services.child import Child
from manifests.stores import storage
from pipeline.browse.index import Tell, make_index
from pipeline.browse.snapshot import FACETS_FILE, IMAGES_FILE, MAKING_MB, Snapshot, open_snapshot

MAX_KEPT = 3  # indexes, the least recently used goes first


class IndexProcess(Child):
    """The process that makes an index."""

    def __init__(self, folder: str, private: Path) -> None:
        super().__init__(_make, folder, private)

    def wait(self, tell: Tell) -> None:
        """Wait for the index; `tell` is given the share that is done, 0 to 1.

        Raises: what making it raised; RunError when the process was killed.
        """
        try:
            while (share := self.receive()) is not None:
                tell(share)
        except EOFError:
            raise RunError(
                f"the process that makes the index was killed (exit code {self.process.exitcode}); it needs "
                f"{2 * MAKING_MB:,} MB of free memory. Close other programs and start browse again"
            ) from None


def _make(send: Tell, folder: str, private: Path) -> None:
    with open_snapshot(folder, private, memory_mb=MAKING_MB) as snapshot:
        make_index(snapshot, send)


def cache_folder() -> Path:
    """Where indexes are kept."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(stated) if Path(stated).is_absolute() else Path.home() / ".cache") / "plantmix" / "browse"


def keep_index(snapshot: Snapshot, cache: Path) -> int:
    """Keep the index of a session, or count it as used; drop the oldest beyond MAX_KEPT. Returns its bytes.

    Raises: OSError where the cache cannot be written.
    """
    folder = cache / snapshot.key
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if snapshot.index != folder:
        for name in (IMAGES_FILE, FACETS_FILE):  # in this order: with the second, all is there
            storage.link_or_copy(str(snapshot.index / name), str(folder / name))
    os.utime(folder)
    kept = sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for old in kept[MAX_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return sum((folder / name).stat().st_size for name in (IMAGES_FILE, FACETS_FILE))
