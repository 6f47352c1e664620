"""Versions of one release: which there are, which pictures they hold, and a new one without some samples.

A new version is written beside the old one. Shards that lose nothing are hard links (or copies) of the old ones, the
others are cut, tables and small files are made anew, and the record says what was taken out and why.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.contract.records import fingerprint
from manifests.contract.release import LATEST_FILE, RECORD_FILE, SAMPLES_FILE, SPLIT_FOLDERS, Release, read_record
from manifests.errors import ConfigError, IntegrityError
from manifests.stores import storage
from manifests.stores.faults import ask
from manifests.stores.storage import read_if_there
from pipeline.releases.cutting import cut_shard
from pipeline.releases.lookup import images_of
from pipeline.releases.opening import open_sql, read_json, samples_path, view_samples
from pipeline.sidefiles import write
from pipeline.store.sql import view_parquet

Row = Mapping[str, Any]


def releases_beside(release: Release) -> list[Release]:
    """Releases in the folder of a release, itself included; a folder without a readable record is passed over."""
    parent = _folder_of(release)
    fs, inner = storage.filesystem(parent)
    releases = []
    for path in sorted(str(path).rstrip("/") for path in ask(parent, lambda: fs.ls(inner, detail=False))):
        folder = storage.join(parent, path.rpartition("/")[2])
        with contextlib.suppress(ConfigError, IntegrityError, OSError):
            releases.append(Release(folder, read_record(folder)))
    return releases


def num_held_by(release: Release, stored: Sequence[str]) -> int:
    """Return how many of the pictures with these stored_sha256 a release holds."""
    with open_sql() as sql:
        view_samples(sql, release)
        sql.register("wanted", pa.table({"stored_sha256": pa.array(stored, pa.string())}))
        query = "SELECT count(DISTINCT stored_sha256) FROM samples SEMI JOIN wanted USING (stored_sha256)"
        return int(sql.execute(query).fetchall()[0][0])


def fingerprint_without(release: Release, takedowns: Sequence[Row]) -> str:
    """Fingerprint of the version that these takedowns make of a release."""
    return fingerprint({"from": release.fingerprint, "takedowns": takedowns, "side_files": write.VERSION})


def write_version(
    release: Release, gone: Sequence[Row], takedowns: Sequence[Row], *, is_newest: bool = True
) -> Release:
    """Write a version of a release without the samples in `gone`; the pointers name it where it is the newest.

    Raises: ConfigError when nothing would be left; IntegrityError when a shard is not as recorded.
    """
    if len(gone) == sum(release.num_samples(split) for split in release.splits):
        raise ConfigError(f"{release.path}: nothing would be left; delete the release instead")
    version = fingerprint_without(release, takedowns)
    record = _new_record(release, gone, takedowns, version)
    parent, name = _folder_of(release), f"{record['name']}-{record['version']}"
    folder = storage.join(parent, name)
    versions = {release.name, *(other.name for other in releases_beside(release) if other.origin == release.origin)}
    files = _write_shards(release, gone, folder, record)
    with open_sql() as sql:
        samples, mixture = storage.join(folder, SAMPLES_FILE), _new_mixture(release, gone)
        _count_groups(sql, samples, mixture)
        for side_file, content in write.side_files(record, mixture, samples, folder, sql):
            files.append(storage.publish_bytes(storage.join(folder, side_file), content))
    for file in files:
        record["files"][file.path[len(folder) :].lstrip("/")] = {"num_bytes": file.num_bytes, "sha256": file.sha256}
    storage.publish_bytes(storage.join(folder, RECORD_FILE), write.json_bytes(record))
    if is_newest:
        _move_pointers(parent, record["name"], versions, name)
    return Release.open(folder)


def _folder_of(release: Release) -> str:
    return release.path.rstrip("/").rpartition("/")[0] or "."


def _write_shards(
    release: Release, gone: Sequence[Row], folder: str, record: dict[str, Any]
) -> list[storage.WrittenFile]:
    """Link or cut every shard, and enter it in the record; samples.parquet and attribution.parquet with what is left.

    One shard after the other, so that the places of no more samples than one shard has are held.
    """
    lost: dict[tuple[str, str], list[Row]] = {}
    for row in gone:
        lost.setdefault((row["split"], row["shard"]), []).append(row)
    recorded = {
        (split, one["shard"]): one for split in release.splits for one in release.record["splits"][split]["shards"]
    }
    written: dict[tuple[str, str], dict[str, Any]] = {}
    with storage.open_file(samples_path(release)) as stream, pq.ParquetFile(stream) as source:
        writer = write.SamplesWriter(folder, "", source.schema_arrow.remove_metadata())
    try:
        for split, shard, rows in release.iter_shards():
            going = lost.get((split, shard), [])
            if len(going) == recorded[split, shard]["num_samples"]:  # a shard of which nothing is left is no shard
                continue
            old, new = (storage.join(path, SPLIT_FOLDERS[split], shard) for path in (release.path, folder))
            storage.make_parent(new)
            entry = written[split, shard] = dict(recorded[split, shard])
            if going:
                entry |= cut_shard(old, new, {row["key"] for row in going}, entry["sha256"])
                entry["domains"] = {domain: num for domain, num in _fewer(entry["domains"], going).items() if num}
                rows = _moved_rows(rows, entry.pop("places"))
            else:
                storage.link_or_copy(old, new)
            writer.write(rows)
    except BaseException:
        for file in writer.close():
            storage.remove(file.temp)
        raise
    for split in release.splits:
        entries = [written[name] for name in recorded if name[0] == split and name in written]
        for entry in entries:
            path = f"{SPLIT_FOLDERS[split]}/{entry['shard']}"
            record["files"][path] = {key: entry[key] for key in ("num_bytes", "sha256")}
        if entries:  # a split of which nothing is left is none, as in a build that holds nothing out
            num_samples = sum(entry["num_samples"] for entry in entries)
            record["splits"][split] = {"num_samples": num_samples, "shards": entries}
    files = writer.close()
    for file in files:
        storage.publish(file.temp, storage.join(folder, file.path))
    return [storage.WrittenFile(storage.join(folder, file.path), file.num_bytes, file.sha256) for file in files]


def _moved_rows(rows: pa.Table, places: Mapping[str, Mapping[str, int]]) -> pa.Table:
    """Return the rows of a shard whose keys have places, each with its own."""
    kept = rows.filter(pc.is_in(rows["key"], pa.array(places, pa.string())))
    now = pa.Table.from_pylist([places[key] for key in kept["key"].to_pylist()])
    for name in now.column_names:
        number = kept.schema.get_field_index(name)
        kept = kept.set_column(number, kept.schema.field(number), now[name].cast(kept.schema.field(number).type))
    return kept


def _new_record(release: Release, gone: Sequence[Row], takedowns: Sequence[Row], version: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(json.dumps(release.record))
    train = list(_of(gone, split="train"))
    counts = record["counts"]
    counts["samples"] -= len(train)
    counts["distinct_samples"] -= len(images_of(gone))
    counts["domains"] = _fewer(counts["domains"], train)
    record |= {"version": version[:12], "fingerprint": version, "files": {}, "splits": {}}
    if duplicates := record.get("duplicates"):
        ids = {row["sample_id"] for row in gone}
        duplicates["largest"] = [group for group in duplicates["largest"] if group["sample_id"] not in ids]
        for row in duplicates.get("conflicts", ()):
            row["sample_ids"] = [sample_id for sample_id in row["sample_ids"] if sample_id not in ids]
    record["takedowns"] = [*record.get("takedowns", []), *takedowns]
    return record


def _new_mixture(release: Release, gone: Sequence[Row]) -> dict[str, Any]:
    """Return the mixture with what is realised now; its target and its law stay what they were."""
    mixture: dict[str, Any] = read_json(release, "mixture.json")
    mixture["num_samples"] -= len(list(_of(gone, split="train")))
    for quota in mixture["domains"]:
        of_domain = list(_of(gone, split="train", domain=quota["domain"]))
        quota["num_heldout"] -= len(list(_of(gone, split="heldout", domain=quota["domain"])))
        _shrink(quota, of_domain, mixture["num_samples"])
        quota["num_epochs"] = round(quota["num_drawn"] / max(quota["num_available"], 1), 6)
        for source in quota.get("sources", ()):
            _shrink(source, list(_of(of_domain, source=source["source"])), quota["num_drawn"])
    return mixture


def _count_groups(sql: Any, samples: str, mixture: dict[str, Any]) -> None:
    """Count the groups of each domain and split anew, in the domains that have any."""
    quotas = [quota for quota in mixture["domains"] if "num_groups" in quota]
    if not quotas:
        return
    view_parquet(sql, "grouped", [samples])
    query = (
        "SELECT domain, split, count(DISTINCT source || '/' || group_id) FROM grouped WHERE group_id IS NOT NULL "
        "GROUP BY ALL ORDER BY ALL"
    )
    num_groups = sql.execute(query).fetchall()
    for quota in quotas:
        quota["num_groups"] = {split: num for domain, split, num in num_groups if domain == quota["domain"]}


def _shrink(pool: dict[str, Any], gone: Sequence[Row], whole: int) -> None:
    """Take samples out of the figures of a domain or a source."""
    pool["num_drawn"] -= len(gone)
    pool["num_available"] -= len(images_of(gone))
    pool["realised_share"] = pool["num_drawn"] / max(whole, 1)


def _of(rows: Sequence[Row], **values: str) -> Iterator[Row]:
    return (row for row in rows if all(row[name] == value for name, value in values.items()))


def _fewer(counts: Mapping[str, int], gone: Sequence[Row]) -> dict[str, int]:
    lost = Counter(row["domain"] for row in gone)
    return {domain: num - lost[domain] for domain, num in counts.items()}


def _move_pointers(parent: str, name: str, versions: set[str], new: str) -> None:
    """Pointers to any version of this release now name the new one, which holds the fewest pictures."""
    for pointer in (LATEST_FILE, f"{name}.{LATEST_FILE}"):
        path = storage.join(parent, pointer)
        if (read_if_there(path) or b"").decode("utf-8", "replace").strip() in versions:
            storage.publish_bytes(path, f"{new}\n".encode())
