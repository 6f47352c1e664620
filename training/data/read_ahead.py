"""Shards that are fetched ahead of their use: threads bring those of the batches to come into the cache, in order."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

from manifests.errors import PlantMixError
from manifests.stores.cache import ShardCache
from manifests.stores.storage import WrittenFile

_NUM_THREADS = 4  # shards fetched at the same time, ahead of their use
_BATCHES_AHEAD = 256
_LOOK_SECONDS = 1.0  # until a thread sees that the batches are over
SHARE_AHEAD = 4  # of the bound, one part in so many is for shards that no batch has used yet


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
