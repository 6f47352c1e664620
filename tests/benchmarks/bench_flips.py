"""Flip bits in every kind of file of a work folder: how many does `plantmix verify` name, how many does `repair` cure?

    python tests/benchmarks/bench_flips.py --flips 1000 --repairs 20
    python tests/benchmarks/bench_flips.py --flips 0 --repairs 25    # the repairs alone

Builds a small work folder over a loopback web (24 pictures, three releases, one of them of a takedown). A trial flips
one random bit in one random file of each kind, all at once, as a bad disk does (the times of files stay), and looks for
each of those files among the findings of a deep check. The three files of the catalogue stand in for each other, so
each of them has trials of its own, in which DuckDB is not asked (it finds damage in the blocks that it uses).

A repair flips one bit in one file of one kind and runs the command. The flip is cured when the command says that all is
whole and every release has its bytes again. It is lost when the command says so and still names the file. Requests to
the web are counted. Prints a table.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=30, help="flips of each kind")
    parser.add_argument("--repairs", type=int, default=1, help="repairs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began, rng = time.monotonic(), random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        make_pictures(folder / "web")
        with counting_web(folder / "web") as (root, requests):
            with contextlib.redirect_stdout(io.StringIO()):
                work = build_small(folder, root)
            flipped, found = find_flips(work, args.flips, rng)
            took = f"{time.monotonic() - began:,.0f} s"
            requests.clear()
            repaired: dict[str, Counter[str]] = {kind: Counter() for kind in kinds_of(work)}
            for number in range(args.repairs):
                for kind, ends in repaired.items():
                    ends[repair(work, folder / "copy", kind, rng)] += 1
                print(f"{number + 1} repairs of each kind: {dict(sum(repaired.values(), Counter()))}", file=sys.stderr)
    print("| kind | flips | named | repairs | cured | named as lost |\n|---|---:|---:|---:|---:|---:|")
    for kind, ends in sorted(repaired.items()):
        print(f"| {kind} | {flipped[kind]:,} | {found[kind]:,} | {ends.total()} | {ends['cured']} | {ends['lost']} |")
    totals = sum(repaired.values(), Counter())
    counts = f"{totals.total()} | {totals['cured']} | {totals['lost']}"
    print(
        f"| all | {flipped.total():,} | {found.total():,} | {counts} |\n\nflips {took}"
        f", all {time.monotonic() - began:,.0f} s, {time.process_time():,.0f} s of processor, load "
        f"{os.getloadavg()[0]:.1f}; the repairs asked the web for {len(requests)} pictures"
    )


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


def repair(work: Path, copy: Path, kind: str, rng: random.Random) -> str:
    """Flip a bit in a file of a kind, in a copy of the work folder, and repair it: cured, lost or neither."""
    shutil.copytree(work, copy, copy_function=shutil.copy2)
    path = rng.choice(kinds_of(copy)[kind])
    flip_bit(path, rng)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = plantmix(["--quiet", "repair", str(copy), "--yes"])
    if code == 0 and contents(copy / "releases") == contents(work / "releases"):
        end = "cured"
    else:
        named = {finding.file for finding in FolderCheck(str(copy), deep=True).run().findings}
        end = "lost" if code == 1 and named == {str(path.relative_to(copy))} else "neither"
    if end == "neither":
        print(f"{path.relative_to(copy)}: {said.getvalue()}", file=sys.stderr)
    shutil.rmtree(copy)
    return end


if __name__ == "__main__":
    main()
