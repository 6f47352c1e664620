"""The whole duplicate decision on synthetic tables: pairs, leaks, select, by the stages' own work.

    python tests/benchmarks/bench_dedup_stage.py --millions 13 --folder SCRATCH

Writes candidates, facts, captions and verdicts of so many rows into the folder (hashes as the heavy set of
`bench_matching.py`: 2 % near-duplicates, 1 % placeholders, 5 % in clusters; 1 % are mirrored copies; 1 % of the fetches
fail, 5 % fall to a caption rule; an evaluation set of 50,000 images of which 500 are planted) and runs each step in a
process of its own, as one worker would. Prints one JSON line a step: seconds, peak memory, load, rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MEMORY_GB = 4.0
NUM_EVALUATION = 50_000


def write_tables(folder: Path, num: int) -> None:
    """Tables with the columns that the steps read; the others are null."""
    import duckdb
    import numpy as np
    import pyarrow as pa
    from bench_matching import make_hashes, turn_bits

    from manifests import tables

    hashes, _ = make_hashes("heavy", num)
    rng = np.random.default_rng(2)
    odd_frequencies = np.uint64(
        0x5555555555555555
    )  # of 1,500 photos of groceries, 93 % differ from this in 0 to 6 bits
    distinct, place = np.unique(hashes, return_inverse=True)
    mirrored = turn_bits(rng, distinct ^ odd_frequencies, rng.integers(0, 7, len(distinct)))[place]
    copies = rng.choice(num, num // 100, replace=False)
    hashes[copies] = turn_bits(rng, mirrored[copies[::-1]], rng.integers(0, 5, len(copies)))
    mirrored[copies] = turn_bits(rng, hashes[copies[::-1]], rng.integers(0, 5, len(copies)))
    sql = duckdb.connect(config={"memory_limit": "6GB", "temp_directory": str(folder / "spill")})
    sql.register("hashed", pa.table({"n": np.arange(num), "phash": hashes, "mirrored": mirrored}))
    sample_id = "printf('%08x', n * 300) || md5(n::VARCHAR)[:24]"  # ascending, as a build writes them
    domain, reason = "if(n % 13 < 10, 'plant', 'general')", "if(n % 20 = 3, 'min_words', NULL)"
    rows = {
        "candidates": (
            tables.CANDIDATES,
            {"source": "'s' || n % 5", "domain": domain, "record_key": "n::VARCHAR", "caption": "'a leaf ' || n",
             "url": "'https://h' || n % 600 || '.org/' || n"},
        ),
        "facts": (
            tables.FACTS,
            {"outcome": "if(n % 100 = 7, 'http_404', 'ok')", "image_id": "md5('b' || n) || md5('c' || n)",
             "pixels_sha256": "md5('p' || n) || md5('q' || n)", "stored_sha256": "md5('s' || n) || md5('t' || n)",
             "phash": "phash", "phash_mirrored": "mirrored", "width_px": "200 + n % 3000",
             "height_px": "200 + n % 2000", "pixel_std": "50",
             "pool_file": "'part-' || n // 1000"},
        ),
        "captions": (
            tables.CAPTIONS,
            {"text": "'a leaf ' || n", "licence_id": "['CC0-1.0', 'CC-BY-4.0', 'unknown'][1 + n % 3]",
             "num_words": "3 + n % 9", "text_source": "'caption'"},
        ),
        "caption_verdicts": (tables.VERDICTS, {"keep": f"{reason} IS NULL", "reason": reason, "value": "'2'"}),
    }  # fmt: skip
    for name, (schema, given) in rows.items():
        picked = ", ".join(
            f'({sample_id if column == "sample_id" else given.get(column, "NULL")})::{kind} AS "{column}"'
            for column, kind in zip(schema.names, _duckdb_types(sql, schema), strict=True)
        )
        where = " WHERE n % 100 <> 7" if name == "caption_verdicts" else ""
        sql.execute(
            f"COPY (SELECT {picked} FROM hashed{where}) TO '{folder}/{name}.parquet' "
            "(COMPRESSION zstd, ROW_GROUP_SIZE 100000)"
        )
    rng = np.random.default_rng(1)
    shown = rng.integers(0, 2**64, NUM_EVALUATION, dtype=np.uint64)
    shown[:500] = hashes[rng.choice(num, 500, replace=False)]
    sql.register("shown", pa.table({"n": np.arange(NUM_EVALUATION), "phash": shown}))
    sql.execute(
        "COPY (SELECT 'set' AS evaluation_set, 'm' || n AS member, NULL::VARCHAR AS url, 'ok' AS outcome, "
        "NULL::VARCHAR AS detail, sha256('e' || n) AS image_id, sha256('f' || n) AS pixels_sha256, phash, "
        f"xor(phash, 18446744073709551615) AS phash_mirrored, 50::FLOAT AS pixel_std FROM shown) "
        f"TO '{folder}/evaluation.parquet'"
    )


def _duckdb_types(sql: Any, schema: Any) -> list[str]:
    sql.register("empty", schema.empty_table())
    found = [row[1] for row in sql.execute("DESCRIBE empty").fetchall()]
    sql.unregister("empty")
    return found


def run_step(step: str, folder: Path) -> dict[str, Any]:
    """One step as a worker does it; its file stands in `done.json` for the next one."""
    import numpy as np

    from manifests.catalog import Catalog
    from pipeline.config import BuildConfig
    from pipeline.quotas.balance import BalanceSettings
    from pipeline.runner.runner import Runner
    from pipeline.runner.work import Execution, PartResult
    from pipeline.stages import dedup, select
    from pipeline.stages import dedup_evaluation as evaluation
    from pipeline.store.files import Files
    from pipeline.store.writing import PrivateFile
    from pipeline.vocabulary.licences import LicenceSettings

    done = json.loads((folder / "done.json").read_text()) if (folder / "done.json").exists() else {}

    def written(name: str) -> Files:
        return Files((f"{folder}/{name}.parquet",))

    def made(by: str) -> Files:
        return Files((done[by],))

    def choice() -> select.Choice:
        priority = {f"s{number}": number for number in range(5)}
        prefer = ("licence", "pixels", "caption", "priority")
        return select.Choice(prefer, 0, priority, LicenceSettings(), BalanceSettings(), (), {})

    def select_all(inputs: select.SelectInputs, run: Execution[None]) -> PartResult:
        """All steps of the stage, one after the other, in a work folder of its own."""
        work = tempfile.mkdtemp(dir=folder)
        source = {"domain": "plant", "table": "none", "columns": {"url": "url", "caption": "caption"}}
        config = BuildConfig.model_validate(
            {
                "name": "bench",
                "work_dir": work,
                "sources": [{"name": name, **source} for name in inputs.choice.priority],
                "fetch": {"network": {"contact": "nobody@example.org"}},
                "mix": {"ratio": {"plant": 1}},
                "run": {"executor": "inline", "memory_gb": MEMORY_GB},
            }
        )
        stage = dataclasses.replace(select.STAGE, inputs=lambda _: inputs)
        with Catalog.open(work) as catalog:
            sealed = Runner(config, [stage], catalog).run().stages["select"]
            decided = [f for part in catalog.parts_of(sealed.fingerprint, "decide") for f in part.files]
        num_rows = sum(file.num_rows for file in decided)
        whole = PrivateFile("decisions", decided[0].path, work, num_rows, 0, "")
        return PartResult((whole,), sealed.funnel, sealed.notes)

    facts, candidates, none = written("facts"), written("candidates"), Files()
    sets = ({"name": "set", "radius": 4, "mirrored": True},)
    inputs, work = {
        "pairs": lambda: (dedup.PairsInputs(facts, none, 4, 20), dedup.find),
        "leaks": lambda: (
            evaluation.LeakInputs(facts, candidates, made("pairs"), written("evaluation"), sets, ()),
            evaluation.find_leaks,
        ),
        "select": lambda: (
            select.SelectInputs(
                choice(),
                candidates,
                facts,
                written("captions"),
                made("pairs"),
                none,
                made("leaks"),
                none,
                written("caption_verdicts"),
                none,
            ),
            select_all,
        ),
    }[step]()
    np.zeros(1)  # imports are no part of the figure
    start = time.perf_counter()
    result = work(inputs, Execution(str(folder), MEMORY_GB, step, None))
    seconds = time.perf_counter() - start
    done[step] = result.files[0].temp
    (folder / "done.json").write_text(json.dumps(done))
    funnel = result.funnel and {"in": result.funnel.num_in, "kept": result.funnel.num_kept, **result.funnel.reasons}
    return {
        "step": step,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20), 2),
        "load": round(os.getloadavg()[0], 1),
        "rows": result.files[0].num_rows,
        "funnel": funnel,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=13)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", nargs="+", default=["pairs", "leaks", "select"])
    parser.add_argument("--step", help="run one step in this process")
    args = parser.parse_args()
    if args.step == "write":
        write_tables(args.folder, int(args.millions * 1e6))
        return
    if args.step:
        print(json.dumps(run_step(args.step, args.folder)), flush=True)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    again = [sys.executable, __file__, "--millions", str(args.millions), "--folder", str(args.folder), "--step"]
    if not (args.folder / "evaluation.parquet").exists():
        subprocess.run([*again, "write"], check=True)
    total = 0.0
    for step in args.steps:
        line = subprocess.run([*again, step], check=True, capture_output=True, text=True).stdout.strip()
        total += json.loads(line)["seconds"]
        print(line, flush=True)
    print(json.dumps({"millions": args.millions, "seconds": round(total, 1)}))


if __name__ == "__main__":
    main()
