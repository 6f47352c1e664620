"""The planner beside its rivals on every public table of mixing runs: error, rank, regret, coverage, seconds.

    python tests/benchmarks/bench_planning_tables.py ROWS.jsonl --tables DIR [--draws 20] [--only NAME]
    python tests/benchmarks/bench_planning_tables.py ROWS.jsonl --table

DIR holds the public tables as csv files (regmix-1m-train.csv, regmix-1m-test.csv, olmix-dclm.csv,
olmix-full_recomputation.csv, with columns mix_* and loss_*); the 3-domain runs and our own CLIP runs are part of the
repository. A table whose file is missing is left out. One line of ROWS.jsonl is one random draw of runs; a run goes on
where the last one stopped. LightGBM takes part when it is installed; it is no dependency of the project.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from bench_planning import FAMILIES, made_table, random_truth

from pipeline.commands.plan.tables import read_runs
from pipeline.planning.forms.catalogue import EXPONENTIAL, FORMS, PROCESS
from pipeline.planning.laws import fit_law
from pipeline.planning.runs.run_table import RunsTable, build_runs

HERE = Path(__file__).parent
CLIP_DOMAINS = ("photos", "drawings", "icons")
THE_LAW = "the law"
Draw = tuple[RunsTable, RunsTable]
Predictor = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Table:
    """One table and how it is cut: runs to fit, and at most so many losses, spread over the table."""

    name: str
    file: str
    num_train: int
    num_losses: int
    test_file: str = ""  # "": the runs that were not drawn
    where: str | None = None


TABLES = (
    Table("3 domains, 410M (Ye et al.)", "3mix.csv", 16, 3, where="model_size = '410M' AND step = 60000"),
    Table("17 domains, 1M (RegMix), its own test", "regmix-1m-train.csv", 64, 13, "regmix-1m-test.csv"),
    Table("17 domains, 1M (RegMix), its own test", "regmix-1m-train.csv", 128, 13, "regmix-1m-test.csv"),
    Table("17 domains, 1M (RegMix), its own test", "regmix-1m-train.csv", 512, 13, "regmix-1m-test.csv"),
    Table("17 domains, 1M (RegMix), its other runs", "regmix-1m-train.csv", 64, 4),
    Table("24 domains (Olmix)", "olmix-dclm.csv", 64, 8),
    Table("62 domains (Olmix)", "olmix-full_recomputation.csv", 128, 4),
)


def draws(table: Table, folder: Path, num_draws: int, done: set[tuple]) -> Iterator[tuple[int, Draw]]:
    """The runs to fit and to predict. A domain that no drawn run has is left out with all runs that have it."""
    path = folder / table.file
    path = path if path.exists() else HERE.parent / "unit/pipeline/planning/data" / table.file
    if not path.exists() or (table.test_file and not (folder / table.test_file).exists()):
        return
    whole = read_runs(path, table.where)
    apart = read_runs(folder / table.test_file) if table.test_file else None
    chosen = np.linspace(0, len(whole.losses) - 1, min(table.num_losses, len(whole.losses))).astype(int)
    for number in range(num_draws if table.num_train < whole.num_runs else 1):
        if (table.name, table.num_train, number) in done:
            continue
        order = np.random.default_rng(number).permutation(whole.num_runs)
        train = whole.take(order[: table.num_train])
        test = whole.take(order[table.num_train :]) if apart is None else apart
        here = train.shares.any(axis=0)
        test = test.take(test.shares[:, ~here].sum(axis=1) < 1e-9)
        yield number, (_part(train, here, chosen), _part(test, here, chosen))


def _part(table: RunsTable, domains: np.ndarray, losses: np.ndarray) -> RunsTable:
    return replace(
        table,
        domains=tuple(name for name, here in zip(table.domains, domains, strict=True) if here),
        shares=table.shares[:, domains],
        losses=tuple(table.losses[c] for c in losses),
        loss_values=table.loss_values[:, losses],
    )


def clip_draws() -> Iterator[tuple[str, Draw]]:
    """Our own CLIP runs: fitted to the designed mixtures, asked for the sealed ones."""
    rows = [json.loads(line) for line in (HERE / "results/mixing-law.jsonl").read_text().splitlines()]
    records = [row["record"] for row in rows if row["name"] != "choice"]
    for width in (64, 128, 192):
        parts = []
        for kind in "ds":
            runs = [run for run in records if run["block"] == f"w{width}" and run["mixture"][0] == kind]
            columns = {f"mix_{name}": [run["shares"][name] for run in runs] for name in CLIP_DOMAINS}
            columns |= {f"loss_{name}": [run["losses"][name]["180"] for run in runs] for name in CLIP_DOMAINS}
            columns |= {"seed": [run["seed"] for run in runs]}
            parts.append(build_runs(list(columns), columns, source="clip"))
        yield f"3 domains, our CLIPs of width {width}", (parts[0], parts[1])


def simulated_draws(num_draws: int) -> Iterator[tuple[str, int, Draw]]:
    """5 to 7 simulated domains with few runs; the noise of runs and of what is asked is 0.5 % of a loss."""
    for number in range(num_draws):
        for num_domains, num_runs in ((5, 20), (6, 30), (7, 24), (7, 60)):
            rng = np.random.default_rng([number, num_domains, num_runs, 95])
            truth = random_truth((*FAMILIES, "steep power")[number % 4], num_domains, rng)
            shares, asked = rng.dirichlet(np.ones(num_domains), num_runs), rng.dirichlet(np.ones(num_domains), 100)
            tables = [
                made_table(at, truth(at) * (1 + 0.005 * rng.normal(size=truth(at).shape))) for at in (shares, asked)
            ]
            yield f"{num_domains} domains, simulated", number, (tables[0], tables[1])


def ridge_on_logs(shares: np.ndarray, losses: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Linear in the logarithms of shares, 0.001 added; a penalty of 1 on standardised slopes."""
    features, wanted = np.log(shares + 1e-3), np.log(asked + 1e-3)
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-9
    features, wanted = (features - mean) / scale, (wanted - mean) / scale
    slopes = np.linalg.solve(features.T @ features + np.eye(features.shape[1]), features.T @ (losses - losses.mean()))
    return np.asarray(losses.mean() + wanted @ slopes)


