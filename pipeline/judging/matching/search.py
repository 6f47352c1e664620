"""Find all pairs of distinct hashes within a Hamming radius: sort by each key, compare within buckets.

Reads a uint64 array of distinct hashes; gives the pairs as two arrays of hashes, each pair exactly once. The answer is
exact with any plan; the plan only changes the time.

For one key the hashes are rewritten with the key's bits on top, and sorted. A bucket is then a run of neighbours, and
the sorted value is itself the whole hash, so no index is needed. Each hash is compared with the 1st, 2nd, ... after it
in its run. A bucket that is much larger than usual is searched by a plan of its own, on the bits that are not in the
key, so that clustered hashes stay cheap. A pair that several keys find is kept only under the first of these keys. This
needs no table of the pairs found so far.

Raises RunError when the pairs outgrow the memory limit.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from manifests.errors import RunError
from manifests.services.scheduling import num_cores
from pipeline.judging.matching.plan import SearchPlan, choose_plan

Hashes = npt.NDArray[np.uint64]
Pairs = tuple[Hashes, Hashes]

# Hashes compared at a time. With fewer, two threads wait for the interpreter's lock more often than the cache saves:
# 13 M of heavy clusters took 13.6 s and 19.7 CPU s with 2^16, 8.5 s and 14.2 with 2^19 (2026-11-28).
_WINDOW = 1 << 19
PAIRS_BYTES = 64  # of a pair from the search to its table
_CHUNK = 1 << 15
_REPACK_SLOTS = 16  # comparisons across buckets, for each hash, that cost as much as leaving out those that are done
_SAMPLE = 4096  # hashes read to learn how their bits are spread
_SMALL_BUCKET = 2048  # below it no plan beats comparing all
_BATCH_PAIRS = 1 << 18


@dataclass(frozen=True)
class BitRun:
    """Neighbouring bits that move together: their `mask` in the hash, and `lift` places up (negative: down)."""

    mask: int
    lift: int


class _PairBudget:
    """The most pairs that may be held, over all keys and threads of one search."""

    def __init__(self, max_pairs: int) -> None:
        self._max_pairs = max_pairs
        self._num_pairs = 0
        self._lock = threading.Lock()

    def take(self, pairs: Pairs, radius: int) -> None:
        """Count pairs that will be held.

        Raises: RunError when there are too many in all; it names the hash with the most neighbours among these.
        """
        with self._lock:
            self._num_pairs += len(pairs[0])
            too_many = self._num_pairs > self._max_pairs
        if too_many:
            values, counts = np.unique(np.concatenate(pairs), return_counts=True)
            most = int(np.argmax(counts))
            raise RunError(
                f"more than {self._max_pairs:,} pairs of different hashes lie within radius {radius}, and the memory "
                f"limit has no room for more; the hash with most neighbours in the last {len(pairs[0]):,} of them is "
                f"{int(values[most]):016x} ({int(counts[most]):,}). "
                "Use a smaller radius, raise the memory limit, or leave the images behind that hash out"
            )


def find_pairs(hashes: Hashes, radius: int, *, scratch_bytes: int, max_pairs: int) -> Pairs:
    """All pairs of `hashes` (distinct, any order) within `radius`, lower hash first, each once, in no order.

    Each thread holds a rearranged copy of `hashes`; `scratch_bytes` bounds how many threads there are.

    Raises: RunError when more than `max_pairs` pairs are found.
    """
    if len(hashes) < 2:
        return join_pairs([])
    plan = choose_plan(len(hashes), radius, bit_entropies(hashes, 64))
    num_threads = max(1, min(num_cores(), len(plan.keys), scratch_bytes // max(1, 8 * len(hashes))))
    budget = _PairBudget(max_pairs)
    with ThreadPoolExecutor(num_threads) as pool:
        pending = [pool.submit(_search_key, hashes, plan, key, budget) for key in range(len(plan.keys))]
        try:
            return join_pairs([task.result() for task in pending])
        finally:
            for task in pending:
                task.cancel()


def _search_key(hashes: Hashes, plan: SearchPlan, key: int, budget: _PairBudget) -> Pairs:
    """Return the pairs that `plan.keys[key]` is the first key to find.

    The union over all keys is the whole answer, and no two keys give the same pair.

    Raises: RunError when `budget` has no room for them.
    """
    kept: list[Pairs] = []
    for left, right in _pairs_of_key(hashes, plan, key):
        budget.take((left, right), plan.radius)
        kept.append((np.minimum(left, right), np.maximum(left, right)))
    return join_pairs(kept)


def _pairs_of_key(hashes: Hashes, plan: SearchPlan, key: int) -> Iterator[Pairs]:
    """Yield the pairs that one key is the first to find, some at a time."""
    runs = bit_runs(plan.keys[key], plan.num_bits)
    arranged = np.empty(len(hashes), np.uint64)
    for start, piece in arranged_chunks(hashes, runs):
        arranged[start : start + len(piece)] = piece
    arranged.sort()
    num_free = plan.num_bits - plan.keys[key].bit_count()
    for left, right in _batches(_scan(arranged, num_free, plan)):
        yield first_caught((move_back(left, runs), move_back(right, runs)), plan.keys[:key])


def _batches(results: Iterator[Pairs]) -> Iterator[Pairs]:
    """Join small results into larger ones, but not so large that many pairs of earlier keys are held."""
    waiting: list[Pairs] = []
    num_waiting = 0
    for pairs in results:
        waiting.append(pairs)
        num_waiting += len(pairs[0])
        if num_waiting >= _BATCH_PAIRS:
            yield join_pairs(waiting)
            waiting, num_waiting = [], 0
    if waiting:
        yield join_pairs(waiting)


def bit_entropies(hashes: Hashes, num_bits: int) -> tuple[float, ...]:
    """Return the collision entropy in bits of each of the low `num_bits` bits, measured on a sample of hashes."""
    sample = hashes[:: max(1, len(hashes) // _SAMPLE)]
    ones = [float(((sample >> np.uint64(bit)) & np.uint64(1)).mean()) for bit in range(num_bits)]
    return tuple(-math.log2(share * share + (1 - share) * (1 - share)) for share in ones)


def first_caught(pairs: Pairs, earlier: tuple[int, ...]) -> Pairs:
    """Return the pairs that agree on none of the earlier keys."""
    left, right = pairs
    for mask in earlier:
        new = ((left ^ right) & np.uint64(mask)) != 0
        if not new.all():
            left, right = left[new], right[new]
        if not len(left):
            break
    return left, right


def arranged_chunks(hashes: Hashes, runs: list[BitRun]) -> Iterator[tuple[int, Hashes]]:
    """Start of each chunk, and the chunk with its bits moved; the next chunk overwrites its memory."""
    out = np.empty(_CHUNK, np.uint64)
    scratch = np.empty(_CHUNK, np.uint64)
    for start in range(0, len(hashes), _CHUNK):
        chunk = hashes[start : start + _CHUNK]
        moved, part = out[: len(chunk)], scratch[: len(chunk)]
        moved.fill(0)
        for run in runs:
            np.bitwise_and(chunk, np.uint64(run.mask), out=part)
            _shift(part, run.lift)
            np.bitwise_or(moved, part, out=moved)
        yield start, moved


def _shift(values: Hashes, lift: int) -> None:
    if lift > 0:
        np.left_shift(values, np.uint64(lift), out=values)
    elif lift < 0:
        np.right_shift(values, np.uint64(-lift), out=values)


def move_back(values: Hashes, runs: list[BitRun]) -> Hashes:
    """Undo `bit_runs` on a few values."""
    back = np.zeros(len(values), np.uint64)
    for run in runs:
        mask = run.mask << run.lift if run.lift >= 0 else run.mask >> -run.lift
        part = values & np.uint64(mask)
        _shift(part, -run.lift)
        back |= part
    return back


def bit_runs(key: int, num_bits: int) -> list[BitRun]:
    """Return moves that bring the bits of the key to the top of `num_bits`, the others below them, in their order."""
    runs: list[BitRun] = []
    target = num_bits
    for bit in (1, 0):
        for source in range(num_bits - 1, -1, -1):
            if (key >> source) & 1 != bit:
                continue
            target -= 1
            lift = target - source
            if runs and runs[-1].lift == lift:
                runs[-1] = BitRun(runs[-1].mask | 1 << source, lift)
            else:
                runs.append(BitRun(1 << source, lift))
    return runs


def _scan(ordered: Hashes, num_free: int, plan: SearchPlan) -> Iterator[Pairs]:
    """Pairs within the radius that share all but the low `num_free` bits; `ordered` ascends."""
    if num_free == plan.num_bits:  # an empty key: one bucket, and no plan makes it cheaper
        yield from _compare_window(ordered, np.array([len(ordered)]), plan.radius, num_free)
        return
    start = 0
    while start < len(ordered):
        stop = min(start + _WINDOW, len(ordered))
        if stop < len(ordered):
            bucket = int(ordered[stop]) >> num_free
            border = start + int(np.searchsorted(ordered[start:stop], np.uint64(bucket << num_free)))
            if border == start:  # one bucket fills the window and more
                last = np.uint64((bucket << num_free) | ((1 << num_free) - 1))
                stop = start + int(np.searchsorted(ordered[start:], last, side="right"))
                yield from _search_bucket(ordered[start:stop], num_free, plan.radius)
                start = stop
                continue
            stop = border
        yield from _search_window(ordered[start:stop], num_free, plan.radius)
        start = stop


def _search_window(window: Hashes, num_free: int, radius: int) -> Iterator[Pairs]:
    """Search whole buckets that lie side by side: large ones by a plan of their own, the others by comparing all."""
    if len(window) < 2:
        return
    borders = np.flatnonzero((window[1:] ^ window[:-1]) >> np.uint64(num_free)) + 1
    sizes = np.diff(borders, prepend=0, append=len(window))
    if sizes.max() > _SMALL_BUCKET:
        ends = np.cumsum(sizes)
        for bucket in np.flatnonzero(sizes > _SMALL_BUCKET).tolist():
            inside = window[ends[bucket] - sizes[bucket] : ends[bucket]]
            yield from _search_bucket(inside, num_free, radius)
        small = sizes <= _SMALL_BUCKET
        window, sizes = window[np.repeat(small, sizes)], sizes[small]
    yield from _compare_window(window, sizes, radius, num_free)


def _search_bucket(bucket: Hashes, num_free: int, radius: int) -> Iterator[Pairs]:
    """Search one bucket in the same way, on the `num_free` bits in which its hashes can differ."""
    plan = choose_plan(len(bucket), radius, bit_entropies(bucket, num_free))
    if plan.compares_everything:
        yield from _compare_window(bucket, np.array([len(bucket)]), radius, num_free)
        return
    low_bits = np.uint64((1 << num_free) - 1)
    common, free = bucket[0] & ~low_bits, bucket & low_bits
    for key in range(len(plan.keys)):
        for left, right in _pairs_of_key(free, plan, key):
            yield left | common, right | common


def _compare_window(window: Hashes, sizes: npt.NDArray[np.int64], radius: int, num_free: int) -> Iterator[Pairs]:
    """Compare each hash with the t-th hash after it, for every t that stays in its bucket (of `sizes`).

    Where most have no t-th hash in their bucket, only the others are compared from there on.
    """
    if not len(window):
        return
    num_shifts = int(sizes.max())
    pairs_at = _pairs_at_shift(sizes, num_shifts)
    pairs_from = np.cumsum(pairs_at[::-1])[::-1].tolist()  # at this shift and all larger ones
    first, second, step = window, window, 0  # within a bucket `second` is `step` places ahead of `first`
    one_bucket = np.uint64((1 << num_free) - 1)  # two hashes of one bucket differ in these bits at most
    differing = np.empty(len(window), np.uint64)
    distances = np.empty(len(window), np.uint8)
    for shift in range(1, num_shifts):
        apart = shift - step
        num = len(first) - apart
        wasted = len(first) * (num_shifts - shift) - pairs_from[shift]
        np.bitwise_xor(second[apart:], first[:num], out=differing[:num])
        if 2 * pairs_at[shift] < len(first) and wasted > _REPACK_SLOTS * len(first):
            inside = (differing[:num] <= one_bucket).nonzero()[0]
            first, second, step = first[inside], second[inside + apart], shift
            apart, num = 0, len(inside)
            differing[:num] = differing[inside]
        np.bitwise_count(differing[:num], out=distances[:num])
        near = (distances[:num] <= radius).nonzero()[0]
        if len(near):
            near = near[differing[near] <= one_bucket]
            yield first[near], second[near + apart]


def _pairs_at_shift(sizes: npt.NDArray[np.int64], num_shifts: int) -> npt.NDArray[np.int64]:
    """Return how many pairs are t places apart within one bucket, for t = 0 .. num_shifts - 1."""
    of_size = np.bincount(sizes, minlength=num_shifts + 1)
    at_least = np.cumsum(of_size[::-1])[::-1]  # buckets of size >= t
    return np.cumsum(at_least[1:][::-1])[::-1]  # sum over buckets of max(size - t, 0)


def join_pairs(pieces: list[Pairs]) -> Pairs:
    """One pair of arrays out of many."""
    if not pieces:
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    return np.concatenate([left for left, _ in pieces]), np.concatenate([right for _, right in pieces])


def distinct_of(*parts: Hashes) -> Hashes:
    """Return the distinct values of all parts, ascending.

    Np.unique (2.4) takes four times as long, and two more copies.
    """
    values = np.concatenate(parts)
    values.sort()
    first = np.ones(len(values), np.bool_)
    first[1:] = values[1:] != values[:-1]
    return values[first]
