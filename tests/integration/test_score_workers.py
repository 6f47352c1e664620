"""Workers that stay: on Ray a step with a model gives its parts to actors, so that each loads once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import ConfigError
from pipeline.engine.on_ray import RayExecutor
from pipeline.engine.work import Execution, PartResult

LOADED: list[str] = []


def _note_load(inputs: dict[str, Any], run: Execution[None]) -> PartResult:
    """Load "the model" once a process, and say in whose process this part was done."""
    if inputs.get("die") and not Path(inputs["die"]).exists():
        Path(inputs["die"]).touch()
        os._exit(1)
    if not LOADED:
        LOADED.append("model")
        with Path(inputs["log"]).open("a") as stream:
            stream.write(f"{os.getpid()}\n")
    return PartResult(notes={"pid": os.getpid()})


@pytest.mark.slow
def test_a_model_is_loaded_once_a_worker_and_a_lost_worker_comes_back(tmp_path: Path) -> None:
    # not at the top: Ray's workers import this file, and cannot import that one
    from running import jobs_of, one_by_one

    executor = RayExecutor(2)
    try:
        jobs = jobs_of([{"log": str(tmp_path / "loads")}] * 12)
        done = list(one_by_one(executor.run(_note_load, jobs, gpus=0.0)))
        assert sorted(int(one.job.key) for one in done) == list(range(12))
        pids = {one.result.notes["pid"] for one in done if one.result}
        loads = (tmp_path / "loads").read_text().split()
        assert len(loads) == len(pids) <= 2

        jobs = jobs_of(
            [
                {"log": str(tmp_path / "l2"), "die": str(tmp_path / "dead") if number == 3 else None}
                for number in range(6)
            ]
        )
        done = list(one_by_one(executor.run(_note_load, jobs, gpus=0.0)))
        # a worker that dies between a result and the end of its stream has given both a result and an error
        assert {one.job.key for one in done} == set(map(str, range(6)))
        failed = [one.job.key for one in done if one.error is not None]
        assert len(failed) == len(set(failed))
        assert "3" in failed, "the part that killed its worker is told, for another try"
        again = list(one_by_one(executor.run(_note_load, [job for job in jobs if job.key in failed], gpus=0.0)))
        assert all(one.error is None for one in again)
        with pytest.raises(ConfigError, match="a worker needs 1 GPU and Ray sees 0; set the device to cpu"):
            list(one_by_one(executor.run(_note_load, jobs, gpus=1.0)))
    finally:
        executor.close()