def log_linear(shares: np.ndarray, losses: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Olmix's c + exp(t . r) with c above 0, a Huber loss of 0.02 nats and L-BFGS from four levels of c."""
    from scipy.optimize import minimize

    def cost(theta: np.ndarray) -> tuple[float, np.ndarray]:
        level, height = np.exp(theta[0]), np.exp(np.clip(shares @ theta[1:], -50.0, 20.0))
        gap = level + height - losses
        bent = np.clip(gap, -0.02, 0.02)
        return float(np.sum(bent * (gap - 0.5 * bent))), np.r_[level * bent.sum(), shares.T @ (bent * height)]

    starts = [np.r_[level, np.full(shares.shape[1], 0.05)] for level in (-2.0, -0.8, 0.4, 1.5)]
    fits = [minimize(cost, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}) for start in starts]
    best = min(fits, key=lambda fit: float(fit.fun)).x
    return np.asarray(np.exp(best[0]) + np.exp(np.clip(asked @ best[1:], -50.0, 20.0)))


def light_gbm(shares: np.ndarray, losses: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """RegMix's settings: 1,000 rounds at a rate of 0.01; leaves of one run, because its own need 20 runs a leaf."""
    import lightgbm

    settings = {"objective": "regression", "learning_rate": 0.01, "seed": 42, "verbosity": -1,
                "min_data_in_leaf": 1 if len(shares) < 200 else 20, "min_data_in_bin": 1, "num_threads": 1}  # fmt: skip
    model = lightgbm.train(settings, lightgbm.Dataset(shares, losses), num_boost_round=1000)
    return np.asarray(model.predict(asked))


def single(name: str) -> Predictor:
    form = FORMS[name]
    return lambda shares, losses, asked: form.predict(form.fit(shares, losses[None], np.ones((1, len(losses)))), asked)[
        0
    ]


def rivals() -> dict[str, Predictor]:
    named = {
        "exponential (Ye et al.)": single(EXPONENTIAL),
        "log-linear (Olmix)": log_linear,
        "Gaussian process": single(PROCESS.name),
        "ridge on log shares": ridge_on_logs,
    }
    try:
        import lightgbm  # noqa: F401
    except ImportError:
        return named
    return {**named, "LightGBM (RegMix)": light_gbm}


def measure(draw: Draw) -> dict[str, object]:
    """For each method its mean absolute error, mean rank correlation, regret and CPU seconds; who was covered."""
    train, test = draw
    truth_CQ = test.loss_values.T
    start = time.process_time()
    law = fit_law(train)
    three = np.array([law.columns[c].predict(test.shares) for c in range(len(law.losses))])
    found = {THE_LAW: score(three[:, 0], truth_CQ, time.process_time() - start)}
    inside = (three[:, 1] <= truth_CQ) & (truth_CQ <= three[:, 2])
    for name, predict in rivals().items():
        start = time.process_time()
        guess = np.stack([predict(train.shares, train.loss_values[:, c], test.shares) for c in range(len(law.losses))])
        found[name] = score(guess, truth_CQ, time.process_time() - start)
    covered = dict(zip(test.rows.tolist(), np.round(inside.mean(axis=0), 4).tolist(), strict=True))
    return {"methods": found, "covered": covered, "width": float(np.mean(three[:, 2] - three[:, 1]))}


def score(guess_CQ: np.ndarray, truth_CQ: np.ndarray, seconds: float) -> list[float]:
    ranks = [
        np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1] for a, b in zip(guess_CQ, truth_CQ, strict=True)
    ]
    mean_loss = truth_CQ.mean(axis=0)
    regret = mean_loss[guess_CQ.mean(axis=0).argmin()] - mean_loss.min()
    return [float(np.abs(guess_CQ - truth_CQ).mean()), float(np.mean(ranks)), float(regret), seconds / len(truth_CQ)]


