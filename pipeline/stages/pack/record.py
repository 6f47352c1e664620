"""The record of a release: keys, json members, samples.parquet, attribution, sizes, release.json.

`write_record` is the last part of a build. Nothing here holds a time or a path: the same recipe gives the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from json.encoder import encode_basestring
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.contract import tables
from manifests.contract.reader import rows_of
from manifests.contract.release import FORMAT, RECORD_FILE, SPLIT_FOLDERS
from manifests.errors import IntegrityError
from manifests.masking import hide_in, hide_secrets
from manifests.stores.folder import place_of
from pipeline.config import BuildConfig
from pipeline.engine.work import Execution, PartResult
from pipeline.sidefiles.write import SamplesWriter, json_bytes, side_files
from pipeline.store.files import Files, RowGroup, open_parquet
from pipeline.store.sql import view_parquet, view_table
from pipeline.store.writing import PrivateFile, private_bytes

# 12: samples.parquet has the hash of the middle, by which takedowns tell sheets of one layout apart. Raise both for
# another column.
VERSION, GATHER_VERSION = 12, 5
# Columns of samples.parquet that come from other tables, as they are there. A column in one of these is all it takes.
CAPTION_COLUMNS = ("licence_id", "language", "taxon_derived")
FACT_COLUMNS = (
    "image_id", "stored_sha256", "phash", "middle_hash", "width_px", "height_px", "stored_width_px", "stored_height_px",
    "file_creator", "file_rights",
)  # fmt: skip
MARK_COLUMNS = ("marks", "blur")
CANDIDATE_COLUMNS = tuple(
    name for name in tables.CANDIDATES.names if name not in ("sample_id", "domain", "row_number", "locator")
)

SAMPLES = pa.schema(
    [
        *tables.PLACEMENTS,
        pa.field("text", pa.string()),
        pa.field("text_type", pa.string()),
        tables.MARKS.field("marks"),
        *[tables.CAPTIONS.field(name) for name in CAPTION_COLUMNS],
        *[tables.FACTS.field(name) for name in FACT_COLUMNS],
        *[tables.CANDIDATES.field(name) for name in CANDIDATE_COLUMNS],
    ]
)
JOINED_SAMPLES = SAMPLES.append(pa.field("texts", pa.map_(pa.string(), pa.string())))
"""Where a source joins texts: also the text members of each sample by name, so that a change of one shows."""
_ARRANGED_COLUMNS = [
    "sample_id", "copy", "txt", "txt_type", *(
        name for name in SAMPLES.names if name not in tables.PLACEMENTS.names and name not in ("text", "text_type")
    ),
]  # fmt: skip

_JSON_TEXTS = {  # fields of the json member that are texts, and the columns of arranged samples they come from
    **{name: name for name in ("sample_id", "domain", "source", "record_key", "url", "caption", "creator",
                               "rights_holder", "reference_url", "extra", "licence_id", "taxon_scientific_name",
                               "taxon_vernacular_name", "taxon_derived", "marks")},
    **{f"taxon_{rank}": f"taxon_{rank}" for rank in tables.TAXON_RANKS},
    "text_type": "txt_type",
    "uid": "sample_id",  # as DataComp's tools name it
    "sha256": "image_id",  # as img2dataset names it, and the sizes below
}  # fmt: skip
_JSON_NUMBERS = {
    "width": "stored_width_px",
    "height": "stored_height_px",
    "original_width": "width_px",
    "original_height": "height_px",
}
LARGEST_GROUPS = 24
_JSON_ESCAPED = r'[\x00-\x1f"\\]'
_TOOLS = ("pyarrow", "duckdb", "pillow", "imagehash", "matplotlib")  # whose versions may change a byte


def shard_name(name: str, split: str, number: int, domain: str | None = None) -> str:
    """File name of a shard: unique over the folders of a release, since open_clip reads sizes by base name."""
    middle = "".join(f"-{word}" for word in (split if split != "train" else None, domain) if word)
    return f"{name}{middle}-{number:06d}.tar"


def sample_keys(rows: pa.Table) -> list[str]:
    """webdataset keys of drawn samples; no dots, and another one for every copy."""
    pairs = zip(rows["sample_id"].to_pylist(), rows["copy"].to_pylist(), strict=True)
    return [sample_id if copy == 0 else f"{sample_id}_{copy}" for sample_id, copy in pairs]


def sample_jsons(rows: pa.Table, keys: Sequence[str]) -> list[bytes]:
    """Return the json members of arranged samples: where each comes from and what is known of it.

    Fields in sorted order.

    Every sample has the same fields of the same types, with "" for unknown, because some readers infer a schema from
    the first samples (Hugging Face `datasets`, Ray). `extra` is JSON text for the same reason. The json is built column
    by column: an encoder for each sample took a fifth of packing's time.
    """
    values = {
        "key": _json_texts(pa.array(keys, pa.string())),
        "phash": pa.array([f'"{phash:016x}"' for phash in rows["phash"].to_pylist()], pa.string()),
        **{name: _json_texts(rows[column]) for name, column in _JSON_TEXTS.items()},
        **{name: pc.fill_null(pc.cast(rows[column], pa.string()), "null") for name, column in _JSON_NUMBERS.items()},
    }
    members: list[bytes] = _json_objects(values).cast(pa.binary()).to_pylist()
    return members


def _json_objects(values: Mapping[str, Any]) -> Any:
    """JSON objects, one a row, from columns of JSON values."""
    pieces: list[Any] = []
    for name in sorted(values):
        pieces += [f'{"," if pieces else "{"}"{name}":', values[name]]
    return pc.binary_join_element_wise(*pieces, "}", "")


def _json_texts(column: pa.ChunkedArray) -> Any:
    """JSON strings, "" for null; one for all rows where all are null."""
    if column.null_count == len(column):
        return '""'
    texts = pc.fill_null(column, "")
    if pc.any(pc.match_substring_regex(texts, _JSON_ESCAPED)).as_py():
        return pa.array([encode_basestring(text) for text in texts.to_pylist()], pa.string())
    return pc.binary_join_element_wise('"', texts, '"', "")


def name_of(value: Any) -> Any:
    """Return the last part of a text that may be a path."""
    return hide_secrets(value).rstrip("/").rpartition("/")[2] if isinstance(value, str) else value


def release_recipe(config: BuildConfig, file_as: Callable[[Any], Any] = name_of) -> dict[str, Any]:
    """Return the recipe of the release: the config without paths, secrets, workers, rates.

    `file_as` gives what stands for a value that may name a file: its content; in earlier releases the file's name.
    """
    recipe: dict[str, Any] = hide_in(config.model_dump(mode="json"))
    del recipe["work_dir"], recipe["run"]
    recipe["fetch"] = config.fetch.identity()
    recipe["caption"] = {
        **config.caption.measure_identity(),
        "rules": config.caption.rules_identity(),
        "text": config.caption.text.model_dump(mode="json"),
    }
    if config.caption.backbone:
        recipe["caption"]["backbone"]["file"] = file_as(config.caption.backbone.path)
    recipe["sources"] = []
    for source in config.sources:
        stated = {"cites": source.reader.cites(), "counts": source.reader.counts()}
        recipe["sources"].append(source.recipe() | {name: value for name, value in stated.items() if value is not None})
    if semantic := recipe["dedup"]["semantic"]:
        for name in ("model", "pretrained"):
            semantic[name] = file_as(getattr(config.dedup.semantic, name))
        del semantic["device"], semantic["batch_size"]
    recipe["evaluation"] = [evaluation.recipe() for evaluation in config.evaluation]
    if recipe["mix"]["mixture"]:
        recipe["mix"]["mixture"] = "mixture.json"  # of the release, which holds the content; no name of a file decides
    recipe["score"].pop("device")
    for name in ("model", "pretrained"):
        recipe["score"][name] = file_as(getattr(config.score, name))
    for plugin, settings in zip(recipe["score"]["plugins"], config.score.plugins, strict=True):
        plugin["options"] = _shown(settings.options, hide_in({"options": settings.options})["options"], file_as)
    return recipe


def _shown(value: Any, hidden: Any, file_as: Callable[[Any], Any]) -> Any:
    """Options of a plug-in: secrets stay hidden, and what may name a file is what stands for it."""
    if isinstance(value, dict):
        return {key: _shown(inner, hidden[key], file_as) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shown(inner, other, file_as) for inner, other in zip(value, hidden, strict=True)]
    return file_as(value) if hidden == value else hidden


@dataclass(frozen=True)
class ShardRows:
    """The samples of one shard: as they were arranged, and where the shard's file holds each."""

    arranged: RowGroup
    placements: Files


