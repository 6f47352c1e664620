"""Every metadata stage of a whole build, over synthetic candidates without pictures: time and memory by step.

    python tests/benchmarks/bench_metadata.py --quick --folder SCRATCH              # 1, 2, 4, 8 and 13 M, unattended
    python tests/benchmarks/bench_metadata.py --quick --folder SCRATCH --and-50     # and 50 M
    python tests/benchmarks/bench_metadata.py --quick --folder SCRATCH --store --millions 1 2    # requests, too

What each size gave stays in SCRATCH/found-ROWS.jsonl. A size that is done there is not run again, and one that failed
does not keep the others from running: start the same command again to do the rest. After every size SCRATCH/found.md
(tables) and SCRATCH/metadata.png (plot) are made anew from all sizes that are done. Other options want another folder.

The real runner goes through the real FLOW, in this process, or as `--executor` and `--workers` say. Two tables of
addresses (10 of 13 rows are plants) come in. Three steps are replaced, since they move pictures: `fetch download`
writes the facts that it would have measured (tables of the real schema, 1 % failures, pHashes as the heavy set of
`bench_matching.py`), `dedup detail` writes made-up details, and `pack write` writes one small picture a shard and the
placements of all its samples. All others are the code of a build. Parts of fetch have 10,000 rows and shards 10,000
samples, ten times the defaults. `--quick` also replaces `caption measure`, whose parts know nothing of each other:
1,000 captions are measured and the rest made up.

`--store` puts the work folder into an S3 server (moto) on the loopback and counts what each step asks of it. Its files
lie in the folder for temporary files, and take as much there as the work folder does.

Each size runs in a process of its own. CPU seconds and peak memory are those of that process and of all that it
started; the peaks of processes are added, and reset before each step. Prints a JSON line a step, and for each size one
line for all steps and one for those that are not replaced, with the hash of the release's samples.parquet. That must
not depend on these three and `--memory-gb`. The tables end with the exponent of growth of each step.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from bench_matching import make_hashes
from metadata_report import draw, report

from manifests.contract import tables
from manifests.contract.catalog import Catalog
from manifests.contract.records import Funnel
from manifests.services.draws import splitmix64
from manifests.stores import storage
from manifests.stores.folder import PLACE_VARIABLE, local_place
from pipeline.config import BuildConfig
from pipeline.engine.runner import Runner
from pipeline.engine.work import Execution, PartResult, files_in
from pipeline.flow import FLOW
from pipeline.judging.captions.measure import measure_captions
from pipeline.stages.fetch.rounds import PicturesInputs
from pipeline.stages.pack import record as pack_record
from pipeline.stages.pack.stage import ShardInputs
from pipeline.store.files import RowGroup
from pipeline.store.tar import ArchiveWriter
from pipeline.store.writing import PrivateFile

sys.path.insert(0, str(Path(__file__).parents[1]))

from misbehaving.object_store import BUCKET, Store, serving
from process_tree import below

PART_ROWS = 10_000
HASHES = "hashes.npy"
ODD_COLUMNS = np.uint64(0x5555_5555_5555_5555)  # of a pHash: a mirrored picture has the other sign there
DONE_WITH = {
    "fetch collect": [("fetch", "fetched")],
    "pack gather": [("ingest", "candidates"), ("fetch", "facts"), ("caption", "captions")],
    "pack arrange": [("pack", "gathered")],
}
"""After which step no other one reads the tables that a stage wrote."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 2, 4, 8, 13])
    parser.add_argument("--and-50", action="store_true", help="50 M rows at the end, too")
    parser.add_argument("--folder", type=Path, default=Path("metadata-scratch"))
    parser.add_argument("--memory-gb", type=float, default=4.0)
    parser.add_argument("--executor", choices=["ray", "processes", "inline"], default="inline")
    parser.add_argument("--workers", type=int, help="parts at a time, of Ray or processes")
    parser.add_argument("--quick", action="store_true", help="make up the measurements of captions")
    parser.add_argument("--store", action="store_true", help="the work folder in an S3 server; count requests")
    parser.add_argument("--one", type=int, help="run one size and print its lines")
    args = parser.parse_args()
    if args.one:
        run = {"executor": args.executor, "num_workers": args.workers, "memory_gb": args.memory_gb}
        measure(args.one, args.folder, args.quick, run, f"s3://{BUCKET}" if args.store else None)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for millions in [*args.millions, *([50.0] if args.and_50 else [])]:
        num = round(millions * 1e6)
        kept = args.folder / f"found-{num}.jsonl"
        if not kept.exists():
            options = ["--folder", str(args.folder), "--memory-gb", str(args.memory_gb), "--executor", args.executor]
            options += [
                *(["--quick"] if args.quick else []),
                *(["--workers", str(args.workers)] if args.workers else []),
                *(["--store"] if args.store else []),
            ]
            os.environ.setdefault("MOTO_S3_DEFAULT_KEY_BUFFER_SIZE", "65536")  # larger files are no longer in memory
            with serving() if args.store else contextlib.nullcontext() as store:
                code = run_size([sys.executable, __file__, "--one", str(num), *options], kept, store)
            if code:
                failed.append(f"{millions:g} M (exit code {code})")
                shutil.rmtree(args.folder / f"work-{num}", ignore_errors=True)
                continue
        found = [
            json.loads(line) for path in args.folder.glob("found-*.jsonl") for line in path.read_text().splitlines()
        ]
        (args.folder / "found.md").write_text(report(found) + "\n")
        draw(found, args.folder / "metadata.png")
    if failed:
        raise SystemExit(f"not done: {', '.join(failed)}; their lines so far are in {args.folder}/*.part")
    print((args.folder / "found.md").read_text())


