"""A release as img2dataset leaves its downloads, in a new folder. Reads shard by shard and never writes into a release.

00000.tar (hard links or copies of the shards), 00000.parquet, 00000_stats.json.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage
from manifests.errors import ConfigError
from manifests.release import Release
from pipeline.sidefiles.write import json_bytes

_COLUMNS = ("sample_id", "copy", "split", "shard", "key", "url", "text", "image_id", "width_px", "height_px",
            "stored_width_px", "stored_height_px")  # fmt: skip


def write_img2dataset(release: Release, out: str) -> str:
    """Write the files for the training split; returns a line that says what is there.

    Raises: ConfigError when the folder is not empty, and when a takedown left no training samples.
    """
    release.num_samples("train")
    fs, inner = storage.filesystem(out)
    if fs.exists(inner) and fs.find(inner):
        raise ConfigError(f"{out}: not empty; give a new folder, so that no file of yours is among them")
    storage.make_folder(out)
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
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        storage.publish_bytes(f"{stem}.parquet", sink.getvalue().to_pybytes())
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
    return f"{len(shards):,} shards as img2dataset leaves them: {storage.join(out, pattern)}"