@dataclass(frozen=True)
class Stated:
    """The statements of a release on how it came about."""

    name: str
    kind: str
    recipe: dict[str, Any]
    counts: dict[str, Any]
    mixture: dict[str, Any]
    evaluation: tuple[dict[str, Any], ...]
    splits: dict[str, int]
    decisions: Files
    dedup: dict[str, Any]
    num_samples: int


@dataclass(frozen=True)
class RecordInputs(Stated):
    """The inputs of a release's record. `folder` is relative to the work folder; `shards` are in the order of samples.

    `members` are the extra text members that every sample has.
    """

    folder: str
    fingerprint: str
    shards: tuple[dict[str, Any], ...]
    rows: tuple[ShardRows, ...]
    members: tuple[str, ...]


def write_record(inputs: RecordInputs, run: Execution[None]) -> PartResult:
    """Side files of a release, then its record; the order of files is the order of publication."""
    workdir, folder = run.workdir, inputs.folder
    samples, attribution = _write_samples(inputs, run)
    files = [samples, attribution]
    with run.scratch() as sql:
        record = _record(inputs) | {"duplicates": _duplicates(inputs, samples.temp, sql)}
        for name, content in side_files(record, inputs.mixture, samples.temp, place_of(workdir, folder), sql):
            files.append(private_bytes(workdir, "side_file", f"{folder}/{name}", content))
    record["files"] |= {
        file.path.removeprefix(f"{folder}/"): {"num_bytes": file.num_bytes, "sha256": file.sha256} for file in files
    }
    files.append(private_bytes(workdir, "record", f"{folder}/{RECORD_FILE}", json_bytes(record)))
    return PartResult(tuple(files), None, {"shards": list(inputs.shards)})


