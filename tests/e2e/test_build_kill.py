"""kill -9 in every stage, again and again: the release is the uninterrupted one, byte for byte."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest
from building import PLANTMIX, Web, hash_tree, release_of, run_here, run_plantmix, write_build_config

from pipeline.flow import FLOW

STAGES = [stage.name for stage in FLOW]
EXECUTORS = {
    "inline": {"executor": "inline", "fetch_part_size": 40},
    "two processes": {"executor": "processes", "num_workers": 2, "fetch_part_size": 40},
    "two workers": {"executor": "ray", "num_workers": 2, "fetch_part_size": 40},
}


@pytest.fixture(scope="module")
def uninterrupted(built: Path) -> dict[str, str]:
    return hash_tree(release_of(built / "build"))


def _kill_in(config: Path, stage: str, after_seconds: float) -> bool:
    """Start a build and kill it `after_seconds` into a stage; false when it ended before."""
    before = STAGES[STAGES.index(stage) - 1] if stage != STAGES[0] else None
    with subprocess.Popen(
        [*PLANTMIX, "build", str(config)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as build:
        assert build.stdout is not None
        if before is not None:
            for line in build.stdout:
                if line.startswith(f"{before}: "):
                    break
        time.sleep(after_seconds)
        ended = build.poll() is not None
        build.kill()
        build.stdout.read()
    return not ended


def test_killed_amid_a_fetch_and_again_later(web: Web, uninterrupted: dict[str, str], tmp_path: Path) -> None:
    config = write_build_config(web, tmp_path, "killed", run=EXECUTORS["inline"])
    assert _kill_in(config, "fetch", 0.1)
    _kill_in(config, "caption", 0.1)
    done = run_here("build", config)
    assert done.returncode == 0, done.stderr
    assert hash_tree(release_of(tmp_path / "killed")) == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
def test_killed_at_ten_moments(web: Web, uninterrupted: dict[str, str], tmp_path: Path, executor: str) -> None:
    rng = random.Random(executor)
    config = write_build_config(web, tmp_path, "killed", run=EXECUTORS[executor])
    moments = [*STAGES, "fetch", "pack"]
    moments.sort(key=STAGES.index)
    num_killed = sum(_kill_in(config, stage, rng.uniform(0.0, 0.5)) for stage in moments)
    assert num_killed >= 5, "most kills must hit a running build"
    done = run_plantmix("build", config)
    assert done.returncode == 0, done.stderr
    assert hash_tree(release_of(tmp_path / "killed")) == uninterrupted
    assert not list((tmp_path / "killed").rglob("*.tmp-*")), "a finished build leaves no private files"
    assert run_here("verify", tmp_path / "killed", "--deep").returncode == 0
