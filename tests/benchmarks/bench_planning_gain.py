"""Does the printed gain of a choice hold? Simulated truths of six kinds, so that every gain is known.

    python tests/benchmarks/bench_planning_gain.py ROWS.jsonl [--tables 40] [--only KIND]
    python tests/benchmarks/bench_planning_gain.py ROWS.jsonl --table

One line of ROWS.jsonl is one table of runs: a fitted law, a chosen mixture, and for each rival the printed gain beside
the true one. A run goes on where the last one stopped. Even tables are designed by `plan design`, odd ones random.

- smooth: families of the forms themselves, noise of 0.5 %; noisy: the same with 2 %; crashed: one run 15 % too high
- interacting: each loss has products of two shares
- kinked: one pool is passed 8 to 20 times; above 4 passes every loss rises by log^2 of the passes
- threshold: each loss falls by a step at a share of its own domain
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
from bench_planning import FAMILIES, Truth, made_table, random_truth

from pipeline.planning.choose import choose_mixture
from pipeline.planning.design import propose_runs
from pipeline.planning.gains import BEST_RUN
from pipeline.planning.goals import Goal
from pipeline.planning.laws import fit_law
from pipeline.planning.limits import Box, Limits

KINDS = ("smooth", "interacting", "noisy", "crashed", "kinked", "threshold")
DOMAINS, RUNS = (2, 3), (8, 12, 36)
MUCH_WORSE = 0.02  # of the range of the objective over the runs


def made_truth(kind: str, num_domains: int, rng: np.random.Generator) -> Truth:
    base = random_truth(FAMILIES[rng.integers(len(FAMILIES))], num_domains, rng)
    if kind == "interacting":
        pairs = list(itertools.combinations(range(num_domains), 2))
        size = rng.uniform(-1.5, 1.5, (num_domains, len(pairs)))
        return lambda r: base(r) + np.stack([r[..., i] * r[..., j] for i, j in pairs], axis=-1) @ size.T
    if kind == "kinked":
        most, height, domain = rng.uniform(8, 20), rng.uniform(0.1, 0.3), rng.integers(num_domains)
        return lambda r: base(r) + height * np.log(np.maximum(r[..., [domain]] * most / 4, 1)) ** 2
    if kind == "threshold":
        place, height = rng.uniform(0.1, 0.5, num_domains), rng.uniform(0.2, 0.5, num_domains)
        return lambda r: base(r) - height / (1 + np.exp(-(r - place) / 0.02))
    return base


def simulate(kind: str, num_domains: int, num_runs: int, number: int) -> dict[str, object]:
    rng = np.random.default_rng([KINDS.index(kind), num_domains, num_runs, number, 91])
    truth = made_truth(kind, num_domains, rng)
    if number % 2:
        shares = rng.dirichlet(np.ones(num_domains), num_runs)
    else:
        box = Box(np.zeros(num_domains), np.ones(num_domains), ("",) * num_domains)
        proposed = propose_runs(tuple(map(str, range(num_domains))), num_runs, box, replicates=0)
        shares = np.array([run.shares for run in proposed])
    clean = truth(shares)
    losses = clean * (1 + (0.02 if kind == "noisy" else 0.005) * rng.normal(size=clean.shape))
    if kind == "crashed":
        losses[rng.integers(num_runs)] *= 1.15
    law = fit_law(made_table(shares, losses))
    pools = dict(zip(law.domains, rng.dirichlet(np.ones(num_domains)).tolist(), strict=True))
    chosen = choose_mixture(law, Goal(dict.fromkeys(law.losses, 1.0), limits=Limits(pools=pools)))
    true = truth(np.stack([chosen.shares, *(gain.shares for gain in chosen.gains)])).sum(axis=-1)
    return {
        "gains": {
            gain.rival: [gain.value, gain.low, gain.high, float(other - true[0])]
            for gain, other in zip(chosen.gains, true[1:], strict=True)
        },
        "range": float(np.ptp(losses.sum(axis=1))),
        "advice": chosen.advice,
    }


def run(path: Path, num_tables: int, kinds: list[str]) -> None:
    done = {tuple(json.loads(line)["cell"]) for line in path.read_text().splitlines()} if path.exists() else set()
    with path.open("a") as stream:
        for cell in itertools.product(kinds, DOMAINS, RUNS, range(num_tables)):
            if cell not in done:
                stream.write(json.dumps({"cell": cell, **simulate(*cell)}) + "\n")
                stream.flush()


def table(path: Path) -> list[str]:
    """A line for each kind of truth, number of domains and number of runs."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [
        "| truth | domains | runs | tables | gain covered | wrongly sure | half a width / range "
        '| "take the choice" | then much worse |',
        "|---" * 9 + "|",
    ]
    for kind, num_domains, num_runs in sorted({tuple(row["cell"][:3]) for row in rows}, key=_order):
        here = [row for row in rows if row["cell"][:3] == [kind, num_domains, num_runs]]
        lines.append(f"| {kind} | {num_domains} | {num_runs} | {len(here)} | {_judged(here)} |")
    lines.append(f"| all | 2, 3 | 8 to 36 | {len(rows)} | {_judged(rows)} |")
    return lines


def _order(key: tuple[str, int, int]) -> tuple[int, int, int]:
    return KINDS.index(key[0]), key[1], key[2]


def _judged(rows: list[dict]) -> str:
    gains = np.array([gain for row in rows for gain in row["gains"].values()])
    ranges = np.array([row["range"] for row in rows for _ in row["gains"]])
    _, low, high, true = gains.T
    covered = (low - 1e-9 <= true) & (true <= high + 1e-9)
    wrong = ((low > 0) & (true < 0)) | ((high < 0) & (true > 0))
    taken = [row for row in rows if row["advice"].startswith("take the choice")]
    worse = sum(row["gains"][BEST_RUN][3] < -MUCH_WORSE * row["range"] for row in taken)
    width = np.median((high - low) / 2 / ranges)
    return f"{covered.mean():.3f} | {wrong.mean():.3f} | {width:.3f} | {len(taken)} | {worse}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--tables", type=int, default=40, help="for each kind, number of domains and of runs")
    parser.add_argument("--only", choices=KINDS, help="one kind of truth")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    args = parser.parse_args()
    if args.table:
        print("\n".join(table(args.rows)))
    else:
        run(args.rows, args.tables, [args.only] if args.only else list(KINDS))


if __name__ == "__main__":
    main()