def run_size(command: list[str], kept: Path, store: Store | None) -> int:
    """Run one size in a process of its own; its lines get their name when it is done. Returns the exit code.

    With a store each line says how many requests its step made.
    """
    part = kept.with_suffix(".part")
    env = dict(os.environ)
    if store:
        env |= {**store.environment(), PLACE_VARIABLE: str(kept.parent / "local")}
    asked = {"all": 0, "all but replaced": 0}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process, part.open("w") as stream:
        assert process.stdout is not None
        for line in process.stdout:
            if store:
                row = json.loads(line)
                num = len(store.requests) - asked["all"]
                if row["step"] not in asked:
                    asked["all"] += num
                    asked["all but replaced"] += 0 if row["replaced"] else num
                line = json.dumps({**row, "requests": asked.get(row["step"], num)}) + "\n"
            print(line, end="", flush=True)
            stream.write(line)
            stream.flush()
    if process.returncode == 0:
        part.rename(kept)
    return process.returncode


# ---- one size


def measure(num: int, folder: Path, quick: bool, run: dict[str, Any], bucket: str | None) -> None:
    """One build in `folder`, which is emptied afterwards, or in a `bucket`."""
    work_dir = f"{bucket or folder}/work-{num}"
    work = Path(local_place(work_dir))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_sources(work, num)
    np.save(work / HASHES, make_hashes("heavy", num)[0])
    config = BuildConfig.model_validate(
        {
            "name": "meta",
            "work_dir": work_dir,
            "sources": [
                {
                    "name": name,
                    "domain": name,
                    "table": str(work / f"{name}.parquet"),
                    "columns": {column: column for column in ("record_key", "url", "caption", *more)},
                }
                for name, more in (
                    ("plant", ("taxon_family", "taxon_genus", "taxon_scientific_name", "licence", "creator")),
                    ("general", ("licence", "creator")),
                )
            ],
            "fetch": {"network": {"contact": "nobody@example.org"}},
            "caption": {"rules": [{"preset": "general", "min_words": 2}]},
            "select": {"licences": {"allow": ["known", "unknown"]}},
            "mix": {"ratio": {"plant": 10, "general": 3}, "heldout": {"share": 0.002}, "max_epochs": 2},
            "pack": {"samples_per_shard": PART_ROWS},
            "run": {"fetch_part_size": PART_ROWS, **run},
        }
    )
    started = time.perf_counter()
    with Catalog.open(work_dir) as catalog:
        runner = MeasuredRunner(config, flow_without_pictures(quick), catalog)
        runner.num_rows, runner.told = num, []
        release = runner.run().release
    seconds = time.perf_counter() - started
    for step, rows in {
        "all": runner.told,
        "all but replaced": [row for row in runner.told if not row["replaced"]],
    }.items():
        tell(
            rows=num,
            step=step,
            seconds=seconds if step == "all" else sum(row["seconds"] for row in rows),
            cpu_seconds=sum(row["cpu_seconds"] for row in rows),
            peak_gib=max(row["peak_gib"] for row in rows),
            files=sum(row["files"] for row in rows),
            mb=sum(row["mb"] for row in rows),
            replaced=False,
            samples=storage.hash_file(f"{work_dir}/{release}/samples.parquet").sha256,
            **run,
        )
    shutil.rmtree(work)


