"""How much does the law err with few runs? Simulated truths, so that two versions of the planner meet the same tables.

    python tests/benchmarks/bench_planning_few.py ROWS.jsonl [--seeds 0-9] [--domains 2,3,5,7]
    PYTHONPATH=OTHER/CHECKOUT:OTHER/CHECKOUT/tests/benchmarks python tests/benchmarks/bench_planning_few.py OTHER.jsonl
    python tests/benchmarks/bench_planning_few.py ROWS.jsonl --before OTHER.jsonl
    python tests/benchmarks/bench_planning_few.py ROWS.jsonl --average

One line of ROWS.jsonl is one table: its law errs by so much on mixtures that nobody ran. A run goes on where the last
one stopped. `--before` prints the Markdown table that sets two versions side by side, and `--average` one that sets the
law beside the plain average of three forms.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import time
from importlib import import_module
from pathlib import Path

import numpy as np
from bench_planning import FAMILIES, random_truth

from pipeline.planning import laws
from pipeline.planning.design import propose_runs
from pipeline.planning.limits import Box

# The module that reads tables had another name in earlier versions.
build_runs = import_module(laws.RunsTable.__module__).build_runs

NUM_RUNS = {2: (4, 6, 9), 3: (5, 8, 12), 5: (7, 12, 18), 7: (9, 16, 24)}
NOISES = (0.0, 0.005, 0.02)
TRUTHS = (*FAMILIES, "steep power")
DESIGNS = ("plan design", "Dirichlet")
THREE = ("shared_exponent", "additive", "gaussian_process")


def made_shares(design: str, num_domains: int, num_runs: int, rng: np.random.Generator) -> np.ndarray:
    """The mixtures of one table."""
    if design == "Dirichlet":
        return rng.dirichlet(np.ones(num_domains), num_runs)
    box = Box(np.zeros(num_domains), np.ones(num_domains), ("",) * num_domains)
    proposed = propose_runs(tuple(map(str, range(num_domains))), num_runs, box, replicates=0)
    return np.array([run.shares for run in proposed])


def simulate(num_domains: int, num_runs: int, noise: float, family: str, design: str, seed: int) -> dict[str, object]:
    """Mean absolute error of a law on 200 mixtures that nobody ran, over all losses."""
    rng = np.random.default_rng([seed, num_domains, num_runs, int(noise * 1000), TRUTHS.index(family), 2611])
    truth = random_truth(family, num_domains, rng)
    shares, asked = made_shares(design, num_domains, num_runs, rng), rng.dirichlet(np.ones(num_domains), 200)
    losses = truth(shares)
    losses = losses * (1 + noise * rng.normal(size=losses.shape))
    columns = {f"mix_{k}": shares[:, k].tolist() for k in range(num_domains)}
    columns |= {f"loss_{c}": losses[:, c].tolist() for c in range(num_domains)}
    law = laws.fit_law(build_runs(list(columns), columns, source="simulated"))
    predicted = np.stack([value for value, _, _ in law.predict(asked).values()], axis=1)
    three = [[laws.FORMS[name].predict(column.whole[name], asked)[0] for name in THREE] for column in law.columns]
    average = np.mean(three, axis=1).T
    table = hashlib.sha256(np.round([shares, losses], 9).tobytes()).hexdigest()[:16]
    errors = [float(np.abs(guess - truth(asked)).mean()) for guess in (predicted, average)]
    return {"table": table, "error": errors[0], "average": errors[1]}


def run(path: Path, domains: list[int], seeds: range) -> None:
    done = {tuple(json.loads(line)["cell"]) for line in path.read_text().splitlines()} if path.exists() else set()
    with path.open("a") as stream:
        for seed, k in itertools.product(seeds, domains):
            for cell in itertools.product((k,), NUM_RUNS[k], NOISES, TRUTHS, DESIGNS, (seed,)):
                if cell not in done:
                    start = time.process_time()
                    row = simulate(*cell)
                    stream.write(json.dumps({"cell": cell, **row, "cpu_s": time.process_time() - start}) + "\n")
                    stream.flush()


def read_rows(path: Path) -> dict[tuple, dict]:
    return {tuple(row["cell"]): row for row in map(json.loads, path.read_text().splitlines())}


def compare(path: Path, before: Path) -> list[str]:
    """Both versions over the tables that both met."""
    new, old = read_rows(path), read_rows(before)
    both = sorted(new.keys() & old.keys())
    if differing := [cell for cell in both if new[cell]["table"] != old[cell]["table"]]:
        raise SystemExit(f"{len(differing)} tables differ between the two versions, first {differing[0]}")
    return side_by_side("before", "after", {cell: (old[cell]["error"], new[cell]["error"]) for cell in both})


def side_by_side(one: str, other: str, errors: dict[tuple, tuple[float, float]]) -> list[str]:
    """Mean errors for each number of domains and runs, and for each noise; their ratio with its standard error."""
    lines = [f"| domains | runs | noise | tables | {one} | {other} | {other} / {one} | its standard error |"]
    lines.append("|---" * 8 + "|")
    settings = {cell[:3] for cell in errors} | {(*cell[:2], None) for cell in errors}
    for setting in sorted(settings, key=lambda key: (key[2] is not None, *key[:2], key[2] or 0.0)):
        pairs = np.array([pair for cell, pair in errors.items() if setting in (cell[:3], (*cell[:2], None))])
        (was, now), count = pairs.mean(axis=0), len(pairs)
        error = np.std(pairs[:, 1] - now / was * pairs[:, 0], ddof=1) / np.sqrt(count) / was
        noise = "all" if setting[2] is None else f"{setting[2]:.1%}"
        lines.append(
            f"| {setting[0]} | {setting[1]} | {noise} | {count} | {was:.5f} | {now:.5f} "
            f"| {now / was:.3f} | {error:.3f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--domains", default="2,3,5,7")
    parser.add_argument("--before", type=Path, help="rows of another version: print both side by side")
    parser.add_argument("--average", action="store_true", help="print the law beside the plain average of three forms")
    args = parser.parse_args()
    if args.before or args.average:
        pairs = {cell: (row["average"], row["error"]) for cell, row in read_rows(args.rows).items() if args.average}
        lines = side_by_side("average", "law", pairs) if args.average else compare(args.rows, args.before)
        print("\n".join(lines))
        return
    first, last = map(int, args.seeds.split("-"))
    run(args.rows, [int(k) for k in args.domains.split(",")], range(first, last + 1))


if __name__ == "__main__":
    main()
