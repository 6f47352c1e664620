"""Runs of a training in this process, for tests: settings with changes, a run, what it wrote, a signal in its midst."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from release_writer import TINY_ARCHITECTURE

from manifests.contract.settings import parse_settings
from training.cli import main
from training.config import TrainSettings
from training.record.log import read_log
from training.run import loop
from training.run.loop import train

COMPARED = ("step", "epoch", "samples_seen", "loss", "first_order_loss", "second_order_loss", "lr", "logit_scale",
            "grad_norm")  # fmt: skip

Finished = Callable[..., Path]  # gives the folder of a finished run of a config, see the fixture `finished`


def tiny_values(folder: Path, **sections: Any) -> dict[str, Any]:
    """Values of a config, small enough for one core: six steps of a model whose architecture is written to `folder`."""
    architecture = folder / "dalip-loop-test.json"
    architecture.write_text(json.dumps(TINY_ARCHITECTURE))
    second_order = {} if sections.get("model") == {"preset": "clip"} else {"heads": 2, "reduced_width": 4}
    values = {
        "output_dir": str(folder / "run"),
        "model": {"preset": "dalip", "architecture": str(architecture), "second_order": second_order},
        "data": {"batch_size": 12, "num_workers": 0, "shuffle_window": 16},
        "optimiser": {"lr": 0.002},
        "schedule": {"steps": 6, "warmup_steps": 2},
        "compute": {"device": "cpu", "num_threads": 1},
        "checkpoint": {"every_steps": 2},
        "log": {"every_steps": 1},
    }
    return with_sections(values, **sections)


def write_values(folder: Path, values: dict[str, Any], name: str = "run") -> str:
    """The config as a file of `folder`."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def with_sections(values: dict[str, Any], **sections: Any) -> dict[str, Any]:
    merged = copy.deepcopy(values)
    for name, change in sections.items():
        merged[name] = merged.get(name, {}) | change if isinstance(change, dict) else change
    return merged


def make_settings(values: dict[str, Any], **sections: Any) -> TrainSettings:
    return parse_settings(with_sections(values, **sections), TrainSettings, where="test")


def run_once(values: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return train(make_settings(values, **sections))[0]


def step_lines(folder: str) -> list[dict[str, Any]]:
    return [{key: line.get(key) for key in COMPARED} for line in read_log(Path(folder) / "log.jsonl", "step")]


def final_weights(folder: str) -> dict[str, torch.Tensor]:
    state_dict: dict[str, torch.Tensor] = torch.load(Path(folder) / "model.pt", weights_only=True)["state_dict"]
    return state_dict


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(one: str, two: str) -> None:
    assert step_lines(one) == step_lines(two)
    first, second = final_weights(one), final_weights(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM to this process in the middle of the given step."""
    gradients = loop.compute_gradients
    count = 0

    def counted(trainer: Any, chunk: Any) -> dict[str, float]:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return gradients(trainer, chunk)

    monkeypatch.setattr(loop, "compute_gradients", counted)


def predict_rows(out: Path, *arguments: Any) -> list[dict[str, Any]]:
    """What `dalip predict` writes to a Parquet file, by row."""
    assert main(["predict", *map(str, arguments), "--out", str(out), "--device", "cpu"]) == 0
    return list(pq.read_table(out).to_pylist())
