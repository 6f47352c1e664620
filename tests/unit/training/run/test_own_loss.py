"""A loss from a module of the user's: its parameter is trained, its terms are logged, validation is that loss."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import release_writer
import torch
from sigmoid_loss import Sigmoid
from training_runs import final_weights, make_settings, run_once

from manifests.errors import ConfigError
from training.cli import main
from training.data.loader import open_releases, split_rows
from training.data.shards import open_pool
from training.evaluation.encoding import encode_pairs, pair_features
from training.evaluation.trained_model import open_trained_model
from training.model.presets import TASKS
from training.record.log import read_log
from training.run.loop import train

OWN = {"form": "sigmoid_loss:Sigmoid"}


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loss_of_the_users_own_trains_and_validates(accumulate: int, config: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "with-a-bias.json"
    path.write_text(json.dumps(release_writer.TINY_ARCHITECTURE | {"init_logit_bias": -3.0}))
    config["model"]["architecture"] = str(path)
    config["eval"]["every_steps"] = 6
    summary = run_once(config, loss=OWN, compute={"accumulate": accumulate})
    folder = Path(config["output_dir"])
    steps = read_log(folder / "log.jsonl", "step")
    assert steps[0]["bias"] == -3.0
    assert steps[-1]["bias"] != -3.0
    assert final_weights(str(folder))["clip.logit_bias"].item() != -3.0
    assert summary["chance_loss"] == pytest.approx(12 * math.log(2))

    model, settings = open_trained_model(str(folder)).model, make_settings(config, loss=OWN)
    pool = open_pool(open_releases(settings.release), "heldout")
    features = pair_features(*encode_pairs(model, pool, split_rows(pool), settings)) | model.scales()
    with torch.no_grad():
        expected = Sigmoid(settings.loss).of_pairs(features, {}, 12).mean().item()
    (validation,) = read_log(folder / "log.jsonl", "validation")
    assert validation["losses"]["all"] == pytest.approx(expected, rel=1e-5)
    assert main(["eval", str(folder)]) == 0
    (figures,) = (folder / "eval").glob("*.json")
    assert json.loads(figures.read_text())["validation_loss"]["all"]["value"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("sum_of_loses", f"no loss is called 'sum_of_loses'; there are {', '.join(TASKS)}, or MODULE:CLASS"),
        ("no_such_module:Loss", "loss.form: the module no_such_module cannot be imported: .*; install it, or"),
        ("sigmoid_loss:Softmax", "loss.form: sigmoid_loss:Softmax cannot be loaded: module 'sigmoid_loss' has no"),
        ("sigmoid_loss:math", "loss.form: sigmoid_loss:math is no class of training.tasks.task.Task"),
        ("sigmoid_loss:Task", "loss.form: sigmoid_loss:Task must define __call__, chance, of_pairs"),
    ],
)
def test_a_loss_that_is_not_there_is_named(form: str, words: str, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=words):
        train(make_settings(config, loss={"form": form}))
    assert not (Path(config["output_dir"]) / "run.json").exists()


def test_a_run_does_not_go_on_with_other_code_of_the_loss(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "mine_loss.py"
    own.write_text("from training.tasks.contrastive import SumOfLosses\n\n\nclass Mine(SumOfLosses):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run_once(config, loss={"form": "mine_loss:Mine"})
    own.write_text(own.read_text() + "\n")
    with pytest.raises(ConfigError, match=r"of another config or release \(loss\.code: "):
        train(make_settings(config, loss={"form": "mine_loss:Mine"}))
