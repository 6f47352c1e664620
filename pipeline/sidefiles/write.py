"""Side files of a release, made from its record and its samples table alone: a build and a takedown write the same.

Writes nothing itself: gives names and bytes. Nothing here holds a time or a path of the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests import storage
from manifests.release import SPLIT_FOLDERS
from pipeline.sidefiles.card import write_card
from pipeline.sidefiles.figures import collect
from pipeline.sidefiles.page import write_page
from pipeline.store.writing import PrivateFile, TableWriter

ATTRIBUTION_COLUMNS = (
    "sample_id", "url", "licence_id", "licence", "licence_url", "rights_holder", "creator", "reference_url", "source",
)  # fmt: skip
BATCH_ROWS = 50_000


def json_bytes(value: Any) -> bytes:
    """Stable, readable JSON."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def side_files(
    record: Mapping[str, Any], mixture: Mapping[str, Any], samples: str, folder: str, connection: Any
) -> Iterator[tuple[str, bytes]]:
    """(path within the release, content) of every small file but the record, which names them all.

    `samples` is the samples table (it may not be published yet), `folder` the release, whose shards are there.
    """
    # as they will be read back: a takedown works from the files, and order within a dict must not show
    record, mixture = json.loads(json_bytes(record)), json.loads(json_bytes(mixture))
    figures = collect(connection, samples, folder)
    shards = [shard for split in record["splits"].values() for shard in split["shards"]]
    # every folder carries the union: open_clip looks shards up by base name in the first source's folder
    sizes = json_bytes({shard["shard"]: shard["num_samples"] for shard in shards})
    for split, entry in record["splits"].items():
        folder = SPLIT_FOLDERS[split]
        yield f"{folder}/sizes.json", sizes
        yield f"{folder}/wids.json", json_bytes(wids_index(f"{record['name']} {split}", entry["shards"]))
    yield "mixture.json", json_bytes(mixture)
    yield "ATTRIBUTION.md", attribution_page(figures["owners"], f"{record['name']}-{record['version']}").encode()
    yield "README.md", write_card(record, mixture, figures).encode()
    yield "report.html", write_page(record, mixture, figures).encode()


def wids_index(name: str, shards: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The shard index that webdataset's `wids` reads; addresses are relative to the index.

    Source: wids/wids_specs.py of webdataset 0.2 (wids_version 1).
    """
    return {
        "wids_version": 1,
        "name": name,
        "shardlist": [
            {"url": shard["shard"], "nsamples": shard["num_samples"], "filesize": shard["num_bytes"]}
            for shard in shards
        ],
    }


def attribution_page(owners: list[Mapping[str, Any]], name: str) -> str:
    """ATTRIBUTION.md: counts by licence and the owners to be named (rows: licence, owner, images)."""
    totals: dict[str, int] = {}
    for row in owners:
        totals[row["licence"]] = totals.get(row["licence"], 0) + row["images"]
    lines = [f"# Attribution of {name}", "", "One row an image, with its address and licence: `attribution.parquet`."]
    before = None
    for row in owners:
        if row["licence"] != before:
            before = row["licence"]
            lines += ["", f"## {before}: {totals[before]:,} images", ""]
        lines.append(f"- {row['owner']}: {row['images']:,}")
    return "\n".join([*lines, ""])


def write_attribution(workdir: str, path: str, samples: str) -> PrivateFile:
    """attribution.parquet: one row an image, in the order of first appearance; streamed."""
    fs, inner = storage.filesystem(samples)
    with fs.open(inner, "rb") as stream, pq.ParquetFile(stream) as source:
        schema = pa.schema([source.schema_arrow.field(name) for name in ATTRIBUTION_COLUMNS])
        writer = TableWriter(workdir, "attribution", path, schema)
        for batch in source.iter_batches(BATCH_ROWS, columns=["copy", *ATTRIBUTION_COLUMNS]):
            rows = pa.Table.from_batches([batch])
            writer.write(rows.filter(pc.equal(rows["copy"], 0)))
        return writer.close()
