"""`plantmix takedown`: a new version of a release without some images; only the shards that held them are rewritten.

Reads a release. Writes another beside it: untouched shards are hard links (or copies) of the old ones, touched
ones are cut, side files are made anew, and the record says what was taken out and why. In a work folder the
images also go on its takedown list, which select honours in every later build. Whatever version is given, the new
one leaves out what was taken down before as well. The earlier version and the pool are left as they are: deleting
them is the owner's decision.
"""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests import storage
from manifests.errors import ConfigError, IntegrityError
from manifests.records import fingerprint
from manifests.release import LATEST_FILE, RECORD_FILE, SAMPLES_FILE, SPLIT_FOLDERS, Release, read_record
from manifests.takedowns import KINDS, Entry, keys_of
from pipeline.releases.cutting import cut_shard
from pipeline.releases.lookup import Known
from pipeline.sidefiles.write import BATCH_ROWS, json_bytes, side_files, write_attribution
from pipeline.store.sql import open_scratch
from pipeline.store.writing import TableWriter

_MAX_NAMED = 20
_LOOKED_AT = ("sample_id", "copy", "image_id", "stored_sha256", "url", "reference_url", "rights_holder", "creator",
              "domain", "source", "split", "shard", "key")  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What is to be taken down: addresses, owners, and ids of samples or images; and why."""

    urls: Sequence[str] = ()
    owners: Sequence[str] = ()
    ids: Sequence[str] = ()
    reason: str = "not stated"

    @property
    def entries(self) -> list[Entry]:
        """As lines of a takedown list."""
        given = (("url", self.urls), ("owner", self.owners), ("id", self.ids))
        return [Entry(by, value, self.reason) for by, values in given for value in values]

    def entries_of(self, rows: Sequence[Mapping[str, Any]]) -> list[Entry]:
        """Entries by the images themselves, for the same picture at another address."""
        images = dict.fromkeys(row["image_id"] for row in rows)
        return [Entry("id", image, self.reason) for image in images if image]  # none where nothing was fetched


@dataclass
class Cut:
    """Rows of a release that go, and where they lie."""

    rows: list[dict[str, Any]]
    before: Mapping[str, Entry]  # stored_sha256 -> what it was taken down by before, where it is not asked for now
    shards: dict[tuple[str, str], set[str]] = field(init=False)  # (split, shard) -> keys

    def __post_init__(self) -> None:
        self.shards = {}
        for row in self.rows:
            self.shards.setdefault((row["split"], row["shard"]), set()).add(row["key"])

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Rows of the images that are asked for now."""
        return [row for row in self.rows if row["stored_sha256"] not in self.before]


