"""Commands in random orders: a run that is stopped, killed, moved, damaged and exported ends as one nobody touched."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sealed import flip_byte
from training_runs import assert_same_run, final_weights, make_settings, run_once, stop_at

from manifests.errors import ConfigError, IntegrityError
from training.cli import main
from training.record.run_files import list_checkpoints
from training.run import loop, state
from training.run.loop import train
from training.run.stopping import StoppedError

NUM_STEPS = 8
STRANGE = ("notes.txt", "checkpoints/step-backup.pt", "checkpoints/epoch_5.pt", "wandb/run-1/x", "eval/mine.json")


class _KilledError(Exception):
    """Stands for the end of the process."""


class Walk:
    """One run, and what has been done to it."""

    def __init__(self, config: dict[str, Any], folder: Path, seed: int, patch: pytest.MonkeyPatch) -> None:
        self.values = config | {"output_dir": str(folder / "run")}
        self.folder, self.random, self.patch, self.done = folder, random.Random(seed), patch, list[str]()

    @property
    def run(self) -> Path:
        return Path(self.values["output_dir"])

    def step(self, action: Callable[[Walk], None]) -> None:
        self.done.append(action.__name__)
        action(self)

    def content(self) -> dict[str, bytes]:
        files = (path for path in self.run.rglob("*") if path.is_file() and path.name != ".lock")
        return {str(path.relative_to(self.run)): path.read_bytes() for path in files}


def stopped(walk: Walk) -> None:
    """By SIGTERM, at some step of those that are left; it may be finished by then."""
    with walk.patch.context() as patch:
        stop_at(patch, walk.random.randint(1, 3))
        with contextlib.suppress(StoppedError):
            train(make_settings(walk.values))
    assert list_checkpoints(walk.run), "it says that one is saved"


def killed(walk: Walk) -> None:
    """Right before or right after a checkpoint is written."""
    late, after = walk.random.random() < 0.5, walk.random.randint(1, 2)
    saves = list[int]()

    def save(trainer: Any, progress: Any, run: Any) -> None:
        saves.append(progress.step)
        if late or len(saves) < after:
            state.save(trainer, progress, run)
        if len(saves) == after:
            raise _KilledError

    with walk.patch.context() as patch:
        patch.setattr(loop, "save", save)
        with contextlib.suppress(_KilledError):
            train(make_settings(walk.values))


def run_elsewhere(walk: Walk) -> None:
    """How and where it runs may change: the folder, the copy of the release, workers, checkpoints, logs."""
    place = walk.folder / f"moved-{len(walk.done)}"
    if walk.run.exists():
        shutil.move(walk.run, place / "run")
    walk.values |= {"output_dir": str(place / "run")}
    if walk.random.random() < 0.5:
        shutil.copytree(walk.values["release"], place / "release")
        walk.values |= {"release": str(place / "release")}
    walk.values |= {"checkpoint": {"every_steps": walk.random.randint(1, 3), "keep": walk.random.randint(1, 3)}}
    walk.values["data"] = walk.values["data"] | {"num_workers": walk.random.choice((0, 0, 1))}


def asked_for_something_else(walk: Walk) -> None:
    """What shapes the weights may not change, and nothing is touched."""
    if not list_checkpoints(walk.run):
        return
    before = walk.content()
    changes: list[dict[str, Any]] = [
        {"seed": 9}, {"optimiser": {"lr": 0.5}}, {"data": {"batch_size": 8}},
    ]  # fmt: skip
    change = walk.random.choice(changes)
    with pytest.raises(ConfigError, match="of another config or release"):
        run_once(walk.values, **change)
    assert walk.content() == before


def damaged(walk: Walk) -> None:
    """The newest checkpoint; the one before is taken, and where there is none the run says so."""
    checkpoints = list_checkpoints(walk.run)
    if len(checkpoints) < 2 or (walk.run / "summary.json").exists():
        return
    flip_byte(checkpoints[-1])


def weights_lost(walk: Walk) -> None:
    """Gone: made again. Replaced: refused until they are moved away."""
    if not (walk.run / "summary.json").exists():
        return
    weights = walk.run / "model.pt"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(IntegrityError, match="move it away"):
        train(make_settings(walk.values))
    weights.unlink()


def exported(walk: Walk) -> None:
    """Twice into one place, and never into the run."""
    if not list_checkpoints(walk.run) or main(["eval", str(walk.run), "--out", str(walk.folder / "figures.json")]):
        return  # the newest checkpoint is damaged
    before = walk.content()
    hub = walk.folder / "hub"
    for _ in range(2):
        assert main(["export", str(walk.run), str(hub), "--format", "huggingface"]) == 0
    assert main(["export", str(walk.run), str(walk.run / "model.pt")]) == 2
    assert walk.content() == before
    if (walk.run / "model.pt").exists():
        there = load_file(hub / "open_clip_model.safetensors")
        own = final_weights(str(walk.run))
        assert all(torch.equal(value, own[f"clip.{name}"]) for name, value in there.items())


ACTIONS = (stopped, killed, killed, run_elsewhere, asked_for_something_else, damaged, weights_lost, exported)


@pytest.fixture(scope="module")
def untouched() -> dict[str, str]:
    return {}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_run_ends_as_one_that_nobody_touched(
    config: dict[str, Any], tmp_path: Path, seed: int, untouched: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config |= {"schedule": {"steps": NUM_STEPS, "warmup_steps": 2}, "checkpoint": {"every_steps": 2, "keep": 3}}
    config["data"] |= {"batch_size": 4}
    config["eval"] = {"batch_size": 12, "retrieval": False}
    if not untouched:
        untouched["run"] = str(tmp_path_factory.mktemp("untouched") / "run")
        run_once(config, output_dir=untouched["run"])
    walk = Walk(config, tmp_path, seed, monkeypatch)
    walk.step(stopped)
    for name in STRANGE:
        (walk.run / name).parent.mkdir(parents=True, exist_ok=True)
        (walk.run / name).write_text("of someone else")
    for _ in range(7):
        walk.step(walk.random.choice(ACTIONS))
    train(make_settings(walk.values))
    assert_same_run(untouched["run"], str(walk.run))
    content = walk.content()
    assert {content[name] for name in STRANGE} == {b"of someone else"}, walk.done