def run(path: Path, folder: Path, num_draws: int, only: str) -> None:
    done = {tuple(json.loads(line)["cell"]) for line in path.read_text().splitlines()} if path.exists() else set()
    with path.open("a") as stream:

        def record(cell: tuple[str, int, int], draw: Draw) -> None:
            if cell not in done and only in f"{cell[0]} {cell[1]}":
                stream.write(json.dumps({"cell": cell, **measure(draw)}) + "\n")
                stream.flush()

        for name, draw in clip_draws():
            record((name, draw[0].num_runs, 0), draw)
        for name, number, draw in simulated_draws(num_draws):
            record((name, draw[0].num_runs, number), draw)
        for table in TABLES:
            if only in f"{table.name} {table.num_train}":
                for number, draw in draws(table, folder, num_draws, done):
                    record((table.name, table.num_train, number), draw)


def print_tables(path: Path) -> None:
    """A row a table: of each method error, rank correlation in %, regret and CPU seconds a loss; who was covered."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = list(dict.fromkeys(name for row in rows for name in row["methods"]))
    print(f"| table, runs (draws) | {' | '.join(names)} | law / exponential | covered (95 % over draws), width |")
    print("|---" * (len(names) + 3) + "|")
    for cell in dict.fromkeys(tuple(row["cell"][:2]) for row in rows):
        here = [row for row in rows if tuple(row["cell"][:2]) == cell]
        of_methods = {
            name: np.array([row["methods"][name] for row in here if name in row["methods"]]) for name in names
        }
        errors = {name: each[:, 0].mean() for name, each in of_methods.items() if len(each)}
        shown = []
        for name, each in of_methods.items():
            if not len(each):
                shown.append("-")
                continue
            bold = "**" if errors[name] == min(errors.values()) else ""
            rank, (_, _, regret, seconds) = 100.0 * float(np.median(each[:, 1])), each.mean(axis=0)
            shown.append(f"{bold}{errors[name]:.4f}{bold}, {rank:.2f}, {regret:.4f}, {seconds:.2f}")
        inside = np.array([np.mean(list(row["covered"].values())) for row in here])
        half = 1.96 * inside.std(ddof=1) / np.sqrt(len(inside)) if len(inside) > 1 else np.nan
        ends = f"({inside.mean() - half:.3f} to {inside.mean() + half:.3f})" if half == half else "(-)"
        ratio, width = errors[THE_LAW] / errors["exponential (Ye et al.)"], np.mean([row["width"] for row in here])
        print(f"| {cell[0]}, {cell[1]} ({len(here)}) | {' | '.join(shown)} | {ratio:.3f} "
              f"| {inside.mean():.3f} {ends}, {width:.3f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--tables", type=Path, default=Path(), help="folder of the public tables")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--only", default="", help="tables with this in their name and number of runs")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        run(args.rows, args.tables, args.draws, args.only)
    print_tables(args.rows)


if __name__ == "__main__":
    main()
