"""The study of choosing: what the five ways see, what is stopped and judged where, and what its sentences rest on."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from release_writer import drawn_samples, write_release

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """bench_choosing, with records of its own."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    module = importlib.import_module("bench_choosing")
    monkeypatch.setattr(module, "RESULTS", module.Records(tmp_path / "runs.jsonl"))
    monkeypatch.setattr(module, "commit", lambda: "c")
    yield module
    for name in {path.stem for path in FOLDER.glob("*.py")} - before:
        sys.modules.pop(name, None)


def bowl(shares: Any, best: Any) -> list[float]:
    """Losses that are least at a mixture."""
    far = (np.sqrt(shares) - np.sqrt(best)) ** 2
    return [float(value) for value in 3.0 + far + far.sum() / 3]


BEST = np.array([0.5, 0.3, 0.2])


def with_proxies(study: Any) -> None:
    for one in study.proxies():
        losses = bowl(np.array(one.shares), BEST)
        study.RESULTS.add(one.name, {"scene": one.scene, "shares": one.shares, "seed": one.seed, "stopping": losses,
                                     "judging": [9.0, 9.0, 9.0]})  # fmt: skip


def test_a_design_of_36_runs_in_each_scene_and_ten_targets_a_mixture(study: Any) -> None:
    runs = list(study.proxies())
    assert len(runs) == len({one.name for one in runs}) == 3 * 36
    assert {one.width for one in runs} == {64}
    assert len({one.shares for one in runs}) == 34, "two repeat the first one with other seeds"
    for number, each in enumerate(study.choices()):
        chosen = {way: [0.1 * number, 0.4, 0.6 - 0.1 * number] for way in study.WAYS} | {"equal": [0.3, 0.3, 0.4]}
        study.RESULTS.add(each.name, {"scene": each.scene, "chosen": chosen})
    assert len(list(study.targets())) == 3 * 2 * 10, "ways that choose the same mixture share its runs"
    assert {one.width for one in study.targets()} == {192}


@pytest.mark.slow
def test_the_ways_choose_from_the_stopping_half_alone(study: Any) -> None:
    with_proxies(study)
    chosen = study.choose("mostly icons")["chosen"]
    assert all(round(sum(mixture), 9) == 1.0 for mixture in chosen.values())
    assert chosen["natural"] == pytest.approx([550 / 3025, 275 / 3025, 2200 / 3025], abs=1e-4)
    assert chosen["equal"] == [0.3334, 0.3333, 0.3333]
    assert chosen["law"] == pytest.approx(BEST, abs=0.03)
    assert chosen["trees"] == pytest.approx(BEST, abs=0.15)
    sums = {one.shares: sum(bowl(np.array(one.shares), BEST)) for one in study.proxies()}
    assert tuple(chosen["tried"]) == min(sums, key=lambda shares: sums[shares])


def test_a_mixture_with_several_seeds_counts_by_their_mean(study: Any) -> None:
    shares = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    losses = np.array([[1.0, 1.0, 1.0], [3.0, 3.0, 3.0], [1.5, 1.5, 1.5]])
    assert study.by_best_tried(shares, losses).tolist() == [0.2, 0.3, 0.5]


def finish(study: Any, gain: float) -> str:
    """A whole study in which the law's mixture is so far ahead of all others."""
    rng = np.random.default_rng(0)
    mixtures = {"law": [0.5, 0.3, 0.2], "tried": [0.4, 0.4, 0.2], "trees": [0.3, 0.3, 0.4],
                "natural": [0.2, 0.2, 0.6], "equal": [0.3334, 0.3333, 0.3333]}  # fmt: skip
    for each in study.choices():
        study.RESULTS.add(each.name, {"scene": each.scene, "chosen": mixtures})
    for one in study.targets():
        total = 10.0 + rng.normal(0, 0.1) - (gain if list(one.shares) == mixtures["law"] else 0.0)
        study.RESULTS.add(one.name, {"stopped": 120, "judging": [total / 3] * 3, "stopping": [0.0] * 3})
    return str(study.report())


@pytest.mark.parametrize(("gain", "words"), [(0.3, "is better than"), (-0.3, "is worse than"), (0.0, "cannot be told")])
def test_a_sentence_needs_its_difference_on_the_judging_half(study: Any, gain: float, words: str) -> None:
    lines = finish(study, gain).splitlines()
    assert sum(words in line for line in lines) == 4
    assert sum(line.startswith("| mostly") for line in lines) == 3 * 5


def test_the_page_has_the_tables_that_the_committed_records_give(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    results = FOLDER / "results"
    monkeypatch.setattr(study, "RESULTS", study.Records(results / "choosing.jsonl"))
    page = (results / "choosing.md").read_text(encoding="utf-8")
    for table in study.report().split("\n\n"):
        assert table in page


def test_p_is_corrected_for_four_rivals(study: Any) -> None:
    assert study.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    mean, low, high, p = study.tested([np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])])
    assert (mean, p) == (2.0, pytest.approx(0.00805, abs=1e-4))  # t = 2 / (1 / sqrt(6)) = 4.899 with 4 degrees
    assert (low + high) / 2 == pytest.approx(2.0)


def test_two_that_begin_at_once_decode_the_pictures_once(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study's first two processes did not: one lost its file to the other, and stopped."""
    decoded = importlib.import_module("training.data.decoded")
    really, made = decoded.decode_shard, []

    def slowly(pool: Any, folder: Path, size_px: int, shard: Any) -> None:
        made.append((folder.name, shard))
        time.sleep(0.1)
        really(pool, folder, size_px, shard)

    monkeypatch.setattr(decoded, "decode_shard", slowly)
    write_release(tmp_path / "work/build", drawn_samples(12, 12, size_px=64), stratified=True)
    with ThreadPoolExecutor(2) as two:
        first, second = two.map(study.Material, [tmp_path / "work"] * 2)
    assert len(made) == len(set(made)) > 1
    assert {half: len(pool.table) for half, pool in first.halves.items()} == {
        half: len(pool.table) for half, pool in second.halves.items()
    }


@pytest.mark.slow
def test_a_small_study_from_its_release_to_its_page(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = drawn_samples(60, 60, size_px=64)
    for number, sample in enumerate(samples):
        sample.domain = study.DOMAINS[number % 3]
    write_release(tmp_path / "work/build", samples, stratified=True)
    small = {"STEPS": 6, "LOOK_STEPS": 2, "BATCH": 6, "NUM_PROXIES": 12, "SEEDS": (0, 1), "PROXY_WIDTH": 32,
             "TARGET_WIDTH": 64, "POOLS": {"mostly photos": (16, 8, 6), "mostly icons": (6, 8, 16)}}  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(study, name, value)
    study.design.cache_clear()
    study.run(tmp_path / "work", minutes=10)
    study.design.cache_clear()
    proxy = study.RESULTS.one("proxy-mostly-icons-03")
    assert set(proxy["looks"]["stopping"]) == set(proxy["looks"]["judging"]) == {"2", "4", "6"}
    assert proxy["stopping"] == min(proxy["looks"]["stopping"].values(), key=sum)
    assert proxy["judging"] == proxy["looks"]["judging"][str(proxy["stopped"])] != proxy["stopping"]
    assert not list((tmp_path / "work/runs").iterdir())
    with pytest.raises(SystemExit) as ended:
        study.check(tmp_path / "work", "proxy-mostly-icons-03")
    assert ended.value.code == 0
    study.progress()
    assert "left: none" in capsys.readouterr().out
    assert len(study.report().splitlines()) == 2 + 2 * 5 + 3 + 4
