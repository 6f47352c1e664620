"""Is one picture a copy of another: re-encoded, resized or mirrored? The one answer for both packages.

Two hashes of 64 bits say so, and both must be near: the pHash, which sees the layout of the whole picture, and the hash
of its middle, which tells sheets of one layout apart (pipeline/fetching/pictures/phash.py). What a picture is said to
show parts nothing. Hashes in, answers out; pure.

The price of the second hash, on 500 photos of groceries (2026-12-01): of copies that were re-encoded (JPEG quality 50
to 95), resized (0.25 to 2 times), stored at 64 px, mirrored or made grey both hashes find all, and so of 100 photos
blurred by 14 px of 256. Cut alike at all edges, by 2 % in all, 474 are found, as by the pHash alone; cut at one corner
by 1 % 451 and not 474, by 2 % 69 and not 269.

What it parts: of 1,672 pairs of drawn sheets with near pHashes none still counts as copies. Of 1,300 photos on one
sheet, a third of its width wide, 44,559 pairs have near pHashes and 107 count; half as wide as the sheet, 1,748 and 12.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

RADIUS = 4  # bits in which the pHashes of copies differ at most
MIDDLE_RADIUS = 7  # bits in which the hashes of their middles differ at most

# The pHash of a picture of nearly one colour tells nothing: many such pictures share one. The pHash of a few lines on
# one colour has hardly a set bit. Photos of groceries have 32 set bits of 64, and a spread of light of 24 and more.
FLAT_BITS = 4  # set bits of a pHash
FLAT_PIXEL_STD = 2.0  # standard deviation of the luminance

Hashes = npt.NDArray[np.uint64]


def near_middles(one: str, other: str) -> str:
    """Return SQL that tells whether two hashes of middles are those of copies."""
    return f"bit_count(xor({one}, {other})) <= {MIDDLE_RADIUS}"


def near_pairs(hashes: Hashes, others: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the pairs that differ in at most RADIUS bits: places in `hashes` (P,) and in `others` (P,).

    Two such hashes are equal in one of RADIUS + 1 groups of bits, so only pairs with an equal group are compared.
    """
    edges = np.linspace(0, 64, RADIUS + 2).astype(int)
    found: list[npt.NDArray[np.int64]] = []
    for low, high in itertools.pairwise(edges.tolist()):
        shift, mask = np.uint64(low), np.uint64((1 << (high - low)) - 1)
        part, of_others = (hashes >> shift) & mask, (others >> shift) & mask
        order = np.argsort(of_others, kind="stable")
        starts = np.searchsorted(of_others[order], part, "left")
        nums = np.searchsorted(of_others[order], part, "right") - starts
        place = np.repeat(np.arange(len(hashes)), nums)
        within = np.arange(len(place)) - np.repeat(np.cumsum(nums) - nums, nums)
        pairs = np.stack([place, order[np.repeat(starts, nums) + within]])
        found.append(pairs[:, np.bitwise_count(hashes[pairs[0]] ^ others[pairs[1]]) <= RADIUS])
    pairs = np.unique(np.concatenate(found, axis=1), axis=1)
    return pairs[0], pairs[1]


def are_near(hashes: Hashes, other: np.uint64, radius: int) -> npt.NDArray[np.bool_]:
    """Which hashes differ from another one in at most `radius` bits."""
    near: npt.NDArray[np.bool_] = np.bitwise_count(hashes ^ other) <= radius
    return near