def images_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row an image, by sample id."""
    return sorted((row for row in rows if row["copy"] == 0), key=lambda row: str(row["sample_id"]))


def find_rows(release: Release, wanted: Wanted, listed: Sequence[Entry] = (), known: Known | None = None) -> Cut:
    """Every row of the images that are meant, with all their copies and whatever else has the same bytes.

    What stands on a takedown list (`listed`) is meant too, and so is what other versions of the release left out.
    `known` is what the catalogue knows of what is wanted: that need not lie in this release.

    Raises: ConfigError naming what was not found.
    """
    unmet = {entry.key: entry for entry in wanted.entries if known is None or entry.key not in known.keys}
    asked = {entry.key: entry for entry in [*wanted.entries, *(known.entries if known else ())]}
    standing = {entry.key: entry for entry in [*listed, *_left_out_by(versions_of(release))]}
    hit: set[str] = set()
    before: dict[str, Entry] = {}
    for rows in _batches(release):
        for row in rows.filter(_meant(rows, [*asked.values(), *standing.values()])).to_pylist():
            keys = keys_of(row)
            if any(key in asked for key in keys):
                hit.add(row["stored_sha256"])
                unmet = {key: entry for key, entry in unmet.items() if key not in keys}
            elif any(key in standing for key in keys):
                before[row["stored_sha256"]] = next(standing[key] for key in keys if key in standing)
    if unmet:
        raise ConfigError(_not_found(release, list(unmet.values()), wanted, known is not None))
    before = {image: entry for image, entry in before.items() if image not in hit}
    images = pa.array(sorted({*hit, *before}), pa.string())
    return Cut(
        [row for rows in _batches(release) for row in rows.filter(pc.is_in(rows["stored_sha256"], images)).to_pylist()],
        before,
    )


def _not_found(release: Release, unmet: Sequence[Entry], wanted: Wanted, with_catalogue: bool) -> str:
    named = ", ".join(f"{entry.by} {entry.value!r}" for entry in unmet[:_MAX_NAMED])
    more = f" and {len(unmet) - _MAX_NAMED:,} more" if len(unmet) > _MAX_NAMED else ""
    where = "in this release nor in the catalogue" if with_catalogue else "in this release"
    return (
        f"{release.path}: {len(unmet):,} of the {len(wanted.entries):,} given are not {where}: {named}{more}; nothing "
        "was written. Give addresses, owners (rights holder or creator) and ids (of a sample, or the sha256 of an "
        "image) as attribution.parquet and samples.parquet have them, and leave out what is not there"
    )


def versions_of(release: Release) -> list[Release]:
    """The versions that takedowns made of the same release, as they lie beside it, itself included."""
    return [other for other in releases_beside(release) if other.origin == release.origin]


def releases_beside(release: Release) -> list[Release]:
    """Releases in the folder of a release, itself included; a folder that holds no readable record is passed over."""
    found = []
    fs, inner = storage.filesystem(_folder_of(release))
    for path in sorted(str(path).rstrip("/") for path in fs.ls(inner, detail=False)):
        folder = storage.join(_folder_of(release), path.rpartition("/")[2])
        with contextlib.suppress(ConfigError, IntegrityError, OSError):
            found.append(Release(folder, read_record(folder)))
    return found


def still_held(release: Release, stored: Collection[str]) -> list[tuple[Release, int]]:
    """Releases beside `release` (itself included) that hold pictures of these stored_sha256, and how many of them."""
    images = pa.array(sorted(stored), pa.string())
    found = []
    for other in releases_beside(release):
        held: set[str] = set()
        with contextlib.suppress(FileNotFoundError):  # half a copy
            for batch in _batches(other):
                held.update(batch.filter(pc.is_in(batch["stored_sha256"], images))["stored_sha256"].to_pylist())
        if held:
            found.append((other, len(held)))
    return found


def _left_out_by(versions: Sequence[Release]) -> list[Entry]:
    return [
        Entry("id", image["image_id"], entry["reason"])
        for version in versions
        for entry in version.record.get("takedowns", [])
        for image in entry["images"]
    ]


def _folder_of(release: Release) -> str:
    return release.path.rstrip("/").rpartition("/")[0] or "."


def _batches(release: Release) -> Iterator[pa.Table]:
    fs, inner = storage.filesystem(storage.join(release.path, SAMPLES_FILE))
    with fs.open(inner, "rb") as stream, pq.ParquetFile(stream) as source:
        for batch in source.iter_batches(BATCH_ROWS, columns=list(_LOOKED_AT)):
            yield pa.Table.from_batches([batch])


def _meant(rows: pa.Table, entries: Sequence[Entry]) -> pa.ChunkedArray:
    """Mask of the rows that some entry names."""
    values = {
        kind: pa.array([value for by, value in (entry.key for entry in entries) if by == kind], pa.string())
        for kind in KINDS
    }
    masks = [pc.is_in(rows[column], values["url"]) for column in ("url", "reference_url")]
    masks += [pc.is_in(rows[column], values["id"]) for column in ("sample_id", "image_id", "stored_sha256")]
    masks += [
        pc.is_in(pc.utf8_lower(pc.utf8_trim_whitespace(rows[column])), values["owner"])
        for column in ("rights_holder", "creator")
    ]
    return functools.reduce(pc.or_, masks)


def take_down(release: Release, wanted: Wanted, cut: Cut | None = None) -> Release:
    """Write the new version beside the old one, without the rows of `cut`, what is wanted by itself when None.

    Pointers to the newest release that name a version of the same release name the new one then. The same request
    gives the same bytes.

    Raises: ConfigError when nothing matches, or nothing would be left; IntegrityError when a shard is not as recorded.
    """
    cut = find_rows(release, wanted) if cut is None else cut
    takedowns = _entries(release, cut, wanted)
    version = fingerprint({"from": release.fingerprint, "takedowns": takedowns})
    if len(cut.rows) == sum(release.num_samples(split) for split in release.splits):
        raise ConfigError(f"{release.path}: nothing would be left; delete the release instead")
    parent, name = _folder_of(release), f"{release.record['name']}-{version[:12]}"
    folder = storage.join(parent, name)
    versions = versions_of(release)
    record = _new_record(release, cut, takedowns, version)
    with tempfile.TemporaryDirectory() as scratch:
        moved = _write_shards(release, cut, folder, record)
        files = _write_tables(release, cut, moved, folder)
        mixture = _new_mixture(release, cut)
        with open_scratch(scratch, 2.0) as sql:
            for side_file, content in side_files(record, mixture, storage.join(folder, SAMPLES_FILE), folder, sql):
                files.append(storage.publish_bytes(storage.join(folder, side_file), content))
    for file in files:
        record["files"][file.path[len(folder) :].lstrip("/")] = {"num_bytes": file.num_bytes, "sha256": file.sha256}
    storage.publish_bytes(storage.join(folder, RECORD_FILE), json_bytes(record))
    _move_pointers(parent, release, {release.name, *(version.name for version in versions)}, name)
    return Release.open(folder)


def _write_shards(
    release: Release, cut: Cut, folder: str, record: dict[str, Any]
) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Link or cut every shard; returns the new places of the samples of cut shards, and enters shards in the record."""
    moved: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for split in release.splits:
        entries = []
        for shard in release.record["splits"][split]["shards"]:
            name, path = shard["shard"], f"{SPLIT_FOLDERS[split]}/{shard['shard']}"
            keys = cut.shards.get((split, name), set())
            if len(keys) == shard["num_samples"]:  # a shard of which nothing is left is no shard
                continue
            storage.make_folder(storage.join(folder, SPLIT_FOLDERS[split]))
            entry = dict(shard)
            if not keys:
                storage.link_or_copy(storage.join(release.path, path), storage.join(folder, path))
            else:
                entry |= cut_shard(storage.join(release.path, path), storage.join(folder, path), keys, shard["sha256"])
                moved[split, name] = entry.pop("places")
                gone = [row for row in cut.rows if (row["split"], row["shard"]) == (split, name)]
                entry["domains"] = _without(shard["domains"], [row["domain"] for row in gone])
            entries.append(entry)
            record["files"][path] = {"num_bytes": entry["num_bytes"], "sha256": entry["sha256"]}
        if entries:  # a split of which nothing is left is none, as in a build that holds nothing out
            num_samples = sum(entry["num_samples"] for entry in entries)
            record["splits"][split] = {"num_samples": num_samples, "shards": entries}
    return moved


