"""Kill builds at random moments, hundreds of times: are the releases those of an undisturbed build?

    python tests/benchmarks/bench_soak.py --kills 200 --seed 1 --minutes 60

A life is: build (4 of 90 addresses fail), retry, build, takedown, build with another ratio, build as before. Its
commands are killed up to five times each and then run again, some in one process, some in several, some on Ray. See
tests/soaking.py for what is killed. Ends after so many kills or minutes, when the life that runs is over, and prints a
table. A life that ends otherwise than the undisturbed one ends the program, and its work folder is kept.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from soaking import PROCESSES, RAY, STEPS, DivergenceError, Harm, Launcher, Life, Soil  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no life later than this")
    parser.add_argument("--ray-share", type=float, default=0.35, help="of builds that run on Ray")
    parser.add_argument(
        "--processes-share",
        type=float,
        help="of builds that run in several processes (0.3, or what Ray leaves)",
    )
    args = parser.parse_args()
    if args.processes_share is None:
        args.processes_share = min(0.3, 1 - args.ray_share)
    if min(args.ray_share, args.processes_share) < 0 or args.ray_share + args.processes_share > 1:
        parser.error("--ray-share and --processes-share are parts of all builds: neither below 0, not above 1 together")
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="plantmix-soak-"))
    harms: list[Harm] = []
    num_lives = num_again = 0
    shares = {RAY: args.ray_share, PROCESSES: args.processes_share}
    with Soil(folder).growing() as soil, Launcher() as launcher:
        durations: dict[tuple[str, str], float] = {}
        undisturbed = Life(soil, launcher, folder / "undisturbed", random.Random(0), durations)
        expected = undisturbed.live(lambda: 0)
        print(f"undisturbed: {len(expected)} files in releases, {sum(undisturbed.asked.values())} requests", flush=True)
        while len(harms) < args.kills and time.monotonic() - began < 60 * args.minutes:
            rng = random.Random(f"{args.seed} {num_lives}")
            life = Life(soil, launcher, folder / f"life-{num_lives}", rng, durations)
            started = time.monotonic()
            try:
                found = life.live(lambda rng=rng: rng.randrange(1, 6), shares)
                if found != expected:
                    differ = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
                    raise DivergenceError(f"other releases: {sorted(differ)[:10]}")
                life.check_whole()
            except DivergenceError as error:
                print(f"life {num_lives}, seed {args.seed}: {error}\nkills: {life.harms}\nkept: {life.work}")
                return 1
            harms += life.harms
            num_again += life.num_excess
            num_lives += 1
            print(
                f"life {num_lives}: {len(life.harms)} kills, {life.num_excess} requests lost with parts in flight, "
                f"{time.monotonic() - started:.0f} s, load {os.getloadavg()[0]:.1f}; {len(harms)} kills so far",
                flush=True,
            )
            shutil.rmtree(life.work)
    print(table_of(harms))
    print(
        f"\n{num_lives} lives, {len(harms)} kills, 0 other releases; {num_again} requests were made again, "
        f"all of parts in flight; {time.monotonic() - began:,.0f} s"
    )
    shutil.rmtree(folder)
    return 0


def table_of(harms: list[Harm]) -> str:
    """How often each target was killed in each step."""
    counts = Counter((harm.target, harm.step) for harm in harms)
    lines = [f"\n| killed | {' | '.join(STEPS)} | all |", f"|---|{'---:|' * (len(STEPS) + 1)}"]
    for target in sorted({harm.target for harm in harms}):
        numbers = [counts[target, step] for step in STEPS]
        lines.append(f"| {target} | {' | '.join(map(str, numbers))} | {sum(numbers)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
