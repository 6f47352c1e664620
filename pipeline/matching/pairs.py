"""Near-duplicate pairs of rows, and the same answer on distinct hashes for tables with placeholders.

Reads a 1-d uint64 array of 64-bit hashes, one a row. Gives every pair of rows (`hamming_pairs`), or the pairs of
different hashes with the rows that share each (`distinct_pairs`). The second stays small for a blank picture in ten
thousand rows, where the first would hold fifty million pairs.

Both are exact, and the same for any order of the rows. Raises RunError, which names the hash and the count, when the
answer itself is larger than the memory limit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests.errors import ConfigError, RunError
from pipeline.matching.search import Hashes, find_pairs

Rows = npt.NDArray[np.int64]
Distances = npt.NDArray[np.uint8]

PAIRS_BYTES = 64  # of a pair while it is sorted: as hashes, as places among them, its order, and the results
_ROW_BYTES = 17  # of a row while equal hashes are collapsed: the sorted copy, the distinct ones, a flag
MARK_BITS = 24
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads hashes over the marks (Knuth, TAOCP 6.4)
_CHUNK = 1 << 18
ROW_BITS = 28  # so that two row numbers and a distance fit into 64 bits
_EXPAND_AT_ONCE = 1 << 19


@dataclass(frozen=True)
class DistinctPairs:
    """Every hash that is not alone within the radius, the rows that hold it, and the pairs of different hashes.

    - `hashes` uint64 (H,), ascending: those of several rows, and those with another hash within the radius.
    - `rows` int64 (R,) and `starts` int64 (H + 1,): the rows of `hashes[h]` are `rows[starts[h]:starts[h + 1]]`,
      ascending. A row that is not listed is alone within the radius.
    - `left`, `right` int64 (P,) into `hashes`, left < right, sorted, each pair once; `distance` uint8 (P,), >= 1.
    """

    num_rows: int
    radius: int
    hashes: Hashes
    starts: Rows
    rows: Rows
    left: Rows
    right: Rows
    distance: Distances

    @property
    def counts(self) -> Rows:
        """How many rows hold each of `hashes`."""
        return np.diff(self.starts)

    @property
    def num_row_pairs(self) -> int:
        """How many pairs of rows `hamming_pairs` would give."""
        counts = self.counts
        return int((counts * (counts - 1) // 2).sum() + (counts[self.left] * counts[self.right]).sum())


def hamming_pairs(hashes: Hashes, radius: int, *, memory_limit_bytes: int | None = None) -> pa.Table:
    """All pairs of rows whose hashes differ in at most `radius` bits, exactly.

    Gives columns i, j (int64 row numbers, i < j) and distance (uint8), each pair once, sorted by (i, j).
    `memory_limit_bytes` bounds what is allocated beyond `hashes`; the default is the memory now available.

    Raises: ConfigError for hashes that are not 1-d uint64, a radius outside 0..64, a limit that is too small to start,
    or more than 2^28 rows; RunError when the pairs do not fit the limit.
    """
    limit = memory_limit(memory_limit_bytes)
    return expand_pairs(distinct_pairs(hashes, radius, memory_limit_bytes=limit), memory_limit_bytes=limit)


def distinct_pairs(hashes: Hashes, radius: int, *, memory_limit_bytes: int | None = None) -> DistinctPairs:
    """All pairs of different hashes within `radius`, and the rows of every hash that is not alone.

    Raises: ConfigError and RunError as `hamming_pairs`, but equal hashes need no memory here.
    """
    check_input(hashes, radius)
    radius = int(radius)  # a small NumPy integer would overflow
    limit = memory_limit(memory_limit_bytes)
    scratch = limit - _ROW_BYTES * len(hashes)
    if scratch < len(hashes):
        raise ConfigError(
            f"a memory limit of {limit:,} bytes is too small to match {len(hashes):,} hashes; "
            f"give at least {(_ROW_BYTES + 1) * len(hashes):,}, better {4 * 8 * len(hashes):,}"
        )
    distinct, repeated = _collapse(hashes)
    low, high = np.empty(0, np.uint64), np.empty(0, np.uint64)
    if radius and len(distinct) > 1:
        low, high = find_pairs(distinct, radius, scratch_bytes=scratch, max_pairs=scratch // PAIRS_BYTES)
    del distinct
    grouped = distinct_of(repeated, low, high)
    starts, rows = rows_of(hashes, grouped)
    distance = np.bitwise_count(low ^ high)
    left = np.searchsorted(grouped, low)
    del low  # arrays as long as the answer are freed as soon as possible: see PAIRS_BYTES
    right = np.searchsorted(grouped, high)
    del high
    order = np.lexsort((right, left))
    left, right = left[order], right[order]
    return DistinctPairs(len(hashes), radius, grouped, starts, rows, left, right, distance[order])


def expand_pairs(pairs: DistinctPairs, *, memory_limit_bytes: int | None = None) -> pa.Table:
    """The pairs of rows behind pairs of hashes, as `hamming_pairs` gives them.

    Raises: ConfigError for more than 2^28 rows; RunError when the pairs do not fit the limit.
    """
    limit = memory_limit(memory_limit_bytes)
    if pairs.num_rows > 1 << ROW_BITS:
        raise ConfigError(f"{pairs.num_rows:,} rows; pairs of rows are written out for at most {1 << ROW_BITS:,}")
    if pairs.num_row_pairs * PAIRS_BYTES > limit:
        raise _too_many_rows(pairs, limit)
    packed = np.empty(pairs.num_row_pairs, np.uint64)
    filled = 0
    for i, j, distance in itertools.chain(_rows_within(pairs), _rows_between(pairs)):
        packed[filled : filled + len(i)] = np.minimum(i, j) << (ROW_BITS + 8) | np.maximum(i, j) << 8 | distance
        filled += len(i)
    packed.sort()  # row, row and distance in one number: sorted in place, 40 times as fast as by two columns
    distance = packed.astype(np.uint8)  # the low byte
    packed >>= np.uint64(8)
    later = packed & np.uint64((1 << ROW_BITS) - 1)
    packed >>= np.uint64(ROW_BITS)
    return pa.table({"i": packed.view(np.int64), "j": later.view(np.int64), "distance": distance})


def check_input(hashes: Hashes, radius: int) -> None:
    """Raises: ConfigError unless `hashes` is a 1-d uint64 array and `radius` a whole number in 0..64."""
    plain = isinstance(hashes, np.ndarray) and not isinstance(hashes, np.ma.MaskedArray)
    if not plain or hashes.dtype != np.uint64 or hashes.ndim != 1:
        found = f"{hashes.ndim}-d {hashes.dtype}" if plain else type(hashes).__name__
        raise ConfigError(f"hashes must be a 1-d numpy array of uint64, found {found}")
    if not isinstance(radius, int | np.integer) or not 0 <= radius <= 64:
        raise ConfigError(f"radius is {radius}; it must be a whole number, 64-bit hashes differ in 0 to 64 bits")


def _collapse(hashes: Hashes) -> tuple[Hashes, Hashes]:
    """The distinct hashes, and those that occur more than once, both ascending."""
    ordered = np.sort(hashes)
    first = _first_of_each(ordered)
    return ordered if first.all() else ordered[first], distinct_of(ordered[~first])


def _first_of_each(ordered: Hashes) -> npt.NDArray[np.bool_]:
    """Where each value of an ascending array stands for the first time."""
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    return first


def distinct_of(*parts: Hashes) -> Hashes:
    """The distinct values of all parts, ascending; np.unique (2.4) takes four times as long, and two more copies."""
    values = np.concatenate(parts)
    values.sort()
    return values[_first_of_each(values)]


def rows_of(hashes: Hashes, wanted: Hashes) -> tuple[Rows, Rows]:
    """(starts, rows) of the rows that hold each of `wanted` (ascending, distinct).

    A table of marks skips most rows: 13 M rows of which 4 % are wanted take 0.2 s, sorting all of them takes 2.6 s.
    """
    marks = np.zeros(1 << MARK_BITS, np.bool_)
    marks[_mark(wanted)] = True
    rows: list[Rows] = []
    groups: list[Rows] = []
    for start in range(0, len(hashes), _CHUNK):
        chunk = hashes[start : start + _CHUNK]
        maybe = np.flatnonzero(marks[_mark(chunk)])
        place = np.searchsorted(wanted, chunk[maybe])
        there = place < len(wanted)
        maybe, place = maybe[there], place[there]
        there = wanted[place] == chunk[maybe]
        rows.append(maybe[there] + start)
        groups.append(place[there])
    group = np.concatenate(groups) if groups else np.empty(0, np.int64)
    row = np.concatenate(rows) if rows else np.empty(0, np.int64)
    counts = np.bincount(group, minlength=len(wanted))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return starts, row[np.argsort(group, kind="stable")]


def _mark(hashes: Hashes) -> npt.NDArray[np.uint64]:
    return (hashes * _SPREAD) >> np.uint64(64 - MARK_BITS)


def _rows_within(pairs: DistinctPairs) -> Iterator[tuple[Rows, Rows, Distances]]:
    """Pairs of rows with the same hash, some at a time."""
    group = np.repeat(np.arange(len(pairs.hashes)), pairs.counts)
    later = pairs.starts[group + 1] - np.arange(len(pairs.rows)) - 1  # rows after this one in its group
    for item, place in _spread_out(later):
        yield pairs.rows[item], pairs.rows[item + 1 + place], np.zeros(len(item), np.uint8)


def _rows_between(pairs: DistinctPairs) -> Iterator[tuple[Rows, Rows, Distances]]:
    """Pairs of rows with different hashes, some at a time: every row of one group with every row of the other."""
    counts = pairs.counts
    for edge, place in _spread_out(counts[pairs.left] * counts[pairs.right]):
        left, right = pairs.left[edge], pairs.right[edge]
        width = counts[right]
        first, second = pairs.starts[left] + place // width, pairs.starts[right] + place % width
        yield pairs.rows[first], pairs.rows[second], pairs.distance[edge]


def _spread_out(sizes: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Each item k repeated `sizes[k]` times, with 0 .. sizes[k] - 1 beside it, `_EXPAND_AT_ONCE` entries at a time."""
    ends = np.cumsum(sizes)
    for start in range(0, int(ends[-1]) if len(ends) else 0, _EXPAND_AT_ONCE):
        stop = min(start + _EXPAND_AT_ONCE, int(ends[-1]))
        items = np.arange(np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop) + 1)
        begins = ends[items] - sizes[items]
        here = np.minimum(ends[items], stop) - np.maximum(begins, start)
        yield np.repeat(items, here), np.arange(start, stop) - np.repeat(begins, here)


def count_up(sizes: Rows) -> Rows:
    """0 .. size - 1 for each of the sizes, one after the other."""
    ends = np.cumsum(sizes)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - sizes, sizes)


def _too_many_rows(pairs: DistinctPairs, limit: int) -> RunError:
    counts = pairs.counts
    most = int(np.argmax(counts))
    return RunError(
        f"{pairs.num_row_pairs:,} pairs of rows within radius {pairs.radius} do not fit the memory limit of "
        f"{limit:,} bytes; the most frequent hash, {int(pairs.hashes[most]):016x}, stands in {int(counts[most]):,} "
        "rows. Leave out the rows of such a hash, or use distinct_pairs, which never writes out pairs of equal hashes"
    )


def memory_limit(memory_limit_bytes: int | None) -> int:
    """The limit given, or the memory that is free now or holds only cached files."""
    if memory_limit_bytes is not None:
        return memory_limit_bytes
    try:
        with Path("/proc/meminfo").open() as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return 4 << 30
