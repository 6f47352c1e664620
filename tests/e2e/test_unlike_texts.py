"""A release in the shape of the reference recipe opens in other people's readers: its samples have unlike texts.

Taxa in one of two domains, texts of kinds that few pictures have, captions of dropped duplicates. The first samples of
a shard, from which `datasets` takes its columns, lack texts that later ones have.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from building import done, release_of, run_here, write_small_config
from environments import environment
from walk.web import picture

from manifests.contract.release import Release
from pipeline.releases.cutting import iter_samples
from pipeline.releases.export import braces
from training.data.loader import SampleDataset
from training.data.settings import TextSettings
from training.data.shards import open_pool

NUM = 12
MEMBERS = ["caption_2.txt", "com.txt", "extra_caption_1.txt", "sci.txt", "trait.txt", "trait_2.txt"]
Texts = dict[str, dict[str, str]]


def plants(folder: Path) -> dict[str, Any]:
    """Every other picture names a taxon, every fourth has a trait, one has two; one is there twice."""
    (folder / "plants").mkdir()
    with (folder / "plants/list.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "id", "caption", "taxon", "common"])
        for n in range(NUM):
            (folder / f"plants/{n}.jpg").write_bytes(picture(n, "jpg"))
            taxon = ("Quercus robur", "English oak") if n % 2 else ("", "")
            writer.writerow([f"{n}.jpg", n, f"a plant in the garden, number {n}", *taxon])
        (folder / "plants/again.jpg").write_bytes(picture(3, "jpg"))
        writer.writerow(["again.jpg", "again", "another caption of the third plant", "", ""])
    words = {"id": [str(n) for n in range(0, NUM, 4)] + ["8"], "words": [f"it has {n + 2} petals" for n in range(4)]}
    pq.write_table(pa.table(words), folder / "traits.parquet")
    pq.write_table(pa.table({"id": ["5"], "words": ["a model saw an oak there"]}), folder / "captions.parquet")
    columns = {"file": "file", "record_key": "id", "caption": "caption", "taxon_scientific_name": "taxon"}
    return {
        "name": "plants",
        "domain": "plant",
        "folder": {
            "path": str(folder / "plants"), "table": "list.csv",
            "columns": {**columns, "taxon_vernacular_name": "common"},
        },
        "defaults": {"licence": "CC0-1.0"},
        "captions": [
            {"join": str(folder / f"{kind}s.parquet"), "on": {"record_key": "id"}, "text": "words", "kind": kind}
            for kind in ("trait", "caption")
        ],
    }  # fmt: skip


def things(folder: Path) -> dict[str, Any]:
    """The other domain: a text beside each picture, nothing else."""
    (folder / "things").mkdir()
    for n in range(NUM):
        (folder / f"things/{n}.jpg").write_bytes(picture(100 + n, "jpg"))
        (folder / f"things/{n}.txt").write_text(f"a thing on a table, number {n}")
    return {
        "name": "things",
        "domain": "general",
        "folder": {"path": str(folder / "things"), "captions": "text_file"},
        "defaults": {"licence": "CC0-1.0"},
    }


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    """The same samples as a mixed and as a stratified release."""
    folder = tmp_path_factory.mktemp("unlike")
    sources, made = [plants(folder), things(folder)], {}
    for kind in ("mixed", "stratified"):
        config = write_small_config(
            folder, *sources, name=kind,
            caption={"text": {"members": ["sci", "com"]}},
            dedup={"extra_captions": 2},
            mix={"ratio": {"plant": 1, "general": 1}, "heldout": {"num_samples": {"plant": 2, "general": 2}}},
            pack={"samples_per_shard": 8, "kind": kind},
        )  # fmt: skip
        config.write_text(config.read_text().replace("'on':", "on:"))  # as people write it
        done("build", config)
        made[kind] = Release.open(str(release_of(folder / "work")))
    return made


def texts_in(release: Release, *splits: str) -> Texts:
    """The texts of each sample, by key, as samples.parquet and the catalogue's texts have them; none is empty."""
    packed: Texts = {}
    for split in splits or ("train",):
        for row in release.samples(split).to_pylist():
            extra = {f"{name}.txt": text for name, text in row["texts"] or ()}
            packed[row["key"]] = {"txt": row["text"], **extra}
    return packed


@pytest.mark.parametrize("kind", ["mixed", "stratified"])
def test_every_sample_has_every_member(releases: dict[str, Release], kind: str) -> None:
    release = releases[kind]
    assert release.record["members"] == ["jpg", "txt", "json", *MEMBERS]
    card = Path(release.path, "README.md").read_text(encoding="utf-8")
    assert all(f"`{member}`" in card for member in MEMBERS)
    front = yaml.safe_load(card.split("---")[1])
    assert front["language"] == ["en"]
    assert front["tags"] == ["webdataset", "image-text", "plant", "general"]
    seen = dict.fromkeys(MEMBERS, 0)
    for split in release.splits:
        for shard in release.shards(split):
            for _, members in iter_samples(release.shard_path(split, shard)):
                assert [name for name, _ in members] == release.record["members"]
                for member in MEMBERS:
                    seen[member] += bool(dict(members)[member])
    assert seen == {"caption_2.txt": 1, "com.txt": 6, "extra_caption_1.txt": 1, "sci.txt": 6, "trait.txt": 3,
                    "trait_2.txt": 1}  # fmt: skip
    assert run_here("verify", release.path, "--deep").returncode == 0


