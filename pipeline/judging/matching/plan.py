"""Choose which bits must agree: a small family of keys that finds every pair within the radius.

A number of hashes, a radius and a number of bits in, a `SearchPlan` out. Pure.

The bits are cut into g groups, and each group into blocks. The groups have thresholds t_i that add up to d - g + 1 for
the radius d. Were more than t_i bits different in every group, the sum would be d + 1 or more; so a pair within the
radius has a group with at most t_i different bits. That group has t_i + k blocks, so some k of them agree exactly. A
key is one choice of k blocks of one group, and the pair falls into one bucket of at least one key.

With one group this is the block combination of Manku et al. Several groups need fewer sorts for about the same number
of key bits (at d = 8: 105 keys of 16 to 18 bits in place of 165 of 17). When no key pays, the plan is a single empty
key, which compares everything with everything.

Source: Manku, Jain, Das Sarma, Detecting near-duplicates for web crawling, WWW 2007; the pigeonhole over
groups with unequal thresholds: Qin et al., GPH: similarity search in Hamming space, ICDE 2018.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

# Measured on one core of an AMD EPYC (Zen 5), NumPy 2.4, 4 to 13 M random uint64.
_SORT_SECONDS = 0.22e-9  # np.sort with AVX-512, per element and per doubling of the array: 0.07 s at 13 M
_ARRANGE_SECONDS = 11e-9  # moving the key to the top (2), finding bucket borders and other work (9), per element
_COMPARE_SECONDS = 0.75e-9  # xor, popcount, threshold, per pair; 0.45 of it is the work, the rest ragged buckets
_CROSS_SECONDS = 9e-9  # against other hashes: moving the key to the top and reading its mark, per element
_CROSS_FIND_SECONDS = 51e-9  # sorting and binary search of an element whose mark is set
_CROSS_COMPARE_SECONDS = 2.5e-9  # gather, xor, popcount, per pair
_KEY_SECONDS = 150e-6  # Python around one key, whatever its size

EVEN = (1.0,) * 64  # every bit is a fair coin, as in a good hash

_MAX_KEYS = 4000  # a larger family costs more than it saves at any size that fits one machine


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


def choose_plan(
    num_hashes: int, radius: int, bit_entropies: Sequence[float] = EVEN, num_others: int | None = None
) -> SearchPlan:
    """Return the cheapest plan for `num_hashes` distinct hashes among themselves, or against `num_others` other ones.

    `bit_entropies` says of each bit, the lowest first, how well it tells two hashes apart: 1 for a fair coin, 0 for a
    bit that is always the same. Blocks get equal shares of their sum. So a bit that hardly varies makes its block
    wider, and not its buckets larger.
    """
    num_bits = len(bit_entropies)
    reach, entropy, rounded = min(radius, num_bits), round(sum(bit_entropies)), _rounded(num_hashes)
    num_pairs = rounded * rounded / 2 if num_others is None else float(rounded * _rounded(num_others))
    others = 0 if num_others is None else _rounded(num_others)
    seconds, num_groups, num_kept = _choose(rounded, others, num_pairs, reach, num_bits, entropy)
    keys: tuple[int, ...] = (0,)
    if num_groups:
        keys = _keys(_thresholds(reach, num_groups), num_kept, bit_entropies)
    return SearchPlan(num_bits, radius, keys, seconds)


def _rounded(num: int) -> int:
    """Return a number rounded up to three leading binary digits: few sizes occur, and their choices are used again."""
    step = 1 << max(0, num.bit_length() - 3)
    return -(-num // step) * step


@lru_cache(maxsize=1 << 14)
def _choose(
    num_hashes: int, num_others: int, num_pairs: float, radius: int, num_bits: int, entropy: int
) -> tuple[float, int, int]:
    """Seconds, groups and blocks in a key of the cheapest family; no groups when comparing everything is cheaper."""
    best = (num_pairs * (_CROSS_COMPARE_SECONDS if num_others else _COMPARE_SECONDS) + _KEY_SECONDS, 0, 0)
    for num_groups in range(1, radius + 2):
        thresholds = _thresholds(radius, num_groups)
        for num_kept in range(1, num_bits + 1):
            if sum(thresholds) + num_groups * num_kept > num_bits:
                break
            seconds = _cost(num_hashes, num_others, num_pairs, thresholds, num_kept, entropy)
            if seconds < best[0]:
                best = (seconds, num_groups, num_kept)
    return best


def _thresholds(radius: int, num_groups: int) -> list[int]:
    """Split d - g + 1 over g groups as evenly as possible."""
    share, rest = divmod(radius - num_groups + 1, num_groups)
    return [share + (group < rest) for group in range(num_groups)]


def _cost(
    num_hashes: int, num_others: int, num_pairs: float, thresholds: list[int], num_kept: int, entropy: int
) -> float:
    num_blocks = sum(thresholds) + len(thresholds) * num_kept
    num_keys = sum(math.comb(threshold + num_kept, num_kept) for threshold in thresholds)
    if num_keys > _MAX_KEYS:
        return math.inf
    num_buckets = 2 ** (entropy * num_kept / num_blocks)
    in_buckets = num_pairs / num_buckets
    if num_others:
        find = num_hashes * (_CROSS_SECONDS + _CROSS_FIND_SECONDS * min(1.0, num_others / num_buckets))
        return num_keys * (find + in_buckets * _CROSS_COMPARE_SECONDS + _KEY_SECONDS)
    sort = num_hashes * (_SORT_SECONDS * math.log2(max(num_hashes, 2)) + _ARRANGE_SECONDS)
    return num_keys * (sort + in_buckets * _COMPARE_SECONDS + _KEY_SECONDS)


def _keys(thresholds: list[int], num_kept: int, bit_entropies: Sequence[float]) -> tuple[int, ...]:
    """Every choice of `num_kept` blocks within a group, as masks."""
    num_blocks = sum(thresholds) + len(thresholds) * num_kept
    borders = _borders(num_blocks, bit_entropies)
    masks = [(1 << high) - (1 << low) for low, high in itertools.pairwise(borders)]
    keys: list[int] = []
    first = 0
    for threshold in thresholds:
        group = masks[first : first + threshold + num_kept]
        first += threshold + num_kept
        keys.extend(sum(blocks) for blocks in itertools.combinations(group, num_kept))
    return tuple(keys)


def _borders(num_blocks: int, bit_entropies: Sequence[float]) -> list[int]:
    """Cut the bits into blocks of one bit or more with about equal entropy."""
    num_bits = len(bit_entropies)
    sums = list(itertools.accumulate(bit_entropies, initial=0.0))
    borders = [0]
    for block in range(1, num_blocks):
        ideal = sums[-1] * block / num_blocks
        nearest = min(range(num_bits + 1), key=lambda bit: abs(sums[bit] - ideal))
        borders.append(min(max(nearest, borders[-1] + 1), num_bits - (num_blocks - block)))
    return [*borders, num_bits]
