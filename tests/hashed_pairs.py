"""All pairs of hashes within a radius, by looking at each."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from manifests import tables

RADIUS = 4


def pairs_of(hashes: np.ndarray, radius: int = RADIUS) -> pa.Table:
    distinct = sorted({int(value) for value in hashes})
    rows = [
        {"phash_a": a, "phash_b": b, "distance": (a ^ b).bit_count()}
        for at, a in enumerate(distinct)
        for b in distinct[at + 1 :]
        if (a ^ b).bit_count() <= radius
    ]
    return pa.Table.from_pylist(rows, schema=tables.PAIRS)
