"""The study of tests/benchmarks/protocols/longer.md: twice the steps, beside the tightest first-order controls.

    python tests/benchmarks/bench_third_study.py prepare GROCERY CORPUS EMOJIONE --work DIR
    python tests/benchmarks/bench_third_study.py seal OPENMOJI FXEMOJI --work DIR --sealed OTHER
    python tests/benchmarks/bench_longer.py run --work DIR [--minutes 60]          # tuning, then final runs by seeds
    python tests/benchmarks/bench_longer.py run --work DIR --only NAME --check     # one run against its record
    python tests/benchmarks/bench_longer.py progress                               # what is done, hours that are left
    python tests/benchmarks/bench_longer.py judge --work DIR --sealed OTHER        # once no run is left
    python tests/benchmarks/bench_longer.py statistics                             # from the committed files alone

Material, training and judging are those of bench_third_study.py. A finished run is a line of results/longer.jsonl, its
weights a file in DIR. A killed run goes on from a file in DIR/checkpoints. A judged run is a line of
results/longer-sealed.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import bench_third_study as third
import numpy as np
from study_records import Records, commit
from study_training import Checkpoint, Run, make_all, without_record
from third_study_material import VALIDATION, NamedMaterial
from third_study_statistics import over_styles, report

RESULTS = Records(Path(__file__).parent / "results/longer.jsonl")
SEALED_RESULTS = Records(Path(__file__).parent / "results/longer-sealed.jsonl")  # `judge` alone writes it
HEADS = {"second_moment": "uncentred"} | {
    head: head for head in ("rect_mean", "rect_mean_wide", "max", "token_mlp", "covariance", "brownian")
}  # of each arm
STEPS = 4_000
FAST, SLOW, UNKNOWN = (5.5e-4, 1e-3, 1.8e-3), (1.7e-4, 3e-4, 5.5e-4), (3e-4, 5.5e-4, 1e-3, 1.8e-3)
RATES = {"max": FAST, "token_mlp": FAST, "rect_mean": UNKNOWN, "rect_mean_wide": UNKNOWN}  # of others SLOW
PRIMARY = tuple(("second_moment", rival) for rival in ("rect_mean", "rect_mean_wide", "max"))
SHOWN = (
    *(("second_moment", rival) for rival in ("token_mlp", "covariance", "brownian")),
    ("covariance", "max"), ("brownian", "max"), ("brownian", "rect_mean"), ("rect_mean_wide", "rect_mean"),
    ("rect_mean_wide", "token_mlp"), ("max", "token_mlp"),
)  # fmt: skip
TUNING_SEEDS, TRIED_AGAIN = (900, 901), 2
TESTED = ("second_moment", "rect_mean", "rect_mean_wide", "max")  # the arms of PRIMARY
NUM_SEEDS = {arm: 10 if arm in TESTED else 8 for arm in HEADS}  # of final runs
LEAST_SEEDS, MOST_CPU_HOURS = 6, 12.0
KEPT_STEPS = 500  # between two checkpoints: one to two minutes


# ---- runs


def first_tuning() -> Iterator[Run]:
    """Every rate of every arm, with the first seed."""
    for arm in HEADS:
        yield from (Run(arm, TUNING_SEEDS[0], rate, STEPS) for rate in RATES.get(arm, SLOW))


def second_tuning() -> Iterator[Run]:
    """The best rates of each tested arm, with the second seed; of equal ones the lower."""
    losses = tuning_losses()
    for arm in TESTED:
        ours = sorted((losses[one], one.rate) for one in first_tuning() if one.arm == arm)
        yield from (Run(arm, TUNING_SEEDS[1], rate, STEPS) for _, rate in ours[:TRIED_AGAIN])


def tuned() -> dict[str, tuple[float, float]]:
    """Return the least mean loss on validation and its rate, among the rates that had all seeds of their arm."""
    losses, again = tuning_losses(), set(second_tuning())
    found: dict[str, tuple[float, float]] = {}
    for arm in HEADS:
        ours = [one for one in first_tuning() if one.arm == arm]
        if arm in TESTED:
            ours = [one for one in ours if replace(one, seed=TUNING_SEEDS[1]) in again]
        seeds = TUNING_SEEDS if arm in TESTED else TUNING_SEEDS[:1]
        found[arm] = min((float(np.mean([losses[replace(one, seed=s)] for s in seeds])), one.rate) for one in ours)
    return found


def tuning_losses() -> dict[Run, float]:
    """Return the loss on validation of every tuning run that is done."""
    kept = RESULTS.of("tuning-*")
    return {Run(each["arm"], each["seed"], each["rate"], each["steps"]): each["val_loss"] for each in kept}


def of_seed(seed: int) -> list[Run]:
    """Return the final runs of a seed."""
    best = tuned()
    return [Run(arm, seed, best[arm][1], STEPS, "final") for arm in HEADS if seed < NUM_SEEDS[arm]]


def final_runs() -> Iterator[Run]:
    """Seed by seed. Behind LEAST_SEEDS none is begun once all runs have taken MOST_CPU_HOURS."""
    done, hours = RESULTS.names(), cpu_hours()
    for seed in range(max(NUM_SEEDS.values())):
        ours = of_seed(seed)
        names = {one.name for one in ours}
        if seed >= LEAST_SEEDS and hours >= MOST_CPU_HOURS and not names & done:
            return
        yield from ours
        if not names <= done:
            return  # the next seed waits: whether it is begun depends on the hours by then


def cpu_hours() -> float:
    """Return the CPU hours of all recorded runs."""
    return float(sum(each["cpu_seconds"] for each in RESULTS.of("*-*"))) / 3600


PLANS = (first_tuning, second_tuning, final_runs)  # each reads the records of those before


def run(work: Path, minutes: float) -> None:
    """Every run that is not done, until the minutes are over."""
    import torch

    torch.set_num_threads(1)
    material = NamedMaterial(work)
    if "names" not in RESULTS.names():
        RESULTS.add("names", material.codes(VALIDATION))
    (work / "checkpoints").mkdir(exist_ok=True)

    def make(one: Run) -> None:
        checkpoint = Checkpoint(commit(), work / "checkpoints" / f"{one.name}.pt", KEPT_STEPS)
        model, record = third.train(one, material, HEADS[one.arm], checkpoint)
        if one.purpose == "final":
            third.keep_weights(model, third.weights_of(work, one))
        record.pop("of_each", None)  # the third study's reckoning of power read it
        RESULTS.add(one.name, record)
        checkpoint.remove()
        print(one.name, record["cpu_seconds"], "CPU s", record["val_loss"], flush=True)

    make_all(PLANS, RESULTS, work / "claims", make, minutes)


def progress() -> None:
    """Print how many runs are done, and the CPU hours that the others take at those of their arm."""
    done = RESULTS.of("*-*")
    for arm in HEADS:
        ours = [each["cpu_seconds"] for each in done if each["arm"] == arm]
        print(f"{arm}: {len(ours)} runs" + (f", {np.mean(ours):.0f} CPU s each" if ours else ""))
    print(f"{len(done)} runs are done in {cpu_hours():.2f} CPU hours; a new seed is begun until {MOST_CPU_HOURS:g}")
    for plan in PLANS:
        left = without_record(plan, RESULTS)
        print(f"{plan.__name__}: {len(left)} are left{' of the seed in work' if plan is final_runs and left else ''}")
        if left:
            return
    for arm, (loss, rate) in tuned().items():
        print(f"{arm}: rate {rate:g}, loss on validation {loss:.3f}")


def left_to_do() -> str:
    """Return the name of the first plan with runs that have no record; empty when every run is done."""
    return next((plan.__name__ for plan in PLANS if without_record(plan, RESULTS)), "")


def judge(work: Path, sealed: Path) -> None:
    """Judge every final run by the names of the two styles, each once; no run may be left to be made."""
    if plan := left_to_do():
        raise SystemExit(f"runs of {plan} are not done; nothing was judged")
    judged = SEALED_RESULTS.names()
    ready = [one for one in final_runs() if one.name not in judged]
    third.judge_runs(ready, RESULTS, SEALED_RESULTS, HEADS, work, sealed)


def statistics() -> None:
    """Print the tables, once every final run is judged."""
    if left_to_do() or {one.name for one in final_runs()} - SEALED_RESULTS.names():
        raise SystemExit("not every run is made and judged; there is no table before")
    print(report(RESULTS, SEALED_RESULTS, PRIMARY, SHOWN, "second_moment"))
    print("\n" + over_styles(RESULTS, SEALED_RESULTS, (*PRIMARY, *SHOWN)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "progress", "judge", "statistics"):
        command = commands.add_parser(name)
        if name in ("run", "judge"):
            command.add_argument("--work", type=Path, required=True)
    commands.choices["judge"].add_argument("--sealed", type=Path, required=True)
    commands.choices["run"].add_argument("--minutes", type=float, default=1e6)
    commands.choices["run"].add_argument("--only", metavar="NAME", help="with --check: make this run again")
    commands.choices["run"].add_argument("--check", action="store_true", help="compare it with its record")
    args = parser.parse_args()
    if args.command == "run" and (args.only or args.check):
        third.make_again(RESULTS, HEADS, args.work, args.only)
    elif args.command == "run":
        run(args.work, args.minutes)
    elif args.command == "progress":
        progress()
    elif args.command == "judge":
        judge(args.work, args.sealed)
    else:
        statistics()


if __name__ == "__main__":
    main()
