"""Make damaged files of sealed releases again, to the sha256 that is recorded of each.

A release that a build packed is packed again from pool and arranged samples. The version that a takedown made is cut
again from the version before it. A file is put in place only when its bytes are the recorded ones.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.contract import tables
from manifests.contract.catalog import Catalog
from manifests.contract.records import PartFile, PartRecord
from manifests.contract.release import LATEST_FILE, RECORD_FILE, SAMPLES_FILE, Release, read_record
from manifests.errors import ConfigError, IntegrityError, PlantMixError
from manifests.names.sql import identifier
from manifests.stores import storage
from manifests.stores.faults import is_damage
from manifests.stores.folder import place_of, publish_bytes_into, publish_into
from pipeline.config import RunSettings
from pipeline.engine.work import PartResult, StageRun
from pipeline.judging.captions.settings import TextSettings
from pipeline.releases.folder_checks import Finding
from pipeline.releases.lookup import decisions_of
from pipeline.releases.opening import open_sql
from pipeline.releases.versions import fingerprint_without, write_version
from pipeline.stages.pack import stage as pack
from pipeline.store.files import Files, RowGroup
from pipeline.store.pool import STORED_AT, STORED_COLUMNS
from pipeline.store.sql import view_parquet
from pipeline.store.writing import write_table

_RELEASES = "SELECT name, fingerprint FROM releases ORDER BY sealed_at, name"


def repack(catalog: Catalog, findings: Sequence[Finding]) -> Iterator[str]:
    """Make again what is damaged of every release; yields what was done, or why it cannot be done."""
    damaged = {finding.file for finding in findings if finding.kind in ("release", "table")}
    damaged_releases = {path.split("/")[1] for path in damaged if path.startswith("releases/")}
    for name, fingerprint in catalog.ask(_RELEASES):  # oldest first: a takedown cuts the version before it
        parts = catalog.parts_of(fingerprint)
        written = {file.path for part in parts for file in part.files if part.step in ("write", "record")}
        if not (written & damaged or name in damaged_releases):
            continue
        try:
            if parts:
                placed = _place_again(catalog, name, parts, damaged)
                yield from (f"{path}: made again, as recorded" for path in sorted(placed))
                if any(path in written or path.startswith(f"releases/{name}/") for path in damaged - placed):
                    yield from _pack_again(catalog, fingerprint, parts, damaged - placed)
            else:
                yield from _cut_again(catalog, name, fingerprint)
        except (PlantMixError, OSError) as error:
            yield f"releases/{name}: not yet: {error}"
        except Exception as error:
            if not is_damage(error):
                raise
            yield f"releases/{name}: not yet: a table that it is made from is damaged: {' '.join(str(error).split())}"
    storage.sweep(storage.join(catalog.workdir, "releases"))  # what a try that failed has left


def write_pointers(catalog: Catalog, findings: Sequence[Finding]) -> Iterator[str]:
    """Point at the newest releases again."""
    names = [name for name, _ in catalog.ask(_RELEASES) if _is_there(place_of(catalog.workdir, f"releases/{name}"))]
    for finding in findings:
        if finding.kind == "pointer":
            prefix = finding.file.removeprefix("releases/").removesuffix(LATEST_FILE).removesuffix(".")
            newest = [name for name in names if not prefix or name.rpartition("-")[0] == prefix][-1:]
            if newest:
                publish_bytes_into(catalog.workdir, finding.file, f"{newest[0]}\n".encode())
                yield f"{finding.file}: names {newest[0]} again"


def _is_there(folder: str) -> bool:
    return storage.is_folder(folder)


# ---- releases of builds


def _place_again(catalog: Catalog, name: str, parts: Sequence[PartRecord], damaged: set[str]) -> set[str]:
    """Make tables of placements again from samples.parquet, which has their columns; returns their paths.

    Arranged samples are not needed: an older version may have lost them.
    """
    samples = f"releases/{name}/{SAMPLES_FILE}"
    made: set[str] = set()
    files = {file.path: (file, part) for part in parts for file in part.files if file.table == "placements"}
    if samples in damaged or not files.keys() & damaged or not _is_there(place_of(catalog.workdir, f"releases/{name}")):
        return made
    with open_sql(catalog.workdir) as sql:
        view_parquet(sql, "samples", [place_of(catalog.workdir, samples)])
        has = sql.table("samples").columns  # an older release lacks columns, and so do its placements
        schema = pa.schema([field for field in tables.PLACEMENTS if field.name in has])
        columns = ", ".join(identifier(column) for column in schema.names)
        for path in sorted(files.keys() & damaged):
            recorded, part = files[path]
            shard = next(file.path for file in part.files if file.table == "shard").rpartition("/")[2]
            rows = sql.sql(f"SELECT {columns} FROM samples WHERE shard = ? ORDER BY position", params=[shard])
            file = write_table(catalog.workdir, "placements", path, rows.to_arrow_table(), schema)
            if file.sha256 == recorded.sha256:
                publish_into(catalog.workdir, file.temp, path)
                made.add(path)
            else:
                storage.remove(file.temp)
    return made


def _pack_again(catalog: Catalog, fingerprint: str, parts: Sequence[PartRecord], damaged: set[str]) -> Iterator[str]:
    ((text,),) = catalog.ask("SELECT identity FROM stages WHERE fingerprint = ?", fingerprint)
    if not any(part.step == "arrange" for part in parts):
        raise IntegrityError(
            "its arranged samples must be made first, by a build with the configuration that packed it"
        )
    identity = json.loads(text)
    inputs, run = _inputs_of(catalog, identity), StageRun(pack.STAGE, fingerprint, catalog, RunSettings(), None)
    written, shards = [part for part in parts if part.step == "write"], pack.plan_shards(inputs, run)
    if len(written) != len(shards):
        raise IntegrityError(
            "not all of its shards are recorded. A build with its configuration packs it again; or delete its folder"
        )
    for planned, part in zip(shards, written, strict=True):
        if damaged & {file.path for file in part.files}:
            _check_version(part, identity)
            try:
                yield from _do_again(part, planned.inputs, run, damaged)
            except IntegrityError:  # `mend` has moved what was sound to another pool file
                moved = replace(planned.inputs, rows=_as_they_lie_now(catalog, planned.inputs.rows, run))
                yield from _do_again(part, moved, run, damaged)
                storage.remove(moved.rows.path)
    for part in parts:
        if part.step == "record" and damaged & {file.path for file in part.files}:
            _check_version(part, identity)
            if not inputs.decisions:
                raise IntegrityError(
                    "its table of decisions must be made first, by a build with the configuration that packed it"
                )
            (inputs_of_record,) = pack.plan_record(inputs, run)
            yield from _do_again(part, inputs_of_record, run, damaged)


def _check_version(part: PartRecord, identity: Mapping[str, Any]) -> None:
    """Raise IntegrityError for a step that has other results today."""
    if identity["versions"].get(part.step) != next(step.version for step in pack.STAGE.steps if step.name == part.step):
        raise IntegrityError(
            "another version of PlantMix packed it, which writes other bytes; repair it with that version, or make a "
            "release of today with `plantmix build CONFIG`"
        )


def _as_they_lie_now(catalog: Catalog, rows: RowGroup, run: StageRun[None]) -> RowGroup:
    """Arranged samples with the places of their pictures that the table of facts of the last build knows."""
    arranged = rows.read()
    facts = catalog.current_files("fetch", "facts")
    if not facts:
        raise IntegrityError("the last build has no table of facts, which says where pictures lie")
    with open_sql(catalog.workdir) as sql:
        view_parquet(sql, "facts", [storage.join(catalog.workdir, path) for path in facts])
        sql.register("arranged", arranged.select(["stored_sha256"]))
        query = (
            f"SELECT DISTINCT ON (stored_sha256) {STORED_COLUMNS} FROM facts SEMI JOIN arranged USING (stored_sha256)"
        )
        places = {row["stored_sha256"]: row for row in sql.sql(query).to_arrow_table().to_pylist()}
    lying = [places.get(row["stored_sha256"], row) for row in arranged.select(list(STORED_AT)).to_pylist()]
    for name in STORED_AT:
        values = pa.array([row[name] for row in lying], arranged.schema.field(name).type)
        arranged = arranged.set_column(arranged.schema.get_field_index(name), name, values)
    path = run.scratch_file(f"arranged-{uuid.uuid4().hex[:12]}.parquet")
    pq.write_table(arranged, path, row_group_size=arranged.num_rows)
    return RowGroup(path, 0, rows.content)


def _inputs_of(catalog: Catalog, identity: Mapping[str, Any]) -> pack.PackInputs:
    """Return the inputs of a version of pack.

    Of its tables it needs only the decisions: the first step alone reads others.
    """
    try:
        values: dict[str, Any] = {
            item.name: Files() if item.type == "Files" else identity[item.name] for item in fields(pack.PackInputs)
        }
        values["texts"] = TextSettings.of_record(identity["texts"])
        values["decisions"] = decisions_of(catalog, identity["decisions"][0])
    except (LookupError, ValueError) as error:
        raise IntegrityError(f"it was packed by another version of PlantMix: {error}") from None
    return pack.PackInputs(**values)


def _do_again(part: PartRecord, inputs: Any, run: StageRun[None], damaged: set[str]) -> Iterator[str]:
    """Run the work of a part, and publish the files that come out as recorded and are damaged now."""
    table = next((file.path for file in part.files if file.table == "placements"), "")
    stem = table.rpartition("/")[2].removesuffix(".parquet") or part.key[:16]
    step = next(step for step in pack.STAGE.steps if step.name == part.step)
    result = step.work(inputs, run.execution(step, stem))
    assert isinstance(result, PartResult)
    recorded: dict[str, PartFile] = {file.path: file for file in part.files}
    for file in result.files:
        if file.path not in damaged:
            storage.remove(file.temp)
        elif file.sha256 != recorded[file.path].sha256:
            storage.remove(file.temp)
            yield (
                f"{file.path}: not mended: it comes out with other bytes than recorded (another version of Python, "
                "pyarrow or Pillow?)"
            )
        else:
            publish_into(run.workdir, file.temp, file.path)
            yield f"{file.path}: made again, as recorded"


# ---- releases of takedowns


def _cut_again(catalog: Catalog, name: str, fingerprint: str) -> Iterator[str]:
    releases = place_of(catalog.workdir, "releases")
    try:
        record = read_record(storage.join(releases, name))
        takedowns = record["takedowns"]
        origin = takedowns[-1]["from"]
        last = [entry for entry in takedowns if entry["from"] == origin]
        gone = {image["sample_id"] for entry in last for image in entry["images"]}
        release = Release.open(storage.join(releases, f"{record['name']}-{origin}"))
        sealed = catalog.ask("SELECT record_sha256 FROM releases WHERE name = ?", release.name)
        content = storage.hash_file(storage.join(release.path, RECORD_FILE)).sha256
        is_whole = sealed == [(content,)] and not any(release.wrong_hashes())
        is_known = is_whole and fingerprint_without(release, last) == fingerprint
    except (ConfigError, IntegrityError, LookupError, TypeError):
        is_known = False
    if not is_known:
        yield (
            f"releases/{name}: lost: its record no longer says what was taken out, the version before it is not whole, "
            "or another version of PlantMix cut it. Run `plantmix takedown` again on the version before it; "
            "takedowns.jsonl keeps the pictures out of builds"
        )
        return
    rows = [row for row in release.samples().to_pylist() if row["sample_id"] in gone]
    made = write_version(release, rows, last, is_newest=False)  # a later takedown may have taken out more
    yield f"releases/{made.name}: cut again from {release.name}"