def _write_tables(
    release: Release, cut: Cut, moved: Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]], folder: str
) -> list[storage.WrittenFile]:
    """samples.parquet without the rows that go and with the new places of the others, and attribution.parquet."""
    fs, inner = storage.filesystem(storage.join(release.path, SAMPLES_FILE))
    with fs.open(inner, "rb") as stream, pq.ParquetFile(stream) as source:
        schema = source.schema_arrow.remove_metadata()
        writer = TableWriter(folder, "samples", SAMPLES_FILE, schema)
        for batch in source.iter_batches(BATCH_ROWS):
            writer.write(_moved_rows(pa.Table.from_batches([batch]), cut, moved))
        samples = writer.close()
    storage.publish(samples.temp, storage.join(folder, SAMPLES_FILE))
    attribution = write_attribution(folder, "attribution.parquet", storage.join(folder, SAMPLES_FILE))
    storage.publish(attribution.temp, storage.join(folder, "attribution.parquet"))
    return [
        storage.WrittenFile(storage.join(folder, file.path), file.num_bytes, file.sha256)
        for file in (samples, attribution)
    ]


def _moved_rows(rows: pa.Table, cut: Cut, moved: Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]]) -> pa.Table:
    if not {shard for _, shard in cut.shards} & set(pc.unique(rows["shard"]).to_pylist()):
        return rows
    values = rows.to_pylist()
    kept = []
    for row in values:
        place = (row["split"], row["shard"])
        if row["key"] in cut.shards.get(place, ()):
            continue
        kept.append({**row, **moved[place][row["key"]]} if place in moved else row)
    return pa.Table.from_pylist(kept, schema=rows.schema)


