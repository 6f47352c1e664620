"""The third study: what its runs may open, what they keep, and what its sentences rest on."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_folders import STUDY, folder_of

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def study() -> Iterator[Any]:
    """The scripts find each other as they do when they are run."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("bench_third_study")
    finally:
        sys.path.remove(str(FOLDER))
        for name in STUDY:
            sys.modules.pop(name, None)


@pytest.fixture
def untouched(study: Any) -> Any:
    """The script as it is written: `finished` changes the other one."""
    spec = importlib.util.spec_from_file_location("untouched", FOLDER / "bench_third_study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_best_cells_are_tried_again_and_the_best_of_both_seeds_is_taken(
    untouched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the arms and cells of the protocol."""
    monkeypatch.setattr(untouched, "RESULTS", untouched.Records(tmp_path / "runs.jsonl"))
    cells = [(one.arm, one.steps, one.rate) for one in untouched.first_tuning()]
    assert len(cells) == len(set(cells)) == 24 * 7

    def record(one: Any, loss: float) -> None:
        kept = {"arm": one.arm, "seed": one.seed, "steps": one.steps, "rate": one.rate, "val_loss": loss}
        untouched.RESULTS.add(one.name, kept)

    for one in untouched.first_tuning():
        record(one, abs(one.steps - 1_000) / 1_000 + abs(one.rate - 1e-3))
    again = list(untouched.second_tuning())
    assert [(one.steps, one.rate) for one in again if one.arm == "max"] == [
        (1_000, rate) for rate in (1e-3, 5.5e-4, 3e-4, 1.8e-3, 3.2e-3, 5.6e-3)
    ]
    assert {one.seed for one in again} == {901}
    assert len(again) == 6 * 7
    for one in again:
        record(one, 0.0 if one.rate == 3.2e-3 else 1.0)
    assert untouched.tuned()["brownian"][1:] == (1_000, 3.2e-3)
    assert untouched.missing()[0] == "final_runs"
    assert len(untouched.missing()[1]) == 20 * 7


@dataclass(frozen=True)
class Finished:
    """Two folders, and the files that `run` and `judge` opened, each as a whole."""

    work: Path
    sealed: Path
    by_run: list[str]
    by_judge: list[str]
    refused: str
    too_early: str


@pytest.fixture(scope="module")
def finished(study: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """A whole study of runs of four steps: four arms, one cell, two final seeds."""
    folder = tmp_path_factory.mktemp("study")
    work = folder_of(folder / "work", {"special": 9, "general": 9, "fluent": 5, "emojione": 4})
    sealed = folder_of(folder / "sealed", {"openmoji": 6, "fxemoji": 5})
    opened: list[str] = []
    listening = [True]
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if listening[0] and event == "open" else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.study_training, "BATCH", 8)
        patch.setattr(study, "ARMS", {"f": None} | {arm: arm for arm in ("token_mlp", "uncentred", "brownian")})
        for name, value in {"LENGTHS": (4,), "RATES": (1e-3,), "FINAL_SEEDS": (0, 1), "commit": lambda: "c"}.items():
            patch.setattr(study, name, value)
        patch.setattr(study, "RESULTS", study.Records(folder / "runs.jsonl"))
        patch.setattr(study, "SEALED_RESULTS", study.Records(folder / "judged.jsonl"))
        patch.setattr(study.study_training.time, "sleep", lambda seconds: None)
        with pytest.raises(SystemExit) as stopped:
            study.judge(work, sealed)
        study.run(work, minutes=10)
        by_run = opened.copy()
        opened.clear()
        moved = work / "weights/final-f-1-0.001-4.pt"  # of a run that another machine made
        moved.rename(folder / "moved")
        study.judge(work, sealed)
        listening[0] = False
        first_part = study.SEALED_RESULTS.path.read_bytes()
        names = [json.loads(line)["name"] for line in first_part.splitlines()]
        assert names[:2] == ["names", "nearest"]  # behind the runs a crash would lose it: none is judged twice
        with pytest.raises(SystemExit) as too_early:
            study.statistics()
        (folder / "moved").rename(moved)
        study.judge(work, sealed)
        assert study.SEALED_RESULTS.path.read_bytes().startswith(first_part)
        yield Finished(work, sealed, by_run, opened, str(stopped.value), str(too_early.value))


def test_runs_open_nothing_sealed_and_judging_waits_for_all_of_them(finished: Finished) -> None:
    secret = (str(finished.sealed), str(finished.sealed.parent / "judged.jsonl"))
    assert finished.refused == "4 runs of first_tuning are not done, the sealed pictures stay sealed"
    assert any(path.startswith(str(finished.work)) for path in finished.by_run)
    assert not [path for path in finished.by_run if path.startswith(secret)]
    assert [path for path in finished.by_judge if path.startswith(secret)]


def test_a_seed_is_judged_where_its_weights_lie_and_nothing_is_told_before_all_are(
    study: Any, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finished.too_early == "4 final runs are not judged; there is no table before all are"
    with pytest.raises(SystemExit, match="all such are judged; nothing was opened"):
        study.judge(finished.work, finished.sealed)
    monkeypatch.setattr(study, "SEALED_RESULTS", study.Records(tmp_path / "judged.jsonl"))
    study.SEALED_RESULTS.add("names", {"openmoji": ["1f600"]})
    with pytest.raises(SystemExit, match="are not those that were judged before"):
        study.judge(finished.work, finished.sealed)


def test_a_record_says_where_a_run_comes_from_and_the_table_what_was_judged(study: Any, finished: Finished) -> None:
    runs = study.RESULTS.of("*-*")
    assert len(runs) == 4 * 4
    for record in runs:
        assert record["commit"] == "c"
        assert record["machine"]
        assert record["began"]
        assert len(record["rows"]) == len(record["weights"]) == 64
    assert study.RESULTS.one("names")["fluent"] == [f"1f6{n:02x}" for n in range(5)]
    judged = study.SEALED_RESULTS.one("final-uncentred-0-0.001-4")
    assert {v: len(judged[v]["losses"]) for v in ("openmoji", "fxemoji")} == {"openmoji": 6, "fxemoji": 5}
    assert len(study.SEALED_RESULTS.names()) == 2 * 4 + len(("names", "nearest"))
    best = {arm: study.Run(arm, 0, rate, steps) for arm, (_, steps, rate) in study.tuned().items()}
    foreseen = study.power(study.RESULTS, best, [6, 5], rounds=3)
    assert "## brownian less token_mlp, from 2 seeds" in foreseen
    told = study.report(study.RESULTS, study.SEALED_RESULTS, shown=(("uncentred", "f"),))
    losses = {
        arm: [
            np.mean([study.SEALED_RESULTS.one(f"final-{arm}-{seed}-0.001-4")[vendor]["losses"] for seed in (0, 1)])
            for vendor in ("openmoji", "fxemoji")
        ]
        for arm in ("brownian", "uncentred")
    }
    apart = np.subtract(losses["brownian"], losses["uncentred"])
    shown = re.search(r"brownian less uncentred \| (\S+) \(.*?\| (\S+) \(.*?\| (\S+) \(", told)
    assert shown is not None
    np.testing.assert_allclose([float(each) for each in shown.groups()], [*apart, apart.mean()], atol=6e-4)


def test_a_run_is_made_again_to_the_last_digit_and_a_changed_record_is_seen(
    study: Any, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "final-token_mlp-0-0.001-4"
    with pytest.raises(SystemExit) as stopped:
        study.check(finished.work, name)
    assert not stopped.value.code
    assert "the same to the last digit" in capsys.readouterr().out
    (tmp_path / "runs.jsonl").write_bytes(study.RESULTS.path.read_bytes())
    monkeypatch.setattr(study, "RESULTS", study.Records(tmp_path / "runs.jsonl"))
    study.RESULTS.add(name, study.RESULTS.one(name) | {"val_loss": 0.0, "weights": "0"})
    with pytest.raises(SystemExit) as stopped:
        study.check(finished.work, name)
    assert stopped.value.code
    assert "differs in weights, val_loss" in capsys.readouterr().out
    monkeypatch.setattr(study, "SEALED_RESULTS", study.Records(tmp_path / "judged.jsonl"))
    with pytest.raises(SystemExit, match="the weights are not those of its record"):
        study.judge(finished.work, finished.sealed)


def test_a_changed_file_stops_a_run(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    for name in ("code.py", "runs.jsonl"):
        (tmp_path / name).write_text("1")
    git("add", "-A")
    git("commit", "-qm", "a")
    records = sys.modules[study.Records.__module__]
    monkeypatch.setattr(records, "ROOT", tmp_path)
    (tmp_path / "runs.jsonl").write_text("2")
    code = git("rev-parse", "HEAD").strip()
    assert records.commit() == code
    git("commit", "-aqm", "records alone")
    assert records.commit() == code, "the code is that of the commit before"
    (tmp_path / "code.py").write_text("2")
    with pytest.raises(SystemExit, match=r"these files differ from it: code\.py"):
        records.commit()


def test_vendors_share_blocks_of_neighbouring_code_points(study: Any) -> None:
    statistics = sys.modules["third_study_statistics"]
    codes = {"a": [f"{n:x}" for n in range(0x1F600, 0x1F640)], "b": ["1f600", "1f600-1f601", "1f63f", "231a"]}
    blocks = statistics.blocks_of(codes)
    assert np.bincount(blocks["a"])[1:4].tolist() == [16, 16, 16]
    assert blocks["b"].tolist() == [0, 0, 4, 0]


def test_the_interval_covers_what_neighbours_share_where_names_alone_do_not(study: Any) -> None:
    """A study whose true difference is 0, with blocks that are alike: covered in about 95 % of the draws."""
    statistics, rng = sys.modules["third_study_statistics"], np.random.default_rng(0)
    blocks = {"a": np.arange(640) // 16, "b": np.arange(0, 640, 2) // 16}
    inside = {"blocks": 0, "names": 0}
    for _ in range(120):
        shared, of_seed = 0.5 * rng.standard_normal(40), 0.05 * rng.standard_normal((20, 1))
        diffs = {v: shared[b] + of_seed + rng.standard_normal((20, len(b))) for v, b in blocks.items()}
        for kind, groups in (("blocks", blocks), ("names", {"a": np.arange(640), "b": np.arange(0, 640, 2)})):
            found = statistics.summary(diffs, statistics.drawn_means(diffs, groups, 400))["mean"]
            inside[kind] += found["low"] <= 0 <= found["high"]
    assert 0.9 <= inside["blocks"] / 120 <= 0.98
    assert inside["names"] / 120 < 0.75


@pytest.mark.parametrize(
    ("vendors", "low", "p", "said"),
    [
        ((-0.3, -0.1), -0.25, 0.01, "Brownian distance is better than x"),
        ((-0.3, 0.01), -0.25, 0.01, "x: cannot be told"),
        ((-0.05, 0.02), -0.09, 0.4, "x is as good as Brownian distance, to 0.1 nats"),
        ((-0.12, 0.08), -0.09, 0.4, "x: cannot be told"),
        ((-0.05, -0.01), -0.11, 0.06, "x: cannot be told"),
        ((0.2, 0.1), 0.04, 0.01, "x is better than Brownian distance"),
    ],
)
def test_a_sentence_needs_its_interval_and_both_vendors(
    study: Any, vendors: tuple[float, float], low: float, p: float, said: str
) -> None:
    one = {"a": {"value": vendors[0]}, "b": {"value": vendors[1]}, "mean": {"value": sum(vendors) / 2, "low": low}}
    assert sys.modules["third_study_statistics"].sentence(one, p, "x") == said


def test_holm_doubles_the_smaller_of_two(study: Any) -> None:
    holm = study.study_training.holm
    assert holm([0.01, 0.03]) == [0.02, 0.03]
    assert holm([0.03, 0.01]) == [0.03, 0.02]
    assert holm([0.02, 0.02]) == [0.04, 0.04]
    assert holm([0.04, 0.045]) == [0.08, 0.08]


@pytest.mark.slow
def test_the_page_has_every_difference_that_the_committed_records_give(untouched: Any) -> None:
    """The table of 2026-12-03: 19 differences over seeds and names, and over styles."""
    statistics, (runs, judged) = sys.modules["third_study_statistics"], (untouched.RESULTS, untouched.SEALED_RESULTS)
    arms = ("brownian", "uncentred", "covariance", "max", "token_mlp", "mean", "f")
    others = [pair for pair in combinations(arms, 2) if pair not in statistics.PRIMARY]
    by_names = statistics.report(runs, judged, shown=others).splitlines()[4:23]
    by_styles = statistics.over_styles(runs, judged, others).splitlines()[2:]
    page = (FOLDER / "results/third_study.md").read_text(encoding="utf-8")
    assert len(by_names) == len(by_styles) == 19
    for names, styles in zip(by_names, by_styles, strict=True):
        row = f"{' |'.join(names.split(' |')[:4])} |{styles.split('|')[-2]}|".replace("uncentred", "second_moment")
        assert row in page
