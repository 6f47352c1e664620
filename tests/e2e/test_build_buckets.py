"""The same release whatever its metadata is cut into: 1 bucket, 3, or one a row, in one process or on Ray."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import folder_source, hash_tree, write_small_config
from PIL import Image

from manifests.contract.catalog import Catalog
from pipeline.cli import main
from pipeline.store import buckets

pytestmark = pytest.mark.slow

NUM_PICTURES = 20
STEPS = (("fetch", "collect"), ("caption", "judge"), ("select", "contend"), ("select", "decide"), ("pack", "gather"))
PACKS: dict[str, dict[str, Any]] = {
    "count": {"samples_per_shard": 4},
    "bytes": {"kind": "stratified", "shard_bytes": 24_000},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of pictures with captions: some repeat, some are copies of one size or another, some too short."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(NUM_PICTURES):
        domain = folder / ("plant" if number % 3 else "general")
        domain.mkdir(exist_ok=True)
        if number % 9 != 5:  # else the picture before it once more
            blocks = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        side = 96 + 32 * (number % 2)
        blocks.resize((side, side), Image.Resampling.BICUBIC).save(domain / f"{number}.jpg", quality=80 + number % 9)
        caption = "a leaf" if number % 7 == 2 else "" if number % 11 == 3 else f"a leaf of tree number {number}"
        (domain / f"{number}.txt").write_text(caption)
    return folder


def build(pictures: Path, folder: Path, pack: str, run: dict[str, Any]) -> dict[str, str]:
    """Hashes of all files of the release."""
    sources = [folder_source(pictures / name) | {"name": name, "domain": name} for name in ("plant", "general")]
    for source in sources:
        source["folder"]["captions"] = "text_file"
    folder.mkdir(parents=True)
    config = write_small_config(
        folder,
        *sources,
        name="cut",
        fetch={"image": {"size_px": 64, "min_side_px": 32}},
        dedup={"extra_captions": 2},
        caption={"rules": [{"preset": "general", "min_words": 2, "max_repeats": 5}]},
        mix={"ratio": {"plant": 3, "general": 1}, "heldout": {"share": 0.1}, "max_epochs": 2},
        pack=PACKS[pack],
        run=run,
    )
    assert main(["build", str(config)]) == 0
    return hash_tree(folder / "work/releases")


def cut_into(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the default memory hold as few candidates as make so many buckets."""
    monkeypatch.setattr(buckets, "ROW_BYTES", 4e9 / math.ceil(NUM_PICTURES / num))


def num_parts(folder: Path) -> list[int]:
    """Parts of the steps that are cut."""
    with Catalog.open(str(folder / "work")) as catalog:
        return [len(catalog.parts_of(str(catalog.find_current(stage)), step)) for stage, step in STEPS]


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: Any) -> tuple[str, dict[str, str]]:
    """The form of a release, and its files when nothing is cut."""
    folder = tmp_path_factory.mktemp("whole")
    files = build(pictures, folder / "one", request.param, {"executor": "inline"})
    assert num_parts(folder / "one") == [1] * len(STEPS)
    assert sum(path.endswith(".tar") for path in files) > 4
    return request.param, files


@pytest.mark.parametrize("whole", ["bytes"], indirect=True)
def test_a_bucket_a_row_gives_the_same_release(
    pictures: Path, whole: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_into(NUM_PICTURES, monkeypatch)
    pack, files = whole
    assert build(pictures, tmp_path / "cut", pack, {"executor": "inline"}) == files
    *of_candidates, of_draws = num_parts(tmp_path / "cut")
    assert of_candidates == [NUM_PICTURES] * (len(STEPS) - 1)
    assert of_draws >= NUM_PICTURES // 2


@pytest.mark.parametrize("whole", ["count"], indirect=True)
def test_buckets_on_ray_give_the_same_release(
    pictures: Path, whole: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_into(3, monkeypatch)
    pack, files = whole
    assert build(pictures, tmp_path / "cut", pack, {"executor": "ray", "num_workers": 2}) == files
    assert num_parts(tmp_path / "cut")[0] == 3
