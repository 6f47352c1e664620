"""Measure packing: shards written from the pool, beside GNU tar copying the same bytes on the same disk, in one run.

    python tests/benchmarks/bench_pack.py [--images 40000] [--out tests/benchmarks/results/pack.md]

Makes a pool of random bytes with the sizes of web photos in a temporary folder (three times the bytes are needed
on disk), runs the stage's own steps in worker processes, and takes the median of the rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage, tables
from pipeline.captions.settings import TextSettings
from pipeline.stages.arrange import ShardGroup, arrange
from pipeline.stages.pack import write_shard
from pipeline.stages.tar import append_sample

WORKERS = 2
POOL_PART = 1000
MEAN_BYTES = 25_000


def main() -> None:
    """Make the pool, measure, write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/results/pack.md"))
    parser.add_argument("--dir", type=Path, help="where to work; a temporary folder when absent")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        rows = measure(Path(folder), args.images, args.rounds)
    load = os.getloadavg()[0]
    args.out.write_text(report(rows, args.images, args.rounds, load), encoding="utf-8")
    print(args.out.read_text(encoding="utf-8"))


def make_pool(folder: Path, num_images: int) -> dict[str, list[str]]:
    """Pool parts and the tables that pack reads."""
    rng = np.random.default_rng(0)
    (folder / "pool").mkdir(parents=True)
    sizes = np.clip(rng.lognormal(np.log(MEAN_BYTES) - 0.18, 0.6, num_images), 2_000, 400_000).astype(int)
    facts: list[dict[str, Any]] = []
    for start in range(0, num_images, POOL_PART):
        name = f"{start:08d}.tar"
        with (folder / "pool" / name).open("wb") as stream:
            position = 0
            for number in range(start, min(num_images, start + POOL_PART)):
                content = rng.bytes(int(sizes[number]))
                sample_id = hashlib.md5(str(number).encode()).hexdigest()
                block, (member,) = append_sample(position, sample_id, [("jpg", content)])
                stream.write(block)
                position += len(block)
                sha256 = hashlib.sha256(content).hexdigest()
                facts.append(
                    {"sample_id": sample_id, "image_id": sha256, "stored_sha256": sha256, "phash": number,
                     "width_px": 800, "height_px": 600, "stored_width_px": 341, "stored_height_px": 256,
                     "pool_file": name, "offset": member.offset, "length": member.length}
                )  # fmt: skip
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
        found[name] = [str(folder / f"{name}.parquet")]
    return found


def pack(folder: Path, found: dict[str, list[str]], target: str) -> dict[str, float]:
    """The stage's steps as the runner does them: arrange, shards in parallel, each published durably by the driver."""
    common = {"workdir": str(folder), "memory_gb": 2.0, "texts": TextSettings(), "extra_captions": []}
    started = time.monotonic()
    group = ShardGroup("train")
    result = arrange({**found, **common, "groups": [group], "max_samples": 1000, "max_bytes": None, "stem": target})
    arranged = time.monotonic()
    payloads = [
        {**common, "arranged": result.files[0].temp, "row_group": number, "shard": f"{target}-{number:06d}.tar",
         "shard_path": f"{target}/{target}-{number:06d}.tar", "stem": f"{target}-{number}"}
        for number in range(len(result.notes["shards"][group.table]))
    ]  # fmt: skip
    with ProcessPoolExecutor(WORKERS) as pool:
        for done in pool.map(write_shard, payloads):
            for file in done.files:
                storage.publish(file.temp, str(folder / file.path))
    return {"arrange": arranged - started, "shards": time.monotonic() - arranged}


def timed(work: Callable[[], object]) -> float:
    """Seconds of wall clock."""
    os.sync()
    started = time.monotonic()
    work()
    return time.monotonic() - started


def measure(folder: Path, num_images: int, rounds: int) -> dict[str, Any]:
    """Seconds of every way, median of the rounds; all ways in turn within a round."""
    found = make_pool(folder, num_images)
    seconds: dict[str, list[float]] = {}
    num_bytes = 0

    def note(name: str, value: float) -> None:
        seconds.setdefault(name, []).append(value)

    def run(command: str) -> Callable[[], object]:
        return lambda: subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], check=True, cwd=folder)

    for round_number in range(rounds):
        name = f"shards{round_number}"
        os.sync()
        steps = pack(folder, found, name)
        note("pack: arrange (tables)", steps["arrange"])
        note("pack: shards, durable", steps["shards"])
        note("pack: whole", steps["arrange"] + steps["shards"])
        num_bytes = sum(file.stat().st_size for file in (folder / name).iterdir())
        (folder / "copy").mkdir()
        note("tar | tar: copy the shards", timed(run(f"tar cf - -C {name} . | tar xf - -C copy")))
        shutil.rmtree(folder / "copy")
        (folder / "copy").mkdir()
        note("tar | tar, durable (sync)", timed(run(f"tar cf - -C {name} . | tar xf - -C copy; sync -f copy")))
        shutil.rmtree(folder / "copy")
        note("tar cf: one archive of the shards", timed(run(f"tar cf one.tar -C {name} .; sync one.tar")))
        (folder / "one.tar").unlink()
        if round_number == 0:
            (folder / "files").mkdir()
            for shard in sorted((folder / name).iterdir()):
                subprocess.run(["tar", "xf", shard, "-C", folder / "files"], check=True)
        note("tar cf: the samples as files", timed(run("tar cf one.tar -C files .; sync one.tar")))
        (folder / "one.tar").unlink()
        shutil.rmtree(folder / name)
        shutil.rmtree(folder / "tables", ignore_errors=True)
    return {"seconds": seconds, "num_bytes": num_bytes}


def report(found: dict[str, Any], num_images: int, rounds: int, load: float) -> str:
    """The results as Markdown."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    megabytes = found["num_bytes"] / 1e6
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    median = {name: statistics.median(values) for name, values in found["seconds"].items()}
    ours = median["pack: whole"]
    lines = [
        "# Packing: measured",
        "",
        f"{time.strftime('%Y-%m-%d')}, commit {commit.strip()}, {platform.machine()}, "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load average {load:.1f} at the end. "
        f"{num_images:,} images of "
        f"{MEAN_BYTES / 1000:.0f} kB on average, {megabytes:,.0f} MB of shards, {WORKERS} workers, median of {rounds} "
        f"rounds. Peak memory of one process: {peak:,.0f} MiB. Command: `python tests/benchmarks/bench_pack.py`.",
        "",
        "Packing reads every image from its place in the pool, checks its hash, hashes the shard, makes it durable.",
        "",
        "| what | s | MB/s | packing's speed over it |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {seconds:.2f} | {megabytes / seconds:,.0f} | {seconds / ours:.2f} |"
        for name, seconds in median.items()
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
