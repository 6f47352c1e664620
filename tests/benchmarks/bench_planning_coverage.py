"""Do the planner's 90 % intervals hold? Simulated truths with known parameters, so that every optimum is known.

    python tests/benchmarks/bench_planning_coverage.py ROWS.jsonl [--seconds 280] [--sims 30] [--domains 2,3,5,7]
    python tests/benchmarks/bench_planning_coverage.py ROWS.jsonl --table

One line of ROWS.jsonl is one simulation: 3 (k + 1) runs of k domains, a fitted law, a chosen mixture. A run goes on
where the last one stopped. `--table` prints the Markdown table of all lines.

Per simulation: share of 200 new noisy losses a domain within their intervals; for each domain, whether the share of the
true minimiser of the objective (sum of all true losses, no limits) lies within the interval that `choose` gives.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bench_planning import FAMILIES, made_table, random_truth

from pipeline.planning.choose import choose_mixture
from pipeline.planning.design import propose_runs
from pipeline.planning.goals import Goal
from pipeline.planning.laws import fit_law
from pipeline.planning.limits import Box
from pipeline.planning.search import cloud, minimise_score

NOISES = (0.0, 0.005, 0.02)
SHARE_OF_SIMS = {2: 1.0, 3: 1.0, 5: 0.67, 7: 0.67}
Cell = tuple[int, bool, float, int, str]
"""(domains, designed, noise, seed, family)."""


def cells(domains: list[int], sims: int) -> Iterator[Cell]:
    """Seeds outermost, so that an unfinished file is thin everywhere and missing nowhere."""
    for seed in range(-(-sims // len(FAMILIES))):
        for num_domains in domains:
            if seed * len(FAMILIES) >= SHARE_OF_SIMS[num_domains] * sims:
                continue
            for designed in (True, False):
                for noise in NOISES:
                    for family in FAMILIES:
                        yield num_domains, designed, noise, seed, family


def simulate(cell: Cell) -> dict[str, object]:
    """What one simulation says; the loss intervals are judged on losses as noisy as the runs."""
    num_domains, designed, noise, seed, family = cell
    rng = np.random.default_rng([seed, num_domains, int(noise * 1000), FAMILIES.index(family), 78])
    truth, num_runs = random_truth(family, num_domains, rng), 3 * (num_domains + 1)
    box = Box(np.zeros(num_domains), np.ones(num_domains), ("",) * num_domains)
    shares = rng.dirichlet(np.ones(num_domains), num_runs)
    if designed:
        proposed = propose_runs(tuple(map(str, range(num_domains))), num_runs, box, replicates=0)
        shares = np.array([run.shares for run in proposed])
    clean = truth(shares)
    law = fit_law(made_table(shares, clean * (1 + noise * rng.normal(size=clean.shape))))
    asked = rng.dirichlet(np.ones(num_domains), 200)
    expected = truth(asked)
    new = expected * (1 + noise * rng.normal(size=expected.shape))
    predicted = list(law.predict(asked).values())
    covered = [np.mean((low <= new[:, c]) & (new[:, c] <= high)) for c, (_, low, high) in enumerate(predicted)]
    error = [np.abs(value - expected[:, c]).mean() for c, (value, _, _) in enumerate(predicted)]

    def objective(points: np.ndarray) -> np.ndarray:
        total: np.ndarray = truth(points).sum(axis=-1)
        return total

    best = minimise_score(objective, cloud(box, 2000, np.random.default_rng(0)), box)
    chosen = choose_mixture(law, Goal(dict.fromkeys(law.losses, 1.0)))
    least, reached = objective(np.stack([best, chosen.shares]))
    _, low, high = chosen.objective
    return {
        "covered": float(np.mean(covered)), "error": float(np.mean(error)), "lost": float(reached - least),
        "objective_held": bool(low <= reached <= high), "best": best.tolist(),
        "chosen": chosen.shares.tolist(), "interval": chosen.interval.tolist(),
    }  # fmt: skip


def run(path: Path, todo: Iterator[Cell], seconds: float) -> None:
    done = {tuple(json.loads(line)["cell"]) for line in path.read_text().splitlines()} if path.exists() else set()
    end = time.monotonic() + seconds
    with path.open("a") as stream:
        for cell in todo:
            if cell in done:
                continue
            if time.monotonic() > end:
                print("time is up: run it again to go on")
                return
            start = time.process_time()
            row = simulate(cell)
            stream.write(json.dumps({"cell": cell, **row, "cpu_s": time.process_time() - start}) + "\n")
            stream.flush()
    print("done")


# The search for an optimum ends with steps of 1e-6: shares that differ by less than this are the same.
SAME_SHARE = 1e-4


def table(path: Path) -> list[str]:
    """A line for each number of domains, kind of runs and noise; then one for both kinds of runs together."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [
        "| domains | runs | noise | simulations | losses covered | optimum covered | its standard error "
        "| width of its interval | loss at the choice, median | worst |",
        "|---" * 10 + "|",
    ]
    settings = sorted({tuple(row["cell"][:3]) for row in rows}, key=lambda k: (k[0], not k[1], k[2]))
    for num_domains, designed, noise in settings:
        here = [row for row in rows if row["cell"][:3] == [num_domains, designed, noise]]
        lines.append(_line(num_domains, "plan design" if designed else "Dirichlet", noise, here))
    lines += ["", *lines[:2]]
    for num_domains, noise in sorted({(k, noise) for k, _, noise in settings}):
        here = [row for row in rows if row["cell"][0] == num_domains and row["cell"][2] == noise]
        lines.append(_line(num_domains, "both", noise, here))
    return lines


def _line(num_domains: int, kind: str, noise: float, rows: list[dict]) -> str:
    best = np.array([row["best"] for row in rows])
    ends = np.array([row["interval"] for row in rows])
    inside = (ends[:, :, 0] - SAME_SHARE <= best) & (best <= ends[:, :, 1] + SAME_SHARE)
    lost = np.array([row["lost"] for row in rows])
    each, width = inside.mean(axis=1), np.mean(ends[:, :, 1] - ends[:, :, 0])
    return (
        f"| {num_domains} | {3 * (num_domains + 1)}, {kind} | {noise:.1%} | {len(rows)} "
        f"| {np.mean([row['covered'] for row in rows]):.3f} "
        f"| {inside.mean():.3f} | {each.std() / np.sqrt(len(rows)):.3f} | {width:.3f} "
        f"| {np.median(lost):.4f} | {lost.max():.4f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--seconds", type=float, default=280.0)
    parser.add_argument("--sims", type=int, default=30, help="a cell for 2 and 3 domains; two thirds for 5 and 7")
    parser.add_argument("--domains", default="2,3,5,7")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        print("\n".join(table(args.rows)))
    else:
        run(args.rows, cells([int(k) for k in args.domains.split(",")], args.sims), args.seconds)


if __name__ == "__main__":
    main()
