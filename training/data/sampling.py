"""Which sample comes when: the endless, seeded order of training samples, as pure functions on row numbers.

Reads nothing, writes nothing. The order is one sequence of positions 0, 1, 2, ... that every process and
every worker computes alike: the epochs one after the other, each a permutation of the rows. A batch is a
run of positions, a process takes its slice of that run, a worker its share of the batches. So nothing is
lost or repeated however many processes there are, and a resume is a matter of one number, the position.
It gives up on orders that depend on the run (a shuffle buffer filled by arrival): those cannot be resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.draws import largest_remainders, splitmix64
from manifests.errors import ConfigError

Rows = NDArray[np.int64]

_MASK = (1 << 64) - 1


def mix_seed(*numbers: int) -> int:
    """One well-mixed 64-bit seed out of several integers, which are mixed in one after the other."""
    state = 0
    for number in numbers:
        state = splitmix64(state + (number & _MASK))
    return state


def allocate(total: int, weights: Sequence[float]) -> list[int]:
    """Split `total` into whole numbers in the proportion of `weights` (largest remainder, ties to the first)."""
    scale = total / sum(weights)
    return largest_remainders([weight * scale for weight in weights], total)


def shuffle_within(num_items: int, window: int, rng: np.random.Generator) -> Rows:
    """A random order of 0..num_items-1 in which nobody moves further than about `window` places.

    The vectorised likeness of a shuffle buffer: item i is sorted by i + U(0, window).
    """
    if window <= 1:
        return np.arange(num_items, dtype=np.int64)
    if window >= num_items:
        return rng.permutation(num_items).astype(np.int64)
    keys = np.arange(num_items, dtype=np.float64) + rng.random(num_items) * window
    return np.argsort(keys, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Stratum:
    """Rows that are drawn together: a domain, a release, or everything; `weight` is its share of an epoch."""

    name: str
    rows: Rows  # (N,) row numbers, ascending, so that those of one shard are adjacent
    shards: NDArray[np.int32]  # (N,) shard number of each row
    weight: float

    def pass_order(self, seed: int, pass_number: int, window: int) -> Rows:
        """Every row once: shards in a random order, their rows shuffled within `window`; (N,) row numbers."""
        rng = np.random.default_rng(mix_seed(seed, pass_number, _name_seed(self.name)))
        starts = np.flatnonzero(np.diff(self.shards, prepend=-1))
        lengths = np.diff(np.append(starts, len(self.rows)))
        turn = rng.permutation(len(starts))
        rank_of_shard = np.empty(len(starts), np.int64)
        rank_of_shard[turn] = np.arange(len(starts))
        by_shard = np.argsort(np.repeat(rank_of_shard, lengths), kind="stable")
        return self.rows[by_shard[shuffle_within(len(self.rows), window, rng)]]


@dataclass
class SampleOrder:
    """The endless order over strata: position -> row.

    An epoch holds `epoch_size` samples, divided among the strata by largest remainder and spread evenly.
    A stratum gives all its rows before it gives one again, over the borders of epochs too.
    """

    strata: tuple[Stratum, ...]
    epoch_size: int
    seed: int
    window: int
    _cache: dict[int, Rows] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.epoch_size < 1 or not self.strata or any(len(part.rows) == 0 for part in self.strata):
            raise ConfigError("there is no sample to train on; choose another split, domain or release")
        self.counts = allocate(self.epoch_size, [part.weight for part in self.strata])

    def epoch(self, number: int) -> Rows:
        """The row numbers of one epoch in order, (epoch_size,); the last two epochs asked for are kept."""
        if number not in self._cache:
            while len(self._cache) > 1:
                del self._cache[min(self._cache)]
            self._cache[number] = self._compute(number)
        return self._cache[number]

    def rows(self, start: int, stop: int) -> Rows:
        """The row numbers at positions start..stop-1."""
        pieces = []
        while start < stop:
            number, offset = divmod(start, self.epoch_size)
            piece = self.epoch(number)[offset : offset + stop - start]
            pieces.append(piece)
            start += len(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def _compute(self, number: int) -> Rows:
        drawn = [
            _draw(part, count, number * count, self.seed, self.window)
            for part, count in zip(self.strata, self.counts, strict=True)
        ]
        if len(drawn) == 1:
            return drawn[0]
        rng = np.random.default_rng(mix_seed(self.seed, number, 0x6D6978))
        places = [(np.arange(len(rows)) + rng.random(len(rows))) / len(rows) for rows in drawn if len(rows)]
        order = np.argsort(np.concatenate(places), kind="stable")
        return np.concatenate(drawn)[order]


@dataclass(frozen=True)
class BatchPlan:
    """The micro-batches of one process as runs of positions.

    Micro-batch b covers positions b*world_size*batch_size onwards; rank r takes the r-th slice of it. The
    samples of one optimiser step are therefore the same whatever the number of processes.
    """

    batch_size: int  # of one micro-batch in one process
    world_size: int
    rank: int

    def positions(self, batch: int) -> range:
        """Positions of this process's part of micro-batch `batch`."""
        start = (batch * self.world_size + self.rank) * self.batch_size
        return range(start, start + self.batch_size)


class BatchSampler:
    """What the DataLoader iterates: lists of (position, row), from `first` to `last` micro-batch."""

    def __init__(self, order: SampleOrder, plan: BatchPlan, first: int, last: int) -> None:
        self.order, self.plan, self.first, self.last = order, plan, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.first, self.last):
            positions = self.plan.positions(batch)
            rows = self.order.rows(positions.start, positions.stop)
            yield list(zip(positions, rows.tolist(), strict=True))


def _draw(part: Stratum, count: int, start: int, seed: int, window: int) -> Rows:
    """`count` rows of the stratum's concatenated passes from place `start` on."""
    pieces: list[Any] = []
    while count > 0:
        pass_number, offset = divmod(start, len(part.rows))
        piece = part.pass_order(seed, pass_number, window)[offset : offset + count]
        pieces.append(piece)
        start += len(piece)
        count -= len(piece)
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def _name_seed(name: str) -> int:
    return int.from_bytes(name.encode("utf-8")[:64].ljust(64, b"\0"), "big") % _MASK
