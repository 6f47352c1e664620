"""The study of tests/benchmarks/protocols/equal-cost.md: twelve runs at full width, and the capped choice.

    python tests/benchmarks/bench_equal_cost.py build GROCERY CORPUS --work DIR      # as bench_choosing.py build
    python tests/benchmarks/bench_equal_cost.py run --work DIR [--minutes 60]        # tries, choices, targets
    python tests/benchmarks/bench_equal_cost.py run --work DIR --only NAME --check   # one run against its record
    python tests/benchmarks/bench_equal_cost.py progress                             # what is done, hours that are left
    python tests/benchmarks/bench_equal_cost.py report                               # from the committed files alone

Material, models, training and records are those of bench_choosing.py, whose 36 proxies and target runs are read from
results/choosing.jsonl. A finished run is a line of results/equal-cost.jsonl. A killed run (70 CPU s) begins anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import bench_choosing as choosing
import numpy as np
from bench_choosing import DOMAINS, POOLS, SEEDS, Choosing, Run, rounded, sums, tested
from choosing_material import build
from study_records import Records, commit
from study_training import holm, without_record

RESULTS = Records(Path(__file__).parent / "results/equal-cost.jsonl")
NUM_TRIES, TRY_SEED = 12, 100  # 36 proxies of a scene took the CPU seconds of 12.3 target runs
LEAST_SHARE = 0.1  # of the ten tries that fill the space: who wants three losses low gives no domain next to nothing
MOST_EPOCHS = 10  # what `plan choose` advises with `--max-epochs`


# ---- runs


@cache
def mixtures(scene: str) -> tuple[tuple[float, ...], ...]:
    """Return the twelve tries: the natural ratio, thirds, and ten that lie far from these and from each other."""
    from pipeline.planning.design import space_filling
    from pipeline.planning.limits import Limits, share_box

    pools = np.array(POOLS[scene], float)
    first = np.array([rounded(pools / pools.sum()), rounded(np.full(len(DOMAINS), 1 / len(DOMAINS)))])
    box = share_box(DOMAINS, Limits(min_shares=dict.fromkeys(DOMAINS, LEAST_SHARE)), {})
    filling = space_filling(box, first, NUM_TRIES - len(first))
    return tuple(tuple(float(share) for share in each) for each in (*first, *filling))


def tries() -> Iterator[Run]:
    for scene in POOLS:
        yield from (Run(scene, shares, TRY_SEED) for shares in mixtures(scene))


def targets() -> Iterator[Run]:
    """The best try of each scene, and the capped choice where it is another than the law's; seed by seed."""
    for seed in SEEDS:
        for each in choosing.choices():
            chosen = RESULTS.one(each.name)["chosen"]
            ways = ["twelve", *(["capped"] if each.scene in capped_scenes() else [])]
            yield from dict.fromkeys(Run(each.scene, tuple(chosen[way]), seed) for way in ways)


PLANS = (tries, choosing.choices, targets)  # each reads the records of those before


def choose(scene: str) -> dict[str, Any]:
    """Return the try with the least sum on the stopping half, and the law's choice of at most MOST_EPOCHS passes."""
    kept = [RESULTS.one(one.name) for one in tries() if one.scene == scene]
    best = min(kept, key=lambda each: sum(each["stopping"]))
    capped = rounded(choosing.by_law(*choosing.seen(scene), max_epochs=MOST_EPOCHS))
    return {"scene": scene, "chosen": {"twelve": best["shares"], "capped": capped}, "commit": commit()}


def capped_scenes(moved: float = 2e-4) -> list[str]:
    """Return the scenes in which the cap moves a share of the law's choice by more than this; else its runs count."""
    return [
        scene
        for scene in POOLS
        if max(np.abs(np.subtract(RESULTS.one(Choosing(scene).name)["chosen"]["capped"], before(scene)["law"]))) > moved
    ]


def before(scene: str) -> dict[str, list[float]]:
    """Return the choices of the five ways of the first study."""
    chosen: dict[str, list[float]] = choosing.RESULTS.one(Choosing(scene).name)["chosen"]
    return chosen


# ---- what is said

