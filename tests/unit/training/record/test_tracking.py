"""Where a run's figures are shown: TensorBoard, wandb offline, and the curves of several runs as a picture."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_runs import Finished, write_values

from manifests.services.packages import install_line
from training.cli import main
from training.record.curves import read_curves, smooth
from training.record.log import read_log
from training.record.tracking import scalars_of


def test_numbers_of_events_have_names_and_nothing_else_is_shown() -> None:
    assert scalars_of("step", {"step": 3, "loss": 1.5, "grad_norm": None, "note": "x"}) == {"train/loss": 1.5}
    assert scalars_of("validation", {"step": 3, "losses": {"all": 2, "plant": 1.0}}) == {
        "validation/losses/all": 2.0, "validation/losses/plant": 1.0
    }  # fmt: skip
    assert scalars_of("start", {"num_steps": 5}) == {}


def test_tensorboard_has_the_steps_of_the_log_also_after_a_resume(config: dict[str, Any], tmp_path: Path) -> None:
    """What the trainer had written past the checkpoint it goes on from is taken back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config["log"] |= {"tensorboard": True}
    config["eval"]["every_steps"] = 3
    path = write_values(tmp_path, config)
    assert main(["train", path]) == 0
    folder = Path(config["output_dir"])
    for name in ("summary.json", "model.pt", "checkpoints/step-00000006.pt"):
        (folder / name).unlink()
    assert main(["train", path]) == 0
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6]
    logged = [step["loss"] for step in read_log(folder / "log.jsonl", "step")]
    assert [event.value for event in losses] == pytest.approx(logged, rel=1e-6)
    assert [event.step for event in events.Scalars("validation/losses/plant")] == [3, 6]
    assert main(["train", path, "--no-resume"]) == 0
    assert len(list((folder / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_wandb_keeps_an_offline_run(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: wandb starts threads and a service that outlive a test."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_NAME", "oaks-of-may")
    monkeypatch.setenv("WANDB_RUN_GROUP", "trees-of-june")
    config["log"] |= {"wandb": {"project": "dalip-test"}}
    command = [sys.executable, "-m", "training.cli", "train", write_values(tmp_path, config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = list((Path(config["output_dir"]) / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 1
    content = runs[0].read_bytes()
    assert b"train/loss" in content
    assert b"dalip-test" in content
    assert b"oaks-of-may" in content
    assert b"trees-of-june" in content


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_and_nothing_written(
    name: str,
    config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted, *rest: None if wanted == name else find(wanted, *rest)
    )
    config["log"] |= {"tensorboard": True, "wandb": {"project": "x"}}
    assert main(["train", write_values(tmp_path, config)]) == 2
    assert f"log.{name} needs {name}, which is not installed: {install_line(name)}" in capsys.readouterr().err
    assert not Path(config["output_dir"]).exists()


def test_runs_are_drawn_over_one_another(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["eval"]["every_steps"] = 2
    runs = []
    for name, lr in (("slow", 0.0005), ("fast", 0.004)):
        runs.append(str(tmp_path / name / "run"))
        (tmp_path / name).mkdir()
        values = config | {"output_dir": runs[-1], "optimiser": {"lr": lr}}
        assert main(["train", write_values(tmp_path / name, values)]) == 0
    drawn = read_curves(Path(runs[0]))
    assert drawn["lr"][-1][0] == 72
    assert [x for x, _ in drawn["validation/plant"]] == [24, 48, 72]
    out = tmp_path / "curves.png"
    assert main(["plot", *runs, "--out", str(out)]) == 0
    assert f"plot: {out}" in capsys.readouterr().out
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert all(
        (np.abs(pixels.astype(int) - colour).sum(1) < 10).sum() > 200 for colour in ((47, 125, 79), (180, 105, 31))
    )
    assert main(["plot", *runs, "--out", str(tmp_path / "curves.html")]) == 2
    assert "must end in .png" in capsys.readouterr().err
    assert main(["plot", runs[0], "--metric", "lr", "--out", str(tmp_path / "lr.png")]) == 0
    with Image.open(tmp_path / "lr.png") as one:
        assert one.width < 600


def test_what_cannot_be_drawn_is_said(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: Finished
) -> None:
    out = str(tmp_path / "x.png")
    assert main(["plot", str(tmp_path), "--out", out]) == 2
    assert "not the folder of a run, or no step is logged yet" in capsys.readouterr().err
    assert main(["plot", str(tmp_path / "x.json"), "--out", out]) == 2
    assert "not a result of `dalip eval`" in capsys.readouterr().err
    finished(config)
    for arguments, words in (
        (["--metric", "los"], "unknown metric 'los'; there are: loss, first_order_loss"),
        (["--metric", "validation"], "none of the runs has logged validation"),
        ([config["output_dir"]], "a run is given twice"),
    ):
        assert main(["plot", config["output_dir"], *arguments, "--out", out]) == 2
        assert words in capsys.readouterr().err
    assert not Path(out).exists()


def test_smoothing_is_a_running_mean() -> None:
    assert smooth([(0, 1.0), (1, 3.0), (2, 8.0)], 2) == [(0, 1.0), (1, 2.0), (2, 5.5)]
