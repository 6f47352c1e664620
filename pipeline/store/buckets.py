"""Buckets: tables cut by sample id into ranges, so that each range is a part of its own and fits one worker's memory.

A sample id is a hash, so equal ranges of ids hold about equally many rows of any table. Tables are sorted by sample id:
a bucket reads only the row groups that it overlaps, and the outputs of all buckets, in order, are sorted too. What the
buckets give together does not depend on how many there are.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

ROW_BYTES = 2_000
"""Memory for a row of a bucket: candidate, facts and captions take about 1 kB in DuckDB, and sorting takes it again."""
_FEW_ROWS, _MANY = 50_000, 20
_DIGITS = 8  # leading hex digits of a sample id that decide


@dataclass(frozen=True)
class Bucket:
    """Range `number` of `of` equal ranges of sample ids."""

    number: int = 0
    of: int = 1

    @property
    def where(self) -> str:
        """SQL that holds for rows of this bucket, over a column `sample_id`."""
        borders = []
        if self.number > 0:
            borders.append(f"sample_id >= '{self.first}'")
        if self.number < self.of - 1:
            borders.append(f"sample_id < '{Bucket(self.number + 1, self.of).first}'")
        return " AND ".join(borders) or "true"

    @property
    def first(self) -> str:
        """The text from which on sample ids belong to this bucket."""
        return f"{16**_DIGITS * self.number // self.of:0{_DIGITS}x}"

    @property
    def quarters(self) -> list[Bucket]:
        """The same range in four, in order; none when the digits that decide do not go so far."""
        num = 4 * self.of
        return [Bucket(4 * self.number + part, num) for part in range(4)] if num <= 16**_DIGITS else []


WHOLE = Bucket()


def rows_of_bucket(num_rows: int, memory_gb: float, is_fine: bool = True) -> int:
    """Return how many rows of a table one worker takes at a time, at most: as many as fit its memory.

    Fine buckets hold fewer: 50,000, or a twentieth of the rows where that is more. So all workers have work, and up to
    a million rows memory hardly grows. Only memory makes more than twenty: each reads all files that are not sorted.
    """
    fit = max(1, int(memory_gb * 1e9 / ROW_BYTES))
    return min(fit, max(_FEW_ROWS, math.ceil(num_rows / _MANY))) if is_fine else fit


def cut_buckets(num_rows: int, memory_gb: float, is_fine: bool = True) -> list[Bucket]:
    """Buckets of so many rows; a single one where all rows are few."""
    num = min(max(1, math.ceil(num_rows / rows_of_bucket(num_rows, memory_gb, is_fine))), 16**_DIGITS)
    return [Bucket(number, num) for number in range(num)]


def spread(items: Iterable[tuple[Item, tuple[str, str] | None]], buckets: Sequence[Bucket]) -> list[list[Item]]:
    """Spread items over the buckets of a table that have to read them, in the order given.

    An item comes with the first and the last sample id in it, or with None where that is not known: then every bucket
    reads it.
    """
    borders = [bucket.first for bucket in buckets[1:]]
    items_of_buckets: list[list[Item]] = [[] for _ in buckets]
    for item, ids in items:
        first, last = (bisect_right(borders, sample_id) for sample_id in ids) if ids else (0, len(borders))
        for read in items_of_buckets[first : last + 1]:
            read.append(item)
    return items_of_buckets


def join_facets(facets: Sequence[str]) -> str:
    """Return the digest (pipeline/store/sql.py: facet) of all rows from those of their buckets."""
    num, mixed, total = 0, 0, 0
    for facet in facets:
        count, digest, rest = facet.split("-")
        if int(count):
            num, mixed, total = num + int(count), mixed ^ int(digest, 16), total + int(rest)
    return f"{num}-{mixed:X}-{total}" if num else facets[0]
