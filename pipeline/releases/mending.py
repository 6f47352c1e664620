"""Mend tables and pool of a work folder: keep what is sound, take back what a release holds, forget the rest.

A damaged pool file is written again to its recorded bytes when every picture is still somewhere: in the file itself or
in a shard of a release. Otherwise its sound pictures become a part of their own, and the next build asks the web for
the others alone. Rows of a damaged table of downloads that have a picture come back from the facts. All other
parts are forgotten, and the next build makes them again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.contract import tables
from manifests.contract.catalog import Catalog
from manifests.contract.records import Funnel, PartFile, PartRecord, fingerprint
from manifests.contract.release import SAMPLES_FILE, path_of_shard
from manifests.contract.takedowns import Picture, add_entries, find_copies, read_list
from manifests.errors import IntegrityError
from manifests.names.sql import identifier
from manifests.stores import storage
from manifests.stores.folder import bring, place_of, publish_into, remove_from
from manifests.stores.ranges import read_range
from pipeline.releases.folder_checks import FROM_THE_WEB, Finding
from pipeline.releases.opening import open_sql
from pipeline.store.pool import PoolWriter
from pipeline.store.sql import view_parquet
from pipeline.store.writing import private_pool, write_table

Place = tuple[str, int, int]  # path of a file, offset and length of a picture in it


@dataclass(frozen=True)
class DamagedDownload:
    """A part of downloads with a damaged file: its rows that are known, and where each picture still is."""

    part: PartRecord
    rows: pa.Table
    """Schema FETCHED; an earlier version wrote fewer columns."""
    places: Mapping[str, Place]
    """By sample id; every one was compared with its sha256."""
    listed: Mapping[str, Picture] = field(default_factory=dict)
    """Pictures of the takedown list by their image id: they are not asked for again."""

    @property
    def missing(self) -> list[dict[str, Any]]:
        """Rows whose picture is nowhere."""
        return [row for row in self.rows.to_pylist() if row["outcome"] == "ok" and row["sample_id"] not in self.places]

    @property
    def to_ask(self) -> list[dict[str, Any]]:
        """Rows whose picture only the web can give again."""
        return [row for row in self.missing if row["image_id"] not in self.listed]

    @property
    def num_unknown(self) -> int:
        """Rows of the part of which nothing is known any more."""
        assert self.part.funnel is not None
        return self.part.funnel.num_in - int(self.rows.num_rows)

    @property
    def num_to_ask(self) -> int:
        """Rows that the next build asks the web for."""
        return len(self.to_ask) + self.num_unknown


@dataclass
class Plan:
    """The repair of damaged parts."""

    downloads: list[DamagedDownload] = field(default_factory=list)
    forgotten: list[PartRecord] = field(default_factory=list)

    @property
    def num_to_ask(self) -> int:
        """Rows that the next build asks the web for."""
        return sum(download.num_to_ask for download in self.downloads)

    @property
    def missing(self) -> list[dict[str, Any]]:
        """Rows of pictures that only the web can give again."""
        return [row for download in self.downloads for row in download.to_ask]


def plan_mending(catalog: Catalog, findings: Sequence[Finding]) -> Plan:
    """Look at every damaged part: what is left of it, and where. Writes nothing."""
    damaged = {finding.file for finding in findings if finding.kind in ("table", "pool", "release")}
    paths = sorted(finding.file for finding in findings if finding.kind in ("table", "pool"))
    plan, listed = Plan(), {picture.image_id: picture for picture in read_list(catalog.workdir).pictures}
    for part in sorted(catalog.parts_with(paths), key=lambda part: part.key):
        if (part.stage, part.step) == FROM_THE_WEB:
            rows = _rows_of(catalog, part, damaged)
            plan.downloads.append(DamagedDownload(part, rows, _find_pictures(catalog.workdir, rows, damaged), listed))
        elif part.stage != "pack" or any(file.table.startswith(("gathered", "arranged")) for file in part.files):
            plan.forgotten.append(part)  # what else pack writes is made again in place (repacking.py)
    return plan


def mend(catalog: Catalog, plan: Plan) -> Iterator[str]:
    """Carry out the plan; yields what was done, in lines that a person reads."""
    for download in plan.downloads:
        pool_file = _file_of(download.part, "pool").path
        if download.num_to_ask == 0 and _write_again(catalog.workdir, download):
            yield f"{pool_file}: written again, all of its pictures are there"
            continue
        gone = [row for row in download.missing if row["image_id"] in download.listed]
        known = [replace(download.listed[row["image_id"]], addresses=(row["url"],)) for row in gone]
        add_entries(catalog.workdir, [], known)  # so that no build asks for them; earlier lists have no addresses
        num_kept = _replace(catalog, download)
        yield f"{pool_file}: {num_kept:,} rows kept, {download.num_to_ask:,} to download again"
    if plan.forgotten:
        for stage, num in catalog.forget_parts([part.key for part in plan.forgotten]).items():
            yield f"{stage}: {num:,} parts to do again"


def purge(catalog: Catalog) -> Iterator[str]:
    """Write pool files again without the pictures of the takedown list and their copies; yield what was done.

    Raises: IntegrityError when another picture of such a file is damaged.
    """
    workdir, num = catalog.workdir, 0
    pictures = read_list(workdir).pictures
    for part in sorted(catalog.parts_with(catalog.find_files("pool")), key=lambda part: part.key):
        rows = pq.read_table(bring(workdir, _file_of(part, "fetched").path))
        copy_of = np.where(pc.equal(rows["outcome"], "ok"), find_copies(pictures, rows), -1)
        if not (copy_of >= 0).any():
            continue
        left = rows.filter(pa.array(copy_of < 0))
        places = _find_pictures(workdir, left, set())
        if DamagedDownload(part, left, places).missing:
            raise IntegrityError(
                f"{_file_of(part, 'pool').path}: is damaged, so nothing can be taken out of it; `plantmix repair "
                f"{workdir}` mends it, then run the same command again"
            )
        gone = zip(copy_of[copy_of >= 0], rows["url"].filter(pa.array(copy_of >= 0)).to_pylist(), strict=True)
        add_entries(workdir, [], [replace(pictures[number], addresses=(url,)) for number, url in gone])
        _replace(catalog, DamagedDownload(part, rows, places))
        num += rows.num_rows - left.num_rows
    yield f"taken out of the pool: {num:,} pictures"
    if num:
        yield "the next `plantmix build` decides again without them; it asks for none of them"


def _replace(catalog: Catalog, download: DamagedDownload) -> int:
    """Put what is left of a part in its place; returns how many rows that is."""
    num_kept = _keep_sound(catalog, download) if download.rows.num_rows else 0
    catalog.forget_parts([download.part.key])
    for table in ("pool", "fetched"):
        remove_from(catalog.workdir, _file_of(download.part, table).path)
    return num_kept


def forget_unused(catalog: Catalog, findings: Sequence[Finding]) -> Iterator[str]:
    """Un-commit damaged parts that no version of a stage uses any more, such as packs of moved pictures."""
    unused = {key for (key,) in catalog.ask("SELECT part_key FROM parts ANTI JOIN stage_parts USING (part_key)")}
    paths = sorted(finding.file for finding in findings if finding.kind == "table")
    parts = [part for part in catalog.parts_with(paths) if part.key in unused and part.stage == "pack"]
    catalog.forget_parts([part.key for part in parts])
    for file in (file for part in parts for file in part.files if file.path in paths):
        remove_from(catalog.workdir, file.path)
        yield f"{file.path}: removed, no version uses it any more"


def still_lost(catalog: Catalog, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the pictures that were asked for again and that the web no longer gives, a line each."""
    facts = catalog.current_files("fetch", "facts")
    if not rows or not facts:
        return []
    asked_again = pa.table({name: [row[name] for row in rows] for name in ("sample_id", "url", "stored_sha256")})
    with open_sql(catalog.workdir) as sql:
        view_parquet(sql, "facts", [storage.join(catalog.workdir, path) for path in facts])
        sql.register("wanted", asked_again)
        changed = sql.execute(
            "SELECT w.url, f.outcome FROM wanted w JOIN facts f USING (sample_id) "
            "WHERE f.stored_sha256 IS DISTINCT FROM w.stored_sha256 ORDER BY ALL"
        ).fetchall()
    return [f"{url}: {'another picture' if outcome == 'ok' else outcome}" for url, outcome in changed]


