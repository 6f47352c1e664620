"""The mixing-law study: do the planner's laws hold for the validation loss of a contrastive model?

    python tests/benchmarks/mixing_law.py run RELEASE WORK [--block w64 ...] [--seconds 3600]   # after any stop: again
    python tests/benchmarks/mixing_law.py report            # everything but the sealed mixtures
    python tests/benchmarks/mixing_law.py report --judge    # the end points on the sealed mixtures
    python tests/benchmarks/mixing_law.py choose            # once w128 is done: what `run` then measures the regret on
    python tests/benchmarks/mixing_law.py list              # the runs, and which are done
    python tests/benchmarks/mixing_law.py table             # the records as mixing-law-runs.csv

tests/benchmarks/protocols/mixing-law.md is the protocol; RELEASE is what mixing_law_material.py builds. A finished run
is a line of tests/benchmarks/results/mixing-law.jsonl, and is not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from study_records import Records

HERE = Path(__file__).parent
MIXTURES = HERE / "protocols" / "mixing-law-mixtures.csv"
RESULTS = HERE / "results" / "mixing-law.jsonl"
CHOICE = "choice"  # name of the record that holds the chosen mixture, beside those of the runs
DOMAINS = ("photos", "drawings", "icons")
STEPS, BATCH, CHECKPOINT_STEPS = 180, 64, 45
POOL = 2200  # training pictures of each domain; the block of cut pools takes a quarter of them
CUT_POOL = 550


@dataclass(frozen=True)
class Run:
    """One small training: its name says block, mixture and seed."""

    block: str
    mixture: str  # row of the list of mixtures: d01 to d24 designed, s01 to s12 sealed
    seed: int
    width: int = 64
    changes: dict[str, Any] = field(default_factory=dict)  # of the training config

    @property
    def name(self) -> str:
        return f"{self.block}-{self.mixture}-{self.seed}"


def read_mixtures() -> dict[str, dict[str, float]]:
    with MIXTURES.open() as stream:
        rows = list(csv.DictReader(stream))
    mixtures = {row["mixture"]: {name: float(row[f"mix_{name}"]) for name in DOMAINS} for row in rows}
    for choice in Records(RESULTS).of(CHOICE):
        mixtures["chosen"] = choice["chosen"]
    return mixtures


def list_runs() -> list[Run]:
    """Every run of the study, in the order of the protocol."""
    designed, sealed = [f"d{n:02d}" for n in range(1, 25)], [f"s{n:02d}" for n in range(1, 13)]
    whole = [(name, 0) for name in designed] + [(name, 1) for name in designed[:12]]
    whole += [(name, seed) for seed in (0, 1) for name in sealed]
    part = [(name, seed) for seed in (0, 1) for name in (*designed[:8], *sealed[:4])]
    runs = [Run(f"w{width}", *place, width) for width in (64, 128) for place in whole]
    runs += [Run("w192", *place, 192) for place in part]
    for block, changes in {
        "one-domain": {"data": {"batches": "one_domain"}},
        "cut-pools": {"pool": CUT_POOL},
        "dalip": {"model": {"preset": "dalip"}},
    }.items():
        runs += [Run(block, *place, 128, changes) for place in part]
    for choice in Records(RESULTS).of(CHOICE):
        pair = ("chosen", choice["best_sealed"])
        runs += [Run("regret", mixture, seed, 128) for mixture in pair for seed in range(4)]
    return runs


# -- the runs


def architecture(width: int, work: Path) -> str:
    """A small CLIP of this width, as a file of open_clip's kind."""
    path = work / f"vit-{width}.json"
    heads = width // 32
    values = {
        "embed_dim": width,
        "vision_cfg": {"image_size": 64, "layers": 3, "width": width, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": width, "heads": heads, "layers": 2},
    }
    path.write_text(json.dumps(values, indent=1) + "\n")
    return str(path)


def proxy_settings(run: Run, mixture: dict[str, float], release: str, work: Path) -> dict[str, Any]:
    """The config of `dalip proxies` for one run."""
    pool = run.changes.get("pool", POOL)
    one = {"run": run.name, "seed": run.seed, "mixture": mixture, "pool_samples": dict.fromkeys(DOMAINS, pool)}
    return {
        "release": release, "output_dir": str(work / "proxies"), "runs": [one], "model_size": str(run.width),
        "model": {"preset": "clip", "architecture": architecture(run.width, work)} | run.changes.get("model", {}),
        "data": {"batch_size": BATCH, "num_workers": 0, "augment": {"scale": [0.6, 1.0]},
                 "epoch_samples": STEPS * BATCH} | run.changes.get("data", {}),
        "optimiser": {"lr": 0.0003, "weight_decay": 0.1},
        "schedule": {"steps": STEPS, "warmup_steps": 30},
        "compute": {"device": "cpu", "num_threads": 1},
        "checkpoint": {"every_steps": STEPS, "keep": 1},
        "eval": {"split": "heldout", "batch_size": BATCH, "every_steps": CHECKPOINT_STEPS},
    }  # fmt: skip


def do_run(run: Run, mixture: dict[str, float], release: str, work: Path) -> dict[str, Any]:
    """Train and measure one run; its folder goes when its record is made."""
    import open_clip
    import torch

    from training.proxies.runs import ProxySettings
    from training.proxies.study import run_proxies
    from training.record.log import LOG_FILE, read_log

    started = time.process_time()
    settings = ProxySettings.model_validate(proxy_settings(run, mixture, release, work))
    outcome = run_proxies(settings)
    if outcome.failed:
        raise SystemExit(f"{run.name}: {outcome.failed[run.name]}")
    result, folder = outcome.results[0], Path(settings.output_dir) / "runs" / run.name
    losses: dict[str, dict[str, float]] = {name: {} for name in DOMAINS}
    for event in read_log(folder / LOG_FILE, "validation"):
        for name in DOMAINS:
            losses[name][str(event["step"])] = round(event["losses"][name], 5)
    shutil.rmtree(folder)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return {
        "block": run.block, "mixture": run.mixture, "seed": run.seed, "width": run.width, "shares": mixture,
        "losses": losses, "epochs": {name: round(value, 3) for name, value in result["epochs"].items()},
        "seconds": result["seconds"], "cpu_seconds": round(time.process_time() - started, 1),
        "validation": result["validation"],
        "versions": {"commit": commit.stdout.strip(), "python": platform.python_version(), "torch": torch.__version__,
                     "open_clip": open_clip.__version__, "numpy": np.__version__},
    }  # fmt: skip


def pool_of(block: str) -> int:
    """Training pictures of each domain; the blocks `pool-550` and so on are those of bench_repetition.py."""
    return CUT_POOL if block == "cut-pools" else int(block.removeprefix("pool-")) if block.startswith("pool-") else POOL


def write_table(results: Records) -> None:
    """The records as a table that `plantmix plan fit` reads: one row for each run and checkpoint."""
    rows = []
    for name in sorted(results.names() - {CHOICE}):
        run = results.one(name)
        for step in sorted(run["losses"][DOMAINS[0]], key=int):
            row = {
                "run": name,
                "block": run["block"],
                "mixture": run["mixture"],
                "model_size": run["width"],
                "step": step,
            }
            row |= {"seed": run["seed"], "samples_seen": int(step) * BATCH}
            row |= {f"mix_{domain}": run["shares"][domain] for domain in DOMAINS}
            row |= {f"pool_{domain}": pool_of(run["block"]) for domain in DOMAINS}
            row |= {f"loss_{domain}": run["losses"][domain][step] for domain in DOMAINS}
            rows.append(row)
    with (HERE / "results" / "mixing-law-runs.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def do_runs(release: str, work: Path, results: Records, blocks: list[str], seconds: float) -> None:
    mixtures, end = read_mixtures(), time.monotonic() + seconds
    work.mkdir(parents=True, exist_ok=True)
    for run in list_runs():
        if run.name in results.names() or (blocks and run.block not in blocks):
            continue
        if time.monotonic() > end:
            return
        results.add(run.name, do_run(run, mixtures[run.mixture], release, work))


# -- the statistics


def read_records(results: Records, *, judge: bool) -> list[dict[str, Any]]:
    """Finished runs of `list_runs`; those of sealed mixtures only to judge."""
    own = [record for record in results.of("*-*") if not record["block"].startswith("pool-")]
    return [record for record in own if judge or not record["mixture"].startswith("s")]


def last_losses(records: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[record["losses"][name][str(STEPS)] for name in DOMAINS] for record in records])


def runs_table(records: list[dict[str, Any]]) -> Any:
    """The records as the planner's table."""
    from pipeline.planning.runs.run_table import build_runs

    columns: dict[str, list[Any]] = {f"mix_{name}": [r["shares"][name] for r in records] for name in DOMAINS}
    columns |= {f"loss_{name}": values.tolist() for name, values in zip(DOMAINS, last_losses(records).T, strict=True)}
    columns["seed"] = [str(record["seed"]) for record in records]
    return build_runs(list(columns), columns, source="mixing-law")


def seed_noise(records: list[dict[str, Any]]) -> np.ndarray:
    """Standard deviation between seeds of one mixture, for each loss."""
    groups: dict[str, list[np.ndarray]] = {}
    for record, losses in zip(records, last_losses(records), strict=True):
        groups.setdefault(record["mixture"], []).append(losses)
    pairs = [np.stack(own) for own in groups.values() if len(own) > 1]
    squares = sum(((own - own.mean(axis=0)) ** 2).sum(axis=0) for own in pairs)
    return np.sqrt(squares / sum(len(own) - 1 for own in pairs))


def judge_block(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The end points of one block: a law on the designed runs, judged on every sealed run."""
    from pipeline.planning.forms.catalogue import FORMS
    from pipeline.planning.laws import fit_law

    designed = [record for record in records if record["mixture"].startswith("d")]
    sealed = [record for record in records if record["mixture"].startswith("s")]
    law = fit_law(runs_table(designed))
    asked = np.array([[record["shares"][name] for name in DOMAINS] for record in sealed])
    truth, noise = last_losses(sealed), seed_noise(records)
    three = np.stack([np.stack(values, axis=1) for values in law.predict(asked).values()], axis=1)  # run, loss, 3
    by_form = {name: np.stack([FORMS[name].predict(c.whole[name], asked)[0] for c in law.columns], axis=1)
               for name in ("mean", "ridge", "exponential")}  # fmt: skip
    errors = {"law": np.abs(three[:, :, 0] - truth)}
    errors |= {name: np.abs(value - truth) for name, value in by_form.items()}
    names = sorted({record["mixture"] for record in sealed})
    members = [np.flatnonzero([record["mixture"] == name for record in sealed]) for name in names]
    rng = np.random.default_rng(0)
    drawn = [np.concatenate([members[i] for i in rng.integers(len(names), size=len(names))]) for _ in range(10_000)]

    def with_interval(of_runs: Any) -> list[float]:
        values = [of_runs(rows) for rows in drawn]
        return [float(of_runs(np.arange(len(sealed)))), *np.quantile(values, [0.025, 0.975]).tolist()]

    covered = (three[:, :, 1] <= truth) & (truth <= three[:, :, 2])
    return {
        "law": law.columns[0].describe_weights(),
        "noise": dict(zip(DOMAINS, noise.tolist(), strict=True)),
        "errors": {name: error.mean(axis=0).tolist() for name, error in errors.items()},
        "error_over_noise": with_interval(lambda rows: (errors["law"][rows].mean(axis=0) / noise).mean()),
        "error_over_ridge": with_interval(lambda rows: errors["law"][rows].mean() / errors["ridge"][rows].mean()),
        "coverage": with_interval(lambda rows: covered[rows].mean()),
    }


def write_choice(records: list[dict[str, Any]]) -> None:
    """The mixture that the law of the main block chooses for the sum of all losses, and the best sealed one."""
    from pipeline.planning.choose import choose_mixture
    from pipeline.planning.goals import Goal
    from pipeline.planning.laws import fit_law

    law = fit_law(runs_table([record for record in records if record["mixture"].startswith("d")]))
    chosen = choose_mixture(law, Goal(dict.fromkeys(law.losses, 1.0))).shares.round(4).tolist()
    sealed = [record for record in records if record["mixture"].startswith("s")]
    sums: dict[str, list[float]] = {}
    for record, losses in zip(sealed, last_losses(sealed), strict=True):
        sums.setdefault(record["mixture"], []).append(float(losses.sum()))
    best = min(sums, key=lambda name: float(np.mean(sums[name])))
    values = {"chosen": dict(zip(DOMAINS, chosen, strict=True)), "best_sealed": best}
    Records(RESULTS).add(CHOICE, values)


def regret(records: list[dict[str, Any]]) -> str:
    """The sum of losses of the chosen mixture minus that of the best sealed one, with its standard error."""
    sums = {
        chosen: last_losses([r for r in records if (r["mixture"] == "chosen") == chosen]).sum(axis=1)
        for chosen in (True, False)
    }
    error = np.sqrt(sum(values.var(ddof=1) / len(values) for values in sums.values()))
    return f"{sums[True].mean() - sums[False].mean():+.4f} (standard error {error:.4f})"


def rank_correlation(records: list[dict[str, Any]], one: str, other: str) -> float:
    """Spearman's rank correlation of mixtures between two blocks, mean of the losses."""
    from scipy.stats import spearmanr

    means: dict[str, dict[str, np.ndarray]] = {}
    for block in (one, other):
        own = [record for record in records if record["block"] == block]
        for name in {record["mixture"] for record in own}:
            means.setdefault(name, {})[block] = last_losses([r for r in own if r["mixture"] == name]).mean(axis=0)
    both = [pair for pair in means.values() if len(pair) == 2]
    first, second = (np.stack([pair[block] for pair in both]) for block in (one, other))
    return float(np.mean([spearmanr(first[:, c], second[:, c]).statistic for c in range(len(DOMAINS))]))


def repetition(records: list[dict[str, Any]]) -> Iterator[str]:
    """How much cut pools raise the losses of the same mixture and seed, and what the planner's formula says of it."""
    from pipeline.planning.forms.catalogue import FORMS, SHARED_EXPONENT
    from pipeline.planning.laws import fit_law
    from pipeline.planning.limits import TEXT_HALF_LIFE_EPOCHS, Limits, effective_shares

    main_block = [record for record in records if record["block"] == "w128"]
    cut = [record for record in records if record["block"] == "cut-pools"]
    twins = {(record["mixture"], record["seed"]): record for record in main_block}
    rise = last_losses(cut) - last_losses([twins[record["mixture"], record["seed"]] for record in cut])
    law = fit_law(runs_table([record for record in main_block if record["mixture"].startswith("d")]))
    shares = np.array([[record["shares"][name] for name in DOMAINS] for record in cut])
    yield "| R* in epochs | rise of " + " | ".join(DOMAINS) + " | mean absolute error |\n|---|---|---|---|---|"
    yield f"| measured | {' | '.join(f'{value:.2f}' for value in rise.mean(axis=0))} | |"
    for scale in (TEXT_HALF_LIFE_EPOCHS, 5.0, 3.0, 2.0, 1.0):

        def foretold(pool: int, scale: float = scale) -> np.ndarray:
            limits = Limits(dict.fromkeys(DOMAINS, float(pool)), STEPS * BATCH, repetition_scale_epochs=scale)
            worth = effective_shares(DOMAINS, shares, limits)
            return np.stack(
                [FORMS[SHARED_EXPONENT].predict(c.whole[SHARED_EXPONENT], worth)[0] for c in law.columns], 1
            )

        cost = foretold(CUT_POOL) - foretold(POOL)
        each = " | ".join(f"{value:.2f}" for value in cost.mean(axis=0))
        yield f"| {scale:g} | {each} | {np.abs(rise - cost).mean():.2f} |"


def verdict(ends: dict[str, Any], correlation: float) -> str:
    """The rule of the protocol for the main block."""
    noise, ridge, coverage = (ends[name][0] for name in ("error_over_noise", "error_over_ridge", "coverage"))
    if ridge > 0.9 or coverage < 0.75 or correlation < 0.7:
        return "does not hold"
    return "holds" if noise <= 1.5 and ridge < 0.5 and 0.8 <= coverage <= 0.97 else "neither"


def report(results: Records, *, judge: bool) -> Iterator[str]:
    """Markdown lines: the runs, the noise between seeds, and, to judge, the end points of each block."""
    from pipeline.planning.laws import fit_law
    from pipeline.planning.reports import fit_report

    records = read_records(results, judge=judge)
    runs = list_runs()
    for block in dict.fromkeys(run.block for run in runs):
        own = [record for record in records if record["block"] == block]
        whole = len(own) == sum(run.block == block for run in runs)
        if own:
            seconds = np.mean([record["cpu_seconds"] for record in own])
            yield f"\n## {block}: {len(own)} runs, {seconds:.0f} s of processor time a run\n"
        if block == "regret":
            yield regret(own) if whole and judge else ""
        elif judge and whole:
            yield json.dumps(judge_block(own), indent=1)
        elif len({record["mixture"] for record in own}) > len(DOMAINS):
            designed = [record for record in own if record["mixture"].startswith("d")]
            yield "```text\n" + fit_report(fit_law(runs_table(designed))) + "\n```"
    if judge:
        main_block = [record for record in records if record["block"] == "w128"]
        places = {(run.mixture, run.seed) for run in runs if run.block == "one-domain"}
        yield "\n## w128, the runs that one-domain has too\n"
        yield json.dumps(judge_block([r for r in main_block if (r["mixture"], r["seed"]) in places]), indent=1)
        yield "\n## Cut pools against whole ones\n"
        yield from repetition(records)
        correlation = rank_correlation(records, "w64", "w192")
        yield f"\nrank correlation from width 64 to 192: {correlation:.2f}"
        yield f"\n**The law: {verdict(judge_block(main_block), correlation)}.**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report", "choose", "list", "table"))
    parser.add_argument("release", nargs="?")
    parser.add_argument("work", nargs="?", type=Path)
    parser.add_argument("--block", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after this time")
    parser.add_argument("--results", type=lambda path: Records(Path(path)), default=Records(RESULTS))
    parser.add_argument("--judge", action="store_true")
    args = parser.parse_args()
    if args.command == "run":
        if args.work is None:
            parser.error("run needs RELEASE and WORK")
        do_runs(args.release, args.work, args.results, args.block, args.seconds)
    elif args.command == "choose":
        write_choice([r for r in read_records(args.results, judge=True) if r["block"] == "w128"])
    elif args.command == "table":
        write_table(args.results)
    elif args.command == "report":
        print("\n".join(report(args.results, judge=args.judge)))
    else:
        done = args.results.names()
        for run in list_runs():
            print(run.name, "done" if run.name in done else "")


if __name__ == "__main__":
    main()
