"""The Ray launcher without a cluster: what is missing or wrong is said before a process starts."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray
from ray.train import WorkerGroupError
from training_runs import make_settings, write_values

from manifests.errors import ConfigError, IntegrityError, RunError
from training.cli import main
from training.run.launcher import _restarts, _unwrap


def test_without_ray_the_way_to_get_it_is_named(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ray.train", "ray.train.torch"):  # each counts as missing, also where a test before has loaded it
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["train", write_values(tmp_path, config), "--launcher", "ray"]) == 2
    missing = '--launcher ray needs Ray Train (ray.train.torch is missing): pip install "ray[train]>=2.56"'
    assert missing in capsys.readouterr().err
    assert not Path(config["output_dir"]).exists()


def test_options_of_ray_alone_are_refused(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_values(tmp_path, config)
    assert main(["train", path, "--num-workers", "2"]) == 2
    assert "--num-workers and --ray-address go with --launcher ray" in capsys.readouterr().err
    assert main(["train", path, "--launcher", "ray", "--num-workers", "0"]) == 2
    assert "--num-workers must be 1 or more, given 0" in capsys.readouterr().err


def test_a_wrong_release_is_said_before_ray_starts(
    config: dict[str, Any], tmp_path: Path, writer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    config["release"] = str(tmp_path / "none")
    assert main(["train", write_values(tmp_path, config), "--launcher", "ray"]) == 2
    assert "no sealed release here" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [ConfigError, RunError, IntegrityError])
def test_the_error_of_a_process_comes_out_as_it_is(kind: type[Exception]) -> None:
    inner = kind("what, which, how many")
    wrapped = RuntimeError("of Ray")
    wrapped.__cause__ = inner
    assert _unwrap(WorkerGroupError("2 workers failed", {1: wrapped})) is inner
    assert _unwrap(inner) is inner


def test_an_error_of_rays_own_keeps_its_words() -> None:
    error = _unwrap(WorkerGroupError("the node died", {0: RuntimeError("lost")}))
    assert isinstance(error, RunError)
    assert "the run on Ray failed: " in str(error)
    assert "the node died" in str(error)


def test_lost_workers_are_counted_until_the_run_gives_up(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    restarts = _restarts(ray, make_settings(config, compute={"max_failures": 2}))
    for number, rank in enumerate((1, 0), 1):
        restarts.after_exception(None, {rank: ray.exceptions.RayActorError()})
        assert capsys.readouterr().err == (
            f"dalip: a worker was lost (rank {rank}); all processes start again and go on from the last checkpoint "
            f"(restart {number} of 2, compute.max_failures)\n"
        )
    with pytest.raises(RunError, match=r"lost \(rank 1\); compute.max_failures = 2 restarts are used up"):
        restarts.after_exception(None, {1: ray.exceptions.RayActorError()})