def _write_samples(inputs: RecordInputs, run: Execution[None]) -> tuple[PrivateFile, PrivateFile]:
    """samples.parquet and attribution.parquet, shard by shard: arranged rows and placements have the same order."""
    schema = JOINED_SAMPLES if any("captions" in source for source in inputs.recipe["sources"]) else SAMPLES
    read = [*_ARRANGED_COLUMNS, *schema.names[len(SAMPLES.names) :]]
    writer = SamplesWriter(run.workdir, f"{inputs.folder}/", schema)
    opened: dict[str, pq.ParquetFile] = {}
    for shard in inputs.rows:
        path = shard.arranged.path
        if path not in opened:
            opened[path] = open_parquet(path)
        # threads of Arrow would take the core of the thread that encodes, which all others wait for
        rows = opened[path].read_row_group(shard.arranged.number, columns=read, use_threads=False)
        with pq.ParquetFile(shard.placements.path) as file:  # pq.read_table takes three times as long
            placed = file.read(use_threads=False)
        if placed["sample_id"] != rows["sample_id"] or placed["copy"] != rows["copy"]:
            raise IntegrityError(f"{shard.placements.path}: other samples than arranged; remove it and build again")
        columns = {name: placed[name] for name in tables.PLACEMENTS.names}
        columns |= {"text": rows["txt"], "text_type": rows["txt_type"]}
        columns |= {name: rows[name] for name in schema.names if name not in columns}
        writer.write(pa.table(columns))
    for file in opened.values():
        file.close()
    return writer.close()


