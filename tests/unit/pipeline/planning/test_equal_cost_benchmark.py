"""The study of equal cost: its twelve tries, the choices it makes of them, and what its sentences rest on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from release_writer import drawn_samples, write_release

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """bench_equal_cost, with records of its own beside those of the first study."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    module = importlib.import_module("bench_equal_cost")
    monkeypatch.setattr(module, "RESULTS", module.Records(tmp_path / "runs.jsonl"))
    for each in (module, module.choosing):
        monkeypatch.setattr(each, "commit", lambda: "c")
    yield module
    for name in {path.stem for path in FOLDER.glob("*.py")} - before:
        sys.modules.pop(name, None)


def with_tries(study: Any, best: int) -> None:
    for number, one in enumerate(study.tries()):
        stopping, judging = [3.9 - 0.1 * (number % 12 == best)] * 3, [3.0 + 0.1 * (number % 12 == best)] * 3
        study.RESULTS.add(one.name, {"scene": one.scene, "shares": one.shares, "stopping": stopping,
                                     "judging": judging, "stopped": 90})  # fmt: skip


def test_twelve_tries_a_scene_of_which_two_cost_no_thought(study: Any) -> None:
    runs = list(study.tries())
    assert len({one.name for one in runs}) == 3 * 12
    assert {one.width for one in runs} == {192}
    assert not {one.seed for one in runs} & set(study.SEEDS), "final seeds are new"
    assert study.mixtures("mostly photos")[:2] == ((0.7273, 0.1818, 0.0909), (0.3334, 0.3333, 0.3333))
    assert min(min(each) for each in study.mixtures("mostly photos")[2:]) == 0.1
    for one in runs:
        assert sum(one.shares) == pytest.approx(1.0)


def test_the_best_try_is_that_of_the_stopping_half_and_the_cap_holds(study: Any) -> None:
    with_tries(study, best=7)
    for each in study.choosing.choices():
        study.RESULTS.add(each.name, study.choose(each.scene))
        chosen = study.RESULTS.one(each.name)["chosen"]
        assert tuple(chosen["twelve"]) == study.mixtures(each.scene)[7]
        passes = np.array(chosen["capped"]) * 180 * 64 / np.array(study.POOLS[each.scene])
        assert passes.max() < 10.01
    assert study.capped_scenes() == ["mostly drawings", "mostly icons"]
    assert study.capped_scenes(study.FAR) == ["mostly drawings"]
    assert len(list(study.targets())) == 30 + 20


@pytest.mark.parametrize(("gain", "words"), [(0.3, "better"), (-0.3, "worse"), (0.0, "cannot be told")])
def test_a_sentence_needs_its_difference_on_the_judging_half(study: Any, gain: float, words: str) -> None:
    """The first study's own records, and made-up runs of the new ways."""
    rng = np.random.default_rng(0)
    with_tries(study, best=3)
    for each in study.choosing.choices():
        study.RESULTS.add(each.name, study.choose(each.scene))
    for one in study.targets():
        of_law = study.of_way("law", one.scene)[one.seed]
        total = of_law + rng.normal(0, 0.05) + (gain if one.shares == study.mixtures(one.scene)[3] else 0.0)
        study.RESULTS.add(one.name, {"judging": [total / 3] * 3, "stopped": 90})
    told = study.report()
    line = next(line for line in told.splitlines() if line.startswith("| law less twelve"))
    assert words in line
    shown = next(line for line in told.splitlines() if line.startswith("| twelve less natural"))
    assert shown.endswith("shown, not tested |")
    capped = next(line for line in told.splitlines() if line.startswith("| capped less law"))
    assert capped.split("|")[2].count(".") == 1, "the one scene in which the cap tells"


@pytest.mark.slow
def test_a_small_study_from_its_release_to_its_tables(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its proxies and the law's runs are those of a small first study."""
    samples = drawn_samples(60, 60, size_px=64)
    for number, sample in enumerate(samples):
        sample.domain = study.DOMAINS[number % 3]
    write_release(tmp_path / "work/build", samples, stratified=True)
    monkeypatch.setattr(study.choosing, "RESULTS", study.Records(tmp_path / "first.jsonl"))
    small = {"STEPS": 6, "LOOK_STEPS": 2, "BATCH": 6, "NUM_PROXIES": 12, "SEEDS": (0, 1), "PROXY_WIDTH": 32,
             "TARGET_WIDTH": 64, "POOLS": {"mostly photos": (16, 8, 6)}}  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(study.choosing, name, value)
    for name, value in {"SEEDS": (0, 1), "POOLS": small["POOLS"], "NUM_TRIES": 4, "MOST_EPOCHS": 2}.items():
        monkeypatch.setattr(study, name, value)
    study.choosing.design.cache_clear()
    study.mixtures.cache_clear()
    study.choosing.run(tmp_path / "work", minutes=10)
    study.choosing.make_every(study.PLANS, study.RESULTS, study.choose, tmp_path / "work", 10)
    study.choosing.design.cache_clear()
    study.mixtures.cache_clear()
    assert len(study.RESULTS.of("target-*")) in (4 + 2, 4 + 4)
    name = next(study.targets()).name
    with pytest.raises(SystemExit) as ended:
        study.choosing.make_again(study.RESULTS, study.choose, tmp_path / "work", name)
    assert ended.value.code == 0
    study.progress()
    assert "targets: 0 are left" in capsys.readouterr().out
    assert len(study.report().splitlines()) == (2 + 4) + (1 + 2 + 6) + (1 + 2 + 8)
