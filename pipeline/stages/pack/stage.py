"""pack: write the drawn samples into webdataset shards, and the record that seals them as a release.

Reads draws, candidates, facts, captions, marks and the pool. Writes `releases/NAME-VERSION/`: shards, samples.parquet,
side files, and release.json last. A release holds no time and no path: the same recipe gives the same bytes anywhere.
Boxes that a score rule blurs are blurred here, in the shards alone. The pool keeps the original, by which duplicates
and leaks were judged.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.contract.records import Funnel, PartFile
from manifests.contract.release import LATEST_FILE, RECORD_FILE, SPLIT_FOLDERS
from manifests.services.packages import code_of
from manifests.stores import storage
from manifests.stores.folder import publish_bytes_into
from pipeline.engine.work import BuildContext, Execution, Part, PartResult, Stage, StageRun, Step
from pipeline.fetching.pictures.blur import blur_boxes
from pipeline.judging.captions.settings import TextSettings
from pipeline.judging.captions.texts import members_by_row
from pipeline.judging.vocabulary.backbone import backbone_files
from pipeline.scoring.scorers import make_scorer
from pipeline.sidefiles import write as sidefiles
from pipeline.stages.pack import record
from pipeline.stages.pack.arrange import (
    ALWAYS_GATHERED,
    ARRANGED,
    ShardGroup,
    arrange,
    gather,
    plan_ranges,
    shard_groups,
)
from pipeline.stages.pack.record import GATHER_VERSION, VERSION
from pipeline.stages.score import named_file
from pipeline.store.files import Files, RowGroup
from pipeline.store.pool import ANNOUNCED, PoolReader
from pipeline.store.sql import view_parquet
from pipeline.store.tar import ArchiveWriter
from pipeline.store.writing import PrivateFile


@dataclass(frozen=True)
class PackInputs(record.Stated):
    """The inputs that a release is packed from, with what release.json states."""

    max_samples: int | None
    max_bytes: int | None
    texts: TextSettings
    draws: Files
    candidates: Files
    facts: Files
    captions: Files
    extra_captions: Files
    marks: Files


@dataclass(frozen=True)
class ShardInputs:
    """The samples of one shard with their texts, and the shard's name within the work folder.

    `members` are file names of the extra text members that every sample gets, empty where it has no such text:
    `datasets` and the Hub's viewer refuse samples of unlike members.
    """

    rows: RowGroup
    shard: str
    folder: str
    members: tuple[str, ...]


def write_shard(inputs: ShardInputs, run: Execution[None]) -> PartResult:
    """One shard from the pool, each image checked against its recorded hash, and where every member lies."""
    rows = inputs.rows.read()
    shard_path = f"{inputs.folder}/{inputs.shard}"
    final = storage.join(run.workdir, shard_path)
    storage.make_folder(final.rpartition("/")[0])
    temp = storage.temp_path(final)
    keys = record.sample_keys(rows)
    with PoolReader(run.workdir) as pool, Path(temp).open("wb") as stream:
        archive = ArchiveWriter(stream, digest := hashlib.sha256())
        places = _write_samples(archive, pool, rows, keys, inputs.members)
        num_bytes = archive.finish()
    shard = PrivateFile("shard", shard_path, temp, rows.num_rows, num_bytes, digest.hexdigest())
    table = pa.table(
        {
            **{name: rows[name] for name in ("sample_id", "copy", "domain", "split")},
            "shard": pa.array([inputs.shard] * rows.num_rows, pa.string()),
            "position": range(rows.num_rows),
            "key": keys,
            **places,
        }
    )
    placed = run.write("placements", table, run.stem)
    domains = Counter(rows["domain"].to_pylist())
    return PartResult((shard, placed), None, {"domains": dict(sorted(domains.items()))})


def _write_samples(
    archive: ArchiveWriter, pool: PoolReader, rows: pa.Table, keys: Sequence[str], members: Sequence[str]
) -> dict[str, list[Any]]:
    """Append every sample; gives the columns of placements that say what lies where.

    Raises: IntegrityError when the pool holds other bytes than were recorded.
    """
    columns = ("pool_file", "offset", "length", "stored_sha256")
    images = list(zip(*(rows[name].to_pylist() for name in columns), strict=True))
    txts, jsons = rows["txt"].cast(pa.binary()).to_pylist(), record.sample_jsons(rows, keys)
    columns_written = ("jpg_offset", "jpg_length", "packed_sha256", "txt_offset", "json_offset")
    places: dict[str, list[Any]] = {name: [] for name in columns_written}
    others = members_by_row(rows["texts"], members)
    blurs = rows["blur"].to_pylist()
    for number, (key, txt, described, more) in enumerate(zip(keys, txts, jsons, others, strict=True)):
        if number % ANNOUNCED == 0:
            pool.announce([image[:3] for image in images[number : number + ANNOUNCED]])
        pool_file, offset, length, sha256 = images[number]
        packed_sha256 = None
        if blurs[number]:
            blurred = blur_boxes(pool.read(pool_file, offset, length, sha256), blurs[number])
            length, packed_sha256 = len(blurred), hashlib.sha256(blurred).hexdigest()
            jpg_offset = archive.add(f"{key}.jpg", blurred)
        else:
            jpg_offset, image = archive.room(f"{key}.jpg", length)
            pool.read_into(image, pool_file, offset, sha256)
        places["jpg_offset"].append(jpg_offset)
        places["jpg_length"].append(length)
        places["packed_sha256"].append(packed_sha256)
        places["txt_offset"].append(archive.add(f"{key}.txt", txt))
        places["json_offset"].append(archive.add(f"{key}.json", described))
        for name, text in more:
            archive.add(f"{key}.{name}", text.encode())
    lengths = {"txt_length": [len(txt) for txt in txts], "json_length": [len(described) for described in jsons]}
    return places | lengths


def _inputs(context: BuildContext) -> PackInputs:
    config = context.config
    caption, select, mix = (context.sealed[name] for name in ("caption", "select", "mix"))
    joined = caption.notes.get("joined_texts")
    texts = context.files("caption", "joined_texts").digested(joined) if joined else Files()
    counts = {name: _count(stage.funnel) for name, stage in context.sealed.items() if name != "pack"}
    for name in ("join", "captions"):
        if joins := context.sealed["ingest"].notes.get(name):
            counts["ingest"][name] = [{k: v for k, v in join.items() if isinstance(v, str | int)} for join in joins]
    return PackInputs(
        name=config.name,
        kind=config.pack.kind,
        max_samples=config.pack.max_samples,
        max_bytes=config.pack.shard_bytes,
        texts=config.caption.text,
        draws=context.files("mix", "draws").digested(mix.notes["content"]),
        splits=mix.notes["splits"],
        mixture=mix.notes["mixture"],
        num_samples=mix.funnel.num_kept,
        candidates=context.files("ingest", "candidates"),
        facts=context.facts(),
        captions=context.files("caption", "captions").digested(caption.notes["content"]),
        extra_captions=context.files("select", "extra_captions").digested(*select.notes.get("captions", ())) + texts,
        marks=_marks(context),
        decisions=context.files("select", "decisions").digested(select.notes["content"]),
        dedup={
            **{name: context.sealed["dedup"].notes[name] for name in ("radius", "num_hashes", "num_hash_pairs")},
            "kept_elsewhere": context.sealed["select"].notes["kept_elsewhere"],
        },
        counts=counts,
        evaluation=tuple(context.sealed["dedup"].notes.get("evaluation", [])),
        recipe=recipe_of(context),
    )


def recipe_of(context: BuildContext) -> dict[str, Any]:
    """Return the recipe of the release that a configuration makes; files stand in it by their content, code too."""
    config = context.config

    def content_of(value: Any) -> Any:
        content = named_file(context, value).content
        return record.name_of(value) if content == value else content

    recipe = record.release_recipe(config, content_of)
    if backbone := config.caption.backbone:
        recipe["caption"]["backbone"]["file"] = [
            context.catalog.input_sha256(file) for file in backbone_files(backbone)
        ]
    for plugin, given in zip(recipe["score"]["plugins"], config.score.plugins, strict=True):
        if not given.scorer.startswith("pipeline."):
            plugin["scorer"] = f"{given.scorer.partition(':')[2]} {code_of(make_scorer(config.score, given.name))}"
    return recipe


def _marks(context: BuildContext) -> Files:
    digest = context.sealed["score"].notes.get("marks")
    return context.files("score", "marks").digested(digest) if digest else Files()


def _count(funnel: Funnel) -> dict[str, Any]:
    return {"in": funnel.num_in, "kept": funnel.num_kept, "reasons": dict(sorted(funnel.reasons.items()))}


def _groups(inputs: PackInputs) -> list[ShardGroup]:
    drawn = [row["domain"] for row in inputs.mixture["domains"] if row["num_drawn"]]
    return shard_groups(inputs.kind, inputs.splits, drawn)


def release_path(name: str, fingerprint: str) -> str:
    """Folder of the release that a version of pack writes, relative to the work folder."""
    return f"releases/{name}-{fingerprint[:12]}"


def _plan_gather(inputs: PackInputs, run: StageRun[None]) -> list[dict[str, Any]]:
    """One part. Every byte of the facts counts: they say where an image lies."""
    return [{"facts": inputs.facts.exact(), "by_bytes": inputs.max_bytes is not None}]


def _plan_arrange(inputs: PackInputs, run: StageRun[None]) -> list[dict[str, Any]]:
    gathered = run.files("gather", "gathered")
    num_rows = run.num_rows(gathered)
    most_rows = math.ceil(num_rows / len(run.buckets_of(num_rows)))
    limits = inputs.max_samples, inputs.max_bytes
    members = tuple(sorted({name for part in run.parts("gather") for name in part.notes["members"]}))
    with run.scratch() as sql:
        view_parquet(sql, "gathered", gathered.paths)
        return [
            {"group": group, "places": places, "members": members}
            for group in _groups(inputs)
            for places in plan_ranges(sql, group, *limits, len(members), most_rows)
        ]


def _arranged(inputs: PackInputs, run: StageRun[None]) -> Iterator[tuple[ShardGroup, int, RowGroup, int]]:
    """Every shard in the order of samples.parquet: its group and number there, its arranged rows, how many they are."""
    parts = run.parts("arrange")
    for group in _groups(inputs):
        number = itertools.count()
        for part in parts:
            if counts := part.notes["shards"].get(group.table):
                files = run.files_of([part], group.table)
                for index, num_rows in enumerate(counts):
                    yield group, next(number), RowGroup(files.path, index, f"{files.content[0]}-{index}"), num_rows


def _members(run: StageRun[None]) -> tuple[str, ...]:
    """Return the file names of the extra text members of the release."""
    return tuple(next((part.notes["members"] for part in run.parts("arrange")), ()))


def plan_shards(inputs: PackInputs, run: StageRun[None]) -> Sequence[Part[ShardInputs]]:
    """Return a part a shard, in the order of samples.parquet."""
    folder = release_path(inputs.name, run.fingerprint)
    members = _members(run)
    parts = []
    for group, number, rows, num_rows in _arranged(inputs, run):
        shard = record.shard_name(inputs.name, group.split, number, group.domain)
        placed = ShardInputs(rows, shard, f"{folder}/{SPLIT_FOLDERS[group.split]}", members)
        parts.append(Part(placed, num_rows=num_rows))
    return parts


def plan_record(inputs: PackInputs, run: StageRun[None]) -> Sequence[record.RecordInputs]:
    """Return the one part that seals the release."""
    shards, rows = [], []
    for (group, _, arranged, _), part in zip(_arranged(inputs, run), run.parts("write"), strict=True):
        file = next(file for file in part.files if file.table == "shard")
        name = file.path.rpartition("/")[2]
        shards.append({"split": group.split, "shard": name, "domains": part.notes["domains"], **_sizes(file)})
        rows.append(record.ShardRows(arranged, run.files_of([part], "placements")))
    return [
        record.RecordInputs(
            **{declared.name: getattr(inputs, declared.name) for declared in fields(record.Stated)},
            folder=release_path(inputs.name, run.fingerprint),
            fingerprint=run.fingerprint,
            shards=tuple(shards),
            rows=tuple(rows),
            members=_members(run),
        )
    ]


def _sizes(file: PartFile) -> dict[str, Any]:
    return {"num_samples": file.num_rows, "num_bytes": file.num_bytes, "sha256": file.sha256}


def _conclude(inputs: PackInputs, run: StageRun[None]) -> tuple[Funnel, dict[str, Any]]:
    (part,) = run.parts("record")
    path = release_path(inputs.name, run.fingerprint)
    return Funnel(inputs.num_samples, inputs.num_samples), {"release": path, **part.notes}


def _settle(context: BuildContext) -> None:
    """Enter the release in the catalogue and point LATEST at it."""
    (part,) = context.catalog.parts_of(context.fingerprint, "record")
    path = release_path(context.config.name, context.fingerprint)
    sealed = next(file for file in part.files if file.path == f"{path}/{RECORD_FILE}")
    name = path.rpartition("/")[2]
    context.catalog.record_release(name, path, context.fingerprint, sealed.sha256, part.notes["shards"])
    for pointer in (LATEST_FILE, f"{context.config.name}.{LATEST_FILE}"):  # newest of all, newest of this name
        publish_bytes_into(context.workdir, f"releases/{pointer}", f"{name}\n".encode())


STAGE = Stage(
    name="pack",
    about="write webdataset shards and seal the release",
    inputs=_inputs,
    tables={"gathered": ALWAYS_GATHERED, "arranged": ARRANGED},
    steps=(
        Step(
            "gather",
            gather,
            version=GATHER_VERSION,
            cut=("draws", "candidates", "facts", "captions", "extra_captions", "marks"),
            gives=("gathered",),
            plan=_plan_gather,
            prepares=True,
        ),
        Step("arrange", arrange, VERSION, reads=("gathered",), gives=("arranged",), plan=_plan_arrange),
        Step("write", write_shard, VERSION, gives=("placements",), plan=plan_shards, unit="samples"),
        Step("record", record.write_record, VERSION + sidefiles.VERSION, plan=plan_record),
    ),
    conclude=_conclude,
    settle=_settle,
)
