"""dedup: measure which images look alike; who of them stays is decided in select, where all else is known.

Reads facts. Writes `pairs`: every pair of different pHashes within the radius (exact search). Drops nothing:
if the better of two duplicates later falls to a caption rule, the other one must still be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from manifests import tables
from manifests.catalog import Funnel
from pipeline.matching import degenerate_hashes, distinct_pairs
from pipeline.stages.sql import open_scratch, view_parquet
from pipeline.work import BuildContext, Part, PartResult, Stage, Step, fingerprint, write_table

VERSION = 1
MAX_NAMED_PLACEHOLDERS = 20


def match(payload: dict[str, Any]) -> PartResult:
    """Pairs of pHashes within the radius, over the distinct stored images."""
    with open_scratch(payload) as sql:
        view_parquet(sql, "facts", payload["facts"])
        # the same bytes under many URLs are one image here: placeholders are many images that look alike
        images = sql.sql(
            "SELECT pixels_sha256, any_value(phash) AS phash FROM facts WHERE outcome = 'ok' GROUP BY 1 ORDER BY 1"
        ).to_arrow_table()
    hashes = images["phash"].to_numpy().astype(np.uint64)
    memory = int(payload["memory_gb"] * (1 << 30))
    found = distinct_pairs(hashes, payload["radius"], memory_limit_bytes=memory)
    rows = pa.table(
        {
            "phash_a": pa.array(found.hashes[found.left], pa.uint64()),
            "phash_b": pa.array(found.hashes[found.right], pa.uint64()),
            "distance": pa.array(found.distance, pa.uint8()),
        }
    )
    placeholders = degenerate_hashes(hashes, payload["placeholder_min_count"]).slice(0, MAX_NAMED_PLACEHOLDERS)
    notes = {
        "num_images": len(hashes),
        "num_hash_pairs": rows.num_rows,
        "radius": payload["radius"],
        "placeholders": {f"{row['hash']:016x}": row["count"] for row in placeholders.to_pylist()},
    }
    file = write_table(payload["workdir"], "pairs", f"tables/dedup/{payload['stem']}.parquet", rows, tables.PAIRS)
    return PartResult((file,), None, notes)


def _identity(context: BuildContext) -> dict[str, Any]:
    dedup = context.config.dedup
    return {
        "version": VERSION,
        "radius": dedup.radius,
        "placeholder_min_count": dedup.placeholder_min_count,
        "facts": context.sealed["fetch"].notes["content"],
    }


def _plan(context: BuildContext) -> Sequence[Part]:
    key = fingerprint({"stage": context.fingerprint})
    dedup = context.config.dedup
    payload = {
        "facts": context.files("fetch", "facts"),
        "radius": dedup.radius,
        "placeholder_min_count": dedup.placeholder_min_count,
        "stem": key[:16],
        **context.execution(),
    }
    return [Part(key, payload)]


def _conclude(context: BuildContext) -> tuple[Funnel, dict[str, Any]]:
    (part,) = context.own_parts("match")
    num = context.sealed["fetch"].funnel.num_kept
    return Funnel(num, num), dict(part.notes)


STAGE = Stage(
    name="dedup",
    about="find images that look alike (measured here, decided in select)",
    identity=_identity,
    steps=(Step("match", _plan, match),),
    conclude=_conclude,
)
