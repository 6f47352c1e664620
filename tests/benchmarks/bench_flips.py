"""Flip bits in every kind of file of a work folder: how many does `plantmix verify` name, how many does `repair` cure?

    python tests/benchmarks/bench_flips.py --flips 1000 --repairs 20

Builds a small work folder over a loopback web (24 pictures, three releases, one of them of a takedown). A trial flips
one random bit in one random file of each kind, all at once, as a bad disk does (the times of files stay), and looks for
each of those files among the findings of a deep check. The three files of the catalogue stand in for each other, so
each of them has trials of its own, in which DuckDB is not asked (it finds damage in the blocks that it uses). Then some
trials are repaired, and the releases compared byte for byte. The damaged record of a takedown's version and the
takedown list are not repaired: `verify` names their cost. Prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from damaging import build_small, contents, counting_web, flip_bit, kinds_of, make_pictures  # noqa: E402

from pipeline.cli import main as plantmix  # noqa: E402
from pipeline.releases.folder_checks import Finding, FolderCheck  # noqa: E402

VOUCHING = ("catalog.duckdb", "catalog.snapshot", "catalog.journal")
NOT_REPAIRED = ("takedown release.json", "takedowns.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=30, help="flips of each kind")
    parser.add_argument("--repairs", type=int, default=2, help="trials that are repaired")
    args = parser.parse_args()
    began, rng = time.monotonic(), random.Random(0)
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        make_pictures(folder / "web")
        with counting_web(folder / "web") as (root, _):
            with contextlib.redirect_stdout(io.StringIO()):
                work = build_small(folder, root)
            flipped, found = find_flips(work, args.flips, rng)
            print("| kind | flips | named |\n|---|---|---|")
            for kind, num in sorted(flipped.items()):
                print(f"| {kind} | {num:,} | {found[kind]:,} |")
            print(f"\n{time.monotonic() - began:,.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
            with contextlib.redirect_stdout(io.StringIO()):
                cured = sum(repair(work, folder / "copy", number, rng) for number in range(args.repairs))
    print(f"{cured} of {args.repairs} repairs gave the same releases, byte for byte")


def find_flips(work: Path, num: int, rng: random.Random) -> tuple[Counter[str], Counter[str]]:
    """How many bits were flipped, and how many of those files were named, by kind."""
    check = FolderCheck(str(work), deep=True)
    _, rows = check._check_catalogue()
    assert rows is not None
    flipped: Counter[str] = Counter()
    found: Counter[str] = Counter()

    def try_flips(kinds: dict[str, list[Path]], look: Callable[[], Iterable[Finding]]) -> None:
        """Flip a bit in one file of each kind, look, and put the sound files back."""
        paths = {kind: rng.choice(paths) for kind, paths in kinds.items()}
        sound = {path: (path.read_bytes(), path.stat()) for path in paths.values()}
        for path in paths.values():
            flip_bit(path, rng)
        named = {finding.file for finding in look()}
        flipped.update(paths.keys())
        found.update(kind for kind, path in paths.items() if str(path.relative_to(work)) in named)
        for path, (content, times) in sound.items():
            path.write_bytes(content)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    kinds, database = kinds_of(work), work / VOUCHING[0]
    for _ in range(num):
        for name in VOUCHING:
            try_flips({name: kinds[name]}, lambda: check._compare_with_snapshot(database, rows["snapshots"]))
    with mock.patch.object(check, "_check_catalogue", side_effect=lambda: ([], rows)):
        record = "takedown release.json"  # without it the other files of that release cannot be checked
        others = {kind: paths for kind, paths in kinds.items() if kind not in (*VOUCHING, record)}
        for _ in range(num):
            try_flips(others, lambda: check.run().findings)
            try_flips({record: kinds[record]}, lambda: check._check_release(kinds[record][0].parent.name, rows))
    return flipped, found


def repair(work: Path, copy: Path, number: int, rng: random.Random) -> bool:
    shutil.copytree(work, copy, copy_function=shutil.copy2)
    for kind, paths in kinds_of(copy).items():
        if kind in NOT_REPAIRED or (kind in VOUCHING and kind != VOUCHING[number % len(VOUCHING)]):
            continue
        if kind.startswith("table"):  # older versions are made again when a build goes back to them
            paths = [max(paths, key=lambda path: path.stat().st_mtime_ns)]
        flip_bit(rng.choice(paths), rng)
    code = plantmix(["--quiet", "repair", str(copy), "--yes"])
    same = code == 0 and contents(copy / "releases") == contents(work / "releases")
    shutil.rmtree(copy)
    return same


if __name__ == "__main__":
    main()
