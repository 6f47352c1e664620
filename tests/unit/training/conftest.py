"""Fixtures of the trainer's tests: a small real release, and a config that trains on it in seconds."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import release_writer
from training_runs import Finished, make_settings, run_once, tiny_values


@pytest.fixture(scope="session")
def writer() -> ModuleType:
    return release_writer


@pytest.fixture(scope="session")
def release_folder(writer: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """107 training samples in uneven shards and 36 held-out ones."""
    folder = tmp_path_factory.mktemp("release")
    return writer.write_work_folder(folder, writer.drawn_samples(107, 36), shard_size=19)


@pytest.fixture(scope="session")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_values(tmp_path_factory.mktemp("architecture"))["model"]["architecture"])


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Gives the folder of a finished run of a config: trained once a session, copied to the config's `output_dir`."""
    masters: dict[str, Path] = {}

    def lend(values: dict[str, Any], **sections: Any) -> Path:
        settings = make_settings(values, **sections)
        key = settings.model_dump_json(exclude={"output_dir"})
        if key not in masters:
            masters[key] = tmp_path_factory.mktemp("finished") / "run"
            run_once(values, **sections | {"output_dir": str(masters[key])})
        return Path(shutil.copytree(masters[key], settings.output_dir))

    return lend


@pytest.fixture
def config(release_folder: Path, architecture: Path, tmp_path: Path) -> dict[str, Any]:
    """Values of a config, small enough for one core."""
    judged = {"batch_size": 12, "zero_shot": [{"field": "extra.category"}]}
    values = tiny_values(architecture.parent, release=str(release_folder), eval=judged)
    return values | {"output_dir": str(tmp_path / "run")}
