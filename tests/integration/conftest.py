"""One Ray a module, and executors to choose from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import NUM_WORKERS, SharedRay

from pipeline.runner.executing import InlineExecutor
from pipeline.runner.on_ray import RayExecutor


@pytest.fixture(scope="module")
def ray_executor() -> Iterator[RayExecutor]:
    executor = RayExecutor(NUM_WORKERS)
    yield executor
    executor.close()


@pytest.fixture(params=["inline", "ray"])
def executor(request: pytest.FixtureRequest) -> Any:
    if request.param == "inline":
        return InlineExecutor()
    return SharedRay(request.getfixturevalue("ray_executor"))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    folder = tmp_path / "trace"
    folder.mkdir()
    return folder
