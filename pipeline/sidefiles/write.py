"""The small files that a release carries beside its shards. A build and a takedown make them the same way.

They follow from the record, the mixture, the samples table and the shards alone, and hold no time and no path of the
machine. Gives names and bytes; only `SamplesWriter` writes files itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.contract.release import SAMPLES_FILE, SPLIT_FOLDERS
from pipeline.sidefiles.citation import write_counts
from pipeline.sidefiles.figures import collect
from pipeline.sidefiles.pages import write_attribution_page, write_card, write_report
from pipeline.store.writing import PrivateFile, TableWriter

VERSION = 13  # raise it when the same release would get other bytes: fingerprints of releases hold it
ATTRIBUTION_COLUMNS = (
    "sample_id", "url", "licence_id", "licence", "licence_url", "rights_holder", "creator", "reference_url", "source",
)  # fmt: skip


def json_bytes(value: Any) -> bytes:
    """Stable, readable JSON."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def side_files(
    record: Mapping[str, Any], mixture: Mapping[str, Any], samples: str, folder: str, connection: Any
) -> Iterator[tuple[str, bytes]]:
    """(path within the release, content) of every small file but the record, which names them all.

    `samples` is the samples table (it may not be published yet), `folder` the release, whose shards are there.
    """
    # A takedown reads record and mixture from their files. Read them the same way here, so that both see one order.
    record, mixture = json.loads(json_bytes(record)), json.loads(json_bytes(mixture))
    figures = collect(connection, samples, folder, record)
    shards = [shard for split in record["splits"].values() for shard in split["shards"]]
    # open_clip looks up every shard by its base name in the folder of the first source: each folder names all shards
    sizes = json_bytes({shard["shard"]: shard["num_samples"] for shard in shards})
    for split, entry in record["splits"].items():
        yield f"{SPLIT_FOLDERS[split]}/sizes.json", sizes
        index = wids_index(f"{record['name']} {split}", entry["shards"])
        yield f"{SPLIT_FOLDERS[split]}/wids.json", json_bytes(index)
    for table in figures["tables"]:
        yield table["file"], write_counts(table)
    yield "mixture.json", json_bytes(mixture)
    yield "ATTRIBUTION.md", write_attribution_page(record, figures).encode()
    yield "README.md", write_card(record, mixture, figures).encode()
    yield "report.html", write_report(record, mixture, figures).encode()


def wids_index(name: str, shards: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the shard index that webdataset's `wids` reads; addresses are relative to the index.

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


class SamplesWriter:
    """samples.parquet and attribution.parquet of a release, out of the same rows.

    attribution.parquet has one row an image, in the order of first appearance.
    """

    def __init__(self, workdir: str, prefix: str, schema: pa.Schema) -> None:
        """`prefix` stands before both names, within `workdir`."""
        self._samples = TableWriter(workdir, "samples", f"{prefix}{SAMPLES_FILE}", schema, small=True)
        named = pa.schema([schema.field(name) for name in ATTRIBUTION_COLUMNS])
        self._attribution = TableWriter(workdir, "attribution", f"{prefix}attribution.parquet", named, small=True)

    def write(self, rows: pa.Table) -> None:
        """Append samples."""
        self._samples.write(rows)
        self._attribution.write(rows.select(["copy", *ATTRIBUTION_COLUMNS]).filter(pc.equal(rows["copy"], 0)))

    def close(self) -> tuple[PrivateFile, PrivateFile]:
        """Finish both files."""
        return self._samples.close(), self._attribution.close()
