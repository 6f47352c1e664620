"""Write a webdataset tar that is the same bytes every time, and return the offset of every member.

Everything goes through one buffer. The caller fills a member's place in that buffer, so a picture is read, hashed and
written without a copy.
"""

from __future__ import annotations

import functools
import hashlib
import tarfile
from typing import Any

BLOCK_BYTES = 512
RECORD_BYTES = 10_240  # GNU tar's default record: an archive is padded to a whole number of them
BUFFER_BYTES = 1 << 20  # stays in a core's cache between reading, hashing and writing
_NAME_BYTES, _SIZE_AT, _SUM_AT = 100, 124, 148  # of the header's fields


class ArchiveWriter:
    """Members one after another, ustar, mode 644, owner 0, time 0; `digest`, if given, gets all bytes on their way out.

    The end is padded with zeros to a whole number of `record_bytes`.
    """

    def __init__(self, stream: Any, digest: hashlib._Hash | None = None, record_bytes: int = RECORD_BYTES) -> None:
        self._stream = stream
        self._record_bytes = record_bytes
        self._digest = digest
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._num_waiting = 0  # bytes in the buffer
        self._num_written = 0

    def add(self, name: str, content: bytes) -> int:
        """Append a member; gives the offset of its content. Raises as `room` does."""
        offset, room = self.room(name, len(content))
        room[:] = content
        return offset

    def room(self, name: str, num_bytes: int) -> tuple[int, memoryview]:
        """Append a member. Returns its offset, and the view that the caller must fill before the next call.

        Raises: ValueError for a name over 100 bytes, which ustar cannot hold in one field, or 8 GiB of content.
        """
        header = member_header(name, num_bytes)
        total = BLOCK_BYTES + num_bytes + -num_bytes % BLOCK_BYTES
        if self._num_waiting + total > len(self._buffer):
            self._write_out()
            if total > len(self._buffer):
                self._buffer = memoryview(bytearray(total))
        start = self._num_waiting
        self._num_waiting += total
        content_start, content_stop = start + BLOCK_BYTES, start + BLOCK_BYTES + num_bytes
        self._buffer[start:content_start] = header
        self._buffer[content_stop : self._num_waiting] = bytes(-num_bytes % BLOCK_BYTES)
        return self._num_written + content_start, self._buffer[content_start:content_stop]

    def finish(self) -> int:
        """Write what waits and the end: two zero blocks, zeros up to a whole record; gives the number of bytes."""
        self._write_out()
        self._write(bytes(2 * BLOCK_BYTES + -(self._num_written + 2 * BLOCK_BYTES) % self._record_bytes))
        return self._num_written

    def _write_out(self) -> None:
        self._write(self._buffer[: self._num_waiting])
        self._num_waiting = 0

    def _write(self, content: bytes | memoryview) -> None:
        if self._digest is not None:
            self._digest.update(content)
        self._stream.write(content)
        self._num_written += len(content)


def member_header(name: str, num_bytes: int) -> bytes:
    """Return the header that `tarfile` would write, many times faster: only name, size and checksum are filled in.

    Raises: ValueError as `ArchiveWriter.room` does.
    """
    encoded = name.encode()
    if len(encoded) > _NAME_BYTES or num_bytes >= 8**11:
        raise ValueError(f"{name}: a ustar member has at most {_NAME_BYTES} bytes of name and 8 GiB of content")
    before_size, after_size, after_sum, sum_of_rest = _template()
    size = b"%011o" % num_bytes
    return b"%b%b%b%b%06o\0 %b" % (
        encoded.ljust(_NAME_BYTES, b"\0"), before_size, size, after_size, sum_of_rest + sum(encoded) + sum(size),
        after_sum,
    )  # fmt: skip


@functools.cache
def _template() -> tuple[bytes, bytes, bytes, int]:
    """Return the fixed parts of a header, and their checksum (in which the checksum's own field counts as spaces)."""
    info = tarfile.TarInfo("")
    info.mode, info.mtime = 0o644, 0
    header = info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    before_size, after_size = header[_NAME_BYTES:_SIZE_AT], header[_SIZE_AT + 11 : _SUM_AT]
    after_sum = header[_SUM_AT + 8 :]
    return before_size, after_size, after_sum, sum(before_size) + sum(after_size) + sum(after_sum) + 8 * ord(" ")