# ---- what is left of a part


def _file_of(part: PartRecord, table: str) -> PartFile:
    return next(file for file in part.files if file.table == table)


def _rows_of(catalog: Catalog, part: PartRecord, damaged: set[str]) -> pa.Table:
    """Return the rows of a part.

    From its own table where that is sound, else those with a picture from the table of facts.
    """
    own = _file_of(part, "fetched").path
    if own not in damaged:
        return pq.read_table(bring(catalog.workdir, own))
    sound = {
        "facts": _current_files(catalog, "fetch", "facts", damaged),
        "candidates": _current_files(catalog, "ingest", "candidates", damaged),
        "secrets": _current_files(catalog, "ingest", "secrets", damaged),
    }
    if not sound["facts"] or not sound["candidates"]:
        return tables.FETCHED.empty_table()
    with open_sql(catalog.workdir) as sql:
        sql.register("none", tables.SECRETS.empty_table())
        for name, paths in sound.items():
            relation = sql.read_parquet(paths, union_by_name=True) if paths else sql.table("none")
            relation.create_view(name)
        sql.register("every_column", tables.FACTS.empty_table())
        pool_file = _file_of(part, "pool").path.removeprefix("pool/")
        names = ", ".join(f"f.{identifier(name)}" for name in tables.FACTS.names)
        rows = sql.sql(
            f"SELECT {names}, coalesce(c.locator, s.address, c.url) AS url, {int(part.notes['round'])} AS round, "
            "NULL::MAP(VARCHAR, VARCHAR[]) AS signals "
            "FROM (FROM every_column UNION ALL BY NAME FROM facts) f JOIN candidates c USING (sample_id) "
            "LEFT JOIN secrets s USING (sample_id) "
            "WHERE f.pool_file = $1 ORDER BY f.sample_id",
            params=[pool_file],
        ).to_arrow_table()
    return rows.cast(tables.FETCHED)


