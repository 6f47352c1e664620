"""How fast does the loader give stored tokens, beside reading the same files whole?

    python tests/benchmarks/bench_tokens.py --rows 4096 --work DIR

Writes a store of random tokens (81 + 1 of 256, as of EfficientNet-Lite2), then takes batches of 256 in random order
through the loader's data set, and reads the chunk files one after another. Prints one line of Markdown for
results/tokens.md. CPU seconds are compared, which other work on the machine disturbs less than the clock.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from training.data.loader import TokenDataset
from training.data.tokens import TokenStore, fill_store

SHAPE, BATCH = (82, 256), 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    part = rng.normal(size=(256, *SHAPE)).astype(np.float32)
    fill_store(options.work, {"of": "random numbers"}, options.rows, lambda rows: part[: len(rows)])
    store = TokenStore(options.work)
    dataset = TokenDataset(store, [store], 0)
    files = sorted(options.work.glob("chunk-*.npy"))
    size = options.rows * SHAPE[0] * SHAPE[1] * 2
    times: dict[str, list[tuple[float, float]]] = {"files": [], "batches": []}
    for _ in range(5):
        order = rng.permutation(options.rows)
        started, clock = time.process_time(), time.perf_counter()
        for path in files:
            path.read_bytes()
        times["files"].append((time.process_time() - started, time.perf_counter() - clock))
        started, clock = time.process_time(), time.perf_counter()
        for start in range(0, options.rows, BATCH):
            dataset.__getitems__([(i, i) for i in order[start : start + BATCH].tolist()])
        times["batches"].append((time.process_time() - started, time.perf_counter() - clock))
    cpu = {name: float(np.median([one for one, _ in values])) for name, values in times.items()}
    wall = {name: min(clock for _, clock in values) for name, values in times.items()}
    print(f"| {options.rows:,} | {size / 1e6:.0f} MB | {options.rows / cpu['batches']:,.0f} | "
          f"{2 * size / cpu['batches'] / 1e9:.2f} GB | {size / cpu['files'] / 1e9:.2f} GB | "
          f"{options.rows / wall['batches']:,.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
