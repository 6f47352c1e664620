"""pack: drawn samples to webdataset shards, and the record that seals them as a release.

Reads draws, candidates, facts, captions and the pool. Writes `releases/NAME-VERSION/`: shards, samples.parquet,
side files, and release.json last. Same recipe, same bytes: nothing in a release depends on when, where, how
often or by how many workers it was built, so it holds no time and no path.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage, tables
from manifests.errors import IntegrityError
from manifests.records import Funnel, fingerprint
from manifests.release import LATEST_FILE, RECORD_FILE, SPLIT_FOLDERS
from pipeline.captions.settings import TextSettings
from pipeline.captions.texts import members_by_row
from pipeline.runner.work import BuildContext, Part, PartResult, Stage, Step
from pipeline.stages import pack_record as record
from pipeline.stages.pack_arrange import ShardGroup, arrange, shard_groups
from pipeline.store.pool import PoolReader
from pipeline.store.tar import ArchiveWriter
from pipeline.store.writing import PrivateFile, write_table

VERSION = 6
ANNOUNCED = 32  # images that a disk may fetch at a time; fewer than the pool files kept open


def write_shard(payload: dict[str, Any]) -> PartResult:
    """One shard from the pool, each image checked against its recorded hash, and where every member lies."""
    rows = pq.ParquetFile(payload["arranged"]).read_row_group(payload["row_group"])
    shard_path = payload["shard_path"]
    final = storage.join(payload["workdir"], shard_path)
    storage.make_folder(final.rpartition("/")[0])
    temp = storage.temp_path(final)
    fs, inner = storage.filesystem(temp)
    keys = record.sample_keys(rows)
    with PoolReader(payload["workdir"]) as pool, fs.open(inner, "wb") as stream:
        archive = ArchiveWriter(stream)
        places = _write_samples(archive, pool, rows, keys, payload["texts"])
        num_bytes, sha256 = archive.finish()
    shard = PrivateFile("shard", shard_path, temp, rows.num_rows, num_bytes, sha256)
    table = pa.table(
        {
            **{name: rows[name] for name in ("sample_id", "copy", "domain", "split")},
            "shard": pa.array([payload["shard"]] * rows.num_rows, pa.string()),
            "position": range(rows.num_rows),
            "key": keys,
            **places,
        }
    )
    path = f"tables/pack/{payload['stem']}.parquet"
    placed_file = write_table(payload["workdir"], "placements", path, table, tables.PLACEMENTS)
    domains = Counter(rows["domain"].to_pylist())
    return PartResult((shard, placed_file), None, {"domains": dict(sorted(domains.items()))})


def _write_samples(
    archive: ArchiveWriter, pool: PoolReader, rows: pa.Table, keys: Sequence[str], texts: TextSettings
) -> dict[str, list[int]]:
    """Append every sample; gives the offset and length columns of placements.

    Raises: IntegrityError when the pool holds other bytes than were recorded.
    """
    columns = ("pool_file", "offset", "length", "stored_sha256")
    images = list(zip(*(rows[name].to_pylist() for name in columns), strict=True))
    txts, jsons = rows["txt"].cast(pa.binary()).to_pylist(), record.sample_jsons(rows, keys)
    places: dict[str, list[int]] = {f"{name}_offset": [] for name in ("jpg", "txt", "json")}
    others = members_by_row(rows["texts"], texts)
    for number, (key, txt, described, more) in enumerate(zip(keys, txts, jsons, others, strict=True)):
        if number % ANNOUNCED == 0:
            for pool_file, offset, length, _ in images[number : number + ANNOUNCED]:
                pool.announce(pool_file, offset, length)
        pool_file, offset, length, sha256 = images[number]
        place, image = archive.room(f"{key}.jpg", length)
        pool.read_into(image, pool_file, offset)
        if hashlib.sha256(image).hexdigest() != sha256:
            raise IntegrityError(
                f"pool/{pool_file}: sample {key.partition('_')[0]} has other bytes than when it was stored; "
                "remove that file and build again to fetch its images anew"
            )
        places["jpg_offset"].append(place)
        places["txt_offset"].append(archive.add(f"{key}.txt", txt))
        places["json_offset"].append(archive.add(f"{key}.json", described))
        for name, text in more:
            archive.add(f"{key}.{name}", text.encode())
    lengths = {"txt_length": [len(txt) for txt in txts], "json_length": [len(described) for described in jsons]}
    return places | {"jpg_length": rows["length"].to_pylist()} | lengths


def _groups(context: BuildContext) -> list[ShardGroup]:
    notes = context.sealed["mix"].notes
    drawn = [row["domain"] for row in notes["mixture"]["domains"] if row["num_drawn"]]
    return shard_groups(context.config.pack.kind, notes["splits"], drawn)


def _plan_arrange(context: BuildContext) -> Sequence[Part]:
    key = fingerprint({"stage": context.fingerprint, "step": "arrange"})
    payload = {
        "draws": context.files("mix", "draws"),
        "candidates": context.files("ingest", "candidates"),
        "facts": context.files("fetch", "facts"),
        "captions": context.files("caption", "captions"),
        "extra_captions": context.files("select", "extra_captions"),
        "groups": _groups(context),
        "texts": context.config.caption.text,
        "max_samples": context.config.pack.max_samples,
        "max_bytes": context.config.pack.shard_bytes,
        "stem": key[:16],
        **context.execution(),
    }
    return [Part(key, payload)]


def _plan_shards(context: BuildContext) -> Sequence[Part]:
    parts = []
    (arranging,) = context.own_parts("arrange")
    for group in _groups(context):
        (arranged,) = context.own_files("arrange", group.table)
        for number, num_rows in enumerate(arranging.notes["shards"][group.table]):
            shard = record.shard_name(context.config.name, group.split, number, group.domain)
            key = fingerprint({"stage": context.fingerprint, "shard": shard})
            payload = {
                "arranged": arranged,
                "row_group": number,
                "shard": shard,
                "shard_path": f"{release_path(context)}/{SPLIT_FOLDERS[group.split]}/{shard}",
                "texts": context.config.caption.text,
                "stem": key[:16],
                **context.execution(),
            }
            parts.append(Part(key, payload, num_rows=num_rows))
    return parts


def _plan_record(context: BuildContext) -> Sequence[Part]:
    key = fingerprint({"stage": context.fingerprint, "step": "record"})
    shards = [
        {"split": split, "shard": file.path.rpartition("/")[2], "domains": part.notes["domains"], **_sizes(file)}
        for part in context.own_parts("write")
        for file in part.files
        if file.table == "shard"
        for split, folder in SPLIT_FOLDERS.items()
        if file.path.split("/")[-2] == folder
    ]
    payload = {
        "release_path": release_path(context),
        "name": context.config.name,
        "version": context.fingerprint[:12],
        "kind": context.config.pack.kind,
        "fingerprint": context.fingerprint,
        "recipe": record.release_recipe(context.config),
        "funnels": _funnels(context),
        "mixture": context.sealed["mix"].notes["mixture"],
        "evaluation": context.sealed["dedup"].notes.get("evaluation", []),
        "shards": shards,
        "splits": context.sealed["mix"].notes["splits"],
        "places": _places(context),
        "num_samples": context.sealed["mix"].funnel.num_kept,
        **context.execution(),
    }
    return [Part(key, payload)]


def _places(context: BuildContext) -> list[dict[str, Any]]:
    """Of each shard in the order of samples.parquet: its arranged row group and the placements of its samples."""
    (arranging,) = context.own_parts("arrange")
    arranged = [
        (context.own_files("arrange", group.table)[0], number)
        for group in _groups(context)
        for number in range(len(arranging.notes["shards"][group.table]))
    ]
    placements = context.own_files("write", "placements")
    return [
        {"arranged": path, "row_group": number, "placements": placed}
        for (path, number), placed in zip(arranged, placements, strict=True)
    ]


def _funnels(context: BuildContext) -> dict[str, Any]:
    return {
        name: {"in": s.funnel.num_in, "kept": s.funnel.num_kept, "reasons": dict(sorted(s.funnel.reasons.items()))}
        for name, s in context.sealed.items()
        if name != "pack"
    }


def _sizes(file: Any) -> dict[str, Any]:
    return {"num_samples": file.num_rows, "num_bytes": file.num_bytes, "sha256": file.sha256}


def release_path(context: BuildContext) -> str:
    """Folder of the release that the current pack version writes, relative to the work folder."""
    return f"releases/{context.config.name}-{context.fingerprint[:12]}"


def _identity(context: BuildContext) -> dict[str, Any]:
    return {
        "version": VERSION,
        "name": context.config.name,
        "kind": context.config.pack.kind,
        "max_samples": context.config.pack.max_samples,
        "max_bytes": context.config.pack.shard_bytes,
        "texts": context.config.caption.text_identity(),
        "draws": context.sealed["mix"].notes["content"],
        "mixture": context.sealed["mix"].notes["mixture"],
        "counts": _funnels(context),  # release.json states them, and equal fingerprints mean equal bytes
        "facts": context.sealed["fetch"].notes["content"],
        "captions": context.sealed["caption"].notes["content"],
        "extra_captions": context.content("select", "extra_captions"),
        "candidates": context.content("ingest", "candidates"),
        "recipe": record.release_recipe(context.config),
        "evaluation": context.sealed["dedup"].notes.get("evaluation", []),
    }


def _conclude(context: BuildContext) -> tuple[Funnel, dict[str, Any]]:
    num = context.sealed["mix"].funnel.num_kept
    (part,) = context.own_parts("record")
    return Funnel(num, num), {"release": release_path(context), **part.notes}


def _settle(context: BuildContext) -> None:
    """Enter the release in the catalogue and point LATEST at it."""
    (part,) = context.own_parts("record")
    path = release_path(context)
    sealed = next(file for file in part.files if file.path == f"{path}/{RECORD_FILE}")
    name = path.rpartition("/")[2]
    context.catalog.record_release(name, path, context.fingerprint, sealed.sha256, part.notes["shards"])
    for pointer in (LATEST_FILE, f"{context.config.name}.{LATEST_FILE}"):  # newest of all, newest of this name
        storage.publish_bytes(storage.join(context.workdir, "releases", pointer), f"{name}\n".encode())


STAGE = Stage(
    name="pack",
    about="write webdataset shards and seal the release",
    identity=_identity,
    steps=(
        Step("arrange", _plan_arrange, arrange),
        Step("write", _plan_shards, write_shard, "samples"),
        Step("record", _plan_record, record.write_record),
    ),
    conclude=_conclude,
    settle=_settle,
)
