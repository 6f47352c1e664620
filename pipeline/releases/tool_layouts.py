"""The files that other tools expect, in a new folder. Reads a release shard by shard and never writes into it.

img2dataset: 00000.tar (hard links or copies of the shards), 00000.parquet, 00000_stats.json. DataComp: uids.npy and
metadata as Parquet.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests import storage
from manifests.errors import ConfigError
from manifests.release import Release
from pipeline.sidefiles.write import json_bytes

_COLUMNS = ("sample_id", "copy", "split", "shard", "key", "url", "text", "image_id", "width_px", "height_px",
            "stored_width_px", "stored_height_px")  # fmt: skip


def write_layout(release: Release, layout: str, out: str) -> list[str]:
    """Write the files of one layout for the training split; returns lines that say what is there.

    Raises: ConfigError when the folder is not empty, and when a takedown left no training samples.
    """
    release.num_samples("train")
    fs, inner = storage.filesystem(out)
    if fs.exists(inner) and fs.find(inner):
        raise ConfigError(f"{out}: not empty; give a new folder, so that no file of yours is among them")
    storage.make_folder(out)
    return LAYOUTS[layout](release, out)


def _write_img2dataset(release: Release, out: str) -> list[str]:
    shards = release.shards("train")
    for number, (_, _, rows) in enumerate(release.iter_shards(_COLUMNS, "train")):
        stem = storage.join(out, f"{number:05d}")
        storage.link_or_copy(release.shard_path("train", shards[number]), f"{stem}.tar")
        nothing = pa.nulls(rows.num_rows, pa.string())
        table = pa.table(
            {
                "url": rows["url"],
                "caption": rows["text"],
                "key": rows["key"],
                "status": pa.array(["success"] * rows.num_rows),
                "error_message": nothing,
                "width": rows["stored_width_px"],
                "height": rows["stored_height_px"],
                "original_width": rows["width_px"],
                "original_height": rows["height_px"],
                "exif": nothing,
                "sha256": rows["image_id"],
            }
        )
        _publish_table(f"{stem}.parquet", table)
        stats = {
            "count": rows.num_rows,
            "successes": rows.num_rows,
            "failed_to_download": 0,
            "failed_to_resize": 0,
            "duration": 0.0,
            "start_time": 0.0,
            "end_time": 0.0,
            "status_dict": {"success": rows.num_rows},
        }
        storage.publish_bytes(f"{stem}_stats.json", json_bytes(stats))
    pattern = f"{{00000..{len(shards) - 1:05d}}}.tar"
    return [f"{len(shards):,} shards as img2dataset leaves them: {storage.join(out, pattern)}"]


def _write_datacomp(release: Release, out: str) -> list[str]:
    uids: set[str] = set()
    storage.make_folder(storage.join(out, "metadata"))
    for number, (_, _, drawn) in enumerate(release.iter_shards(_COLUMNS, "train")):
        rows = drawn.filter(pc.equal(drawn["copy"], 0))
        table = pa.table(
            {
                "uid": rows["sample_id"],
                "url": rows["url"],
                "text": rows["text"],
                "original_width": rows["width_px"],
                "original_height": rows["height_px"],
                "sha256": rows["image_id"],
            }
        )
        _publish_table(storage.join(out, "metadata", f"{number:08d}.parquet"), table)
        uids |= set(rows["sample_id"].to_pylist())
    halves = np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], np.dtype("u8,u8"))
    halves.sort()
    stream = io.BytesIO()
    np.save(stream, halves)
    storage.publish_bytes(storage.join(out, "uids.npy"), stream.getvalue())
    return [
        f"{len(uids):,} uids, sorted, as DataComp's resharder takes them: {storage.join(out, 'uids.npy')}",
        f"metadata by uid: {storage.join(out, 'metadata')}",
    ]


def _publish_table(path: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.publish_bytes(path, sink.getvalue().to_pybytes())


LAYOUTS = {"img2dataset": _write_img2dataset, "datacomp": _write_datacomp}
