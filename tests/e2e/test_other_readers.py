"""Shards are for others to read: open_clip's own trainer, webdataset and GNU tar, on a release of real pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from building import ROOT, release_of

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


@pytest.mark.slow
def test_open_clip_trains_an_epoch_on_the_shards(release: Path, tmp_path: Path) -> None:
    num = Release.open(str(release)).num_samples("train")
    sizes = json.loads((release / "shards/sizes.json").read_text(encoding="utf-8"))
    assert sum(value for name, value in sizes.items() if "heldout" not in name) == num
    shards = sorted(path.name for path in (release / "shards").glob("*.tar"))
    first, last = shards[0].rpartition("-")[2][:6], shards[-1].rpartition("-")[2][:6]
    pattern = f"{release}/shards/plantmix-demo-{{{first}..{last}}}.tar"
    # open_clip takes model configs from its own list: register ours, then run its main as `-m` would
    starter = tmp_path / "start.py"
    starter.write_text(
        "import runpy, sys, open_clip\n"
        f"open_clip.add_model_config({str(ROOT / 'configs/models/vit-tiny-demo.json')!r})\n"
        "sys.argv[0] = 'open_clip_train.main'\n"
        "runpy.run_module('open_clip_train.main', run_name='__main__')\n"
    )
    command = [
        sys.executable, str(starter), "--model", "vit-tiny-demo", "--train-data", pattern,
        "--dataset-type", "webdataset", "--epochs", "1", "--batch-size", "16", "--workers", "1", "--warmup", "2",
        "--device", "cpu", "--precision", "fp32", "--logs", str(tmp_path / "logs"), "--name", "one-epoch",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, cwd=tmp_path)
    log = (tmp_path / "logs/one-epoch/out.log").read_text(encoding="utf-8") if done.returncode == 0 else done.stderr
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Train Epoch: 0" in log
    assert (tmp_path / "logs/one-epoch/checkpoints/epoch_1.pt").is_file()
