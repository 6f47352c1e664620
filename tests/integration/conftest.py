"""One Ray and one set of processes a module, and executors to choose from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import NUM_WORKERS, SharedProcesses, SharedRay

from pipeline.engine.executing import InlineExecutor
from pipeline.engine.on_processes import ProcessExecutor
from pipeline.engine.on_ray import RayExecutor


@pytest.fixture(scope="module")
def ray_executor() -> Iterator[RayExecutor]:
    executor = RayExecutor(NUM_WORKERS)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def process_executor() -> Iterator[ProcessExecutor]:
    executor = ProcessExecutor(NUM_WORKERS)
    yield executor
    executor.close()


@pytest.fixture(params=["inline", "processes", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request: pytest.FixtureRequest) -> Any:
    if request.param == "inline":
        return InlineExecutor()
    if request.param == "processes":
        return SharedProcesses(request.getfixturevalue("process_executor"))
    return SharedRay(request.getfixturevalue("ray_executor"))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    folder = tmp_path / "trace"
    folder.mkdir()
    return folder
