"""img2dataset's download of the same list in the same hour, in an environment of its own; its tars are deleted."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from million.watching import disk_mb, done

VERSION = "1.47.0"
_OPTIONS = {
    "input_format": "csv",
    "url_col": "url",
    "caption_col": "caption",
    "output_format": "webdataset",
    "image_size": 256,
    "resize_mode": "keep_ratio",
    "resize_only_if_bigger": True,
    "encode_quality": 95,
    "processes_count": os.cpu_count(),
    "thread_count": 64,
    "retries": 2,  # as ours
    "number_sample_per_shard": 1000,
}


def download(folder: Path) -> dict[str, Any]:
    """What it took, how many pictures it stored, and why it stored no more."""
    from environments import environment  # takes seconds

    program = environment("img2dataset", [f"img2dataset=={VERSION}"]).with_name("img2dataset")
    out = folder / "peer"
    shutil.rmtree(out, ignore_errors=True)
    options = {**_OPTIONS, "url_list": folder / "all.csv", "output_folder": out}
    quiet = {"NO_ALBUMENTATIONS_UPDATE": "1"}
    ended = done([str(program), *(f"--{name}={value}" for name, value in options.items())], environment=quiet)
    stats = [json.loads(path.read_text()) for path in out.glob("*_stats.json")]
    why: Counter[str] = Counter()
    for each in stats:
        why.update(each["status_dict"])
    figures = {
        "version": VERSION, **ended.whole.as_json(), "disk_mb": round(disk_mb(out), 1),
        "stored": sum(each["successes"] for each in stats), "ended": dict(why.most_common(8)),
    }  # fmt: skip
    shutil.rmtree(out)
    return figures
