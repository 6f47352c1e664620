"""Nearest vectors of 1 M: faiss, DuckDB's array functions, LanceDB and plain NumPy on the same vectors and queries.

    python tests/benchmarks/bench_search.py --rows 1000000 --width 512
    python tests/benchmarks/bench_search.py --peers-python VENV/bin/python      # a Python with lancedb

The vectors are drawn: 20,000 centres of Zipf-like sizes in a space whose axes shrink as 1 / sqrt(rank), and a part of
each vector of its own, all of length 1, as embeddings of pictures of many species are. Queries are drawn likewise and
are not among them. Each engine runs in a process of its own. Prints one JSON line an engine: seconds to build, bytes on
disk, resident MiB after the queries, milliseconds of one query at a time when warm (median and 95th percentile, and CPU
milliseconds of all threads, which say more on a busy machine), and recall of the exact ten nearest. Two threads
everywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CENTRES, TOP, QUERIES, THREADS = 20_000, 10, 50, 2
Search = Callable[[np.ndarray], list[int]]


def draw(num: int, width: int, seed: int) -> np.ndarray:
    """Vectors (num, width) float32 of length 1; the centres are the same for every seed."""
    axes = (1 / np.sqrt(np.arange(1, width + 1))).astype(np.float32)
    centres = np.random.default_rng(0).standard_normal((CENTRES, width), dtype=np.float32) * axes
    rng = np.random.default_rng([1, seed])
    found = np.empty((num, width), np.float32)
    for start in range(0, num, 50_000):
        stop = min(start + 50_000, num)
        chosen = (CENTRES * rng.random(stop - start) ** 2).astype(np.int64)
        part = centres[chosen] + 0.7 * axes * rng.standard_normal((stop - start, width), dtype=np.float32)
        found[start:stop] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return found


def numpy_scan(folder: Path, vectors: np.ndarray, out: Path) -> tuple[Search, dict[str, Any]]:
    def search(query: np.ndarray) -> list[int]:
        scores = vectors @ query
        best = np.argpartition(scores, -TOP)[-TOP:]
        return best[np.argsort(-scores[best])].tolist()

    return search, {"exact": True}


def faiss_index(description: str, **chosen: int) -> Callable[..., tuple[Search, dict[str, Any]]]:
    def build(folder: Path, vectors: np.ndarray, out: Path) -> tuple[Search, dict[str, Any]]:
        import faiss

        faiss.omp_set_num_threads(THREADS)
        index = faiss.index_factory(vectors.shape[1], description, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(vectors[np.random.default_rng(0).permutation(len(vectors))[:65_536]])
        for start in range(0, len(vectors), 50_000):
            index.add(vectors[start : start + 50_000])
        faiss.write_index(index, str(out))
        for name, value in chosen.items():
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        return lambda query: index.search(query[None], TOP)[1][0].tolist(), {"parameters": chosen}

    return build


def duckdb_scan(folder: Path, vectors: np.ndarray, out: Path) -> tuple[Search, dict[str, Any]]:
    import duckdb
    import pyarrow as pa

    width = vectors.shape[1]
    connection = duckdb.connect(str(out))
    connection.execute(f"SET threads = {THREADS}")
    connection.execute(f"CREATE TABLE vectors (number BIGINT, vector FLOAT[{width}])")
    for start in range(0, len(vectors), 50_000):
        part = vectors[start : start + 50_000]
        values = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), width)
        block = pa.table({"number": np.arange(start, start + len(part)), "vector": values})
        connection.register("block", block)
        connection.execute("INSERT INTO vectors SELECT * FROM block")
    connection.execute("CHECKPOINT")
    sql = (
        f"SELECT number FROM vectors ORDER BY array_inner_product(vector, ?::FLOAT[{width}]) DESC LIMIT {TOP}"
    )  # fmt: skip
    return lambda query: [row[0] for row in connection.execute(sql, [query.tolist()]).fetchall()], {"exact": True}


def lance(kind: str, **options: int) -> Callable[..., tuple[Search, dict[str, Any]]]:
    def build(folder: Path, vectors: np.ndarray, out: Path) -> tuple[Search, dict[str, Any]]:
        import lancedb
        import pyarrow as pa

        width = vectors.shape[1]

        def blocks() -> Any:
            for start in range(0, len(vectors), 50_000):
                part = vectors[start : start + 50_000]
                values = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), width)
                yield pa.record_batch({"number": np.arange(start, start + len(part)), "vector": values})

        schema = pa.schema([("number", pa.int64()), ("vector", pa.list_(pa.float32(), width))])
        table = lancedb.connect(str(out)).create_table("vectors", blocks(), schema=schema)
        partitions = 1000 if len(vectors) >= 100_000 else 64
        table.create_index(metric="dot", vector_column_name="vector", index_type=kind, num_partitions=partitions)

        def search(query: np.ndarray) -> list[int]:
            asked = table.search(query).distance_type("dot").nprobes(options["nprobes"]).limit(TOP)
            if "refine" in options:
                asked = asked.refine_factor(options["refine"])
            return asked.select(["number"]).to_arrow()["number"].to_pylist()

        return search, {"parameters": options, "index": kind}

    return build


ENGINES: dict[str, Callable[..., tuple[Search, dict[str, Any]]]] = {
    "numpy": numpy_scan,
    "faiss Flat": faiss_index("Flat"),
    "faiss SQ8": faiss_index("SQ8"),
    "faiss SQfp16": faiss_index("SQfp16"),
    "faiss IVF1024,Flat": faiss_index("IVF1024,Flat", nprobe=32),
    "faiss IVF1024,SQ8": faiss_index("IVF1024,SQ8", nprobe=32),
    "faiss IVF1024,SQfp16": faiss_index("IVF1024,SQfp16", nprobe=32),
    "faiss HNSW32,SQ8": faiss_index("HNSW32_SQ8", efSearch=128),
    "duckdb": duckdb_scan,
    "lancedb IVF_HNSW_SQ": lance("IVF_HNSW_SQ", nprobes=32, refine=3),
    "lancedb IVF_PQ": lance("IVF_PQ", nprobes=32, refine=10),
}


def measure(engine: str, folder: Path) -> dict[str, Any]:
    """One engine, built and asked; its files are removed."""
    vectors, queries = np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "queries.npy")
    wanted = np.load(folder / "nearest.npy")
    out = folder / "index"
    started, cpu_started = time.monotonic(), time.process_time()
    search, notes = ENGINES[engine](folder, vectors, out)
    built, cpu_built = time.monotonic() - started, time.process_time() - cpu_started
    for query in queries[:10]:
        search(query)
    times, hits, cpu_before = [], 0, time.process_time()
    for query, right in zip(queries, wanted, strict=True):
        begun = time.perf_counter()
        found = search(query)
        times.append(1000 * (time.perf_counter() - begun))
        hits += len(set(found) & set(right.tolist()))
    cpu_ms = 1000 * (time.process_time() - cpu_before) / len(queries)
    size = sum(path.stat().st_size for path in [out, *out.rglob("*")] if path.is_file()) if out.exists() else 0
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    shutil.rmtree(out, ignore_errors=True)
    out.unlink(missing_ok=True)
    return {
        "engine": engine,
        "build_seconds": round(built, 1),
        "build_cpu_seconds": round(cpu_built, 1),
        "disk_mib": size >> 20,
        "resident_mib": resident >> 20,
        "median_ms": round(float(np.median(times)), 2),
        "p95_ms": round(float(np.quantile(times, 0.95)), 2),
        "cpu_ms": round(cpu_ms, 2),
        "recall_at_10": round(hits / wanted.size, 4),
        "load": round(os.getloadavg()[0], 1),
        **notes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--engines", nargs="*", default=list(ENGINES))
    parser.add_argument("--peers-python", default=sys.executable, help="runs the engines; lancedb need not be in ours")
    parser.add_argument("--folder", default=None, help="where the vectors lie, and the indexes meanwhile")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, Path(options.folder))), flush=True)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        vectors, queries = draw(options.rows, options.width, 0), draw(QUERIES, options.width, 1)
        np.save(folder / "vectors.npy", vectors)
        np.save(folder / "queries.npy", queries)
        np.save(folder / "nearest.npy", np.argsort(-(queries @ vectors.T), axis=1)[:, :TOP])
        del vectors
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(THREADS))
        environment = os.environ | threads | {"OMP_WAIT_POLICY": "PASSIVE"}
        for engine in options.engines:
            command = [options.peers_python, __file__, "--one", engine, "--folder", name]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            failed = json.dumps({"engine": engine, "failed": done.stderr.strip().splitlines()[-1:]})
            print(done.stdout.strip() if done.returncode == 0 else failed, flush=True)


if __name__ == "__main__":
    main()
