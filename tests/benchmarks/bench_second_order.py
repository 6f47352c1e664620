"""The study of tests/benchmarks/protocols/second-order.md: what does a second-order head add, when each arm stops well?

    python tests/benchmarks/bench_second_order.py prepare GROCERY CORPUS EMOJIONE --work DIR  # pictures and tokens
    python tests/benchmarks/bench_second_order.py run --work DIR                 # tuning, then every final run
    python tests/benchmarks/bench_second_order.py run --work DIR --only NAME --check    # one run against its record
    python tests/benchmarks/bench_second_order.py power                           # coverage and power, before judging
    python tests/benchmarks/bench_second_order.py judge --work DIR               # once, when every run is done
    python tests/benchmarks/bench_second_order.py statistics                     # from the committed file alone

GROCERY is the Grocery Store dataset (train/, val/, train.txt, val.txt), CORPUS a folder of captioned pictures with a
pairs.parquet, EMOJIONE the npm package emojione 2.2.7, unpacked. The packages of study_towers.py must be importable. A
finished run is a line of results/dalip-vs-clip.jsonl; several processes share the runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import study_training
from second_order_material import Material, prepare
from study_records import Records
from study_training import Run, best_temperature, log_losses, make_all, similarities

sys.path.insert(0, str(Path(__file__).parents[2]))

RESULTS = Records(
    Path(__file__).parent / "results/dalip-vs-clip.jsonl"
)  # beside the first study, whose runs have other names
ARMS = {"f": None, "mean": "mean", "attention": "attention", "covariance": "covariance", "brownian": "brownian"}
PRIMARY = ("mean", "covariance", "brownian")  # these share their number of steps
RATES, LENGTHS = (3e-4, 1e-3, 3e-3), (250, 500, 1_000, 2_000)
TUNING_SEEDS, FINAL_SEEDS, MORE_SEEDS = (900, 901), tuple(range(10)), tuple(range(20))
MARGIN, WIDE_MARGIN, ROUNDS = 0.04, 0.125, 10_000
NUM_SEALED = 858  # names, as `prepare` counts them
TRUE_DIFFERENCES = (0.0, -0.04, -0.08, -0.12, -0.16, -0.2)  # of `power`


# ---- runs


def tuning_runs() -> Iterator[Run]:
    for seed in TUNING_SEEDS:
        for arm in ARMS:
            for steps in LENGTHS:
                yield from (Run(arm, seed, rate, steps) for rate in RATES)


def tuned() -> dict[tuple[str, int], tuple[float, float]]:
    """The best rate of each arm at each length, and its loss on validation; of equal ones the lowest rate."""
    best = {}
    for arm in ARMS:
        for steps in LENGTHS:
            tried = [(np.mean(_losses(arm, rate, steps)), rate) for rate in RATES]
            best[arm, steps] = (min(tried)[1], float(min(tried)[0]))
    return best


def _losses(arm: str, rate: float, steps: int) -> list[float]:
    return [RESULTS.one(Run(arm, seed, rate, steps).name)["val_loss"] for seed in TUNING_SEEDS]


def shared_steps() -> int:
    """The length at which the primary arms, each at its best rate, have the lowest mean loss; the least of equals."""
    best = tuned()
    return min(LENGTHS, key=lambda steps: (np.mean([best[arm, steps][1] for arm in PRIMARY]), steps))


def final_runs(seeds: Sequence[int]) -> Iterator[Run]:
    """All arms at the shared number of steps, and plain f also at its own best length, under the name f-own."""
    best, steps = tuned(), shared_steps()
    own = min(LENGTHS, key=lambda length: (best["f", length][1], length))
    for seed in seeds:
        yield from (Run(arm, seed, best[arm, steps][0], steps, "final") for arm in ARMS)
        yield Run("f-own", seed, best["f", own][0], own, "final")


def train(one: Run, material: Material) -> tuple[Any, dict[str, Any]]:
    """Train; returns the model, and what is kept of the run: among it the loss on validation at each quarter."""
    started = time.process_time()
    model = study_training.build(one, ARMS[one.arm.removesuffix("-own")], material.config)
    quarters: list[dict[str, Any]] = []
    of_each: list[float] = []

    def look(step: int) -> None:
        if step % (one.steps // 4) == 0:
            judged = on_validation(model.eval(), material)
            quarters.append({name: judged[name] for name in ("loss", "top1", "temperature")})
            of_each[:] = judged["of_each"]

    losses = study_training.train(one, model, material, look)
    # of tuning the spread over names is needed, for `power`
    spread = {"val_of_each": of_each} if one.purpose == "tuning" and one.arm in PRIMARY else {}
    return model, spread | {
        "arm": one.arm, "seed": one.seed, "rate": one.rate, "steps": one.steps, "purpose": one.purpose,
        "cpu_seconds": round(time.process_time() - started, 1), "quarters": quarters, "val_loss": quarters[-1]["loss"],
        "train_loss": round(float(np.mean(losses[-one.steps // 10 :])), 4),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }  # fmt: skip


def on_validation(model: Any, material: Material) -> dict[str, Any]:
    """Log-loss at the temperature that fits validation best, top 1, and the loss of each picture."""
    cosines, own = similarities(model, material, "val")
    temperature = best_temperature([(cosines, own)])
    of_each = log_losses(cosines, own, temperature)
    return {
        "loss": round(float(of_each.mean()), 5), "top1": round(float((cosines.argmax(1) == own).mean()), 5),
        "temperature": round(temperature, 4), "of_each": [round(float(value), 3) for value in of_each],
    }  # fmt: skip


def run(work: Path, minutes: float, seeds: Sequence[int]) -> None:
    """Every run that is not done, until the minutes are over."""
    import torch

    torch.set_num_threads(1)
    material = Material(work)
    plans = (tuning_runs, lambda: final_runs(seeds))
    make_all(plans, RESULTS, work / "claims", lambda one: _keep(one, material), minutes)


def _keep(one: Run, material: Material) -> None:
    import torch

    model, record = train(one, material)
    if one.purpose == "final":
        path = material.work / "weights" / f"{one.name}.pt"
        path.parent.mkdir(exist_ok=True)
        torch.save(model.state_dict(), path)
    RESULTS.add(one.name, record)
    print(one.name, record["cpu_seconds"], "CPU s", record["quarters"][-1], flush=True)


def check(work: Path, name: str) -> None:
    """Make one run again, and compare it with what is committed."""
    import torch

    torch.set_num_threads(1)
    kept = RESULTS.one(name)
    _, made = train(Run(*(kept[key] for key in ("arm", "seed", "rate", "steps", "purpose"))), Material(work))
    differ = [key for key in ("val_loss", "train_loss", "quarters") if made[key] != kept[key]]
    print(
        f"{name}: {'differs in ' + ', '.join(differ) if differ else 'the same figures'}",
        made["val_loss"],
        kept["val_loss"],
    )
    raise SystemExit(bool(differ))


# ---- judging


def judge(work: Path, seeds: Sequence[int]) -> None:
    """Open the sealed pictures, once: the log-loss and the place of each name, for every final run."""
    import torch

    torch.set_num_threads(1)
    material, plan = Material(work), list(final_runs(seeds))
    if missing := [one.name for one in plan if one.name not in RESULTS.names()]:
        raise SystemExit(f"not every final run is done, the sealed pictures stay sealed: {missing}")
    for one in plan:
        record = RESULTS.one(one.name)
        model, again = trained(one, material)
        cosines, own = similarities(model, material, "sealed")
        losses = log_losses(cosines, own, record["quarters"][-1]["temperature"])
        RESULTS.add(one.name.replace("final", "sealed"), {
            "arm": one.arm, "seed": one.seed, "retrained": again,
            "losses": [round(float(value), 4) for value in losses],
            "hits": "".join(str(int(hit)) for hit in cosines.argmax(1) == own),
        })  # fmt: skip
        print(one.name, round(float(losses.mean()), 4), flush=True)


def trained(one: Run, material: Material) -> tuple[Any, bool]:
    """The model of a final run, from its weights; where they are gone, trained again, which the second value says."""
    import torch

    path = material.work / "weights" / f"{one.name}.pt"
    if not path.is_file():
        return train(one, material)[0].eval(), True
    model = study_training.build(one, ARMS[one.arm.removesuffix("-own")], material.config)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval(), False


# ---- statistics


@lru_cache(maxsize=4)  # `power` takes the same ones 1,200 times
def _weights(num: int, rounds: int, seed: int) -> np.ndarray:
    """How often each round draws each of `num`, as shares, (rounds, num)."""
    return np.random.default_rng([seed, num]).multinomial(num, np.full(num, 1 / num), rounds) / num


def interval(values: np.ndarray, rounds: int = ROUNDS, seed: int = 0) -> dict[str, float]:
    """Mean of paired differences (seeds, names), its 95 % interval over seeds and names, and its two-sided p."""
    seeds, names = (_weights(num, rounds, seed) for num in values.shape)
    draws = ((seeds @ values) * names).sum(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    p = min(1.0, 2 * max(min((draws <= 0).mean(), (draws >= 0).mean()), 1 / rounds))
    return {"value": float(values.mean()), "low": float(low), "high": float(high), "error": float(draws.std()), "p": p}


def sentence(one: dict[str, float], what: str) -> str:
    """What the protocol allows to say of a difference in log-loss."""
    if one["high"] < -MARGIN:
        return f"{what} is better, by more than {MARGIN} nats"
    if one["high"] < 0:
        return f"{what} is better"
    if one["low"] > 0:
        return f"{what} is worse"
    for margin in (MARGIN, WIDE_MARGIN):
        if one["low"] > -margin and one["high"] < margin:
            return f"{what} makes no difference of {margin} nats"
    return f"nothing is shown of {what}"


def power(seeds: Sequence[int], rounds: int = 400) -> None:
    """Coverage of the interval, and how often each sentence is reached, from the spread of the tuning runs."""
    steps, best, rng, num_seeds = shared_steps(), tuned(), np.random.default_rng(0), len(seeds)
    losses = {
        arm: np.array([RESULTS.one(Run(arm, seed, best[arm, steps][0], steps).name)["val_of_each"]
                       for seed in TUNING_SEEDS])
        for arm in PRIMARY
    }  # fmt: skip
    for one, two in (("covariance", "mean"), ("brownian", "mean"), ("brownian", "covariance")):
        spread = losses[one] - losses[two]  # two seeds
        between = spread.mean(axis=0)
        noise = (spread[0] - spread[1]).std() / 2**0.5
        names = max(between.var() - noise**2 / 2, 0.0) ** 0.5
        of_seed = abs(spread[0].mean() - spread[1].mean()) / 2**0.5
        effects = ((of_seed, (num_seeds, 1)), (names, (1, NUM_SEALED)), (noise, (num_seeds, NUM_SEALED)))
        shown = [interval(sum(size * rng.standard_normal(shape) for size, shape in effects), 1_000)
                 for _ in range(rounds)]  # fmt: skip
        covered = np.mean([drawn["low"] <= 0 <= drawn["high"] for drawn in shown])
        error = np.mean([drawn["error"] for drawn in shown])
        print(
            f"{one} less {two}, {num_seeds} seeds: spread of seeds {of_seed:.4f}, names {names:.3f}, both {noise:.3f} "
            f"nats; standard error {error:.4f}; covered {covered:.3f}"
        )
        for true in TRUE_DIFFERENCES:
            moved = [{end: drawn[end] + true for end in ("low", "high")} for drawn in shown]
            said = Counter(sentence(drawn, "it") for drawn in moved)
            shares = ", ".join(f"'{words}' {num / rounds:.2f}" for words, num in sorted(said.items()))
            print(f"  true {true:+.2f}: {shares}", flush=True)


def _with_ends(one: dict[str, float], digits: int) -> str:
    return "{:+.{d}f} ({:+.{d}f} to {:+.{d}f})".format(*(one[end] for end in ("value", "low", "high")), d=digits)


def statistics() -> str:
    """All figures as Markdown, from the records alone."""
    best, steps = tuned(), shared_steps()
    sealed = {arm: RESULTS.of(f"sealed-{arm}-[0-9]*") for arm in (*ARMS, "f-own")}
    sealed = {arm: sorted(records, key=lambda record: record["seed"]) for arm, records in sealed.items()}
    losses = {arm: np.array([record["losses"] for record in records]) for arm, records in sealed.items()}
    hits = {
        arm: np.array([[int(hit) for hit in record["hits"]] for record in records]) for arm, records in sealed.items()
    }
    pairs = [("covariance", "mean"), ("brownian", "mean"), ("brownian", "covariance")]
    shown = [("attention", "mean"), ("mean", "f"), ("brownian", "f-own")]  # without a test
    lines = [
        f"All arms {steps:,} steps, f-own {RESULTS.of('final-f-own-*')[0]['steps']:,}.",
        "",
        "| difference | log-loss, nats | p | seeds below 0 | top 1, points |",
        "|---|---|---|---|---|",
    ]
    for one, two in pairs + shown:
        loss, top = interval(losses[one] - losses[two]), interval(100.0 * (hits[one] - hits[two]))
        p = f"{loss['p']:.4f}" if (one, two) in pairs else ""
        below = ((losses[one] - losses[two]).mean(axis=1) < 0).sum()
        lines.append(f"| {one} less {two} | {_with_ends(loss, 3)} | {p} | {below} | {_with_ends(top, 1)} |")
    lines += ["", *(sentence(interval(losses[a] - losses[b]), f"{a} less {b}") + "." for a, b in pairs)]
    secondary = [
        interval(hits["brownian"] - hits["mean"])["p"],
        interval(losses["brownian"] - losses["covariance"])["p"],
    ]
    low, high = min(secondary), max(secondary)
    lines.append(f"Secondary, corrected by Holm: p {min(1.0, 2 * low):.4f} and {max(high, min(1.0, 2 * low)):.4f}.")
    lines += [
        "",
        "| arm | rate | sealed log-loss | sealed top 1 | validation loss at each quarter |",
        "|---|---|---|---|---|",
    ]
    for arm in sealed:
        runs = RESULTS.of(f"final-{arm}-[0-9]*")
        curve = np.mean([[quarter["loss"] for quarter in one["quarters"]] for one in runs], axis=0)
        lines.append(f"| {arm} | {runs[0]['rate']:g} | {losses[arm].mean():.3f} | {hits[arm].mean():.1%} "
                     f"| {', '.join(f'{value:.3f}' for value in curve)} |")  # fmt: skip
    lines += [
        "",
        "Tuning: loss on validation of two seeds, best rate.",
        "",
        f"| arm | {' | '.join(f'{length:,} steps' for length in LENGTHS)} |",
        f"|---|{'---|' * len(LENGTHS)}",
    ]
    for arm in ARMS:
        cells = (f"{best[arm, length][1]:.3f} at {best[arm, length][0]:g}" for length in LENGTHS)
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "run", "power", "judge", "statistics"):
        command = commands.add_parser(name)
        if name in ("prepare", "run", "judge"):
            command.add_argument("--work", type=Path, required=True)
    for name in ("grocery", "corpus", "emojione"):
        commands.choices["prepare"].add_argument(name, type=Path)
    commands.choices["run"].add_argument("--minutes", type=float, default=1e6)
    commands.choices["run"].add_argument("--only", metavar="NAME", help="with --check: make this run again")
    commands.choices["run"].add_argument("--check", action="store_true", help="compare it with its record")
    for name in ("run", "power", "judge"):
        commands.choices[name].add_argument(
            "--more", action="store_true", help="20 final seeds, where `power` asks for it"
        )
    args = parser.parse_args()
    seeds = MORE_SEEDS if getattr(args, "more", False) else FINAL_SEEDS
    if args.command == "prepare":
        prepare(args.grocery, args.corpus, args.emojione, args.work)
    elif args.command == "run" and (args.only or args.check):
        check(args.work, args.only)
    elif args.command == "run":
        run(args.work, args.minutes, seeds)
    elif args.command == "judge":
        judge(args.work, seeds)
    elif args.command == "power":
        power(seeds)
    else:
        print(statistics())


if __name__ == "__main__":
    main()
