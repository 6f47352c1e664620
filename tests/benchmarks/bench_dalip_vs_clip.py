"""The study of tests/benchmarks/protocols/dalip-vs-clip.md: every run, the judgement, and the statistics.

    python tests/benchmarks/bench_dalip_vs_clip.py prepare GROCERY CORPUS --work DIR   # pictures, decoded once
    python tests/benchmarks/bench_dalip_vs_clip.py run --work DIR                      # tokens, then every run
    python tests/benchmarks/bench_dalip_vs_clip.py left --work DIR                     # what is not done, in hours
    python tests/benchmarks/bench_dalip_vs_clip.py judge SEALED GROCERY --work DIR     # once, when nothing is left
    python tests/benchmarks/bench_dalip_vs_clip.py statistics                          # from the committed file alone

GROCERY and CORPUS as for learning_pictures.py; the packages of study_towers.py must be importable. `run` is one process
of one thread; more of them share the runs. It skips what is done: a finished run is a line of
results/dalip-vs-clip.jsonl, so it may be ended at any time and started again. `--minutes` ends it after the run that is
then under way. The weights of final runs stay in DIR for `judge`, which trains again what is missing there.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import study_arms as arms
from learning_pictures import TEMPLATES, prepare
from study_lit import LiT, compute_tokens
from study_plot import draw
from study_records import Records
from study_scratch import Scratch
from study_statistics import best_rate, check_stopping_rule, fourth_arm, report

RESULTS = Records(Path(__file__).parent / "results/dalip-vs-clip.jsonl")
_LOSS_BATCH = 64


@dataclass(frozen=True)
class Run:
    """One run of the plan."""

    purpose: str  # tuning or final
    regime: str
    arm: str
    seed: int
    rate: float

    @property
    def name(self) -> str:
        rate = f"-{self.rate:g}" if self.purpose == "tuning" else ""
        return f"{self.purpose}-{self.regime}-{self.arm}-{self.seed}{rate}"

    def steps(self) -> int:
        if self.purpose == "tuning":
            return arms.TUNING_STEPS[self.regime]
        return arms.steps_of(self.arm, self.regime, _costs(self.regime))


def tuning_runs(regime: str) -> Iterator[Run]:
    for seed in arms.TUNING_SEEDS:
        for arm in arms.ARMS_OF[regime]:
            for rate in arms.RATES:
                yield Run("tuning", regime, arm, seed, rate)


def final_runs(regime: str, seeds: tuple[int, ...]) -> Iterator[Run]:
    """Seed after seed; the tuning runs must be done. Arm 4 is the pooling that tuning chose."""
    chosen = [arm for arm in arms.ARMS_OF[regime] if arm[0] != "4" or arm == fourth_arm(RESULTS)]
    for place, seed in enumerate(seeds):
        for arm in chosen:
            if place >= arms.FEWER_SEEDS.get(arm, len(seeds)):
                continue
            yield Run("final", regime, arm, seed, best_rate(RESULTS, regime, arm))


def run(work: Path, minutes: float, seeds: tuple[int, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    stop = time.time() + 60 * minutes
    rows = _rows(work)
    (work / "lit").mkdir(exist_ok=True)
    compute_tokens(work / "lit", rows, lambda line: print(line, flush=True))
    regimes: dict[str, Any] = {"lit": LiT(work / "lit", rows), "scratch": Scratch(work / "scratch")}
    for name, regime in regimes.items():
        if f"costs-{name}" not in RESULTS.names():
            RESULTS.add(f"costs-{name}", arms.measure_costs(regime))
            print(f"{name}: CPU seconds of a step: {_costs(name)}", flush=True)
    for name in regimes:
        _do(tuning_runs(name), regimes, work, stop)
    for name in regimes:
        _do(final_runs(name, seeds), regimes, work, stop)
    print("nothing is left")


def _do(plan: Iterator[Run], regimes: dict[str, Any], work: Path, stop: float) -> None:
    """Make what is not there, and wait for what other processes are making."""
    todo = _to_do(plan)
    while todo:
        for one in todo:
            with _claim(work, one) as mine:
                if not mine or not _to_do([one]):
                    continue
                if time.time() > stop:
                    raise SystemExit("time is up; run again to go on")
                result = do_run(one, regimes[one.regime], work)
                print(one.name, f"{result['seconds']} s", f"{result['cpu_seconds']} CPU s", result["final_loss"],
                      f"val {np.mean([int(hit) for hit in result['val_varieties']]):.3f}", flush=True)  # fmt: skip
        todo = _to_do(todo)
        time.sleep(5 if todo else 0)


def _to_do(runs: Iterable[Run]) -> list[Run]:
    done = RESULTS.names()
    return [one for one in runs if one.name not in done]


@contextmanager
def _claim(work: Path, one: Run) -> Iterator[bool]:
    """True while no other process makes this run; a process that is gone holds nothing."""
    path = work / "claims" / one.name
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def do_run(one: Run, regime: Any, work: Path) -> dict[str, Any]:
    """Train, judge on what is not sealed, keep the result, and the weights of a final run."""
    import torch

    model, result = arms.train_run(arms.ARMS[one.arm], regime, one.seed, one.rate, one.steps())
    result |= {"purpose": one.purpose}
    for split, name in (("special_val", "val_varieties"), ("cartons_val", "val_cartons")):
        own = regime.by_split[split]
        labels = [regime.rows[row]["label"] for row in own]
        result[name] = zero_shot(model, regime, regime.pictures(own, None), labels)
    result["general_loss"] = general_losses(model, regime)
    if one.purpose == "final":
        weights = _weights(work, one)
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), weights.with_suffix(".part"))
        weights.with_suffix(".part").replace(weights)
    RESULTS.add(one.name, result)
    return result


def zero_shot(model: Any, regime: Any, images: Any, labels: list[str]) -> str:
    """1 or 0 for each picture: is its class the nearest of all classes that occur?"""
    import torch
    from torch.nn.functional import normalize

    names = sorted(set(labels))
    texts = sum(arms.vectors(model, "text", regime.encode_texts([t.format(name) for name in names])) for t in TEMPLATES)
    values = arms.vectors(model, "image", images) @ normalize(texts, dim=-1).t()
    target = torch.tensor([names.index(label) for label in labels])
    rank = (values >= values.gather(1, target[:, None])).sum(1) - 1
    return "".join(str(int(hit)) for hit in (rank < 1))


def general_losses(model: Any, regime: Any) -> list[float]:
    """InfoNCE of the held-out general pictures, in fixed batches of 64 of one kind, at the model's scale."""
    from training.model.loss import LossSettings, make_loss

    loss, scale, found = make_loss(LossSettings()), model.clip.logit_scale.detach().exp(), []
    for split in ("general_val", "emoji_val"):
        own = regime.by_split[split]
        images = arms.vectors(model, "image", regime.pictures(own, None))
        texts = arms.vectors(model, "text", regime.encode_texts([regime.rows[row]["label"] for row in own]))
        features = {"image_features": images, "text_features": texts, "logit_scale": scale}
        losses = loss.of_pairs(features, _LOSS_BATCH).numpy()
        found += [round(float(part.mean()), 5) for part in np.split(losses, len(losses) // _LOSS_BATCH)]
    return found


def judge(sealed: Path, grocery: Path, work: Path) -> None:
    """Open the sealed photos, once: group near duplicates, and keep a 1 or 0 of each photo for each final run."""
    import torch
    from study_sealed import scratch_pictures, sealed_groups, sealed_photos

    torch.set_num_threads(1)
    regimes: dict[str, Any] = {"lit": LiT(work / "lit", _rows(work)), "scratch": Scratch(work / "scratch")}
    seeds = tuple(sorted(run["seed"] for run in RESULTS.of("final-lit-6-dalip-*")))
    plan = [one for name in regimes for one in final_runs(name, seeds)]
    if missing := [one.name for one in _to_do(plan)] or not seeds:
        raise SystemExit(f"not every final run is done, the sealed photos stay sealed: {missing}")
    photos = sealed_photos(sealed)
    RESULTS.add("sealed-photos", sealed_groups(photos, grocery))
    lit = regimes["lit"].encode_files([photo["path"] for photo in photos])
    scratch = regimes["scratch"].normalised(scratch_pictures(photos))
    for one in plan:
        name = one.name.replace("final-", "sealed-")
        if name in RESULTS.names():
            continue
        regime = regimes[one.regime]
        weights = _weights(work, one)
        if not weights.is_file():
            do_run(one, regime, work)
        model = arms.build(arms.ARMS[one.arm], regime, one.seed)
        model.load_state_dict(torch.load(weights, weights_only=True))
        images, hits = lit if one.regime == "lit" else scratch, {}
        for special, what in ((True, "varieties"), (False, "cartons")):
            own = [i for i, photo in enumerate(photos) if photo["special"] == special]
            hits[what] = zero_shot(model.eval(), regime, images[own], [photos[i]["label"] for i in own])
        RESULTS.add(name, {"arm": one.arm, "regime": one.regime, "seed": one.seed} | hits)
    print("judged; now: statistics")


def left(seeds: tuple[int, ...]) -> None:
    """Thread-hours that the plan still needs, by the CPU seconds of a step."""
    total = 0.0
    for regime in ("lit", "scratch"):
        costs = _costs(regime)
        todo = _to_do(tuning_runs(regime))
        hours = sum(costs[one.arm] * one.steps() for one in todo) / 3600
        final = sum(
            costs[arm] * arms.steps_of(arm, regime, costs)
            for arm in arms.ARMS_OF[regime] if arm != "4-attention"
            for seed in seeds[: arms.FEWER_SEEDS.get(arm, len(seeds))]
            if not RESULTS.of(f"final-{regime}-{arm[:2]}*-{seed}")
        ) / 3600  # fmt: skip
        print(f"{regime}: {len(todo)} tuning runs, {hours:.1f} h; final runs {final:.1f} h")
        total += hours + final
    print(f"{total:.1f} thread-hours are left")


def _costs(regime: str) -> dict[str, float]:
    return RESULTS.one(f"costs-{regime}")


def _weights(work: Path, one: Run) -> Path:
    return work / "weights" / f"{one.name}.pt"


def _rows(work: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((work / "scratch/rows.json").read_text())
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "run", "left", "judge", "statistics"):
        command = commands.add_parser(name)
        if name in ("prepare", "run", "judge"):
            command.add_argument("--work", type=Path, required=True)
        if name == "prepare":
            command.add_argument("grocery", type=Path)
            command.add_argument("corpus", type=Path)
        if name == "judge":
            command.add_argument("sealed", type=Path)
            command.add_argument("grocery", type=Path)
        if name == "statistics":
            command.add_argument("--plot", type=Path, help="a PNG")
        if name == "run":
            command.add_argument("--minutes", type=float, default=1e6)
        if name in ("run", "left"):
            command.add_argument("--more", action="store_true", help="ten more seeds, if the stopping rule says so")
    options = parser.parse_args()
    seeds = arms.FINAL_SEEDS + (arms.MORE_SEEDS if getattr(options, "more", False) else ())
    if options.command == "prepare":
        prepare(options.grocery, options.corpus, options.work / "scratch")
    elif options.command == "run":
        run(options.work, options.minutes, seeds)
    elif options.command == "left":
        left(seeds)
    elif options.command == "judge":
        judge(options.sealed, options.grocery, options.work)
    else:
        check_stopping_rule(RESULTS)
        print(report(RESULTS))
        if options.plot:
            draw(RESULTS, options.plot)


if __name__ == "__main__":
    main()