def _current_files(catalog: Catalog, stage: str, table: str, damaged: set[str]) -> list[str]:
    """Files of a table of the newest version of a stage; none where one is damaged.

    Other versions do not count: an address may have changed since, and its picture with it.
    """
    paths = catalog.current_files(stage, table)
    return [] if damaged.intersection(paths) else [bring(catalog.workdir, path) for path in paths]


def _find_pictures(workdir: str, rows: pa.Table, damaged: set[str]) -> dict[str, Place]:
    """Where each stored picture of the rows is, by sample id: in the pool, else in a shard of any release."""
    stored = [row for row in rows.to_pylist() if row["outcome"] == "ok"]
    places: dict[str, Place] = {}
    for row in stored:
        place = (place_of(workdir, f"pool/{row['pool_file']}"), row["offset"], row["length"])
        if _read(place, row["stored_sha256"]) is not None:
            places[row["sample_id"]] = place
    unplaced = {row["stored_sha256"]: row["sample_id"] for row in stored if row["sample_id"] not in places}
    for sha256, place in _places_in_releases(workdir, list(unplaced), damaged):
        if unplaced[sha256] not in places and _read(place, sha256) is not None:
            places[unplaced[sha256]] = place
    return places


def _places_in_releases(workdir: str, hashes: Sequence[str], damaged: set[str]) -> Iterator[tuple[str, Place]]:
    folder = place_of(workdir, "releases")
    tables = storage.find_matches(storage.join(folder, "*", SAMPLES_FILE)) if hashes else []
    for name in (table.split("/")[-2] for table in tables):
        if f"releases/{name}/{SAMPLES_FILE}" in damaged:
            continue
        with open_sql() as sql:
            view_parquet(sql, "samples", [storage.join(folder, name, SAMPLES_FILE)])
            sql.register("wanted", pa.table({"stored_sha256": pa.array(hashes, pa.string())}))
            rows = sql.execute(
                "SELECT stored_sha256, split, shard, jpg_offset, jpg_length FROM samples "
                "SEMI JOIN wanted USING (stored_sha256)"
            ).fetchall()
        for sha256, split, shard, offset, length in rows:
            yield sha256, (path_of_shard(storage.join(folder, name), split, shard), offset, length)


