"""Rows a second of caption cleaning, measures and rules; run on a parquet of real captions.

python tests/benchmarks/bench_captions.py CAPTIONS.parquet [--column caption] [--rows 1000000]

Captions of the file are repeated until there are enough, in parts of 200,000 rows, so that memory stays flat.
"""

from __future__ import annotations

import argparse
import resource
import time

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.tables import CANDIDATES
from pipeline.captions.measure import measure_captions
from pipeline.captions.rules import columns_needed, judge_captions
from pipeline.captions.settings import CaptionSettings

PART_ROWS = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions")
    parser.add_argument("--column", default="caption")
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    captions = pq.read_table(given.captions, columns=[given.column])[given.column].cast(pa.string()).to_pylist()
    num_parts = -(-given.rows // PART_ROWS)
    for language in (False, True):
        settings = CaptionSettings.model_validate(
            {"measure": {"language": language}, "rules": [{"preset": "general", "min_words": 3}]}
        )
        measuring = judging = 0.0
        for part in range(num_parts):
            candidates = candidates_of(captions, part * PART_ROWS)
            start = time.process_time()
            measured = measure_captions(candidates, settings)
            measuring += time.process_time() - start
            joined = measured.select(sorted(columns_needed(settings) & set(measured.column_names)))
            joined = joined.append_column("domain", candidates["domain"]).append_column("source", candidates["source"])
            joined = joined.append_column("num_same_text", pa.array([1] * PART_ROWS))
            start = time.process_time()
            judge_captions(joined, settings)
            judging += time.process_time() - start
        rows = num_parts * PART_ROWS
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"language {language}: {rows} rows, measure {rows / measuring:,.0f} rows/s of CPU, "
            f"rules {rows / judging:,.0f} rows/s of CPU, peak {peak_mib:,.0f} MiB"
        )


def candidates_of(captions: list[str], first: int) -> pa.Table:
    """`PART_ROWS` candidates whose captions start at place `first` of the endless repetition."""
    rows = range(first, first + PART_ROWS)
    columns = {name: pa.nulls(PART_ROWS, CANDIDATES.field(name).type) for name in CANDIDATES.names}
    columns |= {
        "sample_id": pa.array([f"{row:032x}" for row in rows]),
        "source": pa.array(["web"] * PART_ROWS),
        "domain": pa.array(["general"] * PART_ROWS),
        "caption": pa.array([captions[row % len(captions)] for row in rows], pa.string()),
    }
    return pa.table(columns, schema=CANDIDATES)


if __name__ == "__main__":
    main()
