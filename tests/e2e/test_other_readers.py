"""Shards are for others to read: webdataset and GNU tar, on a release of real pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from building import release_of

from manifests.release import Release


@pytest.fixture
def release(built: Path) -> Path:
    return release_of(built / "build")


def test_gnu_tar_lists_the_members_that_samples_parquet_names(release: Path) -> None:
    opened = Release.open(str(release))
    for shard in opened.shards("train"):
        path = release / "shards" / shard
        listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True).stdout.split()
        keys = [row["key"] for row in opened.samples("train").to_pylist() if row["shard"] == shard]
        assert listed == [f"{key}.{extension}" for key in keys for extension in ("jpg", "txt", "json")]


READ_ALL = """
import json, sys, webdataset
for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False).decode("pil"):
    told = [sample["__key__"], sample["txt"], sample["json"]["sample_id"], list(sample["jpg"].size)]
    print(json.dumps(told))
"""


def test_webdataset_reads_every_sample_once(release: Path) -> None:
    opened = Release.open(str(release))
    shards = [str(release / "shards" / shard) for shard in opened.shards("train")]
    read = subprocess.run([sys.executable, "-c", READ_ALL, *shards], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in read.stdout.splitlines()] == [
        [row["key"], row["text"], row["sample_id"], [row["stored_width_px"], row["stored_height_px"]]]
        for row in opened.samples("train").to_pylist()
    ]
