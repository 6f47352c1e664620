"""Reads a file of a disk or a store once, front to back, in ranges. The next range is fetched while one is used.

Memory: two ranges, and the bytes of one read. A passing fault costs one more request. Raises PartError for a file that
has changed, ConfigError for a server that sends no ranges, RetryableError when the store does not answer.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any

from manifests.errors import PartError, RetryableError, no_ranges, words_of
from manifests.masking import hide_secrets
from manifests.samples.unpacking import Window
from manifests.stores import faults, stamps, storage

RANGE_BYTES = 8 << 20


class FrontToBack(Window, AbstractContextManager["FrontToBack"]):
    """The bytes of a file from `start` on; `seek` may go back a little."""

    def __init__(self, path: str, stamp: str | None, num_bytes: int, start: int) -> None:
        super().__init__(start, num_bytes)
        self._path, self._stamp = path, stamp
        self._file: Any = None
        self._thread = ThreadPoolExecutor(1)
        self._coming: Future[bytes] = self._thread.submit(self._fetch, start)

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        if self._file is not None:
            self._file.close()

    def _next(self, position: int) -> bytes:
        content = self._coming.result()
        self._coming = self._thread.submit(self._fetch, position + len(content))
        return content

    def require_unchanged(self) -> None:
        """Raises: PartError when the store names another version than the one that is read."""
        stamp, _ = stamps.look(self._path, now=True)
        if self._stamp is not None and stamp != self._stamp:
            raise PartError(
                f"{hide_secrets(self._path)}: was changed while it was read ({self._stamp} -> {stamp}); run the same "
                "command again, which reads the new one"
            )

    def _fetch(self, start: int) -> bytes:
        if start >= self.end:
            return b""
        return faults.patiently(lambda: self._ask(start), self._problem)

    def _ask(self, start: int) -> bytes:
        num_bytes = min(RANGE_BYTES, self.end - start)
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
        """The error after the last try, see `patiently`. The next try opens the file again."""
        self._file = None
        with suppress(OSError):
            self.require_unchanged()
        return RetryableError(f"{hide_secrets(self._path)} cannot be read now ({words_of(error)})")
