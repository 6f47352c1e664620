"""Is one picture a copy of another: re-encoded, resized or mirrored? The one answer for both packages.

Two hashes of 64 bits say so, and both must be near: the pHash, which sees the layout of the whole picture, and the hash
of its middle, which tells sheets of one layout apart (pipeline/pictures/phash.py). What a picture is said to show
parts nothing. Hashes in, answers out; pure.

The price of the second hash, on 200 photos of groceries and 100 drawn sheets, stored at 256 px: of copies that the
pHash finds, re-encoded (JPEG quality 50 to 95), resized (0.25 to 2 times), mirrored or grey, none is missed; cut by
1 % 2 in 100, by 2 % 21 in 100. Of 121,670 pairs of drawn sheets that have one layout, other plants and near pHashes,
198 still count as copies; of 1,970 such pairs of sheets with photos, 2 (2026-12-01).
"""

from __future__ import annotations

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
    """SQL: whether two hashes of middles are those of copies."""
    return f"bit_count(xor({one}, {other})) <= {MIDDLE_RADIUS}"


def are_near(hashes: Hashes, other: np.uint64, radius: int) -> npt.NDArray[np.bool_]:
    """Which hashes differ from another one in at most `radius` bits."""
    near: npt.NDArray[np.bool_] = np.bitwise_count(hashes ^ other) <= radius
    return near
