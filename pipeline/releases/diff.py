"""`plantmix diff`: what changed between two releases: samples, texts, domains, shards, recipe. Writes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from manifests import storage
from manifests.release import SAMPLES_FILE, Release
from pipeline.store.sql import open_scratch, view_parquet

_COUNTS = """
    SELECT coalesce(b.split, a.split) AS split, coalesce(b.domain, a.domain) AS domain,
        count(a.sample_id) AS before, count(b.sample_id) AS after,
        count(*) FILTER (a.sample_id IS NULL) AS added, count(*) FILTER (b.sample_id IS NULL) AS removed,
        count(*) FILTER (a.text IS DISTINCT FROM b.text AND a.sample_id = b.sample_id) AS text,
        count(*) FILTER (a.stored_sha256 <> b.stored_sha256) AS image,
        coalesce(sum(b.copies), 0)::BIGINT - coalesce(sum(a.copies), 0)::BIGINT AS more_samples
    FROM a FULL JOIN b ON a.sample_id = b.sample_id AND a.split = b.split
    GROUP BY ALL ORDER BY split DESC, domain
"""
_MOVED = """
    SELECT count(*) FROM (SELECT sample_id, split FROM a) x JOIN (SELECT sample_id, split FROM b) y USING (sample_id)
    WHERE x.split <> y.split
"""


def compare(before: Release, after: Release) -> dict[str, Any]:
    """Counts of distinct images by split and domain, shards with equal content, changed settings, takedowns."""
    with tempfile.TemporaryDirectory() as scratch, open_scratch(scratch, 4.0) as sql:
        for name, release in (("a", before), ("b", after)):
            view_parquet(sql, f"{name}_samples", [storage.join(release.path, SAMPLES_FILE)])
            sql.execute(
                f"CREATE VIEW {name} AS SELECT sample_id, split, any_value(domain) AS domain, any_value(text) AS text, "
                f"any_value(stored_sha256) AS stored_sha256, count(*) AS copies FROM {name}_samples GROUP BY ALL"
            )
        domains = sql.sql(_COUNTS).to_arrow_table().to_pylist()
        moved = sql.execute(_MOVED).fetchall()[0][0]
    own, other = (_shards(release) for release in (before, after))
    shared = [name for name, entry in other.items() if entry["sha256"] in {e["sha256"] for e in own.values()}]
    return {
        "before": before.name,
        "after": after.name,
        "domains": domains,
        "moved_between_splits": moved,
        "shards": {
            "before": len(own),
            "after": len(other),
            "shared": len(shared),
            "shared_bytes": sum(other[name]["num_bytes"] for name in shared),
            "bytes": sum(entry["num_bytes"] for entry in other.values()),
        },
        "recipe": list(_changes("", before.record["recipe"], after.record["recipe"])),
        "takedowns": after.record.get("takedowns", [])[len(before.record.get("takedowns", [])) :],
    }


def describe(found: Mapping[str, Any]) -> list[str]:
    """A comparison as lines that a person reads."""
    lines = [f"{found['before']} -> {found['after']}", ""]
    lines.append(
        f"{'split':<9}{'domain':<14}{'before':>12}{'after':>12}{'added':>11}{'removed':>11}{'text':>9}{'image':>9}"
        f"{'samples':>12}"
    )
    lines += [
        f"{row['split']:<9}{row['domain']:<14}{row['before']:>12,}{row['after']:>12,}{row['added']:>11,}"
        f"{row['removed']:>11,}{row['text']:>9,}{row['image']:>9,}{row['more_samples']:>+12,}"
        for row in found["domains"]
    ]
    lines.append("(distinct images; text, image: changed ones; samples: with repeats)")
    if found["moved_between_splits"]:
        lines.append(f"{found['moved_between_splits']:,} images are in another split than before")
    shards = found["shards"]
    lines += ["", f"shards: {shards['before']:,} -> {shards['after']:,}, {shards['shared']:,} with the same content "
                  f"({shards['shared_bytes']:,} of {shards['bytes']:,} bytes)"]  # fmt: skip
    for entry in found["takedowns"]:
        lines.append(f"taken down: {entry['num_images']:,} images, reason: {entry['reason']}")
    lines += [f"recipe: {change['setting']}: {change['before']} -> {change['after']}" for change in found["recipe"]]
    if not found["recipe"]:
        lines.append("recipe: the same")
    return lines


def _shards(release: Release) -> dict[str, Mapping[str, Any]]:
    splits = release.record["splits"]
    return {f"{split}/{shard['shard']}": shard for split in splits for shard in splits[split]["shards"]}


def _changes(place: str, before: Any, after: Any) -> Iterator[dict[str, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            yield from _changes(f"{place}.{name}" if place else name, before.get(name), after.get(name))
    elif before != after:
        yield {"setting": place, "before": before, "after": after}