PRIMARY = (("law", "twelve"),)
CAPPED = (("capped", "law"), ("capped", "natural"), ("capped", "tried"), ("capped", "twelve"))
SHOWN = (("twelve", "tried"), ("twelve", "natural"), ("twelve", "equal"))
FAR = 0.05  # of a share: where the cap moves the choice by less, a difference is noise


def less(way: str, rival: str) -> list[np.ndarray]:
    """Return a way's sum of losses less a rival's, a value a seed, of each scene; of the cap where it tells."""
    scenes = capped_scenes(FAR) if (way, rival) == ("capped", "law") else list(POOLS)
    return [of_way(way, scene) - of_way(rival, scene) for scene in scenes]


def of_way(way: str, scene: str) -> np.ndarray:
    """Return the sums of losses of a way's target runs, from the records of the study that made them."""
    if way == "twelve" or (way == "capped" and scene in capped_scenes()):
        return sums(RESULTS, scene, RESULTS.one(Choosing(scene).name)["chosen"][way])
    return sums(choosing.RESULTS, scene, before(scene)["law" if way == "capped" else way])


def sentence(mean: float, p: float, way: str, rival: str) -> str:
    """Return what the protocol allows to say; `p` is corrected."""
    if p >= 0.05:
        return f"{way} and {rival}: cannot be told"
    return f"{way} is {'better' if mean < 0 else 'worse'} than {rival}"


def report() -> str:
    """Markdown: the tries, the choices with their losses, and the differences."""
    lines = ["| scene | photos | drawings | icons | stopping half | judging half | stopped at |", "|---|" + "---|" * 6]
    for one in tries():
        kept = RESULTS.one(one.name)
        halves = " | ".join(f"{sum(kept[half]):.3f}" for half in choosing.HALVES)
        lines.append(f"| {one.scene} | {_shares(one.shares)} | {halves} | {kept['stopped']} |")
    lines += ["", "| scene | way | photos | drawings | icons | sum of losses (s.e.) |", "|---|" + "---|" * 5]
    for scene in POOLS:
        chosen = before(scene) | RESULTS.one(Choosing(scene).name)["chosen"]
        for way in ("twelve", "capped", "law", "tried", "natural", "equal"):
            own = of_way(way, scene)
            error = own.std(ddof=1) / np.sqrt(len(own))
            lines.append(f"| {scene} | {way} | {_shares(chosen[way])} | {own.mean():.3f} ({error:.3f}) |")
    lines += ["", "| difference | each scene in its order | mean (95 %) | p, Holm | words |", "|---|" + "---|" * 4]
    for pairs in (PRIMARY, CAPPED, SHOWN):
        differences = [less(*pair) for pair in pairs]
        tests = [tested(each) for each in differences]
        corrected = holm([each[3] for each in tests])
        for pair, each, (mean, low, high, _), p in zip(pairs, differences, tests, corrected, strict=True):
            cells = ", ".join(f"{values.mean():+.3f}" for values in each)
            said = (f"{p:.3f}", sentence(mean, p, *pair)) if pairs is not SHOWN else ("", "shown, not tested")
            lines.append(f"| {pair[0]} less {pair[1]} | {cells} | {mean:+.3f} ({low:+.3f} to {high:+.3f}) | "
                         f"{' | '.join(said)} |")  # fmt: skip
    return "\n".join(lines)


def _shares(mixture: Any) -> str:
    return " | ".join(f"{share:.3f}" for share in mixture)


def progress() -> None:
    """Print how many runs are done, and about how many CPU hours the others take."""
    runs = RESULTS.of("target-*")
    each = float(np.mean([one["cpu_seconds"] for one in runs] or [0]))
    for plan in PLANS:
        left = without_record(plan, RESULTS)
        print(f"{plan.__name__}: {len(left)} are left")
        if left and plan is not targets:
            break  # what comes behind is chosen by these
    most = NUM_TRIES * len(POOLS) + 2 * len(POOLS) * len(SEEDS)
    print(f"{len(runs)} runs of at most {most} are done, {each:.0f} CPU s each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "run", "progress", "report"):
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
        choosing.make_again(RESULTS, choose, args.work, args.only)
    elif args.command == "run":
        choosing.make_every(PLANS, RESULTS, choose, args.work, args.minutes)
    elif args.command == "progress":
        progress()
    else:
        print(report())


if __name__ == "__main__":
    main()
