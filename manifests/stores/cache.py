"""Shards of a store as whole files on this machine, read ahead of their use.

A shard is one request: streamed to a private file, compared with the recorded sha256, then published under that sha256.
Processes of a machine share the folder; one of them fetches a shard while the others wait for it. A shard that changed
since is compared again when it is taken up, and fetched anew where it is damaged. The shards that were not used for
longest are removed when the folder holds more than its bound. Gives up with IntegrityError on a shard that is gone or
has other content, with RetryableError on a store that does not answer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from manifests.errors import ConfigError, IntegrityError, PlantMixError, RetryableError, RunError, words_of
from manifests.stores import faults, storage
from manifests.stores.storage import WrittenFile

DEFAULT_GB = 50.0
_STALE_SECONDS = 600.0  # a private file that nobody has written to for so long belongs to a process that was killed
_NUM_THREADS = 4  # shards fetched at the same time, ahead of their use
_BATCHES_AHEAD = 256
_LOOK_SECONDS = 1.0  # until a thread sees that the batches are over
SHARE_AHEAD = 4  # of the bound, one part in so many is for shards that no batch has used yet


def local_folder(cache_dir: str | None) -> Path:
    """Return the folder of this machine for copies of remote files: `data.cache_dir`, else one in the temporary folder.

    Raises: ConfigError when it cannot be written, or belongs to someone else.
    """
    folder = Path(cache_dir or Path(tempfile.gettempdir(), f"plantmix-{os.getuid()}"))
    storage.make_folder(str(folder))
    if cache_dir is None:
        if folder.stat().st_uid != os.getuid():
            raise ConfigError(f"{folder}: belongs to another user; set data.cache_dir to a folder of your own")
        folder.chmod(0o700)
    return folder


class ShardCache:
    """Whole shards in a folder of at most `max_bytes`."""

    def __init__(self, cache_dir: str | None = None, max_gb: float = DEFAULT_GB) -> None:
        self.cache_dir, self.max_bytes = cache_dir, round(max_gb * 1e9)

    @cached_property
    def folder(self) -> Path:
        """Where the shards lie; made when it is first used."""
        folder = local_folder(self.cache_dir) / "shards"
        folder.mkdir(exist_ok=True)
        return folder

    def open(self, shard: WrittenFile) -> int:
        """Return a descriptor of the whole shard, which is fetched where it is not here or damaged.

        It counts as used now.

        Raises: IntegrityError, RetryableError, RunError, ConfigError.
        """
        path = self.folder / f"{shard.sha256}.tar"
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                with locked(self.folder / f"lock-{shard.sha256[:2]}"):
                    if not path.exists():
                        self._fetch(shard, path)
                continue
            if _use(descriptor, shard):
                return descriptor
            os.close(descriptor)
            with locked(self.folder / f"lock-{shard.sha256[:2]}"):
                _compare(path, shard)

    def has(self, shard: WrittenFile) -> bool:
        """Return whether the shard is here and as it was fetched; if so, it counts as used now."""
        try:
            return _use(self.folder / f"{shard.sha256}.tar", shard)
        except FileNotFoundError:
            return False

    def _fetch(self, shard: WrittenFile, path: Path) -> None:
        """Read the shard in one request, check it, publish it."""
        self._make_room(shard)
        temp = storage.temp_path(str(path))

        def fetch() -> None:
            try:
                shard.copy_to(temp)
                shard.require_content(temp)
                storage.publish(temp, str(path))
                _mark_whole(path, shard)  # not before: a private file that looks old is removed
            finally:
                Path(temp).unlink(missing_ok=True)

        def passes(error: Exception) -> bool:
            return isinstance(error, IntegrityError) or faults.may_pass(error)

        try:
            faults.patiently(fetch, partial(_problem, shard, path.parent), passes)
        except FileNotFoundError:
            raise IntegrityError(
                f"{shard.path}: the shard is not there any more; copy or build the release anew"
            ) from None

    def adopt(self, temp: str, shard: WrittenFile) -> None:
        """Take up a copy that was just made and compared; others of the same content stay.

        Raises: ConfigError for one that is too large.
        """
        self._make_room(shard)
        path = self.folder / f"{shard.sha256}.tar"
        storage.publish(temp, str(path))
        _mark_whole(path, shard)

    def _make_room(self, shard: WrittenFile) -> None:
        """Remove the shards that were not used for longest, until this one fits."""
        if shard.num_bytes > self.max_bytes:
            raise ConfigError(
                f"{shard.path} has {shard.num_bytes / 1e9:.2f} GB, more than data.cache_gb = "
                f"{self.max_bytes / 1e9:g}; raise it to hold at least the shards that data.shuffle_window spans"
            )
        with locked(self.folder / "lock"):
            now, total, whole = time.time(), shard.num_bytes, []
            for file in self.folder.iterdir():
                with suppress(FileNotFoundError):
                    stat = file.stat()
                    if not storage.is_private(file.name):
                        if file.suffix == ".tar":
                            whole.append((stat.st_atime, stat.st_size, file))
                            total += stat.st_size
                    elif now - stat.st_mtime > _STALE_SECONDS:
                        file.unlink()
                    else:
                        total += max(stat.st_size, shard.num_bytes)  # another process fetches one; shards are of a size
            for _, num_bytes, file in sorted(whole):
                if total <= self.max_bytes:
                    break
                file.unlink(missing_ok=True)
                total -= num_bytes


class ReadAhead:
    """The batches of a sampler; while they are used, threads fetch the shards of those to come, in their order."""

    def __init__(self, batches: Any, shards_of: Callable[[Any], list[WrittenFile]], cache: ShardCache) -> None:
        """`batches` can be iterated several times; `shards_of` gives the shards of one batch."""
        self._batches, self._shards_of, self._cache = batches, shards_of, cache

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        ahead = _Ahead(self._cache)
        # Begun with the first batch: the loader has forked its workers by then.
        for _ in range(_NUM_THREADS):
            threading.Thread(target=ahead.fetch, daemon=True).start()
        needs = ((number, shard) for number, batch in enumerate(self._batches) for shard in self._shards_of(batch))
        due = next(needs, None)
        try:
            for number, batch in enumerate(self._batches):
                while due is not None and ahead.takes(*due, position=number):
                    due = next(needs, None)
                yield batch
        finally:
            ahead.is_over = True


class _Ahead:
    """The shards of the batches ahead that are to be fetched, up to a number of bytes that no batch has used yet."""

    def __init__(self, cache: ShardCache) -> None:
        self._cache, self.is_over = cache, False
        self._asked: SimpleQueue[WrittenFile] = SimpleQueue()
        self._pending: set[str] = set()  # sha256 of those that are asked for and not here yet
        self._unused: deque[tuple[int, int]] = deque()  # number of the batch, bytes

    def takes(self, number: int, shard: WrittenFile, position: int) -> bool:
        """Ask for a shard of batch `number`, unless it is here. False where its time has not come."""
        while self._unused and self._unused[0][0] <= position:
            self._unused.popleft()
        room = self._cache.max_bytes // SHARE_AHEAD - sum(num_bytes for _, num_bytes in self._unused)
        if number > position + _BATCHES_AHEAD or (self._unused and shard.num_bytes > room):
            return False
        if shard.sha256 not in self._pending and not self._cache.has(shard):
            self._unused.append((number, shard.num_bytes))
            self._pending.add(shard.sha256)
            self._asked.put(shard)
        return True

    def fetch(self) -> None:
        """Fetch one after the other; run by threads."""
        while not self.is_over:
            try:
                shard = self._asked.get(timeout=_LOOK_SECONDS)
            except Empty:
                continue
            try:
                os.close(self._cache.open(shard))
            except (PlantMixError, OSError):  # who reads the shard meets it again, and says so
                continue
            finally:
                self._pending.discard(shard.sha256)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by one process of this machine at a time."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)  # a process that was forked meanwhile keeps the file open


def _use(file: int | Path, shard: WrittenFile) -> bool:
    """Note that a shard is used now. False where it changed since it was compared."""
    stat = os.stat(file)  # noqa: PTH116  (of a descriptor too)
    os.utime(file, ns=(time.time_ns(), stat.st_mtime_ns))
    return stat.st_size == shard.num_bytes and stat.st_mtime_ns == _mark(shard)


def _compare(path: Path, shard: WrittenFile) -> None:
    """Compare a file with the record, and mark it as whole or remove it."""
    with suppress(FileNotFoundError):
        if shard.is_content_of(str(path)):
            _mark_whole(path, shard)
        else:
            path.unlink()


def _mark_whole(path: Path, shard: WrittenFile) -> None:
    os.utime(path, ns=(time.time_ns(), _mark(shard)))


def _mark(shard: WrittenFile) -> int:
    """Return the time of change that a file gets when it was compared. Whatever writes to it later sets another one."""
    return int(shard.sha256[:7], 16) * 1_000_000_000


def _problem(shard: WrittenFile, folder: Path, error: Exception) -> PlantMixError:
    """Return the error for a fault that may pass, also of bytes that were spoilt on their way.

    Raises: RunError when the disk is full.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise RunError(
            f"{folder}: no room for {shard.path}; lower data.cache_gb, or set data.cache_dir to a larger disk"
        ) from None
    if isinstance(error, IntegrityError):
        return error
    return RetryableError(f"{shard.path} cannot be read ({words_of(error)}); run the same command to go on")
