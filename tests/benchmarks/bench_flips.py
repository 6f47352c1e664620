"""Flip bits in every kind of file of a work folder: does `plantmix repair` name each, and does it cure it?

    python tests/benchmarks/bench_flips.py --flips 1000
    python tests/benchmarks/bench_flips.py --flips 10 --alone    # one flip a repair

Builds a small work folder over a loopback web (24 pictures, three releases, one of them of a takedown). A batch flips
one random bit in each of several files, as a bad disk does (the times of files stay), and runs the command once. It
counts when the deep check that the command begins with names every file, when all is whole afterwards, and when every
release has its bytes again. Flips in the takedown list and in a takedown's record may be lost: then the command must
say so and still name that file, and every other file must be cured. Any other batch is taken apart, and each of its
flips is tried alone, in a fresh copy of the folder, and counted by that.

A batch must not cure what a flip alone would leave, so files whose repair gives others a second chance are apart:

- Damaged tables make the command run a build and try the releases again: those tables share a batch with each other
  alone. Each is forgotten by its name before the build, and a sealed stage is made again for its own loss alone.
- Tables of downloads are tried one by one. They are mended from other tables, and only some of them need a build.
- A takedown's version is cut anew as a whole, which moves the pointers: LATEST is not in its batch. Its record is not
  either: without it no other file of that version can be checked.
- Database, snapshot and journal stand in for each other: no two of them share a batch.
- Files that one piece of work makes are made again when any of them is named, so each of them must be named.
- A batch that asks the web is taken apart, for pictures of the web would make up for those of pool and shards.

Prints a table.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from damaging import build_small, contents, counting_web, flip_bit, kinds_of, make_pictures  # noqa: E402

from pipeline.cli import main as plantmix  # noqa: E402
from pipeline.commands.verify import MAX_SHOWN  # noqa: E402
from pipeline.releases.folder_checks import FolderCheck  # noqa: E402

MAY_BE_LOST = {"takedowns.jsonl", "takedown release.json"}
TOGETHER = {  # kind: batch, where the name does not say it
    "catalog.snapshot": "takedown",
    "catalog.journal": "pool and pointers",
    "table fetched": "downloads",
    "table pack": "takedown",
    "takedown release.json": "records",
} | dict.fromkeys(("shard", "pool", "LATEST", "status.json", "takedowns.jsonl"), "pool and pointers")


@dataclass(frozen=True)
class Flip:
    """One bit of one file; the seed says which."""

    kind: str
    file: str
    seed: int


class Trials:
    """Damage to copies of one work folder, and how it ended."""

    def __init__(self, work: Path, requests: list[str], rng: random.Random) -> None:
        self._work, self._requests, self._rng = work, requests, rng
        self._kinds = kinds_of(work)
        self._releases = contents(work / "releases")
        self.ends: dict[str, Counter[str]] = {kind: Counter() for kind in self._kinds}
        self.num_repairs = self.num_apart = self.num_asked = 0

    def batches(self, most: int, alone: bool) -> Iterator[list[Flip]]:
        """One round: batches in which each kind that still lacks flips has one, or two in different files."""
        kinds: dict[str, list[str]] = {}
        for kind in self._kinds:
            if self.ends[kind].total() < most:
                kinds.setdefault(kind if alone else batch_of(kind), []).append(kind)
        for name, members in kinds.items():
            num = 1 if alone or name == "downloads" else 2
            batch = [flip for kind in members for flip in self._draw(kind, min(num, most - self.ends[kind].total()))]
            assert len(batch) <= MAX_SHOWN, f"{name}: the command names {MAX_SHOWN} files, {len(batch)} are damaged"
            yield batch

    def _draw(self, kind: str, num: int) -> list[Flip]:
        files = self._kinds[kind]
        if kind in ("shard", "pool"):  # a picture that is damaged in both is asked of the web
            num = 1
        chosen = self._rng.sample(files, min(num, len(files)))
        return [Flip(kind, str(path.relative_to(self._work)), self._rng.getrandbits(32)) for path in chosen]

    def count(self, batch: Sequence[Flip]) -> None:
        """Try flips together; one by one where they are not all cured, or lost by nature and named."""
        ends, said = self._try(batch)
        if len(batch) > 1 and ends is None:
            self.num_apart += 1
            for flip in batch:
                self.count([flip])
        elif ends is None:
            (flip,) = batch
            self.ends[flip.kind]["neither"] += 1
            print(f"{flip}: {said}", file=sys.stderr, flush=True)
        else:
            for flip, end in zip(batch, ends, strict=True):
                self.ends[flip.kind][end] += 1

    def _try(self, batch: Sequence[Flip]) -> tuple[list[str] | None, str]:
        """How each flip ended, "cured" or "lost", None where one did otherwise; and what the command said."""
        self.num_repairs += 1
        copy = self._work.with_name("copy")
        shutil.copytree(self._work, copy, copy_function=shutil.copy2)
        for flip in batch:
            flip_bit(copy / flip.file, random.Random(flip.seed))
        self._requests.clear()
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = plantmix(["--quiet", "repair", str(copy), "--yes"])
        said = output.getvalue()
        left = {finding.file for finding in FolderCheck(str(copy), deep=True).run().findings} if code else set()
        releases = contents(copy / "releases")
        shutil.rmtree(copy)
        findings = "".join(said.split("\n\n")[1:2])  # between the first line and what mends them
        is_named = all(f"\n{flip.file}: " in f"\n{findings}" for flip in batch)
        ends = ["lost" if flip.file in left and flip.kind in MAY_BE_LOST else "cured" for flip in batch]
        lost = {flip.file for flip, end in zip(batch, ends, strict=True) if end == "lost"}
        differ = {f"releases/{name}" for name, content in self._releases.items() if releases.pop(name, None) != content}
        is_alone = {batch_of(flip.kind) for flip in batch} == {"downloads"}
        self.num_asked += len(self._requests)
        is_well = is_named and code == bool(lost) and left == lost and differ <= lost and not releases
        return (ends if is_well and (is_alone or not self._requests) else None), said


def batch_of(kind: str) -> str:
    """Which kinds are damaged together."""
    if kind in TOGETHER:
        return TOGETHER[kind]
    return next((name for name in ("takedown", "table") if kind.startswith(name)), "records")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=2, help="flips of each kind")
    parser.add_argument("--alone", action="store_true", help="one flip a repair")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no round later than this")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        make_pictures(folder / "web")
        with counting_web(folder / "web") as (root, requests):
            with contextlib.redirect_stdout(io.StringIO()):
                work = build_small(folder, root)
            trials = Trials(work, requests, random.Random(args.seed))
            while time.monotonic() - began < 60 * args.minutes:
                round_ = list(trials.batches(args.flips, args.alone))
                if not round_:
                    break
                for batch in round_:
                    trials.count(batch)
                if trials.num_repairs % 100 < len(round_):
                    print(f"{trials.num_repairs} repairs: {total_of(trials)}", file=sys.stderr, flush=True)
    print("| kind | flips | cured | named as lost | neither |\n|---|---:|---:|---:|---:|")
    for kind, ends in [*sorted(trials.ends.items()), ("all", total_of(trials))]:
        print(f"| {kind} | {ends.total():,} | {ends['cured']:,} | {ends['lost']:,} | {ends['neither']:,} |")
    print(
        f"\n{trials.num_repairs:,} repairs, {trials.num_apart:,} batches taken apart, {trials.num_asked:,} requests; "
        f"{time.monotonic() - began:,.0f} s, {time.process_time():,.0f} s of processor, load {os.getloadavg()[0]:.1f}"
    )


def total_of(trials: Trials) -> Counter[str]:
    """Ends of all kinds."""
    return sum(trials.ends.values(), Counter())


if __name__ == "__main__":
    main()