def _record(inputs: RecordInputs) -> dict[str, Any]:
    files = {
        f"{SPLIT_FOLDERS[shard['split']]}/{shard['shard']}": {name: shard[name] for name in ("num_bytes", "sha256")}
        for shard in inputs.shards
    }
    splits = {
        split: {
            "num_samples": num,
            "shards": [
                {name: shard[name] for name in ("shard", "num_samples", "num_bytes", "sha256", "domains")}
                for shard in inputs.shards
                if shard["split"] == split
            ],
        }
        for split, num in sorted(inputs.splits.items(), reverse=True)
    }
    return {
        "format": FORMAT,
        "name": inputs.name,
        "version": inputs.fingerprint[:12],
        "kind": inputs.kind,
        "members": ["jpg", "txt", "json", *inputs.members],  # of every sample
        "fingerprint": inputs.fingerprint,
        "recipe": inputs.recipe,
        "counts": {
            "samples": inputs.splits.get("train", 0),
            "distinct_samples": inputs.num_samples,
            "domains": {row["domain"]: row["num_drawn"] for row in inputs.mixture["domains"]},
            "stages": inputs.counts,
        },
        "evaluation": list(inputs.evaluation),  # sets that are kept out, and how many images leaked of each
        "splits": splits,
        "files": files,
        "tools": {"python": platform.python_version(), **_tool_versions()},
    }


_DUPLICATES = "FROM decisions WHERE reason IN ('exact_duplicate', 'near_duplicate')"
_COUNTS_OF_DUPLICATES = {
    "dropped": "SELECT reason, count(*) AS images, count(DISTINCT other_sample_id) AS kept_instead "
    f"{_DUPLICATES} GROUP BY ALL ORDER BY ALL",
    "kept_because": f"SELECT kept_because, count(*) AS images {_DUPLICATES} GROUP BY ALL "
    "ORDER BY images DESC, kept_because",
    "distances": f"SELECT distance, count(*) AS images {_DUPLICATES} GROUP BY ALL ORDER BY ALL",
    "largest": f"SELECT other_sample_id AS sample_id, count(*) AS images {_DUPLICATES} GROUP BY ALL "
    f"ORDER BY images DESC, sample_id LIMIT {LARGEST_GROUPS}",
    "conflicts": "SELECT about, matched, value, other_value, list(DISTINCT sample_id ORDER BY sample_id) AS sample_ids "
    "FROM (SELECT sample_id, unnest(conflicts, recursive := true) FROM decisions SEMI JOIN packed USING (sample_id)) "
    "GROUP BY ALL ORDER BY ALL",
    "leaks": "SELECT evaluation_set, regexp_replace(value, ' to the leak .*', ' to another leak') AS matched, "
    "count(*) AS images FROM decisions WHERE reason = 'eval_leak' GROUP BY ALL ORDER BY ALL",
}

_OF_DROPPED = ("kept_because", "distances", "largest")  # nothing where nothing was dropped


def _duplicates(inputs: RecordInputs, samples: str, sql: Any) -> dict[str, Any]:
    """Count the images dropped for another one.

    `largest` names images that stayed for most others, `conflicts` those of the release that a copy contradicts.
    """
    view_parquet(sql, "packed", [samples])
    view_table(sql, "decisions", inputs.decisions, tables.DECISIONS)
    counts: dict[str, Any] = {}
    for name, query in _COUNTS_OF_DUPLICATES.items():
        counts[name] = [] if name in _OF_DROPPED and not counts["dropped"] else rows_of(sql, query)
    return {**inputs.dedup, **counts}


@cache
def _tool_versions() -> dict[str, str]:
    versions = {}
    for tool in _TOOLS:
        try:
            versions[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
