"""What a build pays so that damage shows: content checks, journal and snapshots, in seconds of processor time.

    python tests/benchmarks/bench_checks.py --pictures 100000
    python tests/benchmarks/bench_checks.py --pictures 10000 --rounds 3

Makes shards of tiny distinct pictures (32 x 32) and builds a release of them inline, each build in a process of its
own, by turns with the checks and without them (patched out in that process alone). Where the checks are on, the time
spent within them is summed too: that figure does not depend on what else the machine does. Prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from unittest import mock

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from PIL import Image  # noqa: E402

from manifests import catalog, catalog_file  # noqa: E402
from pipeline.cli import main as plantmix  # noqa: E402
from pipeline.runner.checking import ContentChecks  # noqa: E402

PER_SHARD = 1000
CHECKS = (  # what each is replaced by in a build without it
    (ContentChecks, "require", lambda _, files: files),
    (ContentChecks, "trust", lambda *_: None),
    (catalog, "append_to_journal", lambda *_: None),
    (catalog, "write_snapshot", lambda *_: None),
    (catalog_file, "write_snapshot", lambda *_: None),
    (catalog, "note_closed", lambda *_: None),
    (catalog.Catalog, "drop_lost_parts", lambda _: {}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=["with", "without"], help="build in this process, over --folder")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(build(args.folder, args.only == "with")))
        return
    folder = Path(tempfile.mkdtemp())
    make_shards(folder / "shards", args.pictures)
    print(f"{args.pictures:,} pictures\n\n| round | checks | whole, CPU s | within the checks, CPU s |")
    print("|---|---|---:|---:|", flush=True)
    for number in range(args.rounds):
        for kind in ("without", "with") if number % 2 else ("with", "without"):
            command = [sys.executable, __file__, "--only", kind, "--folder", str(folder)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            whole, within = json.loads(done.stdout.splitlines()[-1])
            share = f"{within:.2f} ({within / (whole - within):.2%} of the rest)" if kind == "with" else ""
            print(f"| {number + 1} | {kind} | {whole:.1f} | {share} |", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f}")
    shutil.rmtree(folder)


def make_shards(folder: Path, num: int) -> None:
    """Distinct pictures with a text each, in tars."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for first in range(0, num, PER_SHARD):
        with tarfile.open(folder / f"{first // PER_SHARD:05d}.tar", "w") as tar:
            for number in range(first, min(num, first + PER_SHARD)):
                out = io.BytesIO()
                Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(out, "JPEG", quality=60)
                text = f"a small square of many colours, number {number}".encode()
                for name, content in ((f"{number:08d}.jpg", out.getvalue()), (f"{number:08d}.txt", text)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def build(folder: Path, is_checked: bool) -> tuple[float, float]:
    """Processor seconds of a build of this process, and of the checks within it."""
    source = {"name": "tiny", "domain": "plant", "webdataset": {"path": str(folder / "shards")}}
    config = {
        "name": "tiny",
        "work_dir": str(folder / "work"),
        "sources": [source | {"defaults": {"licence": "CC0-1.0"}}],
        "dedup": {"radius": 0},
        "caption": {"rules": [{}]},
        "mix": {"ratio": {"plant": 1}},
        "run": {"executor": "inline"},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    within = [0.0]
    with contextlib.ExitStack() as patches:
        for owner, name, nothing in CHECKS:
            found = timed(getattr(owner, name), within) if is_checked else nothing
            patches.enter_context(mock.patch.object(owner, name, found))
        assert plantmix(["--quiet", "build", str(path)]) == 0
    whole = time.process_time()
    shutil.rmtree(folder / "work")
    return whole, within[0]


def timed(function: object, within: list[float]) -> object:
    """The function, which adds the processor time of its thread to `within`."""

    def call(*arguments: object) -> object:
        started = time.thread_time()
        try:
            return function(*arguments)
        finally:
            within[0] += time.thread_time() - started

    return call


if __name__ == "__main__":
    main()
