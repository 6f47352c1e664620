"""Other people's readers on real releases: open_clip, webdataset old and new, wids, Ray Data, datasets, GNU tar.

Each gives every sample once, with the bytes and texts of samples.parquet; a stratified release gives the ratio that
`plantmix export` was asked for. What does not fit beside our own pins lives in .venv-consumers, made once.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import ROOT, Web, done, release_of, run_here, write_build_config
from environments import environment

from manifests.contract.release import Release
from pipeline.releases.export import braces

pytestmark = pytest.mark.slow

Told = list[tuple[str, str, str]]


@pytest.fixture(scope="module")
def releases(web: Web, built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    """The same samples as a mixed and as a stratified release."""
    folder = tmp_path_factory.mktemp("consumers") / "copy"
    shutil.copytree(built, folder)
    mixed = Release.open(str(release_of(folder / "build")))
    config = write_build_config(web, folder, "strata", folder / "build", pack={"kind": "stratified"})
    config.write_text(config.read_text(encoding="utf-8").replace("name: plantmix-demo", "name: strata"))
    done("build", config)
    return {"mixed": mixed, "stratified": Release.open(str(folder / "build/releases/strata"))}


@pytest.fixture(scope="session")
def consumers() -> Path:
    """Python of an environment with the newest readers."""
    return environment("consumers")


def expected(release: Release, split: str = "train") -> Told:
    rows = release.samples(split, columns=["key", "stored_sha256", "text", "split"]).to_pylist()
    return sorted((row["key"], row["stored_sha256"], row["text"]) for row in rows)


def read_with(python: Path | str, code: str, *arguments: str, cwd: Path) -> Told:
    """Run a reader that prints [key, jpg as hex hash, text] for each sample, one JSON line each after READ:."""
    tell = (
        "import hashlib, json, sys\n"
        "def tell(key, jpg, txt):\n"
        "    print('READ:' + json.dumps([key, hashlib.sha256(jpg).hexdigest(), txt]))\n"
    )
    told = run_code(python, tell + code, cwd, *arguments)
    lines = [line[5:] for line in told.splitlines() if line.startswith("READ:")]
    return sorted(tuple(json.loads(line)) for line in lines)


def run_code(python: Path | str, code: str, cwd: Path, *arguments: str) -> str:
    """What a program prints, in an environment that reaches nobody and keeps its caches here."""
    environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "1", "HOME": str(cwd)}
    done = subprocess.run(
        [str(python), "-c", code, *arguments],
        capture_output=True, text=True, timeout=1500, check=False, cwd=cwd, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


WEBDATASET = """
import webdataset as wds
for sample in wds.WebDataset(sys.argv[1], shardshuffle=False):
    tell(sample["__key__"], sample["jpg"], sample["txt"].decode())
"""
WIDS = """
import wids
for sample in wids.ShardListDataset(sys.argv[1], keep=True, cache_dir=sys.argv[2], transformations=[]):
    tell(sample["__key__"], sample[".jpg"].read(), sample[".txt"].read().decode())
"""
RAY_START = """
import os
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
"""
RAY = """
from glob import glob
for row in ray.data.read_webdataset(sorted(glob(sys.argv[1])), decoder=None).iter_rows():
    tell(row["__key__"], row["jpg"], row["txt"].decode())
"""
DATASETS = """
from datasets import Image, load_dataset
rows = load_dataset("webdataset", data_files={"train": sys.argv[1]}, split="train", streaming=True)
for row in rows.cast_column("jpg", Image(decode=False)):
    assert row["json"]["uid"] == row["json"]["sample_id"] and row["json"]["taxon_genus"] is not None
    tell(row["__key__"], row["jpg"]["bytes"], row["txt"])
"""
CARD = """
from datasets import Image, load_dataset
both = load_dataset(sys.argv[1])
for rows in both.values():
    for row in rows.cast_column("jpg", Image(decode=False)):
        tell(f"{rows.split}/{row['__key__']}", row["jpg"]["bytes"], row["txt"])
