"""Time and peak memory of the exact Hamming search, beside faiss and a BK-tree.

    python tests/benchmarks/bench_matching.py ours --millions 1 2 4 8 13 --radii 3 4 6 8 --sets even heavy
    python tests/benchmarks/bench_matching.py peers --peers-python VENV/bin/python

Every measurement runs in a process of its own, so that peak memory is its own. Two sets: `even` is random
hashes of which 2 % are copies of others with 1 to 8 bits turned; `heavy` has in addition 1 % placeholders (five
hashes shared 40 : 30 : 15 : 10 : 5) and 5 % in clusters whose sizes follow Zipf's law, each member 0 to 6 bits from
its centre. Prints one JSON line a measurement (`seconds`, `peak_bytes` with the input, `found` pairs, `recall`
of the planted pairs that lie within the radius, `cpu_seconds` of all threads with the checks after the search,
`others_cpu_seconds` that the rest of the machine took meanwhile), and at the end the exponent of growth for each set
and radius. With `--repeats` each is measured so often and the fastest is printed.

`peers` needs a Python with faiss-cpu, pybktree, imagededup and numpy>=2, which need not be this one. A peer that does
not end within the limit is asked again for the neighbours of some of the rows only, and its seconds are extrapolated
from that (`note` says so; the index is built in full).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ZIPF_EXPONENT = 2.0
MAX_CLUSTER = 2000


def make_hashes(kind: str, num: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, (planted, 2) row numbers of original and copy)."""
    rng = np.random.default_rng(num)
    hashes = rng.integers(0, 2**64, num, dtype=np.uint64)
    rows = rng.permutation(num)
    num_planted = num // 50
    originals, copies = rows[:num_planted], rows[num_planted : 2 * num_planted]
    hashes[copies] = turn_bits(rng, hashes[originals], rng.integers(1, 9, num_planted))
    if kind == "heavy":
        free = rows[2 * num_planted :]
        placeholders, clustered = free[: num // 100], free[num // 100 : num // 100 + num // 20]
        shares = rng.choice(5, len(placeholders), p=[0.4, 0.3, 0.15, 0.1, 0.05])
        hashes[placeholders] = rng.integers(0, 2**64, 5, dtype=np.uint64)[shares]
        sizes = np.minimum(rng.zipf(ZIPF_EXPONENT, len(clustered)), MAX_CLUSTER)
        centre = np.repeat(np.arange(len(sizes)), sizes)[: len(clustered)]
        centres = rng.integers(0, 2**64, len(sizes), dtype=np.uint64)
        hashes[clustered] = turn_bits(rng, centres[centre], rng.integers(0, 7, len(clustered)))
    return hashes, np.stack([originals, copies], axis=1)


def turn_bits(rng: np.random.Generator, hashes: np.ndarray, num_bits: np.ndarray) -> np.ndarray:
    """Each hash with up to `num_bits` random bits turned (a bit drawn twice is turned back)."""
    turned = hashes.copy()
    for step in range(int(num_bits.max())):
        bit = np.uint64(1) << rng.integers(0, 64, len(turned), dtype=np.uint64)
        turned = np.where(num_bits > step, turned ^ bit, turned)
    return turned


def planted_within(hashes: np.ndarray, planted: np.ndarray, radius: int) -> np.ndarray:
    """The planted pairs that lie within `radius`, as low row * number of rows + high row."""
    near = planted[np.bitwise_count(hashes[planted[:, 0]] ^ hashes[planted[:, 1]]) <= radius]
    return np.unique(near.min(axis=1) * len(hashes) + near.max(axis=1))


def recall(hashes: np.ndarray, planted: np.ndarray, radius: int, low: np.ndarray, high: np.ndarray) -> float:
    wanted = planted_within(hashes, planted, radius)
    found = np.sort(low * len(hashes) + high)
    place = np.minimum(np.searchsorted(found, wanted), max(len(found) - 1, 0))
    return float((found[place] == wanted).mean()) if len(wanted) and len(found) else math.nan


def run_ours(hashes: np.ndarray, planted: np.ndarray, radius: int, kind: str) -> dict[str, object]:
    """What a build does: pairs of distinct hashes, and of `heavy` the choice of the rows that stay."""
    import pyarrow as pa

    from pipeline.judging.matching.companies import choose_representatives
    from pipeline.judging.matching.search import distinct_of, find_pairs

    start = time.perf_counter()
    low, high = find_pairs(distinct_of(hashes), radius, scratch_bytes=8 * len(hashes) * 2, max_pairs=1 << 30)
    seconds = time.perf_counter() - start
    if kind == "heavy":
        priority = np.random.default_rng(0).permutation(len(hashes))
        pairs = pa.table({"look_a": low, "look_b": high, "distance": np.bitwise_count(low ^ high)})
        begin = time.perf_counter()
        representative, _ = choose_representatives(hashes, priority, pairs)
        dropped = int((representative != np.arange(len(hashes))).sum())
        chosen = {"choose_seconds": time.perf_counter() - begin, "dropped": dropped}
        return {"seconds": seconds, "found": len(low), **chosen}
    rows, order = np.argsort(hashes), np.sort(hashes)  # nearly all hashes of `even` are distinct
    planted = planted[hashes[planted[:, 0]] != hashes[planted[:, 1]]]  # equal ones need no search
    one, other = (rows[np.searchsorted(order, values)] for values in (low, high))
    found = recall(hashes, planted, radius, np.minimum(one, other), np.maximum(one, other))
    return {"seconds": seconds, "found": len(low), "recall": found}


def run_faiss(hashes: np.ndarray, planted: np.ndarray, radius: int, name: str, num_asked: int = 0) -> dict[str, object]:
    """faiss on two threads; `num_asked` queries in place of all rows, the time of the search extrapolated."""
    import faiss

    faiss.omp_set_num_threads(2)
    codes = hashes.view(np.uint8).reshape(-1, 8)
    start = time.perf_counter()
    if name == "flat":
        index = faiss.IndexBinaryFlat(64)
    else:
        index = faiss.IndexBinaryMultiHash(64, 4, 16)
        index.nflip = radius // 4  # four blocks: one of them has at most a quarter of the errors
    index.add(codes)
    built = time.perf_counter() - start
    limits, _, found = index.range_search(codes[: num_asked or len(codes)], radius + 1)
    if num_asked:
        seconds = built + (time.perf_counter() - start - built) * len(hashes) / num_asked
        return {"seconds": seconds, "note": f"extrapolated from {num_asked:,} of {len(hashes):,} queries"}
    row = np.repeat(np.arange(len(hashes)), np.diff(limits.astype(np.int64)))
    once = row < found
    seconds = time.perf_counter() - start
    low, high = row[once], found[once]
    return {
        "seconds": seconds,
        "found": len(low),
        "recall": recall(hashes, planted, radius, low, high),
    }


def run_bktree(hashes: np.ndarray, planted: np.ndarray, radius: int, name: str) -> dict[str, object]:
    import pybktree

    start = time.perf_counter()
    tree = pybktree.BKTree(pybktree.hamming_distance, hashes.tolist())
    build = time.perf_counter() - start
    start = time.perf_counter()
    num_asked = 500
    found = sum(len(tree.find(value, radius)) - 1 for value in hashes[:num_asked].tolist())
    ask = (time.perf_counter() - start) / num_asked
    return {"seconds": build + ask * len(hashes), "found": found, "note": f"extrapolated from {num_asked} queries"}


def run_imagededup(hashes: np.ndarray, planted: np.ndarray, radius: int, name: str) -> dict[str, object]:
    from imagededup.methods import PHash

    encodings = {str(row): f"{value:016x}" for row, value in enumerate(hashes.tolist())}
    start = time.perf_counter()
    found = PHash(verbose=False).find_duplicates(
        encoding_map=encodings, max_distance_threshold=radius, num_dist_workers=2
    )
    return {"seconds": time.perf_counter() - start, "found": sum(map(len, found.values())) // 2}


def busy_seconds() -> float:
    """CPU seconds of the whole machine since it started, without waiting."""
    with Path("/proc/stat").open() as lines:
        user, nice, system = map(int, lines.readline().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def run_one(tool: str, kind: str, num: int, radius: int) -> None:
    hashes, planted = make_hashes(kind, num)
    before, busy = time.process_time(), busy_seconds()
    if tool == "ours":
        result = run_ours(hashes, planted, radius, kind)
    elif tool == "bktree":
        result = run_bktree(hashes, planted, radius, tool)
    elif tool == "imagededup":
        result = run_imagededup(hashes, planted, radius, tool)
    elif tool.endswith("-some"):
        result = run_faiss(hashes, planted, radius, tool.removesuffix("-some"), num // 20)
    else:
        result = run_faiss(hashes, planted, radius, tool)
    cpu = round(time.process_time() - before, 2)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    peak = usage.ru_maxrss * 1024
    asked = {"tool": tool, "set": kind, "num": num, "radius": radius}
    others = round(max(0.0, busy_seconds() - busy - cpu), 2)
    print(json.dumps({**asked, **result, "cpu_seconds": cpu, "others_cpu_seconds": others, "peak_bytes": peak}))


def measure(
    python: str, tool: str, kind: str, num: int, radius: int, limit: float, repeats: int = 1
) -> dict[str, object]:
    """The fastest of so many runs, printed as a JSON line."""
    lines = [run_apart(python, tool, kind, num, radius, limit) for _ in range(repeats)]
    line = min(lines, key=lambda line: line.get("seconds", math.inf))
    print(json.dumps(line), flush=True)
    return line


def run_apart(python: str, tool: str, kind: str, num: int, radius: int, limit: float) -> dict[str, object]:
    command = [python, __file__, "one", tool, kind, str(num), str(radius)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"tool": tool, "set": kind, "num": num, "radius": radius, "note": f"over {limit:.0f} s"}


def print_exponents(lines: list[dict[str, object]]) -> None:
    """Slopes of log seconds, of the clock and of the processor, over log n; least squares."""
    for kind, radius in sorted({(line["set"], line["radius"]) for line in lines}):
        mine = [line for line in lines if (line["set"], line["radius"]) == (kind, radius) and "seconds" in line]
        if len(mine) > 1:
            num = [math.log(line["num"]) for line in mine]
            slopes = {
                f"{name}_exponent": round(float(np.polyfit(num, [math.log(line[name]) for line in mine], 1)[0]), 3)
                for name in ("seconds", "cpu_seconds")
            }
            print(json.dumps({"set": kind, "radius": radius, **slopes}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    ours = commands.add_parser("ours")
    ours.add_argument("--millions", type=float, nargs="+", default=[1, 2, 4, 8, 13])
    ours.add_argument("--radii", type=int, nargs="+", default=[3, 4, 6, 8])
    ours.add_argument("--sets", nargs="+", default=["even", "heavy"])
    ours.add_argument("--repeats", type=int, default=1)
    peers = commands.add_parser("peers")
    peers.add_argument("--peers-python", required=True)
    peers.add_argument("--limit-seconds", type=float, default=300)
    one = commands.add_parser("one")
    one.add_argument("tool")
    one.add_argument("kind")
    one.add_argument("num", type=int)
    one.add_argument("radius", type=int)
    args = parser.parse_args()
    if args.command == "one":
        run_one(args.tool, args.kind, args.num, args.radius)
    elif args.command == "ours":
        lines = [
            measure(sys.executable, "ours", kind, int(millions * 1e6), radius, 3600, args.repeats)
            for kind in args.sets
            for radius in args.radii
            for millions in args.millions
        ]
        print_exponents(lines)
    else:
        for radius in (3, 4):
            for num in (1_000_000, 2_000_000):
                measure(sys.executable, "ours", "even", num, radius, args.limit_seconds)
                line = measure(args.peers_python, "multihash", "even", num, radius, args.limit_seconds)
                if "seconds" not in line:
                    measure(args.peers_python, "multihash-some", "even", num, radius, args.limit_seconds)
        for tool, num in (
            ("flat", 100_000), ("flat", 400_000), ("bktree", 100_000), ("imagededup", 20_000), ("imagededup", 50_000),
            ("ours", 20_000), ("ours", 50_000), ("ours", 100_000), ("ours", 400_000),
        ):  # fmt: skip
            python = sys.executable if tool == "ours" else args.peers_python
            measure(python, tool, "even", num, 4, args.limit_seconds)


if __name__ == "__main__":
    main()
