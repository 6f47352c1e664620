"""kill -9 in every stage, again and again: the release is the uninterrupted one, byte for byte."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from building import Web, done, hash_tree, release_of, write_build_config, write_folder_config, write_pictures
from command_server import CommandServer
from waiting import let_pass, wait_until

from pipeline.flow import FLOW

STAGES = [stage.name for stage in FLOW]
EXECUTORS = {
    "inline": {"executor": "inline", "fetch_part_size": 40},
    "two workers": {"executor": "ray", "num_workers": 2, "fetch_part_size": 40},
}
# What each stage does; then who does it. tests/e2e/test_fetch_kill.py kills amid a fetch on Ray.
MOMENTS: dict[str, Sequence[str]] = {"inline": STAGES, "two workers": ("select", "pack")}


@pytest.fixture(scope="module")
def uninterrupted(built: Path) -> dict[str, str]:
    return hash_tree(release_of(built / "build"))


def _kill_in(commands: CommandServer, config: Path, stage: str, after_seconds: float) -> bool:
    """Start a build and kill it `after_seconds` into a stage; false when it ended before."""
    before = STAGES[STAGES.index(stage) - 1] if stage != STAGES[0] else None
    build = commands.start("plantmix", "build", config)
    if before is not None:
        wait_until(lambda: build.poll() is not None or f"\n{before}: " in "".join(build.said()))
    let_pass(after_seconds)
    if build.poll() is not None:
        return False
    build.kill()
    build.wait(600)
    return True


def test_killed_amid_a_fetch_and_again_later(commands: CommandServer, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path)
    whole, killed = (write_folder_config(tmp_path, str(tmp_path / name), pictures) for name in ("whole", "killed"))
    while not _kill_in(commands, killed, "fetch", 0.1):  # while this process waited for its turn, the build may end
        shutil.rmtree(tmp_path / "killed")
    _kill_in(commands, killed, "caption", 0.1)
    for config in (killed, whole):
        done("build", config)
    assert hash_tree(release_of(tmp_path / "killed")) == hash_tree(release_of(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
def test_killed_at_many_moments(
    web: Web, commands: CommandServer, uninterrupted: dict[str, str], tmp_path: Path, executor: str
) -> None:
    rng = random.Random(executor)
    config = write_build_config(web, tmp_path, "killed", run=EXECUTORS[executor])
    num_killed = sum(_kill_in(commands, config, stage, rng.uniform(0.0, 0.5)) for stage in MOMENTS[executor])
    assert num_killed >= len(MOMENTS[executor]) // 2, "most kills must hit a running build"
    done("build", config)
    assert hash_tree(release_of(tmp_path / "killed")) == uninterrupted
    assert not list((tmp_path / "killed").rglob("*.tmp-*")), "a finished build leaves no private files"
    done("verify", tmp_path / "killed", "--deep")
