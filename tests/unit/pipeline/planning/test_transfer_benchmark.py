"""The benchmark of transfer reads RegMix's tables as they are published, and its figures follow from a known truth."""

from __future__ import annotations

import csv
import importlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"
DOMAINS = ("arxiv", "github", "pile_cc")
LEVELS = {"1m": 3.0, "60m": 2.0, "1B": 1.0}


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """The scripts find each other as they do when they are run."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("bench_planning_transfer")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("bench_planning_transfer", "bench_planning_tables", "bench_planning"):
            sys.modules.pop(name, None)


def write(path: Path, names: Sequence[str], index: Sequence[int], rows: np.ndarray) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["index", *names])
        writer.writerows([number, *np.round(row, 6)] for number, row in zip(index, rows, strict=True))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up runs in the files of RegMix's repository; losses lie in another order than mixtures."""
    folder = tmp_path_factory.mktemp("regmix")
    rng = np.random.default_rng(0)
    names = [f"train_the_pile_{name}" for name in DOMAINS], [f"metric/the_pile_{name}_val_loss" for name in DOMAINS]
    for kind, size, num_runs in (("train", "1m", 80), ("test", "1m", 24), ("test", "60m", 24), ("test", "1B", 24)):
        shares = rng.dirichlet(np.ones(3), num_runs)
        losses = LEVELS[size] + (0.2 + shares**0.7) ** -0.4
        index = np.arange(1, num_runs + 1)
        order = rng.permutation(num_runs)
        write(folder / f"{kind}_mixture_{size}.csv", names[0], index, shares)
        write(folder / f"{kind}_pile_loss_{size}.csv", names[1], index[order], losses[order])
    return folder


def test_losses_meet_their_mixtures_by_index(script: Any, tables: Path) -> None:
    runs = script.read_size(tables, script.TRAIN)
    assert (runs.domains, runs.losses) == (DOMAINS, DOMAINS)
    assert runs.loss_values == pytest.approx(3.0 + (0.2 + runs.shares**0.7) ** -0.4, abs=1e-5)


def test_a_table_that_is_not_there_is_named_with_where_to_get_it(script: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"neither regmix-1b-test\.csv nor .*clone https://github\.com/sail-sg/regmix"):
        script.read_size(tmp_path, script.SIZES["1B"])


def test_a_law_of_few_small_runs_ranks_the_runs_of_another_size(script: Any, tables: Path) -> None:
    whole = script.read_size(tables, script.TRAIN)
    judged = [script.read_size(tables, script.SIZES[size]) for size in ("60M", "1B")]
    figures, _ = script.measure(whole, judged, (script.THE_LAW, 24, 0))
    for of_mean, of_each, rank, lost in figures:
        assert of_mean > 0.98
        assert of_each > 0.99
        assert (rank, lost) == (1, 0.0)


def test_the_figures_are_those_of_the_ranks(script: Any, tables: Path) -> None:
    runs = script.read_size(tables, script.SIZES["1B"])
    turned = script.judge(-runs.loss_values.T, runs)
    mean = runs.loss_values.mean(axis=1)
    assert turned == pytest.approx([-1.0, -1.0, runs.num_runs, mean.max() - mean.min()])
    assert script.judge(runs.loss_values.T, runs) == pytest.approx([1.0, 1.0, 1, 0.0])


@pytest.mark.slow
def test_the_script_prints_a_row_a_size_and_method(tables: Path) -> None:
    command = [sys.executable, str(FOLDER / "bench_planning_transfer.py"), str(tables), "--draws", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| 1M", "| 60M", "| 1B"))]
    assert len(rows) == 3 * 5, "64 and all 80 runs by both laws, 80 by trees, at three sizes"
    assert sum("| the law, 64 (1) |" in row for row in rows) == 3
