"""Which rows of near-duplicates stay: a leader clustering by a given priority.

Pairs within a radius and a priority a row in, for every row the row kept in its place out. Pure.

The rule goes through the rows by priority, the best first. A row is kept when no kept row lies within the radius.
Otherwise it is dropped in favour of the nearest kept row of better priority (of equally near ones, the best).

Guaranteed, given all pairs within the radius:

- a dropped row lies within the radius of its representative, which is kept and has a better priority;
- no two kept rows lie within the radius, so running again on the kept rows drops nothing;
- the answer follows from the hashes and the priorities alone: the order of rows and pairs does not matter.

Not guaranteed: that two rows of one group lie within the radius of each other (at most twice the radius), or that the
fewest possible rows are dropped. A group never reaches past the radius around its representative, so nothing chains.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Distances = npt.NDArray[np.uint8]

_EDGES_AT_ONCE = 1 << 20  # an edge takes 80 bytes as Python integers


def choose_kept(
    num_rows: int, pairs_i: Rows, pairs_j: Rows, distance: Distances, priority: Rows
) -> tuple[Rows, Distances]:
    """Return the representative of every row, and the distance to it, from pairs of rows.

    `pairs_i`, `pairs_j` are row numbers, in any order. `priority` (num_rows,) is a rank: the lower one stays, and no
    two are equal. Gives `representative` int64 (num_rows,), the row itself where it is kept, and uint8 distances.
    """
    involved, ends = np.unique(np.concatenate([pairs_i, pairs_j]), return_inverse=True)
    left, right = ends[: len(pairs_i)], ends[len(pairs_i) :]
    starts = np.arange(len(involved) + 1)
    return choose_of_groups(num_rows, starts, involved, left, right, distance, priority)


def choose_of_groups(
    num_rows: int, starts: Rows, rows: Rows, left: Rows, right: Rows, distance: Distances, priority: Rows
) -> tuple[Rows, Distances]:
    """Return the same over groups of equal rows (`rows` cut at `starts`) that edges `left`-`right` join.

    So the pairs of equal rows need not be written out.
    """
    representative = np.arange(num_rows, dtype=np.int64)
    away = np.zeros(num_rows, np.uint8)
    if not len(rows):
        return representative, away
    group = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.lexsort((priority[rows], group))
    leader = rows[order][starts[:-1]]  # the best row of each group: no other of the group can be kept
    rank = priority[leader].astype(np.int64)

    better = np.where(rank[left] < rank[right], left, right)
    worse = np.where(rank[left] < rank[right], right, left)
    dropped = _drop_by_priority(len(leader), better, worse, rank)

    kept_group = ~dropped[group]
    representative[rows[kept_group]] = leader[group[kept_group]]
    waiting, waiting_group = rows[~kept_group], group[~kept_group]
    ends = [(left, right), (right, left)]
    near = np.concatenate([a[dropped[b] & ~dropped[a]] for a, b in ends])
    far = np.concatenate([b[dropped[b] & ~dropped[a]] for a, b in ends])
    apart = np.concatenate([distance[dropped[b] & ~dropped[a]] for a, b in ends])
    for step in np.unique(apart).tolist():
        at = apart == step
        best = _best_rank(len(leader), far[at], near[at], rank)
        offered = best[waiting_group]
        is_better = offered >= 0
        is_better[is_better] = rank[offered[is_better]] < priority[waiting[is_better]]
        representative[waiting[is_better]] = leader[offered[is_better]]
        away[waiting[is_better]] = step
        waiting, waiting_group = waiting[~is_better], waiting_group[~is_better]
    return representative, away


def _drop_by_priority(num: int, better: Rows, worse: Rows, rank: Rows) -> npt.NDArray[np.bool_]:
    """Which groups lie within the radius of a kept one.

    Edges are taken by the rank of their better end, so every edge that could drop that end comes before it.
    60 ns an edge in plain Python, 1 s for 13 M.
    """
    order = np.argsort(rank[better], kind="stable")
    dropped = bytearray(num)
    for start in range(0, len(order), _EDGES_AT_ONCE):
        some = order[start : start + _EDGES_AT_ONCE]
        for kept, other in zip(better[some].tolist(), worse[some].tolist(), strict=True):
            if not dropped[kept]:
                dropped[other] = 1
    return np.frombuffer(dropped, np.uint8).astype(np.bool_)


def _best_rank(num: int, far: Rows, near: Rows, rank: Rows) -> Rows:
    """For each group `far` its neighbour `near` of the best rank; -1 for a group without one."""
    best = np.full(num, -1, np.int64)
    order = np.argsort(-rank[near], kind="stable")  # of several writes to one place the last one stays: the best
    best[far[order]] = near[order]
    return best
