"""kill -9 in every stage, again and again: the release is the uninterrupted one, byte for byte."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from building import (
    PLANTMIX,
    Web,
    done,
    hash_tree,
    release_of,
    run_here,
    run_plantmix,
    write_build_config,
    write_folder_config,
    write_pictures,
)

from pipeline.flow import FLOW

STAGES = [stage.name for stage in FLOW]
EXECUTORS = {
    "inline": {"executor": "inline", "fetch_part_size": 40},
    "two workers": {"executor": "ray", "num_workers": 2, "fetch_part_size": 40},
}
# what each stage does; then who does it
MOMENTS: dict[str, Sequence[str]] = {"inline": STAGES, "two workers": ("fetch", "select", "pack")}


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


def test_killed_amid_a_fetch_and_again_later(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path)
    whole, killed = (write_folder_config(tmp_path, str(tmp_path / name), pictures) for name in ("whole", "killed"))
    assert _kill_in(killed, "fetch", 0.1)
    _kill_in(killed, "caption", 0.1)
    for config in (killed, whole):
        done("build", config)
    assert hash_tree(release_of(tmp_path / "killed")) == hash_tree(release_of(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
def test_killed_at_many_moments(web: Web, uninterrupted: dict[str, str], tmp_path: Path, executor: str) -> None:
    rng = random.Random(executor)
    config = write_build_config(web, tmp_path, "killed", run=EXECUTORS[executor])
    num_killed = sum(_kill_in(config, stage, rng.uniform(0.0, 0.5)) for stage in MOMENTS[executor])
    assert num_killed >= len(MOMENTS[executor]) // 2, "most kills must hit a running build"
    ended = run_plantmix("build", config)
    assert ended.returncode == 0, ended.stderr
    assert hash_tree(release_of(tmp_path / "killed")) == uninterrupted
    assert not list((tmp_path / "killed").rglob("*.tmp-*")), "a finished build leaves no private files"
    assert run_here("verify", tmp_path / "killed", "--deep").returncode == 0