DATASETS = """
import json, sys
from datasets import Image, load_dataset
def told(rows): return {row.pop("__key__"): {name: text for name, text in row.items() if name.endswith("txt") and text}
                        for row in rows.cast_column("jpg", Image(decode=False))}
folder, pattern, code = sys.argv[1:]
splits = load_dataset(folder)
pictures = [row["jpg"].size for row in splits["train"]]
exec(code)
pasted = dataset.take(200) if "interleave" in code else dataset
print("READ:" + json.dumps({
    "card": told(splits["train"]) | told(splits["test"]),
    "card, streamed": told(load_dataset(folder, streaming=True, split="train")),
    "files": told(load_dataset("webdataset", data_files={"train": pattern}, split="train")),
    "pasted": told(pasted),
}))
"""


@pytest.mark.parametrize("kind", ["mixed", pytest.param("stratified", marks=pytest.mark.slow)])
def test_datasets_opens_it_by_its_card_its_files_and_what_export_prints(
    releases: dict[str, Release], tmp_path: Path, kind: str
) -> None:
    release = releases[kind]
    pasted = done("export", release.path, "--for", "hf_datasets")
    process = subprocess.run(
        [sys.executable, "-c", DATASETS, release.path, f"{release.path}/shards/*.tar", pasted],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    read: dict[str, Texts] = json.loads(process.stdout.rpartition("READ:")[2])
    train = {key: with_taxa(texts) for key, texts in texts_in(release).items()}
    assert read["card"].keys() == texts_in(release, "train", "heldout").keys()
    for way in ("card, streamed", "files", "pasted"):
        assert {key: with_taxa(texts) for key, texts in read[way].items()} == train, way


def with_taxa(texts: dict[str, str]) -> dict[str, str]:
    """Without the texts of taxa, which samples.parquet does not hold."""
    return {name: text for name, text in texts.items() if name not in ("sci.txt", "com.txt")}


def test_our_loader_takes_an_empty_text_for_none(releases: dict[str, Release]) -> None:
    release = releases["mixed"]
    seen: list[str] = []

    def keep(texts: list[str]) -> torch.Tensor:
        seen.extend(texts)
        return torch.zeros(len(texts), 1)

    pool = open_pool([release], "train")
    text = TextSettings(use="draw", members=("trait", "sci"))
    dataset = SampleDataset(pool, lambda content: torch.zeros(1), keep, text, 0)
    assert dataset.load([(position, position) for position in range(len(pool))]).corrupt == []
    assert "" not in seen
    assert {"a photo of Quercus robur.", "it has 2 petals"} <= set(seen)
    assert sum(text.startswith("a thing on a table") for text in seen) >= NUM - 2  # `txt`, for want of both


WEBDATASET = """
import json, sys
import webdataset as wds
pattern, index, cache = sys.argv[1:4]
told = {"webdataset": {row["__key__"]: row["txt"].decode() for row in wds.WebDataset(pattern, shardshuffle=False)}}
try:
    import wids  # not in every version of webdataset
except ImportError:
    pass
else:
    rows = wids.ShardListDataset(index, keep=True, cache_dir=cache, transformations=[])
    told["wids"] = {row["__key__"]: row[".txt"].read().decode() for row in rows}
"""
OPEN_CLIP = """
import torch
from open_clip_train.data import get_wds_dataset
from open_clip_train.params import parse_args
args = parse_args(["--val-data", pattern, "--val-num-samples", sys.argv[4], "--workers", "0", "--batch-size", "4"])
info = get_wds_dataset(args, lambda image: torch.zeros(1), is_train=False, tokenizer=lambda text: [text])
told["open_clip"] = {number: text for number, text in enumerate(t for _, texts in info.dataloader for t in texts)}
"""


@pytest.mark.parametrize("newest", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_webdataset_wids_and_open_clip_read_it(releases: dict[str, Release], tmp_path: Path, newest: bool) -> None:
    release = releases["mixed"]
    python = environment("consumers") if newest else sys.executable
    code = WEBDATASET + OPEN_CLIP * (not newest) + "print('READ:' + json.dumps(told))"
    shards, num = f"{release.path}/shards", str(release.num_samples("train"))
    process = subprocess.run(
        [python, "-c", code, f"{shards}/{braces(release.shards('train'))}", f"{shards}/wids.json",
         str(tmp_path / "cache"), num],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    read: dict[str, dict[str, str]] = json.loads(process.stdout.rpartition("READ:")[2])
    texts = {key: each["txt"] for key, each in texts_in(release).items()}
    assert read.keys() >= ({"webdataset"} if newest else {"webdataset", "wids", "open_clip"})
    assert sorted(read.pop("open_clip", texts).values()) == sorted(texts.values())
    assert all(told == texts for told in read.values())
