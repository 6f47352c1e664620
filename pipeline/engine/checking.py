"""Check that files still match their records, before a stage reads them.

A file is read once a build: afterwards its stamp stands for its content.
"""

from __future__ import annotations

from pathlib import Path

from manifests.errors import DamageError
from manifests.stores import stamps, storage
from manifests.stores.folder import bring, patiently, store_of
from pipeline.store.files import Files


class ContentChecks:
    """Compares files of a work folder with their recorded sha256."""

    def __init__(self, workdir: str) -> None:
        self._workdir = workdir
        self._store = store_of(workdir)
        self._checked: dict[str, str] = {}

    def require(self, files: Files) -> Files:
        """Return the same files. Of files that a work folder did not record, nothing is known to compare.

        Raises: DamageError when one is gone or holds something else.
        """
        if not files.sha256 and not files.content:
            return files
        folder = storage.join(self._workdir, "")
        damaged = [
            path.removeprefix(folder).lstrip("/")
            for path, sha256 in zip(files.paths, files.sha256, strict=True)
            if not self._is_sound(path, sha256)
        ]
        if damaged:
            raise DamageError(self._workdir, damaged)
        return files

    def trust(self, path: str) -> None:
        """Note a file that this process has just published: the worker hashed it when it was written.

        A file of a store that lies on another machine is looked at when it is brought here.
        """
        if self._store is None or Path(path).exists():
            self._checked[path] = _stamp(path)

    def _bring(self, path: str, sha256: str) -> None:
        """Download a file of a store, unless it is here as recorded."""
        name = path.removeprefix(f"{self._workdir}/")
        if self._store is None or name == path:
            return
        if Path(path).exists() and (
            self._checked.get(path) == _stamp(path) or storage.hash_file(path).sha256 == sha256
        ):
            self._checked[path] = _stamp(path)
            return
        Path(path).unlink(missing_ok=True)
        patiently(self._store, lambda: bring(self._workdir, name))

    def _is_sound(self, path: str, sha256: str) -> bool:
        try:
            self._bring(path, sha256)
            stamp = _stamp(path)
            if self._checked.get(path) != stamp:
                if storage.hash_file(path).sha256 != sha256:
                    return False
                self._checked[path] = stamp
        except OSError:  # it is gone, or the disk does not give it
            return False
        return True


def _stamp(path: str) -> str:
    return stamps.of_disk(Path(path).stat())
