"""Is one picture a copy of another: re-encoded, resized or mirrored? The one answer for both packages.

Two hashes of 64 bits say so, and both must be near: the pHash, which sees the layout of the whole picture, and the hash
of its middle, which tells sheets of one layout apart. Hashes in, answers out; pure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

RADIUS = 4  # bits in which the pHashes of copies differ at most
MIDDLE_RADIUS = 6  # bits in which the hashes of their middles differ at most
MIRRORING = 0  # the bits of the hash of a middle that its mirror image has the other way

# The pHash of a picture of nearly one colour tells nothing: many such pictures share one. The pHash of a few lines on
# one colour has hardly a set bit. Photos of groceries have 32 set bits of 64, and a spread of light of 24 and more.
FLAT_BITS = 4  # set bits of a pHash
FLAT_PIXEL_STD = 2.0  # standard deviation of the luminance

Hashes = npt.NDArray[np.uint64]


def are_copies(
    phash: Hashes, middle: Hashes | None, other_phash: Any, other_middle: Any, radius: int = RADIUS
) -> npt.NDArray[np.bool_]:
    """Which pictures are copies of others, hash by hash (numpy broadcasts). Without `middle` the pHash alone decides.

    For the mirror image of the others, give their `phash_mirrored` and `other_middle ^ MIRRORING`.
    """
    near: npt.NDArray[np.bool_] = (np.bitwise_count(phash ^ other_phash) <= radius) & (
        np.bitwise_count(phash) > FLAT_BITS
    )
    if middle is not None:
        near &= np.bitwise_count(middle ^ other_middle) <= MIDDLE_RADIUS
    return near
