"""The longer study: its arms, a killed run that goes on, and when its seeds and its table are made."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_folders import STUDY, folder_of

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """bench_longer with records of its own, runs of four steps, and a folder of made-up tokens."""
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("bench_longer")
    monkeypatch.setattr(module, "RESULTS", module.Records(tmp_path / "runs.jsonl"))
    monkeypatch.setattr(module, "SEALED_RESULTS", module.Records(tmp_path / "judged.jsonl"))
    monkeypatch.setattr(module.third.study_training, "BATCH", 8)
    for each in (module, module.third):
        monkeypatch.setattr(each, "commit", lambda: "c")
    for name, value in {"STEPS": 4, "KEPT_STEPS": 1}.items():
        monkeypatch.setattr(module, name, value)
    folder_of(tmp_path / "work", {"special": 9, "general": 9, "fluent": 5, "emojione": 4})
    yield module
    for name in (*STUDY, "bench_longer"):
        sys.modules.pop(name, None)


def record(study: Any, one: Any, loss: float, cpu_seconds: float = 0.0) -> None:
    kept = {"arm": one.arm, "seed": one.seed, "steps": one.steps, "rate": one.rate, "val_loss": loss}
    study.RESULTS.add(one.name, kept | {"cpu_seconds": cpu_seconds})


def tune(study: Any) -> None:
    for one in study.first_tuning():
        record(study, one, abs(one.rate - 5.5e-4))
    for one in study.second_tuning():
        record(study, one, abs(one.rate - 5.5e-4))


def test_tuning_tries_the_two_best_rates_of_a_tested_arm_again(study: Any) -> None:
    first = list(study.first_tuning())
    assert len(first) == len(set(first)) == 5 * 3 + 2 * 4
    for one in first:
        record(study, one, abs(one.rate - 5.5e-4))
    again = [(one.arm, one.rate) for one in study.second_tuning()]
    assert len(again) == 4 * 2
    assert [rate for arm, rate in again if arm == "rect_mean"] == [5.5e-4, 3e-4]
    for one in study.second_tuning():
        record(study, one, 0.0 if one.rate == 3e-4 else 1.0)
    assert study.tuned()["rect_mean"][1] == 3e-4
    assert study.tuned()["brownian"][1] == 5.5e-4


@pytest.mark.parametrize(("hours", "seeds"), [(0.0, 10), (13.0, 6)])
def test_seeds_end_by_the_hours_and_never_within_one(study: Any, hours: float, seeds: int) -> None:
    tune(study)
    made = []
    while left := [one for one in study.final_runs() if one.name not in study.RESULTS.names()]:
        assert len({one.seed for one in left}) == 1
        record(study, left[0], 0.0, hours * 3600)
        made.append(left[0])
    assert {one.seed for one in made} == set(range(seeds))
    assert sum(one.arm == "max" for one in made) == seeds
    assert sum(one.arm == "brownian" for one in made) == min(seeds, 8)


@pytest.mark.parametrize("dies_at_look", [1, 2, 4])
def test_a_killed_run_goes_on_with_the_same_numbers(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dies_at_look: int
) -> None:
    """To the last bit of its weights, with the looks of both parts; only the steps that were lost are made again."""
    one = study.Run("rect_mean", 3, 1e-3, 4, "final")
    monkeypatch.setattr(study, "PLANS", (lambda: [one],))
    really, looks, trained = study.third.on_validation, [], []
    set_lr = importlib.import_module("training.run.optimiser").set_lr

    def killed(*given: Any) -> Any:
        looks.append(None)
        if len(looks) == dies_at_look:
            raise KeyboardInterrupt
        return really(*given)

    monkeypatch.setattr(study.third, "on_validation", killed)
    monkeypatch.setattr("training.run.optimiser.set_lr", lambda *given: (trained.append(None), set_lr(*given)))
    with pytest.raises(KeyboardInterrupt):
        study.run(tmp_path / "work", minutes=10)
    assert not study.RESULTS.of("final-*")
    assert (tmp_path / "work/checkpoints" / f"{one.name}.pt").is_file() is (dies_at_look > 1)
    study.run(tmp_path / "work", minutes=10)
    assert len(trained) == 4 + 1
    assert len(study.RESULTS.one(one.name)["quarters"]) == 4
    assert not list((tmp_path / "work/checkpoints").iterdir())
    with pytest.raises(SystemExit) as ended:
        study.third.make_again(study.RESULTS, study.HEADS, tmp_path / "work", one.name)
    assert not ended.value.code, capsys.readouterr().out


def test_a_checkpoint_of_other_code_is_not_used(study: Any, tmp_path: Path) -> None:
    import torch

    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    kept = study.Checkpoint("c", tmp_path / "one.pt", 1)
    kept.keep(model, optimiser, [0.5])
    assert study.Checkpoint("c", tmp_path / "one.pt").restore(model, optimiser) == [0.5]
    assert study.Checkpoint("d", tmp_path / "one.pt").restore(model, optimiser) == []


def test_a_small_study_is_judged_as_a_whole_and_told(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work, sealed = tmp_path / "work", folder_of(tmp_path / "sealed", {"openmoji": 6, "fxemoji": 5})
    heads = {"second_moment": "uncentred", "rect_mean": "rect_mean", "max": "max"}
    small = {"HEADS": heads, "TESTED": ("second_moment", "rect_mean"), "LEAST_SEEDS": 1, "MOST_CPU_HOURS": 0.0,
             "NUM_SEEDS": {"second_moment": 2, "rect_mean": 2, "max": 1}, "SHOWN": (("second_moment", "max"),),
             "PRIMARY": (("second_moment", "rect_mean"),), "RATES": dict.fromkeys(heads, (1e-3,))}  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(study.third.study_training.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit, match="runs of first_tuning are not done; nothing was judged"):
        study.judge(work, sealed)
    study.run(work, minutes=10)
    with pytest.raises(SystemExit, match="there is no table before"):
        study.statistics()
    study.judge(work, sealed)
    study.progress()
    capsys.readouterr()
    study.statistics()
    told = capsys.readouterr().out
    assert len(study.SEALED_RESULTS.of("final-*")) == 3, "hours were over behind the first seed"
    less = np.mean(study.SEALED_RESULTS.one("final-second_moment-0-0.001-4")["openmoji"]["losses"]) - np.mean(
        study.SEALED_RESULTS.one("final-rect_mean-0-0.001-4")["openmoji"]["losses"]
    )
    assert f"| second_moment less rect_mean | {less:+.3f} (" in told
    assert "rect_mean" in next(line for line in told.splitlines() if line.startswith("- "))
    assert "| difference | fluent | emojione | openmoji | fxemoji | mean over styles |" in told
