"""The arithmetic of draws that both packages share: shares to whole counts, and numbers mixed to random bits. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Bits = TypeVar("Bits", int, npt.NDArray[np.uint64])

_ALL_BITS = (1 << 64) - 1


def largest_remainders(exact: Sequence[float], total: int) -> list[int]:
    """Whole numbers that sum to `total`, each within one of its exact value. The exact values sum to `total` too.

    Every value is rounded down; then the values with the largest remainders get one more. Of equal remainders the
    first one wins.
    """
    counts = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(counts)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def splitmix64(number: Bits) -> Bits:
    """64 well-mixed bits out of a number, or out of each number of an array.

    Source: the finaliser of SplitMix64, Steele, Lea and Flood, OOPSLA 2014.
    """
    bits: Any = number  # numpy's types take these constants for signed numbers
    bits = (bits + 0x9E3779B97F4A7C15) & _ALL_BITS
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _ALL_BITS
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _ALL_BITS
    mixed: Bits = bits ^ (bits >> 31)
    return mixed
