"""Fixtures of the trainer's tests: a small real release, and a config that trains on it in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import release_writer
from training_runs import Finished, make_settings, run_once


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
    path = tmp_path_factory.mktemp("architecture") / "dalip-loop-test.json"
    path.write_text(json.dumps(release_writer.TINY_ARCHITECTURE))
    return path


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
    return {
        "release": str(release_folder),
        "output_dir": str(tmp_path / "run"),
        "model": {
            "preset": "dalip",
            "architecture": str(architecture),
            "second_order": {"heads": 2, "reduced_width": 4},
        },
        "data": {"batch_size": 12, "num_workers": 0, "shuffle_window": 16},
        "optimiser": {"lr": 0.002},
        "schedule": {"steps": 6, "warmup_steps": 2},
        "compute": {"device": "cpu", "num_threads": 1},
        "checkpoint": {"every_steps": 2},
        "log": {"every_steps": 1},
        "eval": {"batch_size": 12, "zero_shot": [{"field": "extra.category"}]},
    }
