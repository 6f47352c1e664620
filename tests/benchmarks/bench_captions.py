"""Captions at scale: rows a second of cleaning and measuring, and the real judge step over measured Parquet.

    python tests/benchmarks/bench_captions.py prepare FOLDER --captions CAPTIONS.parquet --rows 13000000
    python tests/benchmarks/bench_captions.py measure FOLDER
    python tests/benchmarks/bench_captions.py judge FOLDER

`prepare` repeats the captions of the file with variations (as they are, with a number behind, two joined to one of web
length) and leaves candidates and facts as Parquet in FOLDER, in row groups of 100,000. `measure` cleans and measures
them row group by row group, as the stage does, and leaves the captions in FOLDER. `judge` runs the
caption stage's repeats and judge steps over them twice, with one threshold changed. A rate is rows by CPU second of
measuring alone (one thread); reading and writing are in the wall time.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests import tables
from pipeline.captions.measure import measure_captions
from pipeline.captions.settings import CaptionSettings
from pipeline.runner.work import Execution
from pipeline.stages.caption import JudgeInputs, RepeatsInputs, count_repeats, judge
from pipeline.store.files import Files

PART_ROWS = 100_000
NUM_HOSTS = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "measure", "judge"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captions", help="parquet with a column caption")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--memory-gb", type=float, default=4.0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    print(f"load average at the start {os.getloadavg()[0]:.1f}")
    if given.what == "prepare":
        prepare(given.folder, given.captions, given.rows)
    elif given.what == "measure":
        run_measure(given.folder)
    else:
        run_judge(given.folder, given.memory_gb)
    print(f"load average at the end {os.getloadavg()[0]:.1f}")


def prepare(folder: Path, source: str, num_rows: int) -> None:
    captions = [text for text in pq.read_table(source, columns=["caption"])["caption"].to_pylist() if text]
    with (
        pq.ParquetWriter(folder / "candidates.parquet", tables.CANDIDATES, compression="zstd") as candidates_file,
        pq.ParquetWriter(folder / "facts.parquet", tables.FACTS, compression="zstd") as facts_file,
    ):
        for first in range(0, num_rows, PART_ROWS):
            candidates = candidates_of(captions, first)
            candidates_file.write_table(candidates)
            facts_file.write_table(facts_of(candidates, first))


def run_measure(folder: Path) -> None:
    candidates = pq.ParquetFile(folder / "candidates.parquet")
    writer = pq.ParquetWriter(folder / "captions.parquet", tables.CAPTIONS, compression="zstd")
    used, num_rows, num_chars, peaks = 0.0, 0, 0, []
    started = time.monotonic()
    for row_group in range(candidates.num_row_groups):
        rows = candidates.read_row_group(row_group)
        before = time.process_time()
        measured = measure_captions(rows)
        used += time.process_time() - before
        num_rows += rows.num_rows
        num_chars += pa.compute.sum(measured["num_chars"]).as_py()
        peaks.append(peak_mib())
        writer.write_table(measured)
    writer.close()
    print(
        f"{num_rows:,} rows of {num_chars / num_rows:.0f} characters in {used:.1f} s of CPU, "
        f"{num_rows / used:,.0f} rows/s a core; {time.monotonic() - started:.1f} s of wall time in all; "
        f"peak {peaks[len(peaks) // 10]:,.0f} MiB after a tenth, {peaks[-1]:,.0f} MiB at the end"
    )


def run_judge(folder: Path, memory_gb: float) -> None:
    for min_words in (3, 4):
        rules: list[dict[str, Any]] = [
            {"domains": ["plant"], "preset": "plant"},
            {"preset": "general", "min_words": min_words, "languages": {}, "min_side_px": 200, "max_aspect_ratio": 3.0},
        ]
        settings = CaptionSettings.model_validate({"rules": rules})
        run = Execution(str(folder / "work"), memory_gb, f"bench-{min_words}", None)
        candidates, facts, captions = (
            Files((str(folder / f"{name}.parquet"),)) for name in ("candidates", "facts", "captions")
        )
        started, used = time.monotonic(), time.process_time()
        repeats = count_repeats(RepeatsInputs(facts, captions, settings.rules[1].thresholds()["max_repeats"]), run)
        repeated = Files((repeats.files[0].temp,))
        result = judge(JudgeInputs(candidates, facts, captions, repeated, settings.rules), run)
        assert result.funnel is not None
        print(
            f"judge min_words {min_words}: {result.funnel.num_in:,} rows in {time.monotonic() - started:.1f} s "
            f"({time.process_time() - used:.1f} s of CPU), peak {peak_mib():,.0f} MiB; {result.funnel}"
        )
        for file in (*repeats.files, *result.files):
            Path(file.temp).unlink()


def candidates_of(captions: list[str], first: int) -> pa.Table:
    """`PART_ROWS` candidates; the caption of a row depends on its number alone."""
    rows = range(first, first + PART_ROWS)
    columns = {name: pa.nulls(PART_ROWS, tables.CANDIDATES.field(name).type) for name in tables.CANDIDATES.names}
    columns |= {
        "sample_id": pa.array([hashlib.blake2b(str(row).encode(), digest_size=16).hexdigest() for row in rows]),
        "source": pa.array([("gbif", "web")[row % 4 == 0] for row in rows]),
        "domain": pa.array([("plant", "general")[row % 4 == 0] for row in rows]),
        "caption": pa.array([caption_of(captions, row) for row in rows]),
    }
    return pa.table(columns, schema=tables.CANDIDATES)


def caption_of(captions: list[str], row: int) -> str:
    text = captions[row * 7919 % len(captions)]
    if row % 3 == 0:
        return text
    if row % 3 == 1:
        return f"{text} {row}"
    return f"{text}, {captions[row * 104_729 % len(captions)]} by the river in {1900 + row % 120}"


def facts_of(candidates: pa.Table, first: int) -> pa.Table:
    random = np.random.default_rng(first)
    columns = {field.name: pa.nulls(PART_ROWS, field.type) for field in tables.FACTS}
    columns |= {
        "sample_id": candidates["sample_id"].combine_chunks(),
        "outcome": pa.array(["ok"] * PART_ROWS),
        "host": pa.array([f"host{number}.org" for number in random.integers(0, NUM_HOSTS, PART_ROWS).tolist()]),
        "width_px": pa.array(random.integers(100, 2000, PART_ROWS), pa.int32()),
        "height_px": pa.array(random.integers(100, 2000, PART_ROWS), pa.int32()),
    }
    return pa.table(columns, schema=tables.FACTS)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