def _read(place: Place, sha256: str) -> bytes | None:
    """Return the picture at a place; None when it is not there, or a disk does not give it."""
    path, offset, length = place
    try:
        content = read_range(path, offset, length)
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == sha256 else None


# ---- what is written


def _write_again(workdir: str, download: DamagedDownload) -> bool:
    """Write the files of a part again; False when their bytes are not the recorded ones."""
    pool, table = _file_of(download.part, "pool"), _file_of(download.part, "fetched")
    temp = storage.temp_path(storage.join(workdir, pool.path))
    _write_pool(temp, download)
    made = private_pool(pool.path, temp, pool.num_rows)
    schema = pa.schema([field for field in tables.FETCHED if field.name in download.rows.column_names])
    rows = write_table(workdir, "fetched", table.path, download.rows, schema)
    if (made.sha256, rows.sha256) != (pool.sha256, table.sha256):
        for file in (made, rows):
            storage.remove(file.temp)
        return False
    for file in (made, rows):
        publish_into(workdir, file.temp, file.path)
    return True


def _write_pool(path: str, download: DamagedDownload) -> dict[str, tuple[int, int]]:
    sha256 = dict(zip(download.rows["sample_id"].to_pylist(), download.rows["stored_sha256"].to_pylist(), strict=True))
    with PoolWriter(path) as pool:
        for sample_id, place in download.places.items():
            content = _read(place, sha256[sample_id])
            if content is None:
                raise IntegrityError(f"{place[0]}: changed while it was read; check the disk")
            pool.add(sample_id, content)
        return pool.finish()


def _keep_sound(catalog: Catalog, download: DamagedDownload) -> int:
    """Commit what is left of a part as a part of its own; returns how many rows that is."""
    part, workdir = download.part, catalog.workdir
    name = f"{part.key[:16]}-{fingerprint({'part': part.key, 'kept': sorted(download.places)})[:8]}"
    temp = storage.temp_path(storage.join(workdir, f"pool/{name}.tar"))
    storage.make_folder(storage.join(workdir, "pool"))
    places = _write_pool(temp, download)
    lost = {row["sample_id"] for row in download.missing}
    rows = [row for row in download.rows.to_pylist() if row["sample_id"] not in lost]
    for row in rows:
        if row["sample_id"] in places:
            row["pool_file"], (row["offset"], row["length"]) = f"{name}.tar", places[row["sample_id"]]
    kept = pa.Table.from_pylist(rows, schema=tables.FETCHED)
    pool = private_pool(f"pool/{name}.tar", temp, len(places))
    table = write_table(workdir, "fetched", f"tables/fetch/{name}.parquet", kept, tables.FETCHED)
    files = [file for file in part.files if file.table not in ("pool", "fetched")]
    for file in (pool, table):
        publish_into(workdir, file.temp, file.path)
        files.append(PartFile(file.table, file.path, file.num_rows, file.num_bytes, file.sha256))
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(kept["outcome"]).to_pylist()}
    funnel = Funnel(kept.num_rows, counts.pop("ok", 0), counts)
    key = fingerprint({"part": part.key, "piece": [file.sha256 for file in files]})
    record = PartRecord(key, part.stage, part.step, part.reuse_key, tuple(files), funnel, part.notes, part.seconds, 1)
    place = len(catalog.parts_of("repair"))
    catalog.commit_parts("repair", {place: record})  # the next build links it to its version
    return int(kept.num_rows)
