"""The full loop on real pictures: design, proxy runs, law, choice, and the release with that ratio."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml
from building import Web, release_of, run_here, write_build_config

from manifests.release import Release
from training.cli import main as dalip

ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def _plan(*arguments: str | Path) -> str:
    done = run_here("plan", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_from_a_design_to_a_release_with_the_chosen_ratio(web: Web, built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built, folder)
    work = folder / "build"
    strata = write_build_config(web, folder, "strata", work, pack={"kind": "stratified"})
    strata.write_text(strata.read_text(encoding="utf-8").replace("name: plantmix-demo", "name: strata"))
    assert run_here("build", strata).returncode == 0
    pools = Release.open(str(work / "releases/strata")).num_by_domain("train")

    # -- which runs
    sizes = [option for name, number in pools.items() for option in ("--pool", f"{name}={number}")]
    _plan("design", "--domains", "plant,general", "--budget", "8", *sizes, "--samples", "96",
          "--proxy-samples", "48", "--out", tmp_path / "design.csv")  # fmt: skip

    # -- the runs
    (tmp_path / "tiny.json").write_text(json.dumps(ARCHITECTURE))
    config = {
        "release": str(work / "releases/strata"),
        "output_dir": str(tmp_path / "study"),
        "runs": str(tmp_path / "design.csv"),
        "catalogue": str(work),
        "model": {"preset": "clip", "architecture": str(tmp_path / "tiny.json")},
        "data": {"batch_size": 16, "num_workers": 0},
        "optimiser": {"lr": 0.002},
        "schedule": {"steps": 1},
        "compute": {"device": "cpu", "num_threads": 1},
        "eval": {"batch_size": 10},
    }
    (tmp_path / "proxies.yaml").write_text(yaml.safe_dump(config))
    assert dalip(["proxies", str(tmp_path / "proxies.yaml")]) == 0
    with (tmp_path / "study/runs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8
    assert {row["samples_seen"] for row in rows} == {"48"}

    # -- the law: the same from the table and straight from the catalogue
    out = _plan("fit", work, "--out", tmp_path / "law.json")
    assert "8 runs, 6 mixtures of 2 domains" in out
    _plan("fit", tmp_path / "study/runs.csv", "--out", tmp_path / "from-csv.json")
    laws = [json.loads((tmp_path / name).read_text()) for name in ("law.json", "from-csv.json")]
    order = [laws[0]["domains"].index(name) for name in laws[1]["domains"]]
    assert [[row[k] for k in order] for row in laws[0]["runs"]["shares"]] == laws[1]["runs"]["shares"]
    assert laws[0]["runs"]["losses"] == laws[1]["runs"]["losses"]

    # -- the next round goes on where this one ended
    _plan("design", "--runs", work, "--budget", "3", "--objective", "plant", "--objective", "general",
          "--out", tmp_path / "more.csv")  # fmt: skip
    with (tmp_path / "more.csv").open() as stream:
        more = list(csv.DictReader(stream))
    assert [row["run"] for row in more] == ["proxy-09", "proxy-10", "proxy-11"]
    # after one step the losses are noise: where the optimum of a sampled law was run already, the space is filled
    assert {row["reason"] for row in more} <= {"uncertain optimum", "space-filling"}

    # -- the ratio, and a release with it
    _plan("choose", tmp_path / "law.json", "--objective", "plant=1,general=1", *sizes, "--samples", "60",
          "--accept-untrusted", "--max-epochs", "2", "--bootstrap", "20",
          "--out", tmp_path / "mixture.json")  # fmt: skip
    chosen = json.loads((tmp_path / "mixture.json").read_text())["ratio"]
    mix = {"ratio": None, "mixture": str(tmp_path / "mixture.json"), "num_samples": 60, "max_epochs": 2}
    final = write_build_config(web, folder, "final", work, mix=mix)
    done = run_here("build", final)
    assert done.returncode == 0, done.stderr
    drawn = Release.open(str(release_of(work))).num_by_domain("train")
    assert sum(drawn.values()) == 60
    for domain, share in chosen.items():
        assert abs(drawn.get(domain, 0) - share * 60) <= 1
