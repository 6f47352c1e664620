"""Do laws of 1M runs rank RegMix's runs of 60M and 1B? Rank correlation, and the run picked, in about a minute.

    python tests/benchmarks/bench_planning_transfer.py DIR [--draws 8]

DIR is the folder `data` of https://github.com/sail-sg/regmix, or a folder of such tables in the planner's own format:
regmix-1m-train.csv, regmix-1m-test.csv, regmix-60m-test.csv and regmix-1b-test.csv, with columns mix_* and loss_*.
A method sees drawn runs of 1M only, and ranks the runs of each size by the mean of their losses, and by each. The
boosted trees are LightGBM where it is installed, else those of scikit-learn. Prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import platform
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from bench_planning_tables import THE_LAW, light_gbm, single
from scipy.stats import spearmanr

from pipeline.planning.forms.catalogue import EXPONENTIAL
from pipeline.planning.laws import fit_law
from pipeline.planning.runs.run_table import RunsTable, build_runs
from pipeline.planning.runs.tables import Columns, read_csv

ADDRESS = "https://github.com/sail-sg/regmix"
PUBLISHED = "published law (Ye et al.)"
BOOSTED = "LightGBM (RegMix)" if find_spec("lightgbm") else "boosted trees (scikit-learn)"
TRAIN = ("regmix-1m-train.csv", "train_mixture_1m.csv", "train_pile_loss_1m.csv")
SIZES = {
    "1M, its own test": ("regmix-1m-test.csv", "test_mixture_1m.csv", "test_pile_loss_1m.csv"),
    "60M": ("regmix-60m-test.csv", "test_mixture_60m.csv", "test_pile_loss_60m.csv"),
    "1B": ("regmix-1b-test.csv", "test_mixture_1B.csv", "test_pile_loss_1B.csv"),
}
METHODS = ((THE_LAW, 64), (THE_LAW, 128), (PUBLISHED, 64), (PUBLISHED, 128), (PUBLISHED, 512),
           (BOOSTED, 128), (BOOSTED, 512))  # fmt: skip


def read_size(folder: Path, files: tuple[str, str, str]) -> RunsTable:
    """The runs of one size: from our own file of them, else from RegMix's two, whose rows belong together by index."""
    ours, mixture_file, loss_file = (folder / name for name in files)
    if ours.exists():
        columns, _ = read_csv(ours)
    elif mixture_file.exists() and loss_file.exists():
        (mixtures, _), (losses, _) = read_csv(mixture_file), read_csv(loss_file)
        columns = _in_our_format(mixtures, losses)
    else:
        raise SystemExit(
            f"{folder}: neither {ours.name} nor {mixture_file.name} with {loss_file.name} is there; clone {ADDRESS} "
            "and give its folder data"
        )
    return build_runs(list(columns), columns, source=ours.name)


def _in_our_format(mixtures: Columns, losses: Columns) -> Columns:
    row_of = {index: row for row, index in enumerate(losses["index"])}
    order = [row_of[index] for index in mixtures["index"]]
    found: Columns = {"run": mixtures["index"]}
    for name, values in mixtures.items():
        if name.startswith("train_the_pile_"):
            found[f"mix_{name.removeprefix('train_the_pile_')}"] = values
    for name, values in losses.items():
        if name.startswith("metric/the_pile_"):
            domain = name.removeprefix("metric/the_pile_").removesuffix("_val_loss")
            found[f"loss_{domain}"] = [values[row] for row in order]
    return found


def scikit_trees(shares: np.ndarray, losses: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The settings of `light_gbm`."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    leaf = 1 if len(shares) < 200 else 20
    model = HistGradientBoostingRegressor(
        learning_rate=0.01, max_iter=1000, min_samples_leaf=leaf, early_stopping=False, random_state=42
    )
    return np.asarray(model.fit(shares, losses).predict(asked))


def foretell(method: str, train: RunsTable, asked_QK: np.ndarray) -> np.ndarray:
    """Each of the C losses at Q mixtures, (C, Q)."""
    if method == THE_LAW:
        return np.stack([column.value(asked_QK) for column in fit_law(train).columns])
    trees = light_gbm if find_spec("lightgbm") else scikit_trees
    predict = single(EXPONENTIAL) if method == PUBLISHED else trees
    return np.stack([predict(train.shares, losses, asked_QK) for losses in train.loss_values.T])


def judge(guess_CQ: np.ndarray, runs: RunsTable) -> list[float]:
    """Rank correlation of the mean loss, mean rank correlation of each, place of the pick, and what it loses."""
    truth_CQ = runs.loss_values.T
    guess, truth = guess_CQ.mean(axis=0), truth_CQ.mean(axis=0)
    of_each = [spearmanr(one, other).statistic for one, other in zip(guess_CQ, truth_CQ, strict=True)]
    pick = truth[guess.argmin()]
    return [spearmanr(guess, truth).statistic, float(np.mean(of_each)), (truth < pick).sum() + 1, pick - truth.min()]


def measure(whole: RunsTable, judged: list[RunsTable], task: tuple[str, int, int]) -> tuple[list[list[float]], float]:
    """The figures of one method on one draw of runs, a row a size, and its CPU seconds."""
    method, num_runs, number = task
    started = time.process_time()
    train = whole.take(np.random.default_rng(number).permutation(whole.num_runs)[:num_runs])
    guess = foretell(method, train, np.concatenate([runs.shares for runs in judged]))
    ends = np.cumsum([runs.num_runs for runs in judged])[:-1]
    figures = [judge(part, runs) for part, runs in zip(np.split(guess, ends, axis=1), judged, strict=True)]
    return figures, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, metavar="DIR")
    parser.add_argument("--draws", type=int, default=8)
    args = parser.parse_args()
    whole = read_size(args.tables, TRAIN)
    judged = {size: read_size(args.tables, files) for size, files in SIZES.items()}
    methods = list(dict.fromkeys((method, min(num_runs, whole.num_runs)) for method, num_runs in METHODS))
    num_draws = {num_runs: args.draws if num_runs < whole.num_runs else 1 for _, num_runs in methods}
    tasks = [(method, num, number) for method, num in methods for number in range(num_draws[num])]
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the processes that are started now
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(partial(measure, whole, list(judged.values())), tasks))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(f"commit {commit.stdout.strip()}, Python {platform.python_version()}, NumPy {np.__version__}\n")
    print("| ranked runs | by, 1M runs (draws) | rank, mean loss | rank, each | picks the best | loses, nats | CPU s |")
    print("|---|---|---|---|---|---|---|")
    results = itertools.groupby(zip(tasks, found, strict=True), key=lambda result: result[0][:2])
    of_methods = {name: [each for _, each in group] for name, group in results}
    for at, (size, runs) in enumerate(judged.items()):
        for (method, num), draws in of_methods.items():
            of_mean, of_each, rank, lost = np.transpose([figures[at] for figures, _ in draws])
            print(
                f"| {size} ({runs.num_runs}) | {method}, {num} ({len(draws)}) "
                f"| {100 * of_mean.mean():.1f} ({100 * of_mean.min():.1f} to {100 * of_mean.max():.1f}) "
                f"| {100 * of_each.mean():.1f} | {(rank == 1).sum()} of {len(draws)} | {lost.mean():.4f} "
                f"| {np.mean([seconds for _, seconds in draws]):.1f} |"
            )


if __name__ == "__main__":
    main()