def write_sources(folder: Path, num: int) -> None:
    """Two tables; a row's number stands in its URL, so that its facts can be told from it."""
    import duckdb

    sql = duckdb.connect(config={"memory_limit": "2GB", "temp_directory": str(folder / "spill")})
    taxa = (
        "'family ' || n % 700 AS taxon_family, 'Genus' || n % 14000 AS taxon_genus, "
        "'Genus' || n % 14000 || ' epithet' || n % 400000 || ' L.' AS taxon_scientific_name, "
    )
    for name, where, more in (("plant", "n % 13 < 10", taxa), ("general", "n % 13 >= 10", "")):
        sql.execute(
            f"COPY (SELECT 'record-' || n AS record_key, 'https://h' || n % 600 || '.example/pictures/' || n || '.jpg' "
            f"AS url, 'a leaf of number ' || n % 3000000 || ' beside the road, seen in ' || n % 97 AS caption, {more}"
            "['CC-BY 4.0', 'CC0', 'all rights reserved', NULL][1 + n % 4] AS licence, "
            f"'creator ' || n % 90000 AS creator FROM range({num}) t(n) WHERE {where}) "
            f"TO '{folder}/{name}.parquet' (COMPRESSION zstd)"
        )
    sql.close()


def flow_without_pictures(quick: bool) -> list[Any]:
    """FLOW, with other work in the three steps that move pictures, and with `quick` in the one that reads captions."""
    work = {
        "fetch download": facts_without_pictures,
        "dedup detail": made_up_details,
        "pack write": placements_alone,
        **({"caption measure": captions_made_up} if quick else {}),
    }
    flow = []
    for stage in FLOW:
        steps = [
            replace(step, work=work[name], shared=None, reports=False)
            if (name := f"{stage.name} {step.name}") in work
            else step
            for step in stage.steps
        ]
        flow.append(replace(stage, steps=tuple(steps)))
    return flow


class MeasuredRunner(Runner):
    """The runner, telling what each step took."""

    num_rows: int
    told: list[dict[str, Any]]

    def _run_step(self, stage: Any, step: Any, inputs: Any) -> None:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        for pid in (os.getpid(), *below(os.getpid())):
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # its peak begins anew
        load, started, before = os.getloadavg()[0], time.perf_counter(), cpu_seconds()
        super()._run_step(stage, step, inputs)
        parts = self._catalog.parts_of(self._context.fingerprint, step.name)
        row = tell(
            rows=self.num_rows,
            step=f"{stage.name} {step.name}",
            seconds=time.perf_counter() - started,
            cpu_seconds=cpu_seconds() - before,
            peak_gib=peak_gib(),
            load=load,
            parts=len(parts),
            files=sum(len(part.files) for part in parts),
            mb=sum(file.num_bytes for part in parts for file in part.files) / 1e6,
            replaced=step.work.__module__ == __name__,
        )
        self.told.append(row)
        for name, table in DONE_WITH.get(row["step"], []):  # else 50 M rows take 80 GB
            sealed = self._context.sealed.get(name)
            version = sealed.fingerprint if sealed else self._context.fingerprint
            for path in files_in(self._context.workdir, self._catalog.parts_of(version), table).paths:
                storage.remove(path)


