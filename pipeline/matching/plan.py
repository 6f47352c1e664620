"""Choose which bits must agree: a small family of keys that no pair within the radius can escape.

Reads a number of hashes, a radius and a number of bits; gives a `SearchPlan`. Pure, touches nothing.

The bits are cut into groups and each group into blocks. A pair within radius d has, in at least one of g
groups, at most t_i differing bits (the thresholds add up to d - g + 1: if every group had t_i + 1 the sum would
be d + 1), and so in that group at most t_i of the t_i + k blocks differ: some k blocks agree exactly. A key is
one choice of k blocks; the pair falls into one bucket of at least one key. With one group this is the block
combination of Manku et al.; several groups need far fewer sorts for the same number of key bits
(at d = 4: 9 keys of 18 bits in place of 15 of 21).

Gives up never: when no key pays, the plan is a single empty key, which compares everything with everything.

Source: Manku, Jain, Das Sarma, Detecting near-duplicates for web crawling, WWW 2007; the pigeonhole over
groups with unequal thresholds: Qin et al., GPH: similarity search in Hamming space, ICDE 2018.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

# Measured on one core of an AMD EPYC (Zen 4), NumPy 2.4, 13 M random uint64.
_SORT_SECONDS = 3.2e-9  # np.sort, per element and per doubling of the array: 0.99 s at 13 M
_ARRANGE_SECONDS = 4e-9  # moving the key to the top, finding bucket borders, per element
_COMPARE_SECONDS = 1.4e-9  # xor, popcount, threshold, per pair; 0.8 of it is the work, the rest ragged buckets
_KEY_SECONDS = 150e-6  # Python around one key, whatever its size

_MAX_KEYS = 4000  # beyond it a family costs more than it saves at any size that fits one machine


@dataclass(frozen=True)
class SearchPlan:
    """A family of bit masks such that every pair within `radius` agrees on all bits of at least one mask.

    `keys` are masks over the low `num_bits` bits; `seconds` is what the cost model expects on one core.
    """

    num_bits: int
    radius: int
    keys: tuple[int, ...]
    seconds: float

    @property
    def compares_everything(self) -> bool:
        """True when no key pays and all pairs are compared."""
        return self.keys == (0,)


def choose_plan(num_hashes: int, radius: int, num_bits: int = 64) -> SearchPlan:
    """The cheapest plan for `num_hashes` distinct, evenly spread hashes of `num_bits` bits.

    Sizes are rounded up to a power of two times 1, 1.25, 1.5 or 1.75, so that plans can be kept and re-used.
    """
    step = max(1, 1 << max(0, num_hashes.bit_length() - 3))
    return _choose(math.ceil(num_hashes / step) * step, min(radius, num_bits), num_bits)


@lru_cache(maxsize=4096)
def _choose(num_hashes: int, radius: int, num_bits: int) -> SearchPlan:
    best = (num_hashes * num_hashes / 2 * _COMPARE_SECONDS + _KEY_SECONDS, 0, 0)
    for num_groups in range(1, radius + 2):
        for num_kept in range(1, num_bits + 1):
            thresholds = _thresholds(radius, num_groups)
            if sum(thresholds) + num_groups * num_kept > num_bits:
                break
            seconds = _cost(num_hashes, thresholds, num_kept, num_bits)
            if seconds < best[0]:
                best = (seconds, num_groups, num_kept)
    seconds, num_groups, num_kept = best
    keys = _keys(_thresholds(radius, num_groups), num_kept, num_bits) if num_groups else (0,)
    return SearchPlan(num_bits, radius, keys, seconds)


def _thresholds(radius: int, num_groups: int) -> list[int]:
    """Split d - g + 1 over g groups as evenly as possible."""
    if not num_groups:
        return []
    share, rest = divmod(radius - num_groups + 1, num_groups)
    return [share + (group < rest) for group in range(num_groups)]


def _cost(num_hashes: int, thresholds: list[int], num_kept: int, num_bits: int) -> float:
    num_blocks = sum(thresholds) + len(thresholds) * num_kept
    num_keys = sum(math.comb(threshold + num_kept, num_kept) for threshold in thresholds)
    if num_keys > _MAX_KEYS:
        return math.inf
    sort = num_hashes * (_SORT_SECONDS * math.log2(max(num_hashes, 2)) + _ARRANGE_SECONDS)
    pairs = num_hashes * num_hashes / 2 / 2 ** (num_bits * num_kept / num_blocks)
    return num_keys * (sort + pairs * _COMPARE_SECONDS + _KEY_SECONDS)


def _keys(thresholds: list[int], num_kept: int, num_bits: int) -> tuple[int, ...]:
    """Every choice of `num_kept` blocks within a group; blocks differ by at most one bit in width."""
    num_blocks = sum(thresholds) + len(thresholds) * num_kept
    borders = [num_bits * block // num_blocks for block in range(num_blocks + 1)]
    masks = [(1 << high) - (1 << low) for low, high in itertools.pairwise(borders)]
    keys: list[int] = []
    first = 0
    for threshold in thresholds:
        group = masks[first : first + threshold + num_kept]
        first += threshold + num_kept
        keys.extend(sum(blocks) for blocks in itertools.combinations(group, num_kept))
    return tuple(keys)
