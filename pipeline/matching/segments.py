"""Cut the search into units that any worker can do, and whose results stay valid when more hashes come.

A segment is a sorted, distinct set of hashes; the segments of one work folder are disjoint. All pairs lie within a
segment or between two of them. A small search is one unit. A larger one is cut by key, and each key by the leading bits
that its hashes agree on (the block bucket), so that a worker holds one bucket. No pair is in two units, and all units
together give the same pairs wherever the search is cut.

Streams of hashes in, pairs out. Raises RunError when the pairs outgrow the memory limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from manifests.errors import RunError
from pipeline.matching.cross import distinct_cross_pairs, search_cross_key
from pipeline.matching.plan import SearchPlan, choose_plan
from pipeline.matching.search import (
    LEAST_CAPACITY,
    Hashes,
    PairBudget,
    Pairs,
    arranged_chunks,
    bit_runs,
    find_pairs,
    search_key,
)

PAIRS_BYTES = 64  # of a pair while it is sorted: as hashes, as places among them, its order, and the results
Stream = Callable[[], Iterable[Hashes]]  # reads a segment from its start, some hashes at a time


@dataclass(frozen=True)
class Segment:
    """The facts of a segment that a plan is made from: its size, and how well each bit tells its hashes apart."""

    num_hashes: int
    bit_entropies: tuple[float, ...]


@dataclass(frozen=True)
class Unit:
    """All keys (`key` None), or of one key the hashes whose leading `bucket_bits` key bits are `bucket`."""

    key: int | None = None
    bucket: int = 0
    bucket_bits: int = 0


def plan_within(segment: Segment, radius: int) -> SearchPlan:
    """The keys for the pairs within one segment."""
    return choose_plan(segment.num_hashes, radius, segment.bit_entropies)


def plan_between(left: Segment, right: Segment, radius: int) -> SearchPlan:
    """The keys for the pairs between two segments; `right` should be the smaller one."""
    return choose_plan(left.num_hashes, radius, right.bit_entropies, num_others=right.num_hashes)


def cut_units(num_hashes: int, plan: SearchPlan, max_hashes: int) -> list[Unit]:
    """One unit for at most `max_hashes`; for more, one unit a key and bucket of about that many hashes."""
    if num_hashes <= max_hashes or plan.compares_everything:
        return [Unit()]
    most_bits = math.ceil(math.log2(num_hashes / max_hashes))
    units = []
    for key, mask in enumerate(plan.keys):
        bits = min(most_bits, mask.bit_count())
        units += [Unit(key, bucket, bits) for bucket in range(1 << bits)]
    return units


def search_within(stream: Stream, plan: SearchPlan, unit: Unit, *, memory_bytes: int) -> Pairs:
    """Pairs of one unit within a segment, lower hash first, each once, sorted.

    Raises: RunError when they do not fit `memory_bytes`.
    """
    hashes = _read(stream, plan, unit)
    scratch = max(8, memory_bytes - hashes.nbytes)
    if unit.key is None:
        pairs = find_pairs(hashes, plan.radius, scratch_bytes=scratch, max_pairs=scratch // PAIRS_BYTES)
    else:
        capacity, most = max(LEAST_CAPACITY, scratch // 16), scratch // PAIRS_BYTES
        pairs = search_key(hashes, plan, unit.key, capacity=capacity, budget=PairBudget(most))
    return _sorted(*pairs)


def search_between(left: Stream, right: Stream, plan: SearchPlan, unit: Unit, *, memory_bytes: int) -> Pairs:
    """Pairs of one unit with one hash in each of two disjoint segments, lower hash first, each once, sorted.

    Raises: RunError when they do not fit `memory_bytes`.
    """
    many, few = _read(left, plan, unit), _read(right, plan, unit)
    pairs = distinct_cross_pairs(many, few, plan) if unit.key is None else search_cross_key(many, few, plan, unit.key)
    if len(pairs[0]) * PAIRS_BYTES > memory_bytes:
        raise RunError(
            f"{len(pairs[0]):,} pairs within radius {plan.radius} do not fit into {memory_bytes:,} bytes; "
            "use a smaller radius or raise run.memory_gb"
        )
    return _sorted(np.minimum(*pairs), np.maximum(*pairs))


def new_hashes(values: Hashes, segments: Iterable[Iterable[Hashes]]) -> Hashes:
    """The `values` (ascending, distinct) that none of the `segments` holds; each segment comes in ascending pieces."""
    here = np.ones(len(values), np.bool_)
    for segment in segments:
        for piece in segment:
            place = np.searchsorted(values, piece)
            inside = place < len(values)
            place, piece = place[inside], piece[inside]
            here[place[values[place] == piece]] = False
    return values[here]


def _read(stream: Stream, plan: SearchPlan, unit: Unit) -> Hashes:
    pieces: Sequence[Hashes]
    if unit.key is None or not unit.bucket_bits:
        pieces = [np.asarray(piece) for piece in stream()]
    else:
        runs = bit_runs(plan.keys[unit.key], plan.num_bits)
        drop = np.uint64(plan.num_bits - unit.bucket_bits)
        pieces = []
        for piece in stream():
            lead = np.concatenate([arranged >> drop for _, arranged in arranged_chunks(piece, runs)])
            pieces.append(piece[lead == np.uint64(unit.bucket)])
    return np.concatenate(pieces) if pieces else np.empty(0, np.uint64)


def _sorted(low: Hashes, high: Hashes) -> Pairs:
    order = np.lexsort((high, low))
    return low[order], high[order]