def of_processes(name: str) -> list[str]:
    """What /proc says under this name of this process and of all that it started."""
    texts = []
    for pid in (os.getpid(), *below(os.getpid())):
        with contextlib.suppress(OSError):  # a worker may end at any time
            texts.append(Path(f"/proc/{pid}/{name}").read_text())
    return texts


def cpu_seconds() -> float:
    """Of all processes, with their children that have ended."""
    used = [text.rpartition(")")[2].split()[11:15] for text in of_processes("stat")]
    return sum(int(ticks) for each in used for ticks in each) / os.sysconf("SC_CLK_TCK")


def peak_gib() -> float:
    """Most resident memory of each process since that was reset, added."""
    peaks = [int(text.partition("VmHWM:")[2].split()[0]) for text in of_processes("status") if "VmHWM:" in text]
    return sum(peaks) / (1 << 20)


def tell(**figures: Any) -> dict[str, Any]:
    """One JSON line."""
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps(rounded), flush=True)
    return rounded


# ---- the replaced steps


def facts_without_pictures(inputs: PicturesInputs, run: Execution[Any]) -> PartResult:
    """The facts of one part, as a fetch would leave them; each follows from the number in the URL."""
    todo = pq.ParquetFile(inputs.rows.path).read_row_group(inputs.rows.number)
    number = pc.cast(pc.list_element(pc.split_pattern(pc.replace_substring(todo["url"], ".jpg", ""), "/"), 4), "int64")
    n = number.to_numpy()
    is_ok = n % 100 != 7
    width, height = 300 + n % 3000, 260 + n % 2000
    scale = 256 / np.minimum(width, height)
    phash = np.load(storage.join(run.workdir, HASHES), mmap_mode="r")[n]
    ok: dict[str, Any] = {
        "redirects": pa.array([[]] * len(n), pa.list_(pa.string())),
        "num_bytes": 20_000 + n % 90_000,
        **{name: _hex(n, salt) for salt, name in enumerate(("image_id", "stored_sha256", "pixels_sha256"))},
        "phash": phash,
        "phash_mirrored": phash ^ ODD_COLUMNS,
        "middle_hash": np.zeros_like(phash),  # near for all, so that the pHash decides
        "middle_mirrored": np.zeros_like(phash),
        "width_px": width,
        "height_px": height,
        "stored_width_px": (width * scale).astype(int),
        "stored_height_px": (height * scale).astype(int),
        "format": pa.repeat("JPEG", len(n)),
        "mode": pa.repeat("RGB", len(n)),
        "exif_orientation": np.ones(len(n), int),
        "has_camera": n % 3 == 0,
        **{name: pa.repeat("", len(n)) for name in ("file_creator", "file_rights")},
        "pixel_std": 20.0 + n % 60,
        "colour_std": 10.0 + n % 40,
        "pool_file": pa.repeat(f"{run.stem}.tar", len(n)),
        "offset": np.arange(len(n)) * 20_480,
        "length": 8_000 + n % 9_000,
    }
    columns = {name: pc.if_else(pa.array(is_ok), value, None) for name, value in ok.items()}
    columns |= {
        "sample_id": todo["sample_id"],
        "outcome": pc.if_else(pa.array(is_ok), "ok", "http_404"),
        "detail": pa.nulls(len(n), pa.string()),
        "http_status": np.where(is_ok, 200, 404),
        "attempts": np.ones(len(n), int),
        "host": pc.list_element(pc.split_pattern(todo["url"], "/"), 2),
        "final_url": todo["url"],
        "url": todo["address"],
        "round": np.full(len(n), inputs.round),
        "signals": pa.array([[]] * len(n), tables.SIGNALS.type),
    }
    table = pa.table([columns[name] for name in tables.FETCHED.names], tables.FETCHED.names)
    file = run.write("fetched", table, run.stem)
    num_ok = int(is_ok.sum())
    funnel = Funnel(len(n), num_ok, {"http_404": len(n) - num_ok} if num_ok < len(n) else {})
    ids = list(pc.min_max(todo["sample_id"]).as_py().values())
    return PartResult((file,), funnel, {"round": inputs.round, "deciding": dict(inputs.deciding), "ids": ids})


