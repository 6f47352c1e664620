"""One webdataset shard that PlantMix did not build: where it lies, and how its bytes are copied and compared.

Its content hash is made of the sha256 of consecutive segments. So a shard of any size is read once to be hashed, and a
reading that was killed goes on behind its last whole segment. A shard is a file, an address of a store, or `pipe:`
and a command, whose output it is. Messages name it by `path`, which holds no secret.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from manifests.errors import ConfigError, IntegrityError, RunError, words_of
from manifests.masking import PIPE, hide_in
from manifests.services.child import Command
from manifests.stores import stamps, storage
from manifests.stores.storage import WrittenFile
from training.data.sealed import SUMS_FILE

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class ForeignShard(WrittenFile):
    """A shard as it was indexed; `sha256` is `hash_of_segments(segments)`."""

    source: str  # what is opened or run
    stamp: str  # of the file when it was indexed; "" for a pipe
    segments: tuple[tuple[int, str], ...]  # bytes and sha256 of each
    has_ranges: bool  # a part of it can be read
    index: Path  # folder of its index
    since: ClassVar[str] = (
        "it was indexed; put that back, or run the same command again: the shard is then indexed anew"
    )

    def copy_to(self, local: str) -> None:
        """As of any file; of a pipe, what its command writes."""
        copy(self.source, local)

    def require_content(self, path: str) -> None:
        """As of any file. An index of other content counts no more, so the next run makes a new one."""
        try:
            super().require_content(path)
        except IntegrityError:
            if self.index.is_dir():
                Path(self.index, SUMS_FILE).write_bytes(b"")
            raise

    def is_content_of(self, path: str) -> bool:
        """Return whether a local file holds what was indexed; every byte is read."""
        with storage.open_unbuffered(path) as stream:
            for num_bytes, sha256 in self.segments:
                digest, left = hashlib.sha256(), num_bytes
                while left and (chunk := stream.read(min(left, _CHUNK_BYTES))):
                    digest.update(chunk)
                    left -= len(chunk)
                if left or digest.hexdigest() != sha256:
                    return False
            return not stream.read(1)

    def require_unchanged(self, stat: os.stat_result) -> None:
        """Compare an opened file of this machine with the one that was indexed, byte by byte if its stamp is another.

        Raises: IntegrityError.
        """
        stamp = stamps.of_disk(stat)
        if stamp != self.stamp and not _is_same(self, stamp):
            raise IntegrityError(
                f"{self.path}: was changed while it was in use ({self.stamp} -> {stamp}); run the same command again: "
                "the shard is then indexed anew"
            )


@functools.cache
def _is_same(shard: ForeignShard, stamp: str) -> bool:
    """Return whether a file with this stamp holds what was indexed.

    A new hard link or other rights change the stamp too.
    """
    return shard.is_content_of(shard.source)


def hash_of_segments(segments: Sequence[tuple[int, str]]) -> str:
    """Return the content hash of a shard."""
    return hashlib.sha256("".join(f"{num_bytes} {sha256}\n" for num_bytes, sha256 in segments).encode()).hexdigest()


def is_elsewhere(source: str) -> bool:
    """Return whether a shard is copied before it is read: it does not lie on this machine, or a command makes it."""
    return source.startswith(PIPE) or storage.is_remote(source)


def shown(source: str) -> str:
    """Return the name of a shard in messages and records."""
    return str(hide_in(source))


def store_of(source: str) -> tuple[Any, str] | None:
    """Return the file system of a store and the path in it; None for a file of this machine and a pipe."""
    is_in_store = not source.startswith(PIPE) and storage.is_remote(source)
    return storage.filesystem(source) if is_in_store else None


@contextmanager
def naming_fault(source: str) -> Iterator[None]:
    """Say in one line what is wrong where a store or disk is asked about a shard.

    Raises: ConfigError for what is not there and for no address; RetryableError when the store does not answer.
    """
    hint = "; a data set of the Hub is hf://datasets/OWNER/NAME" if re.match("hf://(?!datasets/)", source) else ""
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"{shown(source)}: no such shard{hint}") from None
    except NotImplementedError:
        raise ConfigError(f"{shown(source)}: its file system cannot list what lies there; name shards{hint}") from None
    except ValueError as error:
        raise ConfigError(f"{shown(source)}: is no address of shards: {words_of(error)}") from None
    except Exception as error:  # the clients of stores share no base class of errors
        storage.check_passing(shown(source), error)
        raise


def stamp_of(source: str, store: tuple[Any, str] | None = None) -> tuple[int | None, str]:
    """Size of a shard, where it is said, and what changes when the file does.

    `store` is `store_of(source)`. Its listing counts; the Hub's client has one a thread, so threads share the caller's.

    Raises: ConfigError where it is not there; RetryableError when the store does not answer.
    """
    if source.startswith(PIPE):
        return None, ""
    with naming_fault(source):
        stamp, size = stamps.look(source, store)
    return size, stamp or f"{size}"


def copy(source: str, local: str) -> None:
    """Copy a shard to a file of this machine; of a pipe, what its command writes.

    Raises: RunError for a command that fails; an error of the store.
    """
    if not source.startswith(PIPE):
        storage.get(source, local)
        return
    with Command(source.removeprefix(PIPE)) as command, Path(local).open("wb") as file:
        shutil.copyfileobj(command.output, file, _CHUNK_BYTES)
    if (code := command.end()) != 0:
        raise RunError(f"{shown(source)}: the command ended with status {code}; run it by hand to see what it says")
