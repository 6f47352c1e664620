"""A resume under another config, once it is allowed: what takes effect, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Finished, make_settings

from manifests.errors import ConfigError
from training.config import TrainSettings, identity_values
from training.run import loop, state
from training.run.loop import train


class _KilledError(Exception):
    """Stands for the end of the process."""


def _killed_after(settings: TrainSettings, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends without a word right after the checkpoint of `step`."""

    def save_and_die(trainer: Any, progress: Any, run: Any) -> None:
        state.save(trainer, progress, run)
        if progress.step == step:
            raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save", save_and_die)
        with pytest.raises(_KilledError):
            train(settings)


def _checkpoint(config: dict[str, Any], step: int) -> dict[str, Any]:
    path = Path(config["output_dir"]) / "checkpoints" / f"step-{step:08d}.pt"
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def _distance(one: dict[str, Any], two: dict[str, Any]) -> float:
    return float(sum((one[name].double() - two[name].double()).square().sum() for name in one) ** 0.5)


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"second_order_lr_ratio": 10.0}, "lr_ratio", {1.0, 10.0}),
        pytest.param({"weight_decay": 0.0}, "weight_decay", {0.0}, marks=pytest.mark.slow),
    ],
)
def test_changed_optimiser_values_take_effect_and_moments_stay(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], key: str, value: set[Any]
) -> None:
    _killed_after(make_settings(config), 4, monkeypatch)
    shutil.copytree(config["output_dir"], config["output_dir"] + "-same")
    same = config | {"output_dir": config["output_dir"] + "-same"}
    train(make_settings(same))
    train(make_settings(config, optimiser={"lr": 0.002} | changes), allow_changed=True)
    groups = _checkpoint(config, 6)["optimiser"]["param_groups"]
    assert {group[key] for group in groups} == value
    assert _distance(_checkpoint(config, 6)["state_dict"], _checkpoint(same, 6)["state_dict"]) > 1e-6
    assert {int(entry["step"]) for entry in _checkpoint(config, 6)["optimiser"]["state"].values()} == {6}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data": {"batch_size": 24}}, r"data\.batch_size: 12 -> 24"),
        ({"lock": {"lock_image": True}}, r"cannot change lock\.lock_image: false -> true"),
        (
            {"model": {"second_order": {"heads": 2, "reduced_width": 6}}},
            r"cannot change model\.second_order\.reduced_width: 4 -> 6",
        ),
        ({"model": {"preset": "clip", "second_order": {}}}, r'model\.preset: "dalip" -> "clip"'),
        ({"model": {"preset": "second_moment"}}, r'model\.preset: "dalip" -> "second_moment"'),
    ],
)
def test_what_cannot_change_on_a_resume_is_said(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any], words: str
) -> None:
    _killed_after(make_settings(config), 4, monkeypatch)
    with pytest.raises(ConfigError, match=words):
        train(make_settings(config, **sections), allow_changed=True)
    assert train(make_settings(config))[0]["steps"] == 6, "the run is as it was"


def test_a_resume_does_not_need_the_weights_it_began_from(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file may be gone; the pictures are prepared as those weights want them all the same."""
    start, whole = (config | {"output_dir": str(tmp_path / name)} for name in ("start", "whole"))
    train(make_settings(start, schedule={"steps": 1, "warmup_steps": 0}))
    source = tmp_path / "start.pt"
    content = torch.load(tmp_path / "start" / "model.pt", weights_only=True)
    content["preprocess"] |= {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    torch.save(content, source)
    train(make_settings(whole, model={"pretrained": str(source)}))
    settings = make_settings(config, model={"pretrained": str(source)})
    _killed_after(settings, 2, monkeypatch)
    source.unlink()
    train(settings)
    one, two = _checkpoint(whole, 6), _checkpoint(config, 6)
    assert two["preprocess"]["mean"] == (0.1, 0.2, 0.3)
    assert _distance(one["state_dict"], two["state_dict"]) == 0


def test_a_run_knows_the_weights_that_it_began_with_by_content(
    config: dict[str, Any], finished: Finished, tmp_path: Path
) -> None:
    """A finished run is no result of other weights under the same name; the name itself decides nothing."""
    source, moved = tmp_path / "start.pt", tmp_path / "moved.pt"
    shutil.copy(finished(config, output_dir=str(tmp_path / "one")) / "model.pt", source)
    other = finished(config, output_dir=str(tmp_path / "other"), seed=1) / "model.pt"
    settings = make_settings(config, model={"pretrained": str(source)}, schedule={"steps": 1, "warmup_steps": 0})
    assert not train(settings)[1]
    source.rename(moved)
    assert train(settings)[1], "the file is not needed any more"
    model = settings.model.model_copy(update={"pretrained": str(moved)})
    assert train(settings.model_copy(update={"model": model}))[1]
    shutil.copy(other, source)
    with pytest.raises(ConfigError, match=r"of another config or release \(model\.pretrained_sha256: "):
        train(settings)
    record = Path(config["output_dir"]) / "run.json"
    earlier = json.loads(record.read_text())
    del earlier["identity"]["model"]["pretrained_sha256"]
    record.write_text(json.dumps(earlier))
    assert train(settings)[1], "a run of an earlier version knows the name alone"


def test_how_batches_are_drawn_is_named_only_where_it_is_changed(config: dict[str, Any]) -> None:
    """A run that was begun before there was a choice can go on."""
    values = [
        identity_values(make_settings(config, data=config["data"] | given), ["a"])["data"]
        for given in ({}, {"batches": "mixed"}, {"batches": "one_domain"})
    ]
    assert values[0] == values[1]
    assert "batches" not in values[0]
    assert values[2] == values[0] | {"batches": "one_domain"}


def test_a_run_that_d1ccf785_recorded_is_known_though_settings_are_gone_since(
    config: dict[str, Any], finished: Finished
) -> None:
    """Its record held a value for each; a setting that is still there counts as it did."""
    record = finished(config) / "run.json"
    recorded = json.loads(record.read_text())
    identity = recorded["identity"]
    identity["optimiser"] |= {"beta1": 0.9, "beta2": 0.98, "eps": 1e-6}
    identity["model"]["second_order"]["text_norm"] = identity["ema_decay"] = None
    record.write_text(json.dumps(recorded))
    assert train(make_settings(config))[1], "it is finished, and reused"
    identity["optimiser"]["lr"] *= 2
    record.write_text(json.dumps(recorded))
    with pytest.raises(ConfigError, match=r"another config or release \(optimiser\.lr: "):
        train(make_settings(config))
