"""Walk over the commands of plantmix at random, for hours: does a clean build always give the same release?

    python tests/benchmarks/bench_walk.py --seed 1 --steps 2500 --hours 6 --out walk.jsonl

A walk is 40 commands over one work folder, with changes between them (tests/walk). Every walk that ends is a line
of the file; the same command goes on behind the last one. Some walks also turn dedup.semantic on, or run in processes,
or with --ray on Ray. A difference is written with its actions, shortened, and the next walk begins; the exit code is 1
then. Prints how often each command came after each other one. A step that changed nothing, and met nothing that had
changed since the step before, is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from walk.drawing import COMMANDS, FAULTS, FAVOURED, OPEN, Action, draw, shorten  # noqa: E402
from walk.oracle import DifferenceError  # noqa: E402
from walk.walker import replay, walking  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200, help="end after so many counted steps")
    parser.add_argument("--length", type=int, default=40, help="commands of a walk")
    parser.add_argument("--hours", type=float, default=1.0, help="begin no walk later than this")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; what is there is gone on with")
    parser.add_argument("--ray", action="store_true", help="some walks on Ray too")
    parser.add_argument("--off", default=",".join(OPEN), help="open faults that are not walked into (default: all)")
    parser.add_argument("--only", help="the other open faults are left out, and every walk may show it")
    parser.add_argument("--shorten", type=int, default=40, help="tries to shorten a walk that ends with a difference")
    parser.add_argument("--once", action="store_true", help="a fault that a law names is left out once it was found")
    parser.add_argument("--first", action="store_true", help="end at the first difference")
    args = parser.parse_args()
    off = [fault for fault in args.off.split(",") if fault]
    if args.only:
        off = [fault for fault in OPEN if fault != args.only]
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="plantmix-walk-"))
    walks = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    while num_counted(walks) < args.steps and time.monotonic() - began < 3600 * args.hours:
        found = {made["kind"] for made in walks if args.once and made["kind"] in FAULTS}
        made = one_walk(args, len(walks), sorted({*off, *found}), pairs_of(walks), folder / "walk")
        walks.append(made)
        with args.out.open("a") as stream:
            stream.write(json.dumps(made) + "\n")
        what = f"walk {made['walk']}: {len(made['steps'])} steps in {made['seconds']:.0f} s"
        print(f"{what}, load {os.getloadavg()[0]:.1f}; {num_counted(walks):,} counted steps so far", flush=True)
        if made["difference"]:
            print("\n".join([*made["log"], f"shortened: {made['shortened']}"]), flush=True)
            where = f"seed {args.seed}, walk {made['walk']}, after {num_counted(walks):,} counted steps in all"
            print(f"{where}: {made['difference']}", flush=True)
            if args.first:
                break
    print(table_of(walks))
    return 1 if any(made["difference"] for made in walks) else 0


def one_walk(args: Any, number: int, off: list[str], pairs: Counter[tuple[str, str]], folder: Path) -> dict[str, Any]:
    """One walk from nothing: its steps, and the difference that ended it."""
    started, rng = time.monotonic(), random.Random(f"{args.seed} {number}")
    executors = ["inline", "processes"] if number % 6 == 5 else ["inline"]
    executors += ["ray"] if args.ray and number % 12 == 11 else []
    options = {
        "off": off, "executors": executors, "favoured": FAVOURED.get(args.only),
        "semantic": "C5" not in off and (number % 5 == 4 or args.only == "C5"),
    }  # fmt: skip
    actions: list[Action] = []
    steps: list[list[Any]] = []
    difference, shortened = None, None
    with walking(folder, **options) as walk:
        rare = None if args.only else pairs
        for action in draw(rng, args.length, rare, FAVOURED.get(args.only), steps, lambda: walk.moved):
            actions.append(action)
            try:
                step = walk.do(action)
            except DifferenceError as error:
                difference = error
                break
            if step is not None:
                previous = steps[-1][0] if steps else ""
                pairs[previous, step.command] += step.counted
                steps.append([step.command, step.counted, step.compared, step.how, step.code])
        log, num_clean = walk.log, walk.cleans.num_built
    if difference is not None and args.shorten:
        kind = difference.kind
        shortened = shorten(actions, kind, lambda some: replay(folder, some, **options), args.shorten)
    return {
        "walk": number, "seed": f"{args.seed} {number}", "off": off, "steps": steps, "num_clean": num_clean,
        "kind": difference.kind if difference else None,
        "difference": str(difference) if difference else None, "actions": actions if difference else [],
        "shortened": shortened, "log": log if difference else [], "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def num_counted(walks: list[dict[str, Any]]) -> int:
    """Steps that count."""
    return sum(step[1] for made in walks for step in made["steps"])


def pairs_of(walks: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """How often each command came after each other one."""
    pairs: Counter[tuple[str, str]] = Counter()
    for made in walks:
        commands = ["", *(step[0] for step in made["steps"])]
        pairs.update((before, step[0]) for before, step in zip(commands, made["steps"], strict=False) if step[1])
    return pairs


def table_of(walks: list[dict[str, Any]]) -> str:
    """Ordered pairs of commands: the row came first."""
    pairs, names = pairs_of(walks), list(COMMANDS)
    lines = [f"\n| first | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    lines += [f"| {first} | {' | '.join(str(pairs[first, second]) for second in names)} |" for first in names]
    compared = sum(step[2] for made in walks for step in made["steps"])
    killed = sum(bool(step[3]) for made in walks for step in made["steps"])
    fewest = min(pairs[first, second] for first in names for second in names)
    return "\n".join([
        *lines,
        f"\n{len(walks)} walks, {num_counted(walks):,} counted steps, {compared:,} compared with a clean build, "
        f"{killed:,} killed, {sum(made['num_clean'] for made in walks):,} clean builds, "
        f"each pair at least {fewest} times, {sum(made['difference'] is not None for made in walks)} differences",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
