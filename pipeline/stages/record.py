"""What a release says of itself: keys, member json, samples.parquet, attribution, sizes, and release.json.

Pure descriptions first; `write_record` is the last part of a build. Nothing here holds a time or a path of
the machine: the same recipe gives the same bytes anywhere.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import tables
from manifests.release import FORMAT, RECORD_FILE, SAMPLES_FILE
from pipeline.config import BuildConfig
from pipeline.stages.sql import open_scratch, view_parquet
from pipeline.work import PartResult, PrivateFile, private_bytes, write_table

FACT_COLUMNS = ("image_id", "stored_sha256", "phash", "width_px", "height_px", "stored_width_px", "stored_height_px")
CANDIDATE_COLUMNS = tuple(
    name for name in tables.CANDIDATES.names if name not in ("sample_id", "domain", "row_number", "locator")
)

SAMPLES = pa.schema(
    [
        *tables.PLACEMENTS,
        pa.field("text", pa.string()),
        pa.field("text_type", pa.string()),
        pa.field("licence_id", pa.string()),
        *[tables.FACTS.field(name) for name in FACT_COLUMNS],
        *[tables.CANDIDATES.field(name) for name in CANDIDATE_COLUMNS],
    ]
)
ATTRIBUTION_COLUMNS = (
    "sample_id", "url", "licence_id", "licence", "licence_url", "rights_holder", "creator", "reference_url", "source",
)  # fmt: skip

_TOOLS = ("pyarrow", "duckdb", "pillow", "imagehash", "img2dataset", "ray", "webdataset")


def shard_name(name: str, split: str, number: int, domain: str | None = None) -> str:
    """File name of a shard: unique over the folders of a release, since open_clip reads sizes by base name."""
    middle = "".join(f"-{word}" for word in (split if split != "train" else None, domain) if word)
    return f"{name}{middle}-{number:06d}.tar"


def sample_key(row: dict[str, Any]) -> str:
    """webdataset key of a drawn sample; no dots, and another one for every copy."""
    return row["sample_id"] if row["copy"] == 0 else f"{row['sample_id']}_{row['copy']}"


def sample_json(row: dict[str, Any], key: str) -> bytes:
    """The json member: where the sample comes from and what is known of it."""
    taxon = {rank: row[f"taxon_{rank}"] for rank in tables.TAXON_RANKS if row[f"taxon_{rank}"]}
    values = {
        "key": key,
        **{name: row[name] for name in ("sample_id", "domain", "source", "record_key", "url", "caption")},
        "text_type": row["txt_type"],
        "taxon": taxon,
        "scientific_name": row["taxon_scientific_name"],
        "vernacular_name": row["taxon_vernacular_name"],
        "licence": row["licence_id"],
        "creator": row["creator"],
        "rights_holder": row["rights_holder"],
        "reference_url": row["reference_url"],
        "width": row["stored_width_px"],
        "height": row["stored_height_px"],
        "original_width": row["width_px"],
        "original_height": row["height_px"],
        "sha256": row["image_id"],
        "phash": f"{row['phash']:016x}",
        "extra": json.loads(row["extra"]) if row["extra"] else None,
    }
    return json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def release_recipe(config: BuildConfig) -> dict[str, Any]:
    """What the release was made by: the config without paths, workers, rates."""
    recipe: dict[str, Any] = config.model_dump(mode="json", exclude={"work_dir", "run"})
    recipe["fetch"] = config.fetch.identity()
    recipe["caption"] = {
        **config.caption.measure_identity(),
        "rules": config.caption.rules_identity(),
        "text": config.caption.text_identity(),
    }
    if config.caption.backbone:
        recipe["caption"]["backbone"]["file"] = config.caption.backbone.path.rstrip("/").rpartition("/")[2]
    recipe["sources"] = [source.recipe() for source in config.sources]
    if recipe["mix"]["mixture"]:
        recipe["mix"]["mixture"] = str(recipe["mix"]["mixture"]).rpartition("/")[2]
    if recipe["score"]["pretrained"]:
        recipe["score"]["pretrained"] = str(recipe["score"]["pretrained"]).rpartition("/")[2]
        recipe["score"]["model"] = str(recipe["score"]["model"]).rpartition("/")[2]
        recipe["score"].pop("device")
    return recipe


def attribution_page(rows: list[dict[str, Any]], name: str) -> str:
    """ATTRIBUTION.md: counts by licence and the creators to be named."""
    by_licence: dict[str, dict[str, int]] = {}
    for row in rows:
        creators = by_licence.setdefault(row["licence_id"] or "unknown", {})
        who = row["rights_holder"] or row["creator"] or "(nobody named)"
        creators[who] = creators.get(who, 0) + 1
    lines = [
        f"# Attribution of {name}",
        "",
        "One row an image, with its address and licence: `attribution.parquet`.",
        "",
    ]
    for licence in sorted(by_licence):
        creators = by_licence[licence]
        lines += [f"## {licence}: {sum(creators.values()):,} images", ""]
        lines += [f"- {who}: {num:,}" for who, num in sorted(creators.items(), key=lambda item: (-item[1], item[0]))]
        lines.append("")
    return "\n".join(lines)


def write_record(payload: dict[str, Any]) -> PartResult:
    """Side files of a release, then its record; the order of files is the order of publication."""
    workdir, folder = payload["workdir"], payload["release_path"]
    files = [_write_samples(payload, folder)]
    attribution = _attribution(files[0].temp)
    files.append(write_table(workdir, "attribution", f"{folder}/attribution.parquet", attribution, attribution.schema))
    name = f"{payload['name']}-{payload['version']}"
    page = attribution_page(attribution.to_pylist(), name)
    sizes = {shard["shard"]: shard["num_samples"] for shard in payload["shards"]}
    for file, content in (
        ("ATTRIBUTION.md", page.encode()),
        # every folder carries the union: open_clip looks shards up by base name in the first source's folder
        ("shards/sizes.json", _json(sizes)),
        ("heldout/sizes.json", _json(sizes)),
        ("mixture.json", _json(payload["mixture"])),
    ):
        if not file.startswith("heldout/") or "heldout" in payload["splits"]:
            files.append(private_bytes(workdir, "side_file", f"{folder}/{file}", content))
    record = _record(payload, {file.path.removeprefix(f"{folder}/"): file for file in files})
    files.append(private_bytes(workdir, "record", f"{folder}/{RECORD_FILE}", _json(record)))
    return PartResult(tuple(files), None, {"shards": payload["shards"]})


def _write_samples(payload: dict[str, Any], folder: str) -> PrivateFile:
    with open_scratch(payload) as sql:
        view_parquet(sql, "placements", payload["placements"])
        view_parquet(sql, "arranged", payload["arranged"])
        names = ", ".join(
            f'p."{name}"' if name in tables.PLACEMENTS.names else f'a."{name}"'
            for name in SAMPLES.names
            if name not in ("text", "text_type")
        )
        rows = sql.sql(
            f"SELECT {names}, a.txt AS text, a.txt_type AS text_type FROM placements p JOIN arranged a "
            "ON a.sample_id = p.sample_id AND a.copy = p.copy AND a.split = p.split "
            "ORDER BY p.split DESC, p.shard, p.position"
        ).to_arrow_table()
    return write_table(payload["workdir"], "samples", f"{folder}/{SAMPLES_FILE}", rows, SAMPLES)


def _attribution(samples: str) -> pa.Table:
    """One row an image, in the order of first appearance."""
    rows = pq.read_table(samples, columns=["copy", *ATTRIBUTION_COLUMNS])
    return rows.filter(pa.compute.equal(rows["copy"], 0)).select(list(ATTRIBUTION_COLUMNS))


def _record(payload: dict[str, Any], side_files: dict[str, PrivateFile]) -> dict[str, Any]:
    folders = {"train": "shards", "heldout": "heldout"}
    files = {
        f"{folders[shard['split']]}/{shard['shard']}": {"num_bytes": shard["num_bytes"], "sha256": shard["sha256"]}
        for shard in payload["shards"]
    }
    files |= {name: {"num_bytes": file.num_bytes, "sha256": file.sha256} for name, file in side_files.items()}
    splits = {
        split: {
            "num_samples": num,
            "shards": [
                {name: shard[name] for name in ("shard", "num_samples", "num_bytes", "sha256", "domains")}
                for shard in payload["shards"]
                if shard["split"] == split
            ],
        }
        for split, num in payload["splits"].items()
    }
    return {
        "format": FORMAT,
        "name": payload["name"],
        "version": payload["version"],
        "kind": payload["kind"],
        "fingerprint": payload["fingerprint"],
        "recipe": payload["recipe"],
        "counts": {
            "samples": payload["splits"].get("train", 0),
            "distinct_samples": payload["num_samples"],
            "domains": {row["domain"]: row["num_drawn"] for row in payload["mixture"]["domains"]},
            "stages": payload["funnels"],
        },
        "splits": splits,
        "files": dict(sorted(files.items())),
        "tools": {"python": platform.python_version(), **_tool_versions()},
    }


def _tool_versions() -> dict[str, str]:
    found = {}
    for tool in _TOOLS:
        try:
            found[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
