"""Pictures side by side: examples of every drop reason, leaks, groups of duplicates, close calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from manifests.contract.release import Release
from pipeline.browse.image_index import FROM, NOT_INSTEAD, ROW, ImageIndex
from pipeline.judging.matching.search import find_pairs
from pipeline.releases.opening import open_sql, view_samples

EXAMPLES = 6
MAX_REASONS = 60
MAX_GROUPS = 12
GROUP_MEMBERS = 8
MAX_CLOSE_CALLS = 12
WIDER_BITS = 2  # beyond the radius
SEARCHED_HASHES = 100_000  # for pairs just outside the radius, which no table holds
SEARCH_BYTES = 256 << 20
MOST_PAIRS = 1 << 24
MAX_LEAKS = 60
MAX_CHANGES = 24

# Images of evaluation sets are not kept. A candidate with the same bytes or pixels shows what one looks like.
TWIN = (
    "(SELECT min(o.sample_id) FROM leaks o WHERE o.evaluation_set = l.evaluation_set AND "
    "o.evaluation_member = l.evaluation_member AND o.matched IN ('bytes', 'pixels')) AS twin"
)


@dataclass(frozen=True)
class _Pair:
    """Two pHashes and how many bits they are apart, as they are or one of them mirrored."""

    phash_a: int
    phash_b: int
    distance: int
    mirrored: bool = False


def _reasons(image_index: ImageIndex) -> dict[str, Any]:
    """Each stage and reason with its count and the first images, the most frequent first."""
    rows = image_index.rows(
        "SELECT stage, reason, count(*) AS num FROM session.images WHERE reason <> '' "
        f"GROUP BY ALL ORDER BY num DESC, stage, reason LIMIT {MAX_REASONS}"
    )
    for one in rows:
        chosen = {"stage": (one["stage"],), "reason": (one["reason"],)}
        one["images"] = image_index.at(image_index.codes.page(chosen, None, 0, False, EXAMPLES))
    return {"reasons": rows}


def _duplicates(image_index: ImageIndex) -> dict[str, Any]:
    """Return the largest groups, contradicting copies, and pairs just inside and just outside the radius."""
    return {"groups": _groups(image_index), "conflicts": _conflicts(image_index), **_close_calls(image_index)}


def _groups(image_index: ImageIndex) -> list[dict[str, Any]]:
    """Return the images for which most duplicates were dropped, each with its group."""
    heads = image_index.rows(
        "SELECT other::VARCHAR AS id, count(*) AS num FROM session.images "
        f"WHERE other IS NOT NULL AND reason NOT IN {NOT_INSTEAD} "
        f"GROUP BY 1 ORDER BY num DESC, id LIMIT {MAX_GROUPS}"
    )
    kept = {image["id"]: image for image in image_index.images([head["id"] for head in heads])}
    return [
        {"num": head["num"] + 1, "head": head["id"], "images": image_index.duplicates(kept[head["id"]])[:GROUP_MEMBERS]}
        for head in heads
        if head["id"] in kept
    ]


def _conflicts(image_index: ImageIndex) -> list[dict[str, Any]]:
    """Images that stay beside a copy that contradicts them, the same bytes first."""
    if image_index.snapshot.release:
        return []
    rows = image_index.rows(
        "SELECT sample_id, other_sample_id, about, matched, value, other_value FROM conflicts "
        f"ORDER BY matched DESC, about, sample_id, other_sample_id LIMIT {MAX_CLOSE_CALLS}"
    )
    ids = {row[name] for row in rows for name in ("sample_id", "other_sample_id")}
    images = {image["id"]: image for image in image_index.images(sorted(ids))}
    shown = [{**row, "images": [images.get(row[name]) for name in ("sample_id", "other_sample_id")]} for row in rows]
    return [row for row in shown if all(row["images"])]


def _close_calls(image_index: ImageIndex) -> dict[str, Any]:
    """Pairs at the largest distance of a duplicate, pairs just beyond it, and how many hashes were searched."""
    radius = image_index.snapshot.radius
    if radius is None:
        return {"inside": [], "outside": [], "searched": 0}
    furthest = image_index.rows(
        "SELECT phash_a, phash_b, distance, mirrored FROM pairs WHERE phash_a <> phash_b "
        f"ORDER BY distance DESC, phash_a, phash_b LIMIT {MAX_CLOSE_CALLS}"
    )
    inside = [_Pair(**row) for row in furthest]
    hashes = image_index.rows(
        "SELECT DISTINCT phash FROM (SELECT phash FROM session.images WHERE phash IS NOT NULL "
        f"ORDER BY sample_id LIMIT {SEARCHED_HASHES}) ORDER BY 1"
    )
    listed = np.array([row["phash"] for row in hashes], np.uint64)
    low, high = find_pairs(listed, radius + WIDER_BITS, scratch_bytes=SEARCH_BYTES, max_pairs=MOST_PAIRS)
    apart = np.bitwise_count(low ^ high)
    beyond = [
        _Pair(*pair) for pair in zip(low.tolist(), high.tolist(), apart.tolist(), strict=True) if pair[2] > radius
    ]
    beyond = sorted(beyond, key=lambda pair: (pair.distance, pair.phash_a, pair.phash_b))[:MAX_CLOSE_CALLS]
    shown = {"inside": _with_images(image_index, inside), "outside": _with_images(image_index, beyond)}
    return shown | {"searched": len(listed)}


def _with_images(image_index: ImageIndex, pairs: Sequence[_Pair]) -> list[dict[str, Any]]:
    hashes = sorted({phash for pair in pairs for phash in (pair.phash_a, pair.phash_b)})
    if not hashes:
        return []
    listed = ", ".join(str(int(one)) for one in hashes)
    images = image_index.rows(
        f"SELECT {ROW} FROM {FROM} WHERE i.phash IN ({listed}) "
        "QUALIFY row_number() OVER (PARTITION BY i.phash ORDER BY i.sample_id) = 1"
    )
    by_hash = {image["phash"]: image for image in images}
    shown = [{**asdict(pair), "images": [by_hash.get(pair.phash_a), by_hash.get(pair.phash_b)]} for pair in pairs]
    return [pair for pair in shown if all(pair["images"])]


def _leaks(image_index: ImageIndex) -> dict[str, Any]:
    """Leaks by evaluation set and how they were matched, and the first of them with the image of the set."""
    if image_index.snapshot.release:
        return {"summary": [], "leaks": []}
    summary = image_index.rows(
        "SELECT evaluation_set, matched, count(*) AS num FROM leaks GROUP BY ALL "
        "ORDER BY num DESC, evaluation_set, matched"
    )
    rows = image_index.rows(
        f"SELECT {ROW}, l.evaluation_set, l.evaluation_member, l.matched, l.distance AS bits, {TWIN} FROM leaks l "
        "JOIN session.images i ON i.sample_id = l.sample_id::UUID "
        f"ORDER BY l.evaluation_set, l.evaluation_member, i.sample_id LIMIT {MAX_LEAKS}"
    )
    return {"summary": summary, "leaks": rows}


# What the template of each page shows.
GALLERIES: dict[str, Callable[[ImageIndex], dict[str, Any]]] = {
    "reasons": _reasons,
    "duplicates": _duplicates,
    "leaks": _leaks,
}


def changes(before: Release, after: Release) -> dict[str, list[str]]:
    """Return some of the images that only one of two releases holds, drawn by hash."""
    with open_sql() as sql:
        view_samples(sql, before, "old")
        view_samples(sql, after, "new")
        only = (
            "SELECT sample_id FROM {} WHERE copy = 0 AND sample_id NOT IN (SELECT sample_id FROM {}) "
            f"ORDER BY md5(sample_id) LIMIT {MAX_CHANGES}"
        )
        return {
            name: [row[0] for row in sql.execute(only.format(here, there)).fetchall()]
            for name, here, there in (("added", "new", "old"), ("removed", "old", "new"))
        }
