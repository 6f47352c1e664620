"""Reads a file of a disk or a store in ranges: a tar once, front to back; a Parquet file as its footer says.

Memory: two ranges, and the bytes of one read. A passing fault costs one more request. Raises PartError for a file that
has changed, ConfigError for a server that sends no ranges, RetryableError when the store does not answer.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any, Self

from manifests.errors import PartError, RetryableError, no_ranges, words_of
from manifests.masking import hide_secrets
from manifests.samples.unpacking import Window
from manifests.stores import faults, stamps, storage

RANGE_BYTES = 8 << 20


class Ranges(AbstractContextManager["Ranges"]):
    """Ranges of one version of a file, each asked for again after a passing fault."""

    def __init__(self, path: str, stamp: str | None, num_bytes: int) -> None:
        self._path, self._stamp, self._num_bytes = path, stamp, num_bytes
        self._file: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @abstractmethod
    def tell(self) -> int:
        """Return the byte that is read next."""

    def require_unchanged(self) -> None:
        """Raise PartError when the store names another version than the one that is read."""
        stamp, _ = stamps.look(self._path, now=True)
        if self._stamp is not None and stamp != self._stamp:
            raise PartError(
                f"{hide_secrets(self._path)}: was changed while it was read ({self._stamp} -> {stamp}); run the same "
                "command again, which reads the new one"
            )

    def _fetch(self, start: int, most: int) -> bytes:
        """Return some bytes from `start` on; none at the end."""
        num_bytes = min(most, self._num_bytes - start)
        return faults.patiently(lambda: self._ask(start, num_bytes), self._problem) if num_bytes > 0 else b""

    def _ask(self, start: int, num_bytes: int) -> bytes:
        if self._file is None:
            fs, inner = storage.filesystem(self._path)
            self._file = fs.open(inner, "rb", cache_type="none")
        try:
            self._file.seek(start)
            content = bytes(self._file.read(num_bytes))
        except ValueError:
            raise no_ranges(self._path) from None
        if not content or len(content) > num_bytes:
            raise RetryableError(f"got {len(content):,} of {num_bytes:,} bytes from byte {start:,} on")
        return content

    def _problem(self, error: Exception) -> Exception:
        """Return the error after the last try, see `patiently`. The next try opens the file again."""
        self._file = None
        with suppress(OSError):
            self.require_unchanged()
        return RetryableError(f"{hide_secrets(self._path)} cannot be read now ({words_of(error)})")


class InAnyOrder(Ranges):
    """The bytes of a file, for a parser that goes to and fro and asks for few large ranges."""

    closed = False

    def __init__(self, path: str, stamp: str | None, num_bytes: int) -> None:
        super().__init__(path, stamp, num_bytes)
        self._position = 0

    def tell(self) -> int:
        """Return the byte that is read next."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte."""
        self._position = offset + (0, self._position, self._num_bytes)[whence]
        return self._position

    def read(self, num_bytes: int) -> bytes:
        """Return the next bytes; fewer at the end."""
        pieces = []
        while num_bytes > 0 and (piece := self._fetch(self._position, num_bytes)):
            pieces.append(piece)
            self._position += len(piece)
            num_bytes -= len(piece)
        return b"".join(pieces)


class FrontToBack(Window, Ranges):
    """The bytes of a file from `start` on; `seek` may go back a little. The next range is fetched while one is used."""

    def __init__(self, path: str, stamp: str | None, num_bytes: int, start: int) -> None:
        Window.__init__(self, start, num_bytes)
        Ranges.__init__(self, path, stamp, num_bytes)
        self._thread = ThreadPoolExecutor(1)
        self._coming: Future[bytes] = self._thread.submit(self._fetch, start, RANGE_BYTES)

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        super().__exit__()

    def _next(self, position: int) -> bytes:
        content = self._coming.result()
        self._coming = self._thread.submit(self._fetch, position + len(content), RANGE_BYTES)
        return content
