"""Runs of a training in this process, for tests: settings with changes, a run, what it wrote, a signal in its midst."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from manifests.settings import parse_settings
from training.config import TrainSettings
from training.record.log import read_log
from training.run import loop
from training.run.loop import train

COMPARED = ("step", "epoch", "samples_seen", "loss", "first_order_loss", "second_order_loss", "lr", "logit_scale",
            "grad_norm")  # fmt: skip

Finished = Callable[..., Path]  # gives the folder of a finished run of a config, see the fixture `finished`


def make_settings(values: dict[str, Any], **sections: Any) -> TrainSettings:
    merged = copy.deepcopy(values)
    for name, change in sections.items():
        merged[name] = merged.get(name, {}) | change if isinstance(change, dict) else change
    return parse_settings(merged, TrainSettings, where="test")


def run_once(values: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return train(make_settings(values, **sections))[0]


def step_lines(folder: str) -> list[dict[str, Any]]:
    return [{key: line.get(key) for key in COMPARED} for line in read_log(Path(folder) / "log.jsonl", "step")]


def final_weights(folder: str) -> dict[str, torch.Tensor]:
    state_dict: dict[str, torch.Tensor] = torch.load(Path(folder) / "model.pt", weights_only=True)["state_dict"]
    return state_dict


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