def _entries(release: Release, cut: Cut, wanted: Wanted) -> list[dict[str, Any]]:
    """What the record says of it: by reason what was taken down before, then what is asked for now."""
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for row in cut.rows:
        if row["stored_sha256"] in cut.before:
            by_reason.setdefault(cut.before[row["stored_sha256"]].reason, []).append(row)
    groups = [
        (reason, sorted({cut.before[row["stored_sha256"]] for row in rows}), rows)
        for reason, rows in sorted(by_reason.items())
    ]
    groups += [(wanted.reason, wanted.entries, cut.asked)] if cut.asked else []
    return [
        {
            "from": release.record["version"],
            "fingerprint": release.fingerprint,
            "reason": reason,
            "asked_for": [{"by": entry.by, "value": entry.value} for entry in entries],
            "num_images": len(images_of(rows)),
            "num_samples": len(rows),
            "images": [
                {name: row[name] for name in ("sample_id", "image_id", "domain", "url")} for row in images_of(rows)
            ],
        }
        for reason, entries, rows in groups
    ]


def _new_record(release: Release, cut: Cut, takedowns: Sequence[Mapping[str, Any]], version: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(json.dumps(release.record))
    train = [row for row in cut.rows if row["split"] == "train"]
    counts = record["counts"]
    counts["samples"] -= len(train)
    counts["distinct_samples"] -= len(images_of(cut.rows))
    counts["domains"] = _without(counts["domains"], [row["domain"] for row in train], keep_empty=True)
    record |= {"version": version[:12], "fingerprint": version, "files": {}, "splits": {}}
    record["takedowns"] = [*record.get("takedowns", []), *takedowns]
    return record


def _new_mixture(release: Release, cut: Cut) -> dict[str, Any]:
    """The mixture with what is realised now; its target and its law stay what they were."""
    fs, inner = storage.filesystem(storage.join(release.path, "mixture.json"))
    mixture: dict[str, Any] = json.loads(fs.cat_file(inner))
    train = [row for row in cut.rows if row["split"] == "train"]
    mixture["num_samples"] -= len(train)
    for quota in mixture["domains"]:
        own = [row for row in train if row["domain"] == quota["domain"]]
        quota["num_drawn"] -= len(own)
        quota["num_available"] -= sum(row["copy"] == 0 for row in own)
        quota["num_heldout"] -= sum(row["split"] == "heldout" and row["domain"] == quota["domain"] for row in cut.rows)
        quota["realised_share"] = quota["num_drawn"] / max(mixture["num_samples"], 1)
        quota["num_epochs"] = round(quota["num_drawn"] / max(quota["num_available"], 1), 6)
        for source in quota.get("sources", ()):
            mine = [row for row in own if row["source"] == source["source"]]
            source["num_drawn"] -= len(mine)
            source["num_available"] -= sum(row["copy"] == 0 for row in mine)
            source["realised_share"] = source["num_drawn"] / max(quota["num_drawn"], 1)
    return mixture


def _move_pointers(parent: str, release: Release, versions: Collection[str], new: str) -> None:
    """A pointer to the newest release that names a version of this one goes to the new one, which holds the least."""
    for name in (LATEST_FILE, f"{release.record['name']}.{LATEST_FILE}"):
        pointer = storage.join(parent, name)
        fs, inner = storage.filesystem(pointer)
        if fs.exists(inner) and fs.cat_file(inner).decode().strip() in versions:
            storage.publish_bytes(pointer, f"{new}\n".encode())


def _without(counts: Mapping[str, int], gone: Sequence[str], keep_empty: bool = False) -> dict[str, int]:
    left = {name: num - gone.count(name) for name, num in counts.items()}
    return {name: num for name, num in left.items() if num or keep_empty}
