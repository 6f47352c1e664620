"""What is shown side by side: examples of every drop reason, leaks, groups of duplicates, close calls, taxa."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.browse.looking import FROM, ROW, Looking
from pipeline.matching import hamming_pairs

EXAMPLES = 6
MAX_REASONS = 60
MAX_GROUPS = 12
GROUP_MEMBERS = 8
MAX_CLOSE_CALLS = 12
SEARCHED_HASHES = 100_000  # for pairs just outside the radius, which no table holds
MAX_LEAKS = 60
MAX_TAXA = 40


def reasons(looking: Looking) -> list[dict[str, Any]]:
    """Each stage and reason with its count and the first images, the most frequent first."""
    found = looking.rows(
        "SELECT stage, reason, count(*) AS num FROM session.images WHERE reason <> '' "
        f"GROUP BY ALL ORDER BY num DESC, stage, reason LIMIT {MAX_REASONS}"
    )
    for one in found:
        one["images"] = looking.rows(
            f"SELECT {ROW} FROM {FROM} WHERE i.stage = ? AND i.reason = ? ORDER BY i.sample_id LIMIT {EXAMPLES}",
            [one["stage"], one["reason"]],
        )
    return found


def groups(looking: Looking) -> list[dict[str, Any]]:
    """The images for which most duplicates were dropped, each with its group."""
    heads = looking.rows(
        "SELECT other::VARCHAR AS id, count(*) AS num FROM session.images "
        "WHERE other IS NOT NULL AND reason <> 'eval_leak' "
        f"GROUP BY 1 ORDER BY num DESC, id LIMIT {MAX_GROUPS}"
    )
    kept = {image["id"]: image for image in looking.images([head["id"] for head in heads])}
    return [
        {"num": head["num"] + 1, "head": head["id"], "images": looking.duplicates(kept[head["id"]])[:GROUP_MEMBERS]}
        for head in heads
        if head["id"] in kept
    ]


def close_calls(looking: Looking) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Pairs at the largest distance that counts as a duplicate, pairs just beyond it, and hashes searched for those."""
    radius = looking.snapshot.radius
    if radius is None:
        return [], [], 0
    inside = looking.rows(
        f"SELECT phash_a, phash_b, distance FROM pairs ORDER BY distance DESC, phash_a, phash_b LIMIT {MAX_CLOSE_CALLS}"
    )
    hashes = looking.rows(
        "SELECT DISTINCT phash FROM (SELECT phash FROM session.images WHERE phash IS NOT NULL "
        f"ORDER BY sample_id LIMIT {SEARCHED_HASHES}) ORDER BY 1"
    )
    listed = np.array([row["phash"] for row in hashes], np.uint64)
    beyond: list[dict[str, Any]] = []
    for distance in (radius + 1, radius + 2):
        if len(beyond) < MAX_CLOSE_CALLS and len(listed):
            pairs = hamming_pairs(listed, distance).to_pydict()
            beyond += [
                {"phash_a": int(listed[a]), "phash_b": int(listed[b]), "distance": bits}
                for a, b, bits in zip(*pairs.values(), strict=True)
                if bits == distance
            ][: MAX_CLOSE_CALLS - len(beyond)]
    return _with_images(looking, inside), _with_images(looking, beyond), len(listed)


def _with_images(looking: Looking, pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    wanted = sorted({pair[name] for pair in pairs for name in ("phash_a", "phash_b")})
    if not wanted:
        return []
    listed = ", ".join(str(int(one)) for one in wanted)
    images = looking.rows(
        f"SELECT {ROW} FROM {FROM} WHERE i.phash IN ({listed}) "
        "QUALIFY row_number() OVER (PARTITION BY i.phash ORDER BY i.sample_id) = 1"
    )
    by_hash = {image["phash"]: image for image in images}
    shown = [{**pair, "images": [by_hash.get(pair["phash_a"]), by_hash.get(pair["phash_b"])]} for pair in pairs]
    return [pair for pair in shown if all(pair["images"])]


def leaks(looking: Looking) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Leaks by evaluation set and how they were matched, and the first of them with the image of the set."""
    if looking.snapshot.release:
        return [], []
    summary = looking.rows(
        "SELECT evaluation_set, matched, count(*) AS num FROM leaks GROUP BY ALL "
        "ORDER BY num DESC, evaluation_set, matched"
    )
    found = looking.rows(
        f"SELECT {ROW}, l.evaluation_set, l.evaluation_member, l.matched, l.distance AS bits FROM leaks l "
        "JOIN session.images i ON i.sample_id = l.sample_id::UUID "
        f"ORDER BY l.evaluation_set, l.evaluation_member, i.sample_id LIMIT {MAX_LEAKS}"
    )
    return summary, found


def taxa(looking: Looking) -> dict[str, Any]:
    """The most and the least frequent taxa, with how many were packed, and one image each."""
    counted = (
        "SELECT taxon, count(*) AS num, count(*) FILTER (stage = 'packed') AS packed, "
        "min(sample_id) FILTER (coalesce(pool_file, shard) IS NOT NULL) AS example "
        "FROM session.images WHERE taxon <> '' GROUP BY taxon"
    )
    totals = looking.rows(f"SELECT count(*) AS taxa, count(*) FILTER (num = 1) AS once FROM ({counted})")[0]
    head = looking.rows(f"SELECT * FROM ({counted}) ORDER BY num DESC, taxon LIMIT {MAX_TAXA}")
    tail = looking.rows(f"SELECT * FROM ({counted}) ORDER BY num, taxon LIMIT {MAX_TAXA}")
    for row in (*head, *tail):
        row["example"] = None if row["example"] is None else row["example"].hex
    return {**totals, "head": head, "tail": tail}
