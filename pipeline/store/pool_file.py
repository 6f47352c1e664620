"""The pool file of one part: an uncompressed tar of SAMPLE_ID.jpg members in order of sample id.

Pictures are spooled to disk as they come, in any order, and copied into the tar at the end (the spool is still
in the page cache), so that the same pictures give the same file whatever the network's order was.
Writes `path` and `path` + '.spool' (removed at the end). Gives up with OSError when the disk does.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import BinaryIO

_BLOCK_BYTES = tarfile.BLOCKSIZE


class PoolFile:
    """Add pictures, then close once to learn where each one lies; `discard` after an error."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._spool_path = self._path.with_name(self._path.name + ".spool")
        self._spool: BinaryIO = self._spool_path.open("w+b")
        self._places: dict[str, tuple[int, int]] = {}
        self._num_bytes = 0

    def add(self, sample_id: str, body: bytes) -> None:
        """Keep one picture."""
        self._spool.write(body)
        self._places[sample_id] = (self._num_bytes, len(body))
        self._num_bytes += len(body)

    def close(self) -> dict[str, tuple[int, int]]:
        """Write the tar; gives offset and length of each sample's bytes in it."""
        found: dict[str, tuple[int, int]] = {}
        with self._path.open("wb") as out:
            at = 0
            for sample_id in sorted(self._places):
                start, length = self._places[sample_id]
                header = _member(f"{sample_id}.jpg", length)
                self._spool.seek(start)
                out.write(header)
                out.write(self._spool.read(length))
                out.write(b"\0" * (-length % _BLOCK_BYTES))
                found[sample_id] = (at + len(header), length)
                at += len(header) + length + (-length % _BLOCK_BYTES)
            out.write(b"\0" * (2 * _BLOCK_BYTES))
        self._remove_spool()
        return found

    def discard(self) -> None:
        """Leave nothing behind."""
        self._remove_spool()
        self._path.unlink(missing_ok=True)

    def _remove_spool(self) -> None:
        self._spool.close()
        self._spool_path.unlink(missing_ok=True)


def _member(name: str, num_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)
