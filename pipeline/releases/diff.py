"""Changes between two releases, or between what came in and a release. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from manifests.contract.reader import open_reader, rows_of
from manifests.contract.release import Release
from manifests.contract.tables import TAXON_RANKS
from manifests.errors import ConfigError
from pipeline.releases.opening import open_sql, read_json, view_samples, work_folder_of

_COUNTS = """
    SELECT coalesce(b.split, a.split) AS split, coalesce(b.domain, a.domain) AS domain,
        count(a.sample_id) AS before, count(b.sample_id) AS after,
        count(*) FILTER (a.sample_id IS NULL) AS added, count(*) FILTER (b.sample_id IS NULL) AS removed,
        count(*) FILTER (
            (a.text IS DISTINCT FROM b.text OR a.texts IS DISTINCT FROM b.texts) AND a.sample_id = b.sample_id
        ) AS text,
        count(*) FILTER (a.packed <> b.packed) AS image,
        coalesce(sum(b.copies), 0)::BIGINT - coalesce(sum(a.copies), 0)::BIGINT AS more_samples
    FROM a FULL JOIN b ON a.sample_id = b.sample_id AND a.split = b.split
    GROUP BY ALL ORDER BY split DESC, domain
"""
_KINDS = """
    SELECT name, count(*) AS images FROM (
        SELECT unnest(list_distinct(list_concat(map_keys(a.texts), map_keys(b.texts)))) AS name,
            a.texts AS before, b.texts AS after
        FROM a JOIN b ON a.sample_id = b.sample_id AND a.split = b.split
    ) WHERE before[name] IS DISTINCT FROM after[name] GROUP BY name ORDER BY name
"""
_FIELDS = (
    *(f"taxon_{name}" for name in (*TAXON_RANKS, "scientific_name", "vernacular_name")),
    *("licence", "licence_url", "rights_holder", "creator", "reference_url", "group_id", "extra"),
)
_MOVED = """
    SELECT count(*) FROM (SELECT sample_id, split FROM a) x JOIN (SELECT sample_id, split FROM b) y USING (sample_id)
    WHERE x.split <> y.split
"""
# a drawn sample that is gone was taken down
_INCOMING = """
    WITH ended AS (
        SELECT source, domain, r.sample_id IS NULL AS is_gone, r.text IS DISTINCT FROM c.caption AS other_text,
            if(d.keep, 'mix', d.stage) AS stage, CASE WHEN NOT d.keep THEN d.reason
                WHEN c.sample_id IN (SELECT sample_id FROM draws) THEN 'takedown' ELSE 'left_out_by_ratio' END AS reason
        FROM candidates c LEFT JOIN decisions d USING (sample_id)
        LEFT JOIN (SELECT sample_id, any_value(text) AS text FROM released GROUP BY sample_id) r USING (sample_id)
        UNION ALL SELECT source, NULL, true, false, 'ingest', reason FROM rejects
    )
    SELECT source, domain, if(is_gone, stage, NULL) AS stage, if(is_gone, reason, NULL) AS reason, count(*) AS images,
        count(*) FILTER (NOT is_gone AND other_text) AS other_text
    FROM ended GROUP BY ALL ORDER BY source, stage NULLS FIRST, images DESC, reason, domain
