"""Measure the mix stage on metadata alone: decisions and candidates of up to 13 M rows to draws, time and memory.

    python tests/benchmarks/bench_mix.py [--rows 1000000,4000000,13000000] [--out tests/benchmarks/results/mix.md]

10 of 13 rows are plants from two sources, the others general; 10 : 3 is drawn with some repeats of plants and 20,000
held out. Each size runs in a process of its own, so that its peak memory can be told.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.runner.work import Execution
from pipeline.stages.mix import MixInputs, Stratum, draw
from pipeline.store.files import Files
from pipeline.store.writing import private_file

PART_ROWS = 500_000


def main() -> None:
    """Make the tables of each size, run the stage, write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="1000000,4000000,13000000")
    parser.add_argument("--memory-gb", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/results/mix.md"))
    parser.add_argument("--one", type=int, help="run one size and print its figures")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.memory_gb)))
        return
    found = []
    for num in map(int, args.rows.split(",")):
        command = [sys.executable, __file__, "--one", str(num), "--memory-gb", str(args.memory_gb)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found.append(json.loads(told.splitlines()[-1]))
        print(found[-1], flush=True)
    args.out.write_text(report(found, args.memory_gb), encoding="utf-8")


def make_tables(folder: Path, num_rows: int) -> dict[str, Files]:
    """Candidates and decisions as Parquet parts; nine of ten rows were kept."""
    import duckdb

    connection = duckdb.connect()
    paths: dict[str, list[str]] = {"candidates": [], "decisions": []}
    for start in range(0, num_rows, PART_ROWS):
        stop = min(num_rows, start + PART_ROWS)
        for name, columns in (
            ("candidates", "md5(i::VARCHAR) AS sample_id, "
             "if(i % 13 < 7, 'gbif', if(i % 13 < 10, 'herbaria', 'web')) AS source, "
             "if(i % 13 < 10, 'plant', 'general') AS domain, 'https://a.example/' || i AS url, "
             "NULL::VARCHAR AS group_id"),
            ("decisions", "md5(i::VARCHAR) AS sample_id, i % 10 <> 0 AS keep"),
        ):  # fmt: skip
            path = str(folder / f"{name}-{start:09d}.parquet")
            rows = f"SELECT {columns} FROM range({start}, {stop}) t(i)"
            connection.execute(f"COPY ({rows}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
            paths[name].append(path)
    connection.close()
    return {name: Files(tuple(listed)) for name, listed in paths.items()}


def measure(num_rows: int, memory_gb: float) -> dict[str, Any]:
    """Seconds and peak memory of one draw."""
    kept_plants, kept_general = int(num_rows * 0.9 * 10 / 13) - 10_000, int(num_rows * 0.9 * 3 / 13) - 10_000
    general = kept_general - 1000
    plants = round(general * 10 / 3)
    with tempfile.TemporaryDirectory() as folder:
        inputs = MixInputs(
            **make_tables(Path(folder), num_rows),
            strata=(
                Stratum("plant", "gbif", plants // 2, 5_000),
                Stratum("plant", "herbaria", plants - plants // 2, 5_000),
                Stratum("general", None, general, 10_000),
            ),
            mixture={},
            seed=0,
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started, started_cpu = time.monotonic(), time.process_time()
        result = draw(inputs, Execution(folder, memory_gb, "x", None))
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - started_cpu
        (file,) = result.files
        assert private_file(file.table, file.path, file.temp, file.num_rows).sha256 == file.sha256
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "rows": num_rows,
        "drawn": file.num_rows,
        "plant_epochs": plants / kept_plants,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mib": peak,
        "before_mib": before,
        "load": os.getloadavg()[0],
    }


def drawn_of(folder: Path, num_rows: int, plants: int, general: int) -> set[tuple[str, int, str]]:
    """(sample, copy, split) of a draw from the first `num_rows` rows; the sources of a domain are one pool."""
    folder.mkdir()
    strata = (Stratum("plant", None, plants, 500), Stratum("general", None, general, 500))
    inputs = MixInputs(**make_tables(folder, num_rows), strata=strata, mixture={}, seed=0)
    draws = draw(inputs, Execution(str(folder), 1.0, "x", None)).files[0].temp
    rows = pq.read_table(draws, columns=["sample_id", "copy", "split"])
    return set(zip(*(column.to_pylist() for column in rows.columns), strict=True))


def moves() -> list[str]:
    """Table lines: how many drawn samples leave and come when one thing changes, beside the least that can."""
    changes = (
        ("ratio 60 : 40 to 61 : 39, no repeats", (100_000, 30_000, 20_000), (100_000, 30_500, 19_500)),
        ("ratio 90 : 10 to 91 : 9, plants 1.3 times", (100_000, 90_000, 10_000), (100_000, 91_000, 9_000)),
        ("1 % more candidates, same counts", (100_000, 30_000, 20_000), (101_000, 30_000, 20_000)),
    )
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, before, after) in enumerate(changes):
            old, new = (drawn_of(Path(folder, f"{number}{at}"), *sizes) for at, sizes in (("a", before), ("b", after)))
            least = sum(max(0, after[at] - before[at]) for at in (1, 2))
            lines.append(f"| {name} | {len(old):,} | {len(old - new):,} | {len(new - old):,} | {least:,} |")
    return lines


def report(found: list[dict[str, Any]], memory_gb: float) -> str:
    """The results as Markdown."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    sizes = ",".join(str(row["rows"]) for row in found)
    lines = [
        "# Mixing: measured",
        "",
        f"{time.strftime('%Y-%m-%d')}, commit {commit.strip()}, {platform.machine()}, "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, nothing else running (load beside each row), "
        f"`memory_gb: {memory_gb:g}`. Command: "
        f"`python tests/benchmarks/bench_mix.py --rows {sizes}`. The target is 13 M rows in 120 s and 8 GiB.",
        "",
        "Reading decisions and candidates, drawing two weighted sources and a pool, the global shuffle, and the draws "
        "as one Parquet file.",
        "",
        "| candidates | drawn | s | CPU s | peak MiB | of which before the draw | load |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['rows']:,} | {row['drawn']:,} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | "
        f"{row['peak_mib']:,.0f} | {row['before_mib']:,.0f} | {row['load']:.1f} |"
        for row in found
    ]
    lines += [
        "",
        "What moves when one thing changes (100,000 candidates, a copy or a split counts as a sample of its own). New",
        "candidates must be drawn like the others, so what they move is their fair part, about a hundredth, and not 0.",
        "",
        "| change | drawn | leave | come | least by the counts |",
        "|---|---:|---:|---:|---:|",
        *moves(),
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