"""


@pytest.mark.parametrize(
    ("kind", "reader"),
    [
        *(("mixed", reader) for reader in ("webdataset 1.0", "wids", "ray", "datasets", "dataset card")),
        *(("stratified", reader) for reader in ("webdataset 1.0", "dataset card")),
    ],
)
def test_every_reader_gives_every_sample_once(
    releases: dict[str, Release], consumers: Path, tmp_path: Path, kind: str, reader: str
) -> None:
    release = releases[kind]
    shards = f"{release.path}/shards"
    pattern = "::".join(f"{shards}/{braces(release.shards('train', domain))}" for domain in domains_of(release))
    python, code, *arguments = {
        "webdataset 1.0": (consumers, WEBDATASET, pattern),
        "wids": (sys.executable, WIDS, f"{shards}/wids.json", str(tmp_path / "cache")),
        "ray": (sys.executable, RAY_START + RAY, f"{shards}/*-[0-9]*.tar"),
        "datasets": (consumers, DATASETS, f"{shards}/*-[0-9]*.tar"),
        "dataset card": (consumers, CARD, release.path),
    }[reader]
    if reader == "dataset card":  # which names both splits
        named = (("train", "train"), ("heldout", "test"))
        wanted = sorted((f"{name}/{key}", *told) for split, name in named for key, *told in expected(release, split))
    else:
        wanted = expected(release)
    assert read_with(python, code, *arguments, cwd=tmp_path) == wanted


def domains_of(release: Release) -> list[str | None]:
    return list(release.num_by_domain()) if release.kind == "stratified" else [None]


RATIO_OF = """
import itertools, json
def domain(row): return (json.loads(row["json"]) if type(row["json"]) is bytes else row["json"])["domain"]
print(sum(domain(row) == "plant" for row in itertools.islice(dataset, 400)))
"""


@pytest.mark.parametrize("target", ["webdataset 0.2", "webdataset 1.0", "hf_datasets"])
def test_what_export_prints_runs_and_gives_the_ratio(
    releases: dict[str, Release], consumers: Path, tmp_path: Path, target: str
) -> None:
    done = run_here("export", releases["stratified"].path, "--for", target.split()[0], "--ratio", "plant=1,general=3")
    assert done.returncode == 0, done.stderr
    python = sys.executable if target == "webdataset 0.2" else consumers
    num_plants = int(run_code(python, done.stdout + RATIO_OF, tmp_path).split()[-1])
    assert 60 <= num_plants <= 140  # 100 expected, standard deviation 8.7


KEYS_OF = {
    "webdataset": "for row in dataset: tell(row['__key__'], row['txt'].decode())",
    "hf_datasets": "for row in dataset: tell(row['__key__'], row['txt'])",
}


@pytest.mark.parametrize("target", ["webdataset 1.0", "hf_datasets"])
def test_what_export_prints_of_a_mixed_release_gives_every_sample_once(
    releases: dict[str, Release], consumers: Path, tmp_path: Path, target: str
) -> None:
    release, name = releases["mixed"], target.split()[0]
    done = run_here("export", release.path, "--for", name)
    assert done.returncode == 0, done.stderr
    tell = "import json\ndef tell(*told): print('READ:' + json.dumps(told))\n"
    code = done.stdout + tell + KEYS_OF[name]
    told = run_code(consumers, code, tmp_path)
    read = [tuple(json.loads(line[5:])) for line in told.splitlines() if line.startswith("READ:")]
    assert sorted(read) == [(key, text) for key, _, text in expected(release)]


# ---- open_clip, with what `plantmix export` prints


def exported(release: Release, *options: str) -> list[str]:
    """The arguments that export prints for open_clip, split as a shell would."""
    done = run_here("export", release.path, "--for", "open_clip", *options)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout.replace("\\\n", " "), comments=True)
    assert words[:3] == ["python", "-m", "open_clip_train.main"]
    return words[3:]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # open_clip leaves sizes.json open
def test_open_clip_counts_several_sources_by_sizes_json(releases: dict[str, Release]) -> None:
    from open_clip_train.data import get_dataset_size

    for release in releases.values():
        words = exported(release)
        given = words[words.index("--train-data") + 1]
        assert get_dataset_size(given) == (release.num_samples("train"), len(release.shards("train")))
        heldout = words[words.index("--val-data") + 1]
        assert get_dataset_size(heldout)[0] == release.num_samples("heldout")
        both = sum(release.num_samples(split) for split in release.splits)  # open_clip reads the first folder's alone
        assert get_dataset_size(f"{given}::{heldout}")[0] == get_dataset_size(f"{heldout}::{given}")[0] == both
        assert words[words.index("--val-num-samples") + 1] == str(release.num_samples("heldout"))


@pytest.mark.parametrize("ratio", [None, {"plant": 10, "general": 3}, {"plant": 1, "general": 9}])
def test_our_factors_give_open_clip_the_ratio(releases: dict[str, Release], ratio: dict[str, float] | None) -> None:
    """Shards drawn by open_clip's own sampler, their samples counted: within 1 % of the shares asked for."""
    from open_clip_train.data import ResampledShards2

    release = releases["stratified"]
    options = ["--ratio", ",".join(f"{domain}={share}" for domain, share in ratio.items())] if ratio else []
    words = exported(release, *options)
    assert "--dataset-resampled" in words
    drawn: Iterator[dict[str, str]] = iter(
        ResampledShards2(
            words[words.index("--train-data") + 1],
            weights=words[words.index("--train-data-upsampling-factors") + 1],
            worker_seed=lambda: 0,
            deterministic=True,
            nshards=300_000,
        )
    )
    inside = {shard["shard"]: shard["domains"] for shard in release.record["splits"]["train"]["shards"]}
    counts: Counter[str] = Counter()
    for name, num in Counter(Path(item["url"]).name for item in drawn).items():
        counts.update({domain: num * each for domain, each in inside[name].items()})
    wanted = ratio or {"plant": 3, "general": 1}
    for domain, share in wanted.items():
        assert abs(counts[domain] / counts.total() - share / sum(wanted.values())) < 0.01


