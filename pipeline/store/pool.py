"""Read stored images back out of the pool: by file, offset and length, a few files open at a time."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from manifests import storage
from manifests.errors import IntegrityError

MAX_OPEN_FILES = 64


class PoolReader:
    """Ranged reads from pool parts; a context manager that closes what it opened."""

    def __init__(self, workdir: str) -> None:
        self._folder = storage.join(workdir, "pool")
        self._remote = storage.is_remote(workdir)
        self._open: dict[str, Any] = {}

    def __enter__(self) -> PoolReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._open.values():
            stream.close()

    def read(self, pool_file: str, offset: int, length: int) -> bytes:
        """The stored bytes of one image. Raises as `read_into` does."""
        content = bytearray(length)
        self.read_into(memoryview(content), pool_file, offset)
        return bytes(content)

    def read_into(self, place: memoryview, pool_file: str, offset: int) -> None:
        """Fill a view with the stored bytes of one image.

        Raises: IntegrityError when the part is gone or shorter than the catalogue says.
        """
        stream = self._open.get(pool_file) or self._open_file(pool_file)
        stream.seek(offset)
        if stream.readinto(place) != len(place):
            raise IntegrityError(
                f"pool/{pool_file}: ends before byte {offset + len(place):,}; it was changed after its commit"
            )

    def announce(self, pool_file: str, offset: int, length: int) -> None:
        """Say that an image will be read soon, so that a disk can fetch several at a time; may do nothing."""
        if not self._remote:
            stream = self._open.get(pool_file) or self._open_file(pool_file)
            os.posix_fadvise(stream.fileno(), offset, length, os.POSIX_FADV_WILLNEED)

    def _open_file(self, pool_file: str) -> Any:
        if len(self._open) >= MAX_OPEN_FILES:
            self._open.pop(next(iter(self._open))).close()
        try:
            stream = storage.open_unbuffered(storage.join(self._folder, pool_file))
        except FileNotFoundError:
            raise IntegrityError(f"pool/{pool_file}: a part of the pool is gone; build again to fetch it") from None
        self._open[pool_file] = stream
        return stream
