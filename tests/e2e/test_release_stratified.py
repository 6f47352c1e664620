"""A stratified release: every pool whole, shards of one domain each, from the pool alone; any ratio at load time."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import Web, done, release_of, run_here, write_build_config

from manifests.contract.release import Release
from pipeline.demo import server as web_server


@pytest.fixture(scope="module")
def copy(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stratified") / "copy"
    shutil.copytree(built, folder)
    return folder


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that the server of the pictures is asked for from now on."""
    seen: list[str] = []
    send_head = web_server._Handler.send_head

    def note(handler: Any) -> Any:
        seen.append(handler.path)
        return send_head(handler)

    monkeypatch.setattr(web_server._Handler, "send_head", note)
    return seen


@pytest.fixture(scope="module")
def release(web: Web, copy: Path) -> Release:
    config = write_build_config(web, copy, "strata", copy / "build", pack={"kind": "stratified"})
    config.write_text(config.read_text(encoding="utf-8").replace("name: plantmix-demo", "name: demo-strata"))
    done("build", config)
    return Release.open(str(copy / "build/releases/demo-strata"))


@pytest.mark.slow
def test_another_kind_and_another_ratio_ask_the_web_for_nothing(web: Web, copy: Path, requests: list[str]) -> None:
    for command, changes in (
        ("build", {"pack": {"kind": "stratified"}}),
        ("mix", {"mix": {"ratio": {"plant": 1, "general": 1}}}),
        ("mix", {"pack": {"samples_per_shard": None, "shard_bytes": 200_000}}),
    ):
        done = run_here(command, write_build_config(web, copy, "remix", copy / "build", **changes))
        assert done.returncode == 0, done.stderr
        assert {"mix", "pack"} >= set(done.stdout.splitlines()[0].partition(": ")[2].split(", "))
    assert requests == []
    shards = Release.open(str(copy / "build")).record["splits"]["train"]["shards"]
    sizes = [shard["num_bytes"] for shard in shards]
    assert max(sizes) <= 200_000 + 2 * 10_240, "the estimate is good to a block or so a sample, the end is padded"
    assert min(sizes[:-1]) > 120_000


def test_shards_hold_one_domain_each_and_every_kept_sample_once(release: Release, copy: Path) -> None:
    assert release.kind == "stratified"
    samples = release.samples("train").to_pylist()
    assert {row["copy"] for row in samples} == {0}
    by_shard = {shard: {row["domain"] for row in samples if row["shard"] == shard} for shard in release.shards("train")}
    for domain in ("plant", "general"):
        mine = release.shards("train", domain)
        assert mine == [f"demo-strata-{domain}-{number:06d}.tar" for number in range(len(mine))]
        assert all(by_shard[shard] == {domain} for shard in mine)
    assert set(release.shards("train")) == {*release.shards("train", "plant"), *release.shards("train", "general")}
    assert release.num_by_domain() == Counter(row["domain"] for row in samples)
    kept = json.loads((copy / "build/status.json").read_text(encoding="utf-8"))["stages"]["select"]["kept"]
    assert len(samples) + release.num_samples("heldout") == kept
    assert run_here("verify", release.path, "--deep").returncode == 0


def test_the_training_loader_draws_a_ratio_from_it(release: Release) -> None:
    from training.data.sampling import SampleOrder
    from training.data.shards import ShardReader, open_pool, strata_of

    pool = open_pool([release], "train")
    order = SampleOrder(strata_of(pool, None, {"plant": 0.75, "general": 0.25}), 400, seed=0, window=1000)
    rows = order.rows(0, 400)
    domains = np.asarray(pool.table["domain"].to_pylist())[rows]
    assert Counter(domains.tolist()) == {"plant": 300, "general": 100}
    wanted = {row["sample_id"]: row["text"] for row in release.samples("train").to_pylist()}
    for row, (image, text, _) in zip(rows[:20], ShardReader(pool).read(rows[:20].tolist(), False), strict=True):
        assert text.decode() == wanted[pool.table["sample_id"][int(row)].as_py()]
        assert image.startswith(b"\xff\xd8")


def test_the_newest_of_all_is_still_the_last_built(release: Release, copy: Path) -> None:
    assert release_of(copy / "build").name == release.name
    other = Release.open(str(copy / "build/releases/plantmix-demo"))
    assert (other.kind, other.record["name"]) == ("mixed", "plantmix-demo")


def test_a_domain_named_like_a_split_is_refused(web: Web, tmp_path: Path) -> None:
    config = write_build_config(web, tmp_path, "odd", pack={"kind": "stratified"})
    config.write_text(config.read_text().replace("domain: general", "domain: heldout").replace("general:", "heldout:"))
    done = run_here("build", config)
    assert done.returncode == 2
    assert "a stratified release names shards by domain" in done.stderr
