"""Compressed tars (gzip, zstd) as streams for `tars.samples_in`: unpacked in memory, once, front to back.

A compressed tar cannot be entered midway. Who goes on at some byte has all before it unpacked again.
Memory: MAX_TEXT_BYTES twice, one chunk, the buffers of the decoder (zstd: up to 128 MB), and the bytes of one read.
Gives up with BrokenTarError where no further byte can be unpacked. What lies before that byte is read.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from tarfile import BLOCKSIZE
from typing import Any

import pyarrow as pa

from manifests.samples.endings import COMPRESSED_TARS
from manifests.samples.tars import MAX_TEXT_BYTES
from manifests.services.untrusted import BrokenTarError, EndOfBytesError, check_packing

UNKNOWN_END = 1 << 62
"""Stands for the size of a compressed tar: nobody knows it before all of it is unpacked."""
FREE_BYTES = 64 << 30
"""What any compressed tar may hold, however small it is: minutes of unpacking."""
_CHUNK_BYTES = 1 << 20
_KEPT_BYTES = 2 * MAX_TEXT_BYTES  # a text is read again when its key is known


def packing_of(name: str) -> str | None:
    """Return how a tar of this name is compressed, where it is read as it is: gzip or zstd.

    None: it is not compressed.
    """
    return next((packing for ending, packing in COMPRESSED_TARS.items() if name.endswith(ending)), None)


class Window(ABC):
    """Bytes that come once, front to back, as a stream; `seek` may go back a little."""

    def __init__(self, start: int, end: int) -> None:
        self.end = end
        """Where it ends, or UNKNOWN_END."""
        self._position = self._base = start
        self._held = bytearray()

    @abstractmethod
    def _next(self, position: int) -> bytes:
        """Return the bytes from `position` on, at least one of them."""

    @property
    def kept_from(self) -> int:
        """The first byte that can still be read."""
        return self._base

    def tell(self) -> int:
        """Return the byte that is read next."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte."""
        self._position = offset + (self.end if whence == os.SEEK_END else 0)
        return self._position

    def read(self, num_bytes: int) -> bytes:
        """Return the next bytes; fewer at the end, where that is known."""
        while self._base + len(self._held) < min(self._position + num_bytes, self.end):
            if (surplus := min(self._position - _KEPT_BYTES - self._base, len(self._held))) > 0:
                del self._held[:surplus]
                self._base += surplus
            self._held += self._next(self._base + len(self._held))
        start = self._position - self._base
        if start < 0:
            raise ValueError(f"byte {self._position:,} is no longer kept")
        content = bytes(self._held[start : start + num_bytes])
        self._position += len(content)
        return content


class Unpacked(Window):
    """The plain bytes of a compressed stream. A read gives all that it is asked for, or raises BrokenTarError."""

    def __init__(self, packed: Any, packing: str) -> None:
        super().__init__(0, UNKNOWN_END)
        self._file, self._packed, self._packing = packed, _Counted(packed), packing
        self._plain = pa.CompressedInputStream(pa.PythonFile(self._packed, mode="r"), packing)
        self._fault: str | None = None
        self._is_whole = False

    def close(self) -> None:
        """Close the compressed file."""
        self._file.close()

    def _next(self, position: int) -> bytes:
        chunk = bytearray()
        try:
            # block by block: a read that meets a break loses what it had unpacked, and no sample ends within a block
            while len(chunk) < _CHUNK_BYTES and self._fault is None:
                block = self._plain.read(BLOCKSIZE)
                chunk += block
                if not block:
                    self._fault, self._is_whole = f"its {self._packing} data end there", True
            check_packing(self._packed.num_bytes, position + len(chunk), FREE_BYTES)
        except (OSError, ValueError) as error:
            if self._packed.error is not None:  # of the disk or the store: it says nothing about the tar
                raise self._packed.error from None
            self._fault = f"its {self._packing} data cannot be unpacked further: {error}"
        if not chunk:
            kind = EndOfBytesError if self._is_whole else BrokenTarError
            raise kind(f"no byte of the tar behind byte {position:,} ({self._fault})")
        return bytes(chunk)


def unpacked(stream: Any, name: str) -> Any:
    """Return the plain bytes of a tar: the stream itself, or Unpacked where the name says that it is compressed."""
    packing = packing_of(name)
    return stream if packing is None else Unpacked(stream, packing)


class _Counted:
    """A file as pyarrow needs it; counts the bytes that it has read, and does not close it."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream, self.num_bytes = stream, 0
        self.error: Exception | None = None

    def read(self, num_bytes: int) -> bytes:
        try:
            content: bytes = self._stream.read(num_bytes)
        except Exception as error:
            self.error = error
            raise
        self.num_bytes += len(content)
        return content

    def close(self) -> None:
        self.closed = True