def _hex(n: np.ndarray, salt: int) -> pa.Array:
    """64 hex digits a number, as different as hashes are."""
    words = [splitmix64(n.astype(np.uint64) * np.uint64(12) + np.uint64(4 * salt + word)) for word in range(4)]
    text = np.stack(words, axis=1).tobytes().hex().encode()
    offsets = pa.array(np.arange(len(n) + 1) * 64, pa.int32())
    return pa.StringArray.from_buffers(len(n), offsets.buffers()[1], pa.py_buffer(text))


def captions_made_up(
    _: Any, run: Execution[None], candidates: RowGroup, measure: dict[str, bool], licences: dict[str, str]
) -> PartResult:
    """The first 1,000 captions of a part as they measure; the others get the same measurements with their own texts."""
    rows = candidates.read()
    few = measure_captions(rows.slice(0, 1000), None, licences)
    table = few.take(pa.array(np.arange(rows.num_rows) % few.num_rows))
    own = splitmix64(np.arange(rows.num_rows, dtype=np.uint64) + np.uint64(candidates.number << 32))
    for name, column in (("sample_id", rows["sample_id"]), ("text", rows["caption"]), ("text_key", pa.array(own))):
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return PartResult((run.write("captions", table),))


def made_up_details(_: Any, run: Execution[None], rows: RowGroup) -> PartResult:
    """Details that blow up no picture."""
    held = rows.read()
    table = pa.table([held["pixels_sha256"], np.full(held.num_rows, 40_000)], schema=tables.DETAILS)
    return PartResult((run.write("found_details", table),))


def placements_alone(inputs: ShardInputs, run: Execution[None]) -> PartResult:
    """A shard of one small picture, which is every sample's."""
    from PIL import Image

    path = f"{inputs.folder}/{inputs.shard}"
    final = storage.join(run.workdir, path)
    storage.make_folder(final.rpartition("/")[0])
    temp = storage.temp_path(final)
    picture = Path(temp + ".jpg")
    Image.new("RGB", (64, 64), (20, 90, 20)).save(picture)
    body = picture.read_bytes()
    picture.unlink()
    rows = pq.ParquetFile(inputs.rows.path).read_row_group(inputs.rows.number)
    with Path(temp).open("wb") as stream:
        archive = ArchiveWriter(stream, digest := hashlib.sha256())
        place = archive.add("all.jpg", body)
        num_bytes = archive.finish()
    num = rows.num_rows
    table = pa.table(
        {
            **{name: rows[name] for name in ("sample_id", "copy", "domain", "split")},
            "shard": pa.repeat(inputs.shard, num),
            "position": range(num),
            "key": pack_record.sample_keys(rows),
            **{f"{name}_offset": np.full(num, place) for name in ("jpg", "txt", "json")},
            **{f"{name}_length": np.full(num, len(body)) for name in ("jpg", "txt", "json")},
            "packed_sha256": pa.nulls(num, pa.string()),
        }
    )
    placed = run.write("placements", table, run.stem)
    values, counts = np.unique(rows["domain"].to_numpy(zero_copy_only=False), return_counts=True)
    domains = {str(value): int(count) for value, count in zip(values, counts, strict=True)}
    shard = PrivateFile("shard", path, temp, num, num_bytes, digest.hexdigest())
    return PartResult((shard, placed), None, {"domains": domains})


if __name__ == "__main__":
    import bench_metadata  # workers know its functions by this name

    bench_metadata.main()
