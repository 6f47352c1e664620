"""All pairs of hashes within a radius, by looking at each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from manifests.contract import tables

RADIUS = 4


def look_of(phash: int, middle_hash: int = 0) -> int:
    """Both hashes of a picture as one number."""
    return (phash * 0x9E3779B97F4A7C15 + middle_hash) % 2**64


def pairs_of(hashes: np.ndarray, radius: int = RADIUS, look: Callable[[int], int] = int) -> pa.Table:
    distinct = sorted({int(value) for value in hashes})
    rows = [
        {
            "look_a": min(look(a), look(b)),
            "look_b": max(look(a), look(b)),
            "distance": (a ^ b).bit_count(),
            "mirrored": False,
        }
        for at, a in enumerate(distinct)
        for b in distinct[at + 1 :]
        if (a ^ b).bit_count() <= radius
    ]
    return pa.Table.from_pylist(rows, schema=tables.PAIRS)
