"""Near pairs between two tables: evaluation sets against the sources.

Reads two 1-d uint64 arrays. The larger, `hashes`, is only streamed, once a key; no pair within it is compared. So a few
thousand evaluation pictures are matched against 13 M in seconds. Exact, by the same keys as the search within one
table.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from manifests.services.scheduling import num_cores
from pipeline.judging.matching.plan import SearchPlan, choose_plan
from pipeline.judging.matching.search import (
    Hashes,
    Pairs,
    arranged_chunks,
    bit_entropies,
    bit_runs,
    distinct_of,
    first_caught,
    join_pairs,
    move_back,
)

_MARK_BITS = 24
_COMPARE_AT_ONCE = 1 << 15  # pairs: small enough for the cache, and for memory that is allocated already


def cross_pairs(hashes: Hashes, queries: Hashes, radius: int) -> Pairs:
    """Every value of `hashes` beside every value of `queries` that differs from it in at most `radius` bits, exactly.

    Gives the values of `hashes` and those of `queries` beside them, each pair once, sorted. The cost grows with
    `hashes` and, more slowly, with `queries`: give the smaller table as `queries`.
    """
    asked = distinct_of(queries)
    if not len(hashes) or not len(asked):
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    plan = choose_plan(len(hashes), radius, bit_entropies(asked, 64), num_others=len(asked))
    with ThreadPoolExecutor(min(num_cores(), len(plan.keys))) as pool:
        by_key = list(pool.map(lambda key: _search_key(hashes, asked, plan, key), range(len(plan.keys))))
    near, queries = join_pairs(by_key)
    order = np.lexsort((queries, near))
    near, queries = near[order], queries[order]
    new = np.ones(len(near), np.bool_)  # the same hash may stand in several chunks
    new[1:] = (near[1:] != near[:-1]) | (queries[1:] != queries[:-1])
    return near[new], queries[new]


def _search_key(hashes: Hashes, asked: Hashes, plan: SearchPlan, key: int) -> Pairs:
    """Return the pairs that `plan.keys[key]` is the first key to find.

    Once for every chunk of `hashes` they stand in.
    """
    runs = bit_runs(plan.keys[key], plan.num_bits)
    num_free = plan.num_bits - plan.keys[key].bit_count()
    free = np.uint64((1 << num_free) - 1)
    table = np.concatenate([np.empty(0, np.uint64), *(piece.copy() for _, piece in arranged_chunks(asked, runs))])
    table.sort()
    # most hashes have a key that no query has: a table of marks skips them in 5 ns, a binary search takes 100 ns
    unread = np.uint64(max(num_free, plan.num_bits - _MARK_BITS))
    everything = num_free == plan.num_bits
    marks = np.zeros(1 << (plan.num_bits - int(unread)), np.bool_)
    if not everything:
        marks[table >> unread] = True
    pairs: list[Pairs] = []
    for _, piece in arranged_chunks(hashes, runs):
        chunk = distinct_of(piece if everything else piece[marks[piece >> unread]])
        low = np.searchsorted(table, chunk & ~free)  # sorted needles keep it in the cache
        sizes = np.searchsorted(table, chunk | free, side="right") - low
        some = np.flatnonzero(sizes)
        for near, queries in _compare(chunk[some], table, low[some], sizes[some], plan.radius):
            pairs.append((move_back(near, runs), move_back(queries, runs)))
    return first_caught(join_pairs(pairs), plan.keys[:key])


def _compare(
    near: Hashes, table: Hashes, low: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], radius: int
) -> Iterator[Pairs]:
    """Each of `near` with the `sizes` entries of `table` from `low` on, some pairs at a time."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(near):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _COMPARE_AT_ONCE, side="right")))
        some = sizes[start:stop]
        left = np.repeat(near[start:stop], some)
        places = np.arange(some.sum()) - np.repeat(np.cumsum(some) - some, some)  # 0 .. size - 1 of each
        right = table[np.repeat(low[start:stop], some) + places]
        hit = np.flatnonzero(np.bitwise_count(left ^ right) <= radius)
        if len(hit):
            yield left[hit], right[hit]
        start = stop
