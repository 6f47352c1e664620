"""Which sample comes when: the endless, seeded order of training samples, as pure functions on row numbers.

The order is one sequence of positions 0, 1, 2, ..., which every process and every worker computes alike: one epoch
after another, each a permutation of the rows. A batch is a range of positions. Each process takes its slice of the
range, and each worker its share of the batches. So no sample is lost or repeated, however many processes there are, and
a resume needs one number, the position. There is no shuffle buffer filled by arrival, which could not be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from manifests.errors import ConfigError
from manifests.services.draws import largest_remainders, splitmix64

Rows = NDArray[np.int64]

_MASK = (1 << 64) - 1


def mix_seed(*numbers: int) -> int:
    """One well-mixed 64-bit seed out of several integers. Another function would change the order of a resumed run.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), applied after each number.
    """
    state = 0
    for number in numbers:
        state = splitmix64(state + (number & _MASK))
    return state


def shuffle_within(num_items: int, window: int, rng: np.random.Generator) -> Rows:
    """Return a random order of 0..num_items-1 in which no item moves further than about `window` places.

    It works as a shuffle buffer does: item i is sorted by i + U(0, window).
    """
    if window <= 1:
        return np.arange(num_items, dtype=np.int64)
    if window >= num_items:
        return rng.permutation(num_items).astype(np.int64)
    keys = np.arange(num_items, dtype=np.float64) + rng.random(num_items) * window
    return np.argsort(keys, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Stratum:
    """Rows that are drawn together: a domain, a release, or all; `weight` is their share of an epoch."""

    name: str
    rows: Rows  # (N,) row numbers, ascending, so that those of one shard are adjacent
    shards: NDArray[np.int32]  # (N,) shard number of each row
    weight: float

    def pass_order(self, seed: int, pass_number: int, window: int) -> Rows:
        """Every row once: shards in a random order, their rows shuffled within `window`; (N,) row numbers."""
        rng = np.random.default_rng(mix_seed(seed, pass_number, _name_seed(self.name)))
        starts = np.flatnonzero(np.diff(self.shards, prepend=-1))
        lengths = np.diff(np.append(starts, len(self.rows)))
        rank_of_shard = np.argsort(rng.permutation(len(starts)))
        by_shard = np.argsort(np.repeat(rank_of_shard, lengths), kind="stable")
        return self.rows[by_shard[shuffle_within(len(self.rows), window, rng)]]


@dataclass
class SampleOrder:
    """The endless order over strata: position -> row.

    An epoch holds `epoch_size` samples, divided among the strata by largest remainder and spread evenly. A stratum
    gives all its rows before it gives one again, also from one epoch to the next. Samples come in blocks of one
    stratum, and an epoch is cut to whole blocks.
    """

    strata: tuple[Stratum, ...]
    epoch_size: int
    seed: int
    window: int
    block: int = 1  # samples
    _cache: dict[int, Rows] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.epoch_size < 1 or not self.strata or any(len(part.rows) == 0 for part in self.strata):
            raise ConfigError("there is no sample to train on; choose another split, domain or release")
        scale = self.epoch_size // self.block / sum(part.weight for part in self.strata)
        blocks = largest_remainders([part.weight * scale for part in self.strata], self.epoch_size // self.block)
        if self.block > 1 and 0 in blocks:
            name = self.strata[blocks.index(0)].name
            raise ConfigError(
                f"data.batches: one_domain: {name} gets none of the {sum(blocks)} batches of an epoch by its share; "
                "raise data.epoch_samples, or lower data.batch_size"
            )
        self.counts = [number * self.block for number in blocks]
        self.epoch_size = sum(self.counts)

    def epoch(self, number: int) -> Rows:
        """Return the row numbers of one epoch in order, (epoch_size,); the last two epochs are kept."""
        cache = self._cache  # replaced, never changed: a thread that reads ahead asks too
        if number not in cache:
            kept = dict(sorted(cache.items())[-1:])
            cache = self._cache = kept | {number: self._compute(number)}
        return cache[number]

    def rows(self, start: int, stop: int) -> Rows:
        """Return the row numbers at positions start..stop-1."""
        return _slice_of(self.epoch, self.epoch_size, start, stop - start)

    def _compute(self, number: int) -> Rows:
        drawn = [
            _slice_of(partial(part.pass_order, self.seed, window=self.window), len(part.rows), number * count, count)
            for part, count in zip(self.strata, self.counts, strict=True)
        ]
        if len(drawn) == 1:
            return drawn[0]
        rng = np.random.default_rng(mix_seed(self.seed, number, 0x6D6978))
        blocks = [count // self.block for count in self.counts if count]
        places = [(np.arange(num_blocks) + rng.random(num_blocks)) / num_blocks for num_blocks in blocks]
        order = np.argsort(np.concatenate(places), kind="stable")
        return np.concatenate(drawn).reshape(-1, self.block)[order].reshape(-1)


@dataclass(frozen=True)
class BatchPlan:
    """The micro-batches of one process as ranges of positions.

    Micro-batch b begins at position b * world_size * batch_size, and rank r takes the r-th slice of it. So the samples
    of an optimiser step are the same whatever the number of processes.
    """

    batch_size: int  # of one micro-batch in one process
    world_size: int
    rank: int

    def positions(self, batch: int) -> range:
        """Positions of this process's part of micro-batch `batch`."""
        start = (batch * self.world_size + self.rank) * self.batch_size
        return range(start, start + self.batch_size)


class BatchSampler:
    """The DataLoader's batches: lists of (position, row), one for each of some micro-batches."""

    def __init__(self, order: SampleOrder, plan: BatchPlan, batches: range) -> None:
        self.order, self.plan, self.batches = order, plan, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            positions = self.plan.positions(batch)
            rows = self.order.rows(positions.start, positions.stop)
            yield list(zip(positions, rows.tolist(), strict=True))


def _slice_of(pass_of: Callable[[int], Rows], length: int, start: int, count: int) -> Rows:
    """`count` rows from place `start` on of the passes 0, 1, 2, ... one after another, each `length` rows long."""
    pieces = []
    while count > 0:
        number, offset = divmod(start, length)
        pieces.append(pass_of(number)[offset : offset + count])
        start += len(pieces[-1])
        count -= len(pieces[-1])
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def _name_seed(name: str) -> int:
    return int.from_bytes(name.encode("utf-8")[:64].ljust(64, b"\0"), "big") % _MASK