"""


def compare_incoming(release: Release) -> dict[str, Any]:
    """As plain values: how many pictures of each source are kept (no reason), have another text, or went for a reason.

    Raises: ConfigError when the work folder of the release is away, or has gone on to another build.
    """
    if (workdir := work_folder_of(release)) is None:
        raise ConfigError(f"{release.path}: only its work folder knows what came in; name another release to compare")
    with open_reader(workdir) as sql:
        current = sql.execute("SELECT fingerprint FROM current_stages WHERE stage = 'pack'").fetchall()
        if current != [(release.origin,)]:
            raise ConfigError(f"{workdir}: holds another build; run the build of {release.name} again")
        view_samples(sql, release, "released")
        return {"release": release.name, "incoming": rows_of(sql, _INCOMING)}


def compare(before: Release, after: Release) -> dict[str, Any]:
    """As plain values: distinct images by split and domain, shards with equal content, changed settings, takedowns."""
    with open_sql() as sql:
        for name, release in (("a", before), ("b", after)):
            view_samples(sql, release, f"{name}_samples")
        shared_columns = {*sql.table("a_samples").columns} & {*sql.table("b_samples").columns}
        names = [name for name in _FIELDS if name in shared_columns]
        fields = ", ".join(f"any_value(hash({name})) AS {name}" for name in names)  # hashes, to hold little
        for name in ("a", "b"):
            columns = sql.table(f"{name}_samples").columns
            has_texts = "texts" in columns  # where a source joins some
            packed = f"coalesce({'packed_sha256, ' * ('packed_sha256' in columns)}stored_sha256)"
            texts = "coalesce(any_value(texts), MAP {})" if has_texts else "MAP([]::VARCHAR[], []::VARCHAR[])"
            sql.execute(
                f"CREATE VIEW {name} AS SELECT sample_id, split, any_value(domain) AS domain, any_value(text) AS text, "
                f"{texts} AS texts, any_value({packed}) AS packed, count(*) AS copies, {fields} "
                f"FROM {name}_samples GROUP BY sample_id, split"
            )
        counted = ", ".join(f"count(*) FILTER (a.{name} <> b.{name}) AS {name}" for name in names)
        (fields_of,) = rows_of(sql, f"SELECT {counted} FROM a JOIN b USING (sample_id, split)")
        kinds = sql.sql(_KINDS).to_arrow_table().to_pylist()
        domains = sql.sql(_COUNTS).to_arrow_table().to_pylist()
        moved = sql.execute(_MOVED).fetchall()[0][0]
    earlier, other = (_shards(release) for release in (before, after))
    hashes = {entry["sha256"] for entry in earlier.values()}
    shared = [name for name, entry in other.items() if entry["sha256"] in hashes]
    return {
        "before": before.name,
        "after": after.name,
        "domains": domains,
        "texts": kinds,
        "fields": [{"name": name, "images": num} for name, num in fields_of.items() if num],
        "moved_between_splits": moved,
        "shards": {
            "before": len(earlier),
            "after": len(other),
            "shared": len(shared),
            "shared_bytes": sum(other[name]["num_bytes"] for name in shared),
            "bytes": sum(entry["num_bytes"] for entry in other.values()),
        },
        "recipe": [
            *_changes("", before.record["recipe"], after.record["recipe"]),
            *_changes("mix.mixture", _chosen(before), _chosen(after)),
        ],
        "takedowns": after.record.get("takedowns", [])[len(before.record.get("takedowns", [])) :],
    }


def _chosen(release: Release) -> dict[str, Any]:
    """Return the choice in the mixture file of a build; it is no part of the recipe."""
    law = read_json(release, "mixture.json").get("law") or {}
    limits = law.get("limits") or {}
    return {"ratio": law["ratio"], "num_samples": limits.get("num_samples")} if law else {}


def _shards(release: Release) -> dict[str, Mapping[str, Any]]:
    splits = release.record["splits"]
    return {f"{split}/{shard['shard']}": shard for split in splits for shard in splits[split]["shards"]}


def _by_name(value: Any) -> Any:
    """Return a list of named sections (sources, evaluation sets), or of sections, as a mapping.

    Changes show one by one.
    """
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return value
    names = [str(item.get("name", number)) for number, item in enumerate(value)]
    return dict(zip(names, value, strict=True)) if len(set(names)) == len(names) else value


def _changes(path: str, before: Any, after: Any) -> Iterator[dict[str, Any]]:
    before, after = _by_name(before), _by_name(after)
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            yield from _changes(f"{path}.{name}" if path else name, before.get(name), after.get(name))
    elif before != after:
        yield {"setting": path, "before": before, "after": after}
