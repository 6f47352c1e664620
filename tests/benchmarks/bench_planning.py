"""Measure the mixture planner: few runs of two domains, repetition, time.

    python tests/benchmarks/bench_planning.py [SECTION ...]

Sections: settings, few, time, repetition; all of them without one. Reads the public runs under
tests/unit/pipeline/planning/data. Prints Markdown. The planner beside its rivals: bench_planning_tables.py; whether the
interval of the optimum holds: bench_planning_coverage.py.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.commands.plan.tables import read_runs
from pipeline.planning.choose import choose_mixture
from pipeline.planning.design import propose_runs
from pipeline.planning.forms.catalogue import FORMS, REGULARISED_EXPONENTIAL
from pipeline.planning.goals import Goal
from pipeline.planning.laws import Law, fit_law
from pipeline.planning.limits import Box, Limits, effective_shares
from pipeline.planning.runs.run_table import RunsTable, build_runs
from pipeline.planning.search import cloud

DATA = Path(__file__).parents[1] / "unit/pipeline/planning/data"
LARGE = "model_size = '410M' AND step = 60000"
FAMILIES = ("exponential", "additive", "effective data")
Truth = Callable[[np.ndarray], np.ndarray]


def two_domain_section() -> list[str]:
    """Every step of the 2-domain runs, each of the five ratios left out once; the interval draws the ratios anew."""
    lines = [
        "## 2 domains, every size and step (4 of 5 ratios, each left out once)", "",
        "| setting | exponential | shared exponent | the law | less exponential, 95 % |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    table = read_runs(DATA / "2mix.csv")
    by_ratio = []

    def line(setting: str, errors_RF: np.ndarray) -> str:
        means, apart = errors_RF.mean(axis=0), errors_RF[:, 2] - errors_RF[:, 0]
        drawn = np.random.default_rng(0).choice(apart, (5000, len(apart))).mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        cells = " | ".join(f"{value:.4f}" for value in means)
        return f"| {setting} | {cells} | {apart.mean():+.4f} ({low:+.4f} to {high:+.4f}) |"

    for size in ("70M", "160M"):
        for step in sorted(set(table.steps)):
            here = table.take((table.steps == step) & np.array([name == size for name in table.model_sizes]))
            rows = []
            for left in range(here.num_runs):
                kept = np.arange(here.num_runs) != left
                law, asked, truth = fit_law(here.take(kept)), here.shares[[left]], here.loss_values[left]
                for c, column in enumerate(law.columns):
                    singles = [FORMS[n].predict(column.whole[n], asked)[0] for n in ("exponential", "shared_exponent")]
                    guesses = np.array([*singles, column.predict(asked)[0]])[:, 0]
                    rows.append(np.abs(guesses - truth[c]))
            by_ratio.append(np.reshape(rows, (here.num_runs, -1, 3)).mean(axis=1))
            lines.append(line(f"{size}, {step / 1000:g}k", by_ratio[-1]))
    lines.append(line("mean of all", np.mean(by_ratio, axis=0)))
    return lines


def few_runs_section(num_truths: int = 40) -> list[str]:
    """Few runs of two domains, evenly spread around the middle: what each form misses, and what its choice loses.

    Besides the families of the other simulations one that is steeper towards a share of 0.
    """
    families = (*FAMILIES, "steep power")
    singles = ("exponential", REGULARISED_EXPONENTIAL)
    names = (*singles, "the law")
    lines = [
        f"## Few runs of two simulated domains ({num_truths} truths of each of {len(families)} families)", "",
        "| shares tried | runs | noise | " + " | ".join(f"{name}: error, loss at the choice" for name in names) + " |",
        "|---" * (3 + len(names)) + "|",
    ]  # fmt: skip
    first_share = np.linspace(0, 1, 1001)
    asked = np.stack([first_share, 1 - first_share], axis=1)
    for edge, num_runs, noise in itertools.product((0.02, 0.1, 0.2, 0.3), (4, 6), (0.0, 0.005, 0.01)):
        tried = np.linspace(edge, 1 - edge, num_runs)
        shares = np.stack([tried, 1 - tried], axis=1)
        inside = (edge <= first_share) & (first_share <= 1 - edge)
        rows = []
        for family, seed in itertools.product(families, range(num_truths)):
            rng = np.random.default_rng([seed, num_runs, families.index(family)])
            truth = random_truth(family, 2, rng)
            losses, expected = truth(shares), truth(asked).T
            law = fit_law(made_table(shares, losses * (1 + noise * rng.normal(size=losses.T.shape).T)))
            guesses = [
                np.stack([FORMS[name].predict(column.whole[name], asked)[0] for column in law.columns])
                for name in singles
            ]
            guesses.append(np.stack([column.value(asked) for column in law.columns]))
            total = expected.sum(axis=0)
            missed = [np.abs(guess - expected)[:, inside].mean() for guess in guesses]
            rows.append([missed, [total[guess.sum(axis=0).argmin()] - total.min() for guess in guesses]])
        cells = [f"{error:.4f}, {lost:.4f}" for error, lost in np.mean(rows, axis=0).T]
        lines.append(f"| {edge:g} to {1 - edge:g} | {num_runs} | {noise:.1%} | " + " | ".join(cells) + " |")
    return lines


def random_truth(family: str, num_domains: int, rng: np.random.Generator) -> Truth:
    """Losses of `num_domains` validation domains with random known parameters."""
    parts: list[Callable[[np.ndarray], np.ndarray]] = []
    for own in range(num_domains):
        use = rng.uniform(0.03, 0.25, num_domains)
        use[own] = 1.0
        level, height = rng.uniform(1.5, 2.5), rng.uniform(0.4, 1.2)
        if family == "exponential":
            slope = rng.uniform(2, 5) * use
            parts.append(lambda r, t=slope, c=level, a=height: c + a * np.exp(-r @ t))
        elif family == "additive":
            powers, floor = rng.uniform(0.4, 1.0, num_domains), rng.uniform(0.3, 0.6)
            parts.append(lambda r, s=use, g=powers, f=floor, c=level, a=height: c + 0.3 * a / (f + (r**g) @ s))
        elif family == "steep power":
            amounts, floor = rng.lognormal(0, 1, num_domains), rng.lognormal(-1.5, 1)
            inner, outer = 0.6 * rng.lognormal(0, 0.4), 0.5 * rng.lognormal(0, 0.4)
            parts.append(lambda r, s=amounts, f=floor, g=inner, a=outer, c=level: c + (f + (r**g) @ s) ** -a)
        else:
            power = rng.uniform(0.2, 0.5)
            parts.append(lambda r, s=use, c=level, a=height, p=power: c + 0.4 * a * ((0.05 + r @ s) ** -p - 1))
    return lambda shares: np.stack([part(shares) for part in parts], axis=-1)


def made_table(shares: np.ndarray, losses: np.ndarray) -> RunsTable:
    columns = {f"mix_{k}": shares[:, k].tolist() for k in range(shares.shape[1])}
    columns |= {f"loss_{c}": losses[:, c].tolist() for c in range(losses.shape[1])}
    return build_runs(list(columns), columns, source="simulated")


def repetition_section() -> list[str]:
    """A finite domain met 8 times in the full run; proxies of 1/50 length, pool whole or matched."""
    domains, total, pool, scale = ("plant", "general"), 1e8, 5e6, 15.4
    limits = Limits(pools={"plant": pool}, num_samples=total, repetition_scale_epochs=scale)

    def losses(shares: np.ndarray, worth: np.ndarray) -> np.ndarray:
        plant = 1.5 + 0.5 * (0.03 + worth @ np.array([1.0, 0.05])) ** -0.4
        general = 2.0 + 0.5 * (0.03 + worth @ np.array([0.1, 1.0])) ** -0.4
        return np.stack([plant, general], axis=1)

    box = Box(np.zeros(2), np.ones(2), ("", ""))
    grid = cloud(box, 4001, np.random.default_rng(0))
    right = grid[np.argmin(losses(grid, effective_shares(domains, grid, limits)).sum(axis=1))]
    shares = np.array([run.shares for run in propose_runs(domains, 9, box, replicates=0)])
    free = fit_law(_two(shares, losses(shares, shares)))
    matched = fit_law(_two(shares, losses(shares, effective_shares(domains, shares, limits))))
    goal = Goal({"plant": 1.0, "general": 1.0}, limits=limits, num_sampled_laws=20)
    ignore = Goal({"plant": 1.0, "general": 1.0}, num_sampled_laws=20)
    rows = [
        ("right share of plant", right[0]),
        ("proxies never met repetition, nothing done about it", choose_mixture(free, ignore).shares[0]),
        ("same proxies, value of repetition by R*", choose_mixture(free, goal).shares[0]),
        ("pool-matched proxies", choose_mixture(matched, ignore).shares[0]),
    ]
    lines = [
        "## A finite pool (synthetic: 5 M plant samples, 100 M seen, R* = 15.4)",
        "",
        "| proxies | share of plant |",
        "|---|---|",
    ]
    return lines + [f"| {name} | {share:.3f} |" for name, share in rows]


def _two(shares: np.ndarray, losses: np.ndarray) -> RunsTable:
    columns = {"mix_plant": shares[:, 0].tolist(), "mix_general": shares[:, 1].tolist()}
    columns |= {"loss_plant": losses[:, 0].tolist(), "loss_general": losses[:, 1].tolist()}
    return build_runs(list(columns), columns, source="simulated")


def time_section() -> list[str]:
    public = read_runs(DATA / "3mix.csv", LARGE)
    rng = np.random.default_rng(0)
    seven = rng.dirichlet(np.ones(7), 42)
    large = made_table(seven, random_truth("additive", 7, rng)(seven) + 0.005 * rng.normal(size=(42, 7)))
    rows: list[tuple[str, float]] = []
    for name, table in (("3 domains, 3 losses, 32 runs", public), ("7 domains, 7 losses, 42 runs", large)):
        rows.append((f"fit and cross-validate {len(FORMS)} forms: {name}", _seconds(lambda t=table: fit_law(t))))
    law: Law = fit_law(public)
    goal = Goal(dict.fromkeys(law.losses, 1.0))
    rows.append(("choose with 120 drawn laws: 3 domains", _seconds(lambda: choose_mixture(law, goal))))
    lines = ["## Time (median of 3, wall clock)", "", "| what | s |", "|---|---|"]
    return lines + [f"| {name} | {seconds:.2f} |" for name, seconds in rows]


def _seconds(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


SECTIONS: dict[str, Callable[[], list[str]]] = {
    "settings": two_domain_section,
    "few": few_runs_section,
    "time": time_section,
    "repetition": repetition_section,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all without one")
    args = parser.parse_args()
    unknown = sorted(set(args.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"no such section: {', '.join(unknown)}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(f"commit {commit.stdout.strip()}, Python {platform.python_version()}, NumPy {np.__version__}\n")
    for name in args.sections or SECTIONS:
        print("\n".join([*SECTIONS[name](), ""]), flush=True)


if __name__ == "__main__":
    main()
