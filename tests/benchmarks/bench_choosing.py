"""The study of tests/benchmarks/protocols/choosing.md: five ways to choose a mixture, at equal cost.

    python tests/benchmarks/bench_choosing.py build GROCERY CORPUS --work DIR        # the release that all runs read
    python tests/benchmarks/bench_choosing.py run --work DIR [--minutes 60]          # proxies, choices, targets
    python tests/benchmarks/bench_choosing.py run --work DIR --only NAME --check     # one run against its record
    python tests/benchmarks/bench_choosing.py progress                               # what is done, hours that are left
    python tests/benchmarks/bench_choosing.py power                                  # before any target runs
    python tests/benchmarks/bench_choosing.py report                                 # from the committed file alone

GROCERY is the Grocery Store dataset (train/, val/, train.txt, val.txt, classes.csv), CORPUS a folder of captioned
pictures with a pairs.parquet. A finished run is a line of results/choosing.jsonl; several processes share the runs.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from choosing_material import DOMAINS, build
from study_records import Records, commit, compare, machine
from study_training import holm, make_all, without_record

RESULTS = Records(Path(__file__).parent / "results/choosing.jsonl")
OLDER = Records(Path(__file__).parent / "results/mixing-law.jsonl")
POOLS = {"mostly photos": (2200, 550, 275), "mostly drawings": (275, 2200, 550), "mostly icons": (550, 275, 2200)}
"""Training pictures of each domain, of each scene."""
WAYS = ("law", "tried", "trees", "natural", "equal")
NUM_PROXIES, SEEDS = 36, tuple(range(10))
PROXY_WIDTH, TARGET_WIDTH = 64, 192
STEPS, BATCH, LOOK_STEPS = 180, 64, 30
NUM_CANDIDATES, NUM_BEST = 100_000, 100  # of the trees: mixtures drawn, and those whose mean is taken, as RegMix does
HALVES = ("stopping", "judging")
DIFFERENCES = (-0.3, -0.2, -0.15, -0.1, -0.05, 0.0)  # of `power`, nats


@dataclass(frozen=True)
class Run:
    """One training; a target run is named by its mixture, since two ways may choose the same."""

    scene: str
    shares: tuple[float, ...]
    seed: int
    number: int | None = None
    """Of a proxy, in the design; None: a target run."""

    @property
    def is_proxy(self) -> bool:
        return self.number is not None

    @property
    def width(self) -> int:
        return PROXY_WIDTH if self.is_proxy else TARGET_WIDTH

    @property
    def name(self) -> str:
        scene = self.scene.replace(" ", "-")
        if self.number is not None:
            return f"proxy-{scene}-{self.number:02d}"
        return f"target-{scene}-{'-'.join(f'{share:.4f}' for share in self.shares)}-{self.seed}"


@dataclass(frozen=True)
class Choosing:
    """What the five ways choose in a scene, from its proxies."""

    scene: str

    @property
    def name(self) -> str:
        return f"choice-{self.scene.replace(' ', '-')}"


# ---- runs


@cache
def design() -> list[tuple[tuple[float, ...], int]]:
    """Mixtures and seeds that `plantmix plan design` proposes: the same in each scene."""
    from pipeline.planning.design import propose_runs
    from pipeline.planning.limits import Limits, share_box

    proposed = propose_runs(DOMAINS, NUM_PROXIES, share_box(DOMAINS, Limits(), {}))
    return [(tuple(float(share) for share in each.shares), each.seed) for each in proposed]


def proxies() -> Iterator[Run]:
    for scene in POOLS:
        yield from (Run(scene, shares, seed, number) for number, (shares, seed) in enumerate(design()))


def choices() -> Iterator[Choosing]:
    yield from map(Choosing, POOLS)


def targets() -> Iterator[Run]:
    """Seed by seed, so that a part of the study is a smaller whole."""
    chosen = {each.scene: RESULTS.one(each.name)["chosen"] for each in choices()}
    for seed in SEEDS:
        for scene, ways in chosen.items():
            yield from dict.fromkeys(Run(scene, tuple(ways[way]), seed) for way in WAYS)


PLANS = (proxies, choices, targets)  # each reads the records of those before


class Material:
    """The release, decoded once: training pictures, and the held-out ones in two halves."""

    def __init__(self, work: Path) -> None:
        from training.data import loader
        from training.data.decoded import decode_shard, open_decoded, prepare_decoded
        from training.data.shards import open_pool

        self.work = work
        releases = loader.open_releases(str(work / "build"))
        self.release = releases[0].fingerprint
        pools = {}
        for split in ("train", "heldout"):
            pool, folder = open_pool(releases, split), work / f"decoded-{split}"
            with (work / "decoding").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # several processes may begin at once
                for shard in prepare_decoded(pool, folder, 96):
                    decode_shard(pool, folder, 96, shard)
            pools[split] = open_decoded(pool, folder)
        self.training, heldout = pools["train"], pools["heldout"]
        rows = loader.split_rows(heldout)
        self.halves = {half: _rows_of(heldout, rows[number::2]) for number, half in enumerate(HALVES)}


def _rows_of(pool: Any, rows: Sequence[int]) -> Any:
    chosen = np.array(rows)
    return replace(
        pool, table=pool.table.take(chosen), shards=pool.shards[chosen], releases=pool.releases[chosen],
        offsets={name: values[chosen] for name, values in pool.offsets.items()},
    )  # fmt: skip


def architecture(width: int, work: Path) -> str:
    """A small CLIP of this width, as a file of open_clip's kind: those of the mixing-law study."""
    path = work / f"vit-{width}.json"
    text = {"context_length": 20, "vocab_size": 49408, "width": width, "heads": width // 32, "layers": 2}
    vision = {"image_size": 64, "layers": 3, "width": width, "head_width": 32, "patch_size": 16}
    content = json.dumps({"embed_dim": width, "vision_cfg": vision, "text_cfg": text})
    if not path.exists() or path.read_text() != content:  # another process may be reading it
        path.write_text(content)
    return str(path)


def train(one: Run, material: Material) -> dict[str, Any]:
    """Train with `dalip`'s own trainer; a look takes the losses of both halves. Its folder goes with it."""
    from training.config import TrainSettings
    from training.evaluation.evaluate import domain_losses
    from training.run import loop

    began, started = datetime.now(UTC), time.process_time()
    folder = material.work / "runs" / one.name
    shutil.rmtree(folder, ignore_errors=True)
    settings = TrainSettings.model_validate({
        "release": str(material.work / "build"), "output_dir": str(folder), "seed": one.seed,
        "model": {"preset": "clip", "architecture": architecture(one.width, material.work)},
        "data": {"batch_size": BATCH, "num_workers": 0, "augment": {"scale": [0.6, 1.0]},
                 "epoch_samples": STEPS * BATCH, "check_shards": False,
                 "mixture": dict(zip(DOMAINS, one.shares, strict=True)),
                 "pool_samples": dict(zip(DOMAINS, POOLS[one.scene], strict=True))},
        "optimiser": {"lr": 0.0003, "weight_decay": 0.1},
        "schedule": {"steps": STEPS, "warmup_steps": STEPS // 6},
        "compute": {"device": "cpu", "num_threads": 1},
        "checkpoint": {"every_steps": STEPS, "keep": 1},
        "eval": {"split": "heldout", "batch_size": BATCH, "every_steps": LOOK_STEPS},
    })  # fmt: skip
    looks: dict[str, dict[str, list[float]]] = {half: {} for half in HALVES}

    def look(trainer: Any, step: int, _: Any) -> None:
        for half, pool in material.halves.items():
            figures = domain_losses(trainer.model, pool, settings, trainer.task)
            looks[half][str(step)] = [round(figures[name]["value"], 5) for name in DOMAINS]

    own, loop.validate = loop.validate, look  # the trainer's own measures one split, as a whole
    try:
        loop.train(settings, resume=False, pool=material.training)
    finally:
        loop.validate = own
    shutil.rmtree(folder)
    stop = min(looks["stopping"], key=lambda step: sum(looks["stopping"][step]))
    return {
        "scene": one.scene, "shares": one.shares, "seed": one.seed, "width": one.width, "stopped": int(stop),
        **{half: looks[half][stop] for half in HALVES}, "looks": looks, "release": material.release,
        "commit": commit(), "machine": machine(), "began": began.isoformat(timespec="seconds"),
        "cpu_seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


# ---- choices


def choose(scene: str) -> dict[str, Any]:
    """The mixture of each way. All see the same 36 proxies; their losses are those of the stopping half."""
    shares, losses, seeds, pools = seen(scene)
    chosen = {
        "law": by_law(shares, losses, seeds, pools),
        "tried": by_best_tried(shares, losses),
        "trees": by_trees(shares, losses),
        "natural": pools / pools.sum(),
        "equal": np.full(len(DOMAINS), 1 / len(DOMAINS)),
    }
    return {"scene": scene, "chosen": {way: rounded(mixture) for way, mixture in chosen.items()}, "commit": commit()}


def seen(scene: str) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
    """Return the shares, losses and seeds of a scene's proxies, and its pools."""
    kept = [RESULTS.one(one.name) for one in proxies() if one.scene == scene]
    shares, losses = (np.array([each[name] for each in kept]) for name in ("shares", "stopping"))
    return shares, losses, [each["seed"] for each in kept], np.array(POOLS[scene], float)


def rounded(mixture: np.ndarray) -> list[float]:
    """Four decimals that sum to 1."""
    parts = np.floor(mixture * 10_000 + 1e-9)
    parts[np.argsort(parts - mixture * 10_000)[: int(10_000 - parts.sum())]] += 1
    return [float(part) / 10_000 for part in parts]


def by_law(
    shares: np.ndarray, losses: np.ndarray, seeds: Sequence[int], pools: np.ndarray, max_epochs: float | None = None
) -> np.ndarray:
    """Return what `plan fit` and `plan choose --repetition-scale none` choose, with `--max-epochs` if it is given.

    Repetition has no scale because the proxies have met the pools of the real run.
    """
    from pipeline.planning.choose import choose_mixture
    from pipeline.planning.goals import Goal
    from pipeline.planning.laws import fit_law
    from pipeline.planning.limits import Limits
    from pipeline.planning.runs.run_table import build_runs

    columns: dict[str, list[Any]] = {f"mix_{name}": shares[:, k].tolist() for k, name in enumerate(DOMAINS)}
    columns |= {f"loss_{name}": losses[:, k].tolist() for k, name in enumerate(DOMAINS)}
    columns["seed"] = [str(seed) for seed in seeds]
    law = fit_law(build_runs(list(columns), columns, source="choosing"))
    most = {} if max_epochs is None else dict.fromkeys(DOMAINS, max_epochs)
    of_pools = dict(zip(DOMAINS, pools.tolist(), strict=True))
    limits = Limits(of_pools, STEPS * BATCH, max_epochs=most, repetition_scale_epochs=None)
    mixture: np.ndarray = choose_mixture(law, Goal(dict.fromkeys(law.losses, 1.0), limits=limits)).shares
    return mixture


def by_best_tried(shares: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The proxy with the least sum of losses; of a mixture with several seeds their mean."""
    mixtures, of_run = np.unique(shares, axis=0, return_inverse=True)
    sums = np.bincount(of_run.ravel(), losses.sum(axis=1)) / np.bincount(of_run.ravel())
    best: np.ndarray = mixtures[sums.argmin()]
    return best


def by_trees(shares: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """RegMix's way: boosted trees of each loss foretell many mixtures; the mean of the best ones is taken."""
    from bench_planning_transfer import scikit_trees

    drawn = np.random.default_rng(0).dirichlet(np.ones(len(DOMAINS)), NUM_CANDIDATES)
    foretold = np.sum([scikit_trees(shares, each, drawn) for each in losses.T], axis=0)
    best: np.ndarray = drawn[np.argsort(foretold, kind="stable")[:NUM_BEST]].mean(axis=0)
    return best


# ---- what is said


def differences(rival: str) -> dict[str, np.ndarray]:
    """Of each scene: the sum of losses of the law's mixture less the rival's, on the judging half, a value a seed."""
    found = {}
    for each in choices():
        chosen = RESULTS.one(each.name)["chosen"]
        found[each.scene] = sums(RESULTS, each.scene, chosen["law"]) - sums(RESULTS, each.scene, chosen[rival])
    return found


def sums(records: Records, scene: str, mixture: Sequence[float]) -> np.ndarray:
    """Return the sum of losses of a mixture's target runs on the judging half, a value a seed."""
    return np.array([sum(records.one(Run(scene, tuple(mixture), seed).name)["judging"]) for seed in SEEDS])


def tested(scenes: Sequence[np.ndarray]) -> tuple[float, float, float, float]:
    """The mean of the scenes' means, its 95 % interval and two-sided p: t over the seeds within scenes."""
    from scipy.stats import t

    errors = [each.var(ddof=1) / len(each) for each in scenes]
    freedom = sum(len(each) - 1 for each in scenes)
    mean, error = float(np.mean([each.mean() for each in scenes])), float(np.sqrt(sum(errors)) / len(scenes))
    half = t.ppf(0.975, freedom) * error
    p = 1.0 if mean == 0 else 2 * t.sf(abs(mean) / error, freedom) if error else 0.0
    return mean, mean - half, mean + half, float(p)


def sentence(mean: float, p: float, rival: str) -> str:
    """What the protocol allows to say; `p` is corrected."""
    if p >= 0.05:
        return f"law and {rival}: cannot be told"
    return f"the law's choice is {'better' if mean < 0 else 'worse'} than {rival}"


def report() -> str:
    """Markdown: the choices, the mean losses, and the law less each rival."""
    ended = {each.scene: RESULTS.one(each.name)["chosen"] for each in choices()}
    lines = ["| scene | way | photos | drawings | icons | sum of losses (s.e.) | stopped at |", "|---|" + "---|" * 6]
    for scene, ways in ended.items():
        for way in WAYS:
            kept = [RESULTS.one(Run(scene, tuple(ways[way]), seed).name) for seed in SEEDS]
            of_seeds = sums(RESULTS, scene, ways[way])
            shares = " | ".join(f"{share:.3f}" for share in ways[way])
            stopped = float(np.median([each["stopped"] for each in kept]))
            error = of_seeds.std(ddof=1) / np.sqrt(len(of_seeds))
            lines.append(f"| {scene} | {way} | {shares} | {of_seeds.mean():.3f} ({error:.3f}) | {stopped:.0f} |")
    lines += ["", "| law less | " + " | ".join(POOLS) + " | mean (95 %) | p, Holm | words |", "|---|" + "---|" * 6]
    rivals = WAYS[1:]
    diffs = {rival: differences(rival) for rival in rivals}
    tests = {rival: tested(list(diffs[rival].values())) for rival in rivals}
    for rival, p in zip(rivals, holm([tests[rival][3] for rival in rivals]), strict=True):
        mean, low, high, _ = tests[rival]
        each = " | ".join(f"{values.mean():+.3f}" for values in diffs[rival].values())
        words = sentence(mean, p, rival)
        shown = "<0.001" if p < 0.001 else f"{p:.3f}"
        lines.append(f"| {rival} | {each} | {mean:+.3f} ({low:+.3f} to {high:+.3f}) | {shown} | {words} |")
    return "\n".join(lines)


def power(rounds: int = 4000) -> str:
    """How often each sentence is reached, by the spread between seeds of the older study's mixtures at this width."""
    groups: dict[str, list[float]] = {}
    for record in OLDER.of("w192-s*"):
        groups.setdefault(record["mixture"], []).append(sum(record["losses"][name][str(STEPS)] for name in DOMAINS))
    spread = float(np.sqrt(np.mean([np.var(sums, ddof=1) for sums in groups.values()])))
    rng = np.random.default_rng(0)
    lines = ["| true difference | the law is better | cannot be told | the law is worse |", "|---|---|---|---|"]
    for true in DIFFERENCES:
        said = {"better": 0, "told": 0, "worse": 0}
        for _ in range(rounds):
            runs = rng.normal(0, spread, (1 + len(WAYS[1:]), len(POOLS), len(SEEDS)))
            tests = [tested(list(true + runs[0] - own)) for own in runs[1:]]  # all rivals as far away
            words = sentence(tests[0][0], holm([each[3] for each in tests])[0], "R")
            said[next(word for word in said if word in words)] += 1
        lines.append(f"| {true:+.2f} | " + " | ".join(f"{num / rounds:.0%}" for num in said.values()) + " |")
    return "\n".join([f"spread between seeds: {spread:.3f} nats, of {len(groups)} mixtures", "", *lines])


# ---- commands


def run(work: Path, minutes: float) -> None:
    """Every run and choice that is not done, until the minutes are over."""
    make_every(PLANS, RESULTS, choose, work, minutes)


def make_every(
    plans: Iterable[Callable[[], Iterable[Any]]], records: Records, choose: Callable[[str], dict[str, Any]],
    work: Path, minutes: float,
) -> None:  # fmt: skip
    """Make the runs and choices of the plans that have no record yet, until the minutes are over."""
    import torch

    torch.set_num_threads(1)
    material = Material(work)

    def make(one: Any) -> None:
        record = choose(one.scene) if isinstance(one, Choosing) else train(one, material)
        records.add(one.name, record)
        said = record.get("chosen") or (record["stopped"], record["stopping"], f"{record['cpu_seconds']} CPU s")
        print(one.name, said, flush=True)

    make_all(plans, records, work / "claims", make, minutes)


def check(work: Path, name: str) -> None:
    """Make one run or choice again, and compare it with its record."""
    make_again(RESULTS, choose, work, name)


def make_again(records: Records, choose: Callable[[str], dict[str, Any]], work: Path, name: str) -> None:
    """Make one run or choice of these records again, compare it with its record, and exit: 0 where it is the same."""
    import torch

    torch.set_num_threads(1)
    kept = records.one(name)
    if name.startswith("choice-"):
        made = choose(kept["scene"])
    else:
        number = int(name.rpartition("-")[2]) if name.startswith("proxy-") else None
        made = train(Run(kept["scene"], tuple(kept["shares"]), kept["seed"], number), Material(work))
    compare(name, made, kept, ("chosen", "looks", "stopped", "release", "commit", "machine"))


def progress() -> None:
    """How many runs are done, and about how many CPU hours the others take."""
    hours = {}
    for kind in ("proxy", "target"):
        seconds = [each["cpu_seconds"] for each in RESULTS.of(f"{kind}-*")]
        whole = NUM_PROXIES * len(POOLS) if kind == "proxy" else len(WAYS) * len(POOLS) * len(SEEDS)
        each, known = float(np.mean(seconds or [0])), bool(seconds)
        hours[kind] = f"{(whole - len(seconds)) * each / 3600:.1f}" if known else "not known before the first"
        print(f"{kind}: {len(seconds)} of at most {whole} are done{f', {each:.0f} CPU s each' if known else ''}")
    left = next((f"{plan.__name__}: {len(some)}" for plan in PLANS if (some := without_record(plan, RESULTS))), "none")
    print(f"left: {left}; CPU hours: {', '.join(f'{kind} {value}' for kind, value in hours.items())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "run", "progress", "power", "report"):
        command = commands.add_parser(name)
        for path in ("grocery", "corpus") if name == "build" else ():
            command.add_argument(path, type=Path)
        if name in ("build", "run"):
            command.add_argument("--work", type=Path, required=True)
    commands.choices["run"].add_argument("--minutes", type=float, default=1e6)
    commands.choices["run"].add_argument("--only", metavar="NAME", help="with --check: make this run again")
    commands.choices["run"].add_argument("--check", action="store_true", help="compare it with its record")
    args = parser.parse_args()
    if args.command == "build":
        build(args.grocery, args.corpus, args.work)
    elif args.command == "run" and (args.only or args.check):
        check(args.work, args.only)
    elif args.command == "run":
        run(args.work, args.minutes)
    elif args.command == "progress":
        progress()
    else:
        print(power() if args.command == "power" else report())


if __name__ == "__main__":
    main()
