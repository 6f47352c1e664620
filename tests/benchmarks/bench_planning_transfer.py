"""Do laws of 1M runs rank RegMix's runs of 60M and 1B? Rank correlation, and the run picked, in two minutes.

    python tests/benchmarks/bench_planning_transfer.py DIR [--draws 8]

DIR holds the public tables as csv files: regmix-1m-train.csv, regmix-1m-test.csv, regmix-60m-test.csv and
regmix-1b-test.csv, with columns mix_* and loss_*. A method sees drawn runs of 1M only, and ranks the runs of each size
by the mean of their 13 losses, and by each. LightGBM takes part when it is installed. Prints Markdown.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from bench_planning_tables import THE_LAW, light_gbm
from scipy.stats import spearmanr

from pipeline.commands.plan.tables import read_runs
from pipeline.planning.laws import fit_law
from pipeline.planning.runs.run_table import RunsTable

BOOSTED = "LightGBM (RegMix)"
SIZES = {"1M, its own test": "regmix-1m-test.csv", "60M": "regmix-60m-test.csv", "1B": "regmix-1b-test.csv"}
METHODS = ((THE_LAW, 64), (THE_LAW, 128), (BOOSTED, 128), (BOOSTED, 512))


def foretell(method: str, train: RunsTable, asked_QK: np.ndarray) -> np.ndarray:
    """Each of the C losses at Q mixtures, (C, Q)."""
    if method == THE_LAW:
        return np.stack([column.value(asked_QK) for column in fit_law(train).columns])
    return np.stack([light_gbm(train.shares, losses, asked_QK) for losses in train.loss_values.T])


def judge(guess_CQ: np.ndarray, runs: RunsTable) -> list[float]:
    """Rank correlation of the mean loss, mean rank correlation of each, place of the pick, and what it loses."""
    truth_CQ = runs.loss_values.T
    guess, truth = guess_CQ.mean(axis=0), truth_CQ.mean(axis=0)
    of_each = [spearmanr(one, other).statistic for one, other in zip(guess_CQ, truth_CQ, strict=True)]
    pick = truth[guess.argmin()]
    return [spearmanr(guess, truth).statistic, float(np.mean(of_each)), (truth < pick).sum() + 1, pick - truth.min()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, metavar="DIR")
    parser.add_argument("--draws", type=int, default=8)
    args = parser.parse_args()
    whole = read_runs(args.tables / "regmix-1m-train.csv")
    judged = {size: read_runs(args.tables / file) for size, file in SIZES.items()}
    asked = np.concatenate([runs.shares for runs in judged.values()])
    ends = np.cumsum([runs.num_runs for runs in judged.values()])[:-1]
    rows: dict[str, list[str]] = {size: [] for size in SIZES}
    for method, num_runs in METHODS:
        num_draws = args.draws if num_runs < whole.num_runs else 1
        started, found = time.process_time(), []
        for number in range(num_draws):
            train = whole.take(np.random.default_rng(number).permutation(whole.num_runs)[:num_runs])
            guesses = np.split(foretell(method, train, asked), ends, axis=1)
            found.append([judge(guess, runs) for guess, runs in zip(guesses, judged.values(), strict=True)])
        seconds = (time.process_time() - started) / num_draws
        for size, (of_mean, of_each, place, lost) in zip(SIZES, np.transpose(found, (1, 2, 0)), strict=True):
            rows[size].append(
                f"| {size} ({judged[size].num_runs}) | {method}, {num_runs} ({num_draws}) "
                f"| {100 * of_mean.mean():.1f} ({100 * of_mean.min():.1f} to {100 * of_mean.max():.1f}) "
                f"| {100 * of_each.mean():.1f} | {(place == 1).sum()} of {num_draws} | {lost.mean():.4f} "
                f"| {seconds:.1f} |"
            )
    print("| ranked runs | by, 1M runs (draws) | rank, mean loss | rank, each | picks the best | loses, nats | CPU s |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(line for lines in rows.values() for line in lines))


if __name__ == "__main__":
    main()
