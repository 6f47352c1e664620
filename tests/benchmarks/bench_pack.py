"""Measure packing: shards written from the pool, beside GNU tar copying the same bytes on the same disk, in one run.

    python tests/benchmarks/bench_pack.py [--images 40000]

Makes a pool of random bytes with the sizes of web photos in a temporary folder (three times the bytes are needed
on disk), runs the stage's own steps in worker processes, and takes the median of the rounds.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.contract import tables
from manifests.stores import storage
from pipeline.judging.captions.settings import TextSettings
from pipeline.stages.pack.arrange import PlaceRange, ShardGroup
from pipeline.stages.pack.stage import STAGE, ShardInputs, write_shard
from pipeline.store.files import Files, RowGroup
from pipeline.store.tar import ArchiveWriter

sys.path.insert(0, str(Path(__file__).parents[1]))

from running import do_part, execution_of  # a helper of the tests

WORKERS = 2
POOL_PART = 100  # 200 files, three times what the reader keeps open: a pool of millions has its images as far apart
MEAN_BYTES = 25_000
STATES = ("warm", "cold")
REST_SECONDS = 2
OURS = "pack: tables joined, shards written, durable"
PEERS = {  # what copies the same bytes, and the command
    "tar cf - | tar xf -: copy the shards, durable": (
        "tar cf - -C shards . | tar xf - -C copy; find copy -type f -exec sync {} +"
    ),
    "the same, left in the page cache": "tar cf - -C shards . | tar xf - -C copy",
    "tar cf: one archive of the shards, durable": "tar cf copy/one.tar -C shards .; sync copy/one.tar",
    "tar cf: one archive of the samples as files, durable": "tar cf copy/one.tar -C files .; sync copy/one.tar",
}


def main() -> None:
    """Make the pool, measure, print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where to work; a temporary folder when absent")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        rows = measure(Path(folder), args.images, args.rounds)
    load = os.getloadavg()[0]
    print(report(rows, args.images, args.rounds, load))


def make_pool(folder: Path, num_images: int) -> dict[str, Files]:
    """Pool parts and the tables that pack reads."""
    rng = np.random.default_rng(0)
    (folder / "pool").mkdir(parents=True)
    sizes = np.clip(rng.lognormal(np.log(MEAN_BYTES) - 0.18, 0.6, num_images), 2_000, 400_000).astype(int)
    facts: list[dict[str, Any]] = []
    for start in range(0, num_images, POOL_PART):
        name = f"{start:08d}.tar"
        with (folder / "pool" / name).open("wb") as stream:
            archive = ArchiveWriter(stream)
            for number in range(start, min(num_images, start + POOL_PART)):
                content = rng.bytes(int(sizes[number]))
                sample_id = hashlib.md5(str(number).encode()).hexdigest()
                offset = archive.add(f"{sample_id}.jpg", content)
                sha256 = hashlib.sha256(content).hexdigest()
                facts.append(
                    {"sample_id": sample_id, "image_id": sha256, "stored_sha256": sha256, "phash": number,
                     "width_px": 800, "height_px": 600, "stored_width_px": 341, "stored_height_px": 256,
                     "pool_file": name, "offset": offset, "length": len(content)}
                )  # fmt: skip
            archive.finish()
    ids = [row["sample_id"] for row in facts]
    text = "A photograph of a plant with leaves and some words that tell of it"
    candidates = [
        {"sample_id": each, "source": "web", "domain": "plant" if at % 13 < 10 else "general", "record_key": each,
         "url": f"https://pictures.example.org/{each}.jpg", "caption": text, "taxon_family": "Fagaceae",
         "taxon_genus": "Quercus", "licence": "CC-BY-4.0", "creator": "Somebody"}
        for at, each in enumerate(ids)
    ]  # fmt: skip
    captions = [{"sample_id": each, "text": text, "texts": [], "licence_id": "CC-BY-4.0"} for each in ids]
    order = rng.permutation(num_images)
    draws = [
        {"sample_id": ids[at], "copy": 0, "domain": candidates[at]["domain"], "split": "train", "rank": rank}
        for rank, at in enumerate(order.tolist())
    ]
    found = {}
    for name, schema, rows in (
        ("facts", tables.FACTS, facts),
        ("candidates", tables.CANDIDATES, candidates),
        ("captions", tables.CAPTIONS, captions),
        ("draws", tables.DRAWS, draws),
    ):
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{name}.parquet")
        found[name] = Files((str(folder / f"{name}.parquet"),))
    return found


