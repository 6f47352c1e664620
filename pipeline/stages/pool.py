"""Read stored images back out of the pool: by file, offset and length, a few files open at a time."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from manifests import storage
from manifests.errors import IntegrityError

MAX_OPEN_FILES = 64


class PoolReader:
    """Ranged reads from pool parts; a context manager that closes what it opened."""

    def __init__(self, workdir: str) -> None:
        self._folder = storage.join(workdir, "pool")
        self._open: dict[str, Any] = {}

    def __enter__(self) -> PoolReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._open.values():
            stream.close()

    def read(self, pool_file: str, offset: int, length: int) -> bytes:
        """The stored bytes of one image.

        Raises: IntegrityError when the part is gone or shorter than the catalogue says.
        """
        stream = self._open.get(pool_file)
        if stream is None:
            if len(self._open) >= MAX_OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            fs, inner = storage.filesystem(storage.join(self._folder, pool_file))
            try:
                stream = fs.open(inner, "rb")
            except FileNotFoundError:
                raise IntegrityError(f"pool/{pool_file}: a part of the pool is gone; build again to fetch it") from None
            self._open[pool_file] = stream
        stream.seek(offset)
        content: bytes = stream.read(length)
        if len(content) != length:
            raise IntegrityError(
                f"pool/{pool_file}: ends before byte {offset + length:,}; it was changed after its commit"
            )
        return content
