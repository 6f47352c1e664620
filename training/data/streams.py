"""Shards that PlantMix did not build, read front to back by the webdataset package (`data.index: false`).

Each loader process of each rank is a stream. A group of shards is passed over again and again, each time in another
order. The places in this endless order are dealt to the streams in turn; each shuffles what it reads in a buffer. A
checkpoint names the places that were read to their end. A resume begins the others anew, for any number of streams.
Gives up with ConfigError on what is not there, with RetryableError on a store that does not answer.
"""

from __future__ import annotations

import random
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count, groupby, islice
from typing import Any

import numpy as np

from manifests.errors import ConfigError, RetryableError, RunError
from manifests.stores.faults import WAITS_SECONDS, may_pass
from training.data.foreign import naming_fault, opened
from training.data.sampling import Rows, SampleOrder, mix_seed
from training.data.shard_index import IMAGE_ENDINGS, passing, refuse_compressed
from training.data.shards import NO_TEXT, SamplePool, source_of, texts_of_members

_MAX_MEMBER_BYTES = 1 << 30  # tarfile believes any size that a tar states
FINISHED = -1  # in place of how many samples of a place were used

Place = tuple[int, int]  # number of the stratum, and where in its endless order of shards
Sample = tuple[bytes, bytes, dict[str, str]]  # picture, text, further texts, as `ShardReader` gives them


class StreamOrder(SampleOrder):
    """The endless order where rows are shards: position -> the number of a stratum, drawn by its share."""

    def rows(self, start: int, stop: int) -> Rows:
        """The strata at positions start..stop-1."""
        shares = np.array([part.weight for part in self.strata])
        rng = np.random.default_rng(mix_seed(self.seed, start))
        return rng.choice(len(shares), stop - start, p=shares / shares.sum())

    def require_shards(self, num_streams: int) -> None:
        """See that no two streams read one shard in one pass. Raises: ConfigError."""
        for part in self.strata:
            if len(part.rows) < num_streams:
                raise ConfigError(
                    f"data.index: false: group {part.name.partition(':')[2]} has {len(part.rows)} shards for "
                    f"{num_streams} loader processes (ranks x data.num_workers); each needs one: lower data.num_workers"
                )

    def shard_at(self, place: Place) -> int:
        """The row of the shard at a place."""
        part = self.strata[place[0]]
        pass_number, number = divmod(place[1], len(part.rows))
        return int(part.pass_order(self.seed, pass_number, 1)[number])


@dataclass
class Stream:
    """What one loader process reads; `news` tells, since it was last emptied, how much of which place."""

    pool: SamplePool
    order: StreamOrder
    finished: frozenset[Place]  # not read again
    number: int
    num_streams: int
    news: Counter[Place] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._strata = [self._of_stratum(number) for number in range(len(self.order.strata))]

    def read(self, strata: Sequence[int]) -> list[tuple[int, Sample]]:
        """The next sample of each of some strata: a row that the pool names, and its members."""
        return [next(self._strata[stratum]) for stratum in strata]

    def _of_stratum(self, stratum: int) -> Iterator[tuple[int, Sample]]:
        from webdataset.filters import shuffle

        num_shards, window = len(self.order.strata[stratum].rows), self.order.window // self.num_streams
        places = (place for at in count() if (place := (stratum, at)) not in self.finished)
        own, num_empty = islice(places, self.number, None, self.num_streams), 0
        for pass_number, of_pass in groupby(own, lambda place: place[1] // num_shards):
            waiting: Counter[Place] = Counter()  # samples in the buffer, and 1 while the shard is read
            rng = random.Random(mix_seed(self.order.seed, stratum, pass_number, self.number))
            num_empty += 1
            for place, row, sample in shuffle(window, initial=window, rng=rng)(self._read(of_pass, waiting)):
                num_empty = 0
                self.news[place] += 1
                self._leave(place, waiting)
                yield row, sample
            if num_empty > num_shards:
                raise RunError(f"data.shards: no sample in the {num_shards:,} shards of a group")

    def _leave(self, place: Place, waiting: Counter[Place]) -> None:
        waiting[place] -= 1
        if not waiting[place]:
            self.news[place] = FINISHED

    def _read(self, places: Iterator[Place], waiting: Counter[Place]) -> Iterator[tuple[Place, int, Sample]]:
        for place in places:
            shard = self.order.shard_at(place)
            source, members = source_of(self.pool.files[shard]), self.pool.members[self.pool.releases[shard]] or ()
            waiting[place] += 1
            for number, sample in enumerate(samples_of(source, members), 1):
                waiting[place] += 1
                yield place, number * len(self.pool) + shard, sample
            self._leave(place, waiting)


def samples_of(source: str, members: Sequence[str]) -> Iterator[Sample]:
    """The samples of a shard; what is wrong with it comes as a sample that says so.

    A stream that breaks off is opened again, and the samples that came are passed over.

    Raises: ConfigError, RunError; RetryableError when no sample comes by the last try.
    """
    num_read, waits = 0, iter(WAITS_SECONDS)
    while True:
        try:
            for sample in islice(_read_once(source, members), num_read, None):
                num_read, waits = num_read + 1, iter(WAITS_SECONDS)
                yield sample
            return
        except RetryableError:
            if (wait_seconds := next(waits, None)) is None:
                raise
        time.sleep(wait_seconds)


def _read_once(source: str, members: Sequence[str]) -> Iterator[Sample]:
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    faults: list[Exception] = []
    with ExitStack() as stack:
        with naming_fault(source):
            tar = _Tar(source, stack.enter_context(opened(source)))

        def files() -> Iterator[dict[str, Any]]:
            try:
                for file in tar_file_iterator(tar):
                    tar.num_bytes = 0
                    yield file | {"__url__": source}
                if tar.last_block.strip(b"\0"):  # tarfile does not miss it
                    raise tarfile.ReadError("it has no end mark")
            except tarfile.TarError as error:
                faults.append(error)
            except Exception as error:
                raise (passing(source, error) if may_pass(error) else error) from None

        def twice(error: Exception) -> bool:
            faults.append(error)
            return True  # the file is left out, and the sample used

        for sample in group_by_keys(files(), handler=twice):
            image = next((sample[ending] for ending in IMAGE_ENDINGS if ending in sample), b"")
            texts = texts_of_members(((k, v) for k, v in sample.items() if isinstance(v, bytes)), members)
            if not image:
                texts = {NO_TEXT: f"{sample['__key__']} has no picture ({', '.join(IMAGE_ENDINGS)})"}
            yield image, texts.pop("txt", "").encode(), texts
    for fault in faults:
        yield b"", b"", {NO_TEXT: f"the shard is damaged or cut short ({str(fault.args[0]).partition(' @ ')[0]})"}


class _Tar:
    """A tar as tarfile reads it; no member is larger than the memory."""

    def __init__(self, source: str, stream: Any) -> None:
        self._source, self._stream, self.num_bytes, self.last_block = source, stream, -1, b""

    def read(self, num_bytes: int) -> bytes:
        content: bytes = self._stream.read(num_bytes)
        if self.num_bytes < 0:
            refuse_compressed(self._source, content)
        self.last_block = content[-512:] or self.last_block
        self.num_bytes = max(self.num_bytes, 0) + len(content)
        if self.num_bytes > _MAX_MEMBER_BYTES:
            raise tarfile.ReadError(f"a member of more than {_MAX_MEMBER_BYTES:,} bytes")
        return content