def pack(folder: Path, found: dict[str, Files], target: str) -> None:
    """The stage's steps as the runner does them: gather, arrange, shards in parallel, published by the driver."""
    group = ShardGroup("train")
    (gathered,) = do_part(STAGE, "gather", folder, 2.0, target, **found, texts=TextSettings(), by_bytes=False).files
    of_group = {"group": group, "places": PlaceRange(), "members": (), "max_samples": 1000, "max_bytes": None}
    result = do_part(STAGE, "arrange", folder, 2.0, target, gathered=Files((gathered.temp,)), **of_group)
    numbers = range(len(result.notes["shards"][group.table]))
    shards = [
        ShardInputs(RowGroup(result.files[0].temp, number, ""), f"{target}-{number:06d}.tar", target, ())
        for number in numbers
    ]
    runs = [execution_of(STAGE, "write", folder, 2.0, f"{target}-{number}") for number in numbers]
    with ProcessPoolExecutor(WORKERS) as pool:
        for done in pool.map(write_shard, shards, runs):
            for file in done.files:
                storage.publish(file.temp, str(folder / file.path))


def cpu_seconds() -> float:
    """CPU time of this process and of the children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def evict(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall clock and of CPU; the disk first writes what it has and rests."""
    os.sync()
    time.sleep(REST_SECONDS)
    started, started_cpu = time.monotonic(), cpu_seconds()
    work()
    return time.monotonic() - started, cpu_seconds() - started_cpu


def measure(folder: Path, num_images: int, rounds: int) -> dict[str, Any]:
    """(wall, CPU) seconds of every way by (state of the page cache, way), a pair a round; all ways in turn."""
    found = make_pool(folder, num_images)
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
    (folder / "files").mkdir()
    pack(folder, found, "shards")
    for shard in sorted((folder / "shards").iterdir()):
        subprocess.run(["tar", "xf", shard, "-C", folder / "files"], check=True)
    num_bytes = sum(file.stat().st_size for file in (folder / "shards").iterdir())
    for round_number, state in itertools.product(range(rounds), STATES):
        ways = [OURS, *PEERS]
        for way in ways[round_number % len(ways) :] + ways[: round_number % len(ways)]:
            (folder / "copy").mkdir()
            if way == OURS:
                reads, work = "pool", functools.partial(pack, folder, found, f"copy/{round_number}{state}")
            else:
                words = ["bash", "-c", f"set -o pipefail; {PEERS[way]}"]
                reads = "files" if " files " in PEERS[way] else "shards"
                work = functools.partial(subprocess.run, words, check=True, cwd=folder)
            if state == "cold":
                evict(folder / reads)
            seconds.setdefault((state, way), []).append(timed(work))
            shutil.rmtree(folder / "copy")
            shutil.rmtree(folder / "tables", ignore_errors=True)
    return {"seconds": seconds, "num_bytes": num_bytes}


def report(found: dict[str, Any], num_images: int, rounds: int, load: float) -> str:
    """The results as Markdown."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    megabytes = found["num_bytes"] / 1e6
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    lines = [
        "# Packing: measured",
        "",
        f"{time.strftime('%Y-%m-%d')}, commit {commit.strip()}, {platform.machine()}, {os.cpu_count()} cores, 24 GiB, "
        f"local disk, Python {platform.python_version()}, nothing else running, load average {load:.1f} at the end. "
        f"{num_images:,} images of {MEAN_BYTES / 1000:.0f} kB on average, {megabytes:,.0f} MB of shards, {WORKERS} "
        f"workers, median of {rounds} rounds. Peak memory of one process: {peak:,.0f} MiB. Command: "
        f"`python tests/benchmarks/bench_pack.py --images {num_images} --rounds {rounds}`.",
        "",
        "Packing reads every image from its place in the pool (in shard order, so all over the pool), checks its hash,",
        "writes txt and json beside it, hashes the shard and makes it durable (fsync). The last column is packing's",
        "speed over the other's; the target is 0.70 of copying the same bytes with tar. Warm: what is read lies in the",
        "page cache. Cold: it was dropped from it before. The disk is synced and rests 2 s before each.",
        "",
        "| page cache | what | s (all rounds) | MB/s | CPU s | packing over it |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for (state, way), pairs in found["seconds"].items():
        wall, cpu = (statistics.median(values) for values in zip(*pairs, strict=True))
        ours = statistics.median(wall for wall, _ in found["seconds"][state, OURS])
        told = f"{wall:.2f} ({min(pairs)[0]:.2f} to {max(pairs)[0]:.2f})"
        name = way.replace("|", "\\|")
        lines.append(f"| {state} | {name} | {told} | {megabytes / wall:,.0f} | {cpu:.2f} | {wall / ours:.2f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