def test_open_clip_trains_and_validates_on_the_exported_arguments(releases: dict[str, Release], tmp_path: Path) -> None:
    """All that is printed, as it is: the shards, the factors, the length of an epoch, and the held-out samples."""
    starter = tmp_path / "start.py"
    starter.write_text(
        "import runpy, sys, open_clip\n"
        f"open_clip.add_model_config({str(ROOT / 'configs/models/vit-tiny-demo.json')!r})\n"
        "sys.argv[0] = 'open_clip_train.main'\n"
        "runpy.run_module('open_clip_train.main', run_name='__main__')\n"
    )
    release = releases["stratified"]
    words = exported(release)
    command = [
        sys.executable, str(starter), *words, "--model", "vit-tiny-demo", "--epochs", "1", "--batch-size", "32",
        "--workers", "1", "--warmup", "2", "--device", "cpu", "--precision", "fp32", "--logs", str(tmp_path / "logs"),
        "--name", "resampled",
    ]  # fmt: skip
    # on 2 cores beside other work the test took 28 s with one thread, 230 s with two (2026-11-25)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1500, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = (tmp_path / "logs/resampled/out.log").read_text(encoding="utf-8")
    given = int(words[words.index("--train-num-samples") + 1])
    per_epoch = -(-given // 32) * 32  # open_clip rounds up to whole batches
    assert f"[{per_epoch}/{per_epoch} (100%)]" in log
    num_heldout = release.num_samples("heldout")
    assert re.search(rf"Eval Epoch: 1 \[\d+ / {num_heldout}\]", log)
    assert "image_to_text_R@1" in log


# ---- layouts


def test_the_layout_of_img2dataset(releases: dict[str, Release], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    release = releases["mixed"]
    done = run_here("export", release.path, "--for", "img2dataset", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    num_heldout = release.num_samples("heldout")
    assert f"; the {num_heldout:,} held-out samples are left out, as img2dataset knows no splits" in done.stdout
    told = []
    for number, shard in enumerate(release.shards("train")):
        stem = tmp_path / "out" / f"{number:05d}"
        tar, sealed = stem.with_suffix(".tar"), Path(release.shard_path("train", shard))
        assert tar.read_bytes() == sealed.read_bytes()
        assert not tar.samefile(sealed), "what somebody writes into their copy is not in the release"
        rows = pq.read_table(stem.with_suffix(".parquet")).to_pylist()
        stats = json.loads(Path(f"{stem}_stats.json").read_text(encoding="utf-8"))
        assert stats["count"] == stats["successes"] == len(rows) == stats["status_dict"]["success"]
        with tarfile.open(stem.with_suffix(".tar")) as archive:
            keys = [name.removesuffix(".jpg") for name in archive.getnames() if name.endswith(".jpg")]
        assert [row["key"] for row in rows] == keys
        told += [(row["key"], row["caption"]) for row in rows]
    assert sorted(told) == [(key, text) for key, _, text in expected(release)]
    again = run_here("export", release.path, "--for", "img2dataset", "--out", tmp_path / "out")
    assert again.returncode == 2
    assert "not empty" in again.stderr
