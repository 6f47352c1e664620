"""The pool: one uncompressed tar of SAMPLE_ID.jpg members a part, written once, read by file, offset and length.

`PoolWriter` writes one part: the file at `path`, and a file without a name while many bytes come in. `PoolReader` reads
many parts, a few files open at a time. Gives up with OSError when the disk does, and with IntegrityError when a part is
gone or holds another picture than its record says.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from manifests.errors import IntegrityError
from manifests.names.sql import identifier
from manifests.stores import storage
from manifests.stores.folder import place_of, store_of
from manifests.stores.ranges import read_ranges
from pipeline.store.tar import BLOCK_BYTES, ArchiveWriter

MAX_OPEN_FILES = 64
MOST_KEPT_BYTES = 64 << 20  # of pictures that wait in memory; 1,000 photos of 256 px are 20 to 40 MB
ANNOUNCED = 32  # pictures announced at a time; fewer than the pool files that stay open
MOST_READ = 1.1  # bytes that one request to a store may read, over those of its pictures
Place = tuple[str, int, int]
"""Pool file, offset, length."""
STORED_AT = ("pool_file", "offset", "length", "stored_sha256")  # columns of facts that say where a picture is, and what
STORED_COLUMNS = ", ".join(identifier(name) for name in STORED_AT)


class PoolWriter(AbstractContextManager["PoolWriter"]):
    """Takes pictures in any order and writes them in order of sample id, so that network timing changes no byte.

    Pictures wait in memory; above `MOST_KEPT_BYTES`, in a file without a name. At the end they are copied into the tar.
    Use it as a context manager: an error leaves no file behind.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        folder = str(self._path.parent)
        self._waiting = SpooledTemporaryFile(MOST_KEPT_BYTES, dir=folder)  # noqa: SIM115 - closed when this one is
        self._places: dict[str, tuple[int, int]] = {}
        self._num_bytes = 0

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.discard()
        self._waiting.close()

    def discard(self) -> None:
        """Leave no file behind."""
        self._waiting.close()
        self._path.unlink(missing_ok=True)

    def add(self, sample_id: str, body: bytes) -> None:
        """Keep one picture."""
        self._waiting.write(body)
        self._places[sample_id] = (self._num_bytes, len(body))
        self._num_bytes += len(body)

    def finish(self) -> dict[str, tuple[int, int]]:
        """Write the tar; gives offset and length of each sample's bytes in it."""
        places: dict[str, tuple[int, int]] = {}
        with storage.naming(str(self._path)), self._path.open("wb") as stream:
            archive = ArchiveWriter(stream, record_bytes=BLOCK_BYTES)
            for sample_id in sorted(self._places):
                start, length = self._places[sample_id]
                self._waiting.seek(start)
                places[sample_id] = (archive.add(f"{sample_id}.jpg", self._waiting.read(length)), length)
            archive.finish()
        return places


class PoolReader(AbstractContextManager["PoolReader"]):
    """Reads stored pictures out of the parts of a work folder; a context manager that closes what it opened."""

    def __init__(self, workdir: str) -> None:
        self._folder = place_of(workdir, "pool")
        self._advice = (
            f"`plantmix repair {store_of(workdir) or workdir}` keeps the sound pictures and gets the others again"
        )
        self._open: dict[str, Any] = {}
        self._ahead: dict[Place, bytes] = {}  # of a store: the pictures that were announced last

    def __exit__(self, *_: object) -> None:
        for stream in self._open.values():
            stream.close()

    def read(self, pool_file: str, offset: int, length: int, sha256: str) -> bytes:
        """Return the stored bytes of one picture. Raises as `read_into` does."""
        content = bytearray(length)
        self.read_into(memoryview(content), pool_file, offset, sha256)
        return bytes(content)

    def read_into(self, buffer: memoryview, pool_file: str, offset: int, sha256: str) -> None:
        """Fill a view with the stored bytes of one picture.

        Raises: IntegrityError when the part is gone, is shorter than its record says or holds other bytes.
        """
        if storage.is_remote(self._folder):
            picture = (pool_file, offset, len(buffer))
            if picture not in self._ahead:
                self._ahead |= self._from_store([picture])
            content = self._ahead[picture]
            num_read = len(content)
            buffer[:num_read] = content
        else:
            stream = self._open.get(pool_file) or self._open_file(pool_file)
            stream.seek(offset)
            num_read = stream.readinto(buffer)
        if num_read != len(buffer):
            raise IntegrityError(f"pool/{pool_file}: ends before byte {offset + len(buffer):,}; {self._advice}")
        if hashlib.sha256(buffer).hexdigest() != sha256:
            raise IntegrityError(f"pool/{pool_file}: not the picture stored at byte {offset:,}; {self._advice}")

    def read_rows(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        """Yield the stored bytes of the pictures of rows that have the columns STORED_AT.

        Raises as `read_into` does.
        """
        places = [(row["pool_file"], row["offset"], row["length"]) for row in rows]
        for number, row in enumerate(rows):
            if number % ANNOUNCED == 0:
                self.announce(places[number : number + ANNOUNCED])
            yield self.read(*places[number], row["stored_sha256"])

    def announce(self, places: Sequence[Place]) -> None:
        """Tell that these pictures will be read soon, so that a disk can fetch several at a time.

        From an object store they are read now: all at a time, and those that lie side by side in one request.

        Raises: IntegrityError when a part is gone; RetryableError when the store does not give what it has.
        """
        if storage.is_remote(self._folder):
            self._ahead = self._from_store(sorted(set(places)))
            return
        for pool_file, offset, length in places:
            stream = self._open.get(pool_file) or self._open_file(pool_file)
            os.posix_fadvise(stream.fileno(), offset, length, os.POSIX_FADV_WILLNEED)

    def _from_store(self, places: Sequence[Place]) -> dict[Place, bytes]:
        """Return the bytes of pictures; `places` are sorted."""
        contents: dict[Place, bytes] = {}
        runs: list[list[Place]] = []
        num_used = 0  # bytes of pictures in the last run
        for address in places:
            pool_file, offset, length = address
            start = runs[-1][0][1] if runs and runs[-1][0][0] == pool_file else None
            if start is not None and offset + length - start <= MOST_READ * (num_used + length):
                runs[-1].append(address)
                num_used += length
            else:
                runs.append([address])
                num_used = length
        spans = [
            (storage.join(self._folder, run[0][0]), run[0][1], max(offset + length for _, offset, length in run))
            for run in runs
        ]
        for run, content in zip(runs, read_ranges(spans), strict=True):
            if content is None:
                raise IntegrityError(f"pool/{run[0][0]}: a part of the pool is gone; {self._advice}")
            first = run[0][1]
            for address in run:
                _, offset, length = address
                contents[address] = content[offset - first : offset - first + length]
        return contents

    def _open_file(self, pool_file: str) -> Any:
        if len(self._open) >= MAX_OPEN_FILES:
            self._open.pop(next(iter(self._open))).close()
        try:
            stream = storage.open_unbuffered(storage.join(self._folder, pool_file))
        except FileNotFoundError:
            raise IntegrityError(f"pool/{pool_file}: a part of the pool is gone; {self._advice}") from None
        self._open[pool_file] = stream
        return stream
