"""`plantmix audit` on a made-up catalogue: what it takes, and whether it finds the planted rows and no other.

    python tests/benchmarks/bench_audit.py --folder SCRATCH                # 50 M rows (2.8 GB) against 100,000
    python tests/benchmarks/bench_audit.py --folder SCRATCH --rows 100000 --tested 1000

Half of the catalogue are photos of iNaturalist, the others have addresses of their own; all have a GBIF occurrence and
a uuid. One row in 100 of the test set is planted: the same photo in another size, the same address under another
scheme, the same occurrence, the same uuid, in turns. Seconds are those of the whole command, memory is the sum of Pss
of its processes. The exit code is 1 where a planted row is not found, or another one is.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections import Counter
from pathlib import Path

import duckdb

sys.path.insert(0, str(Path(__file__).parents[1]))  # process_tree, which watching.py needs

from million.watching import PLANTMIX, done

KINDS = ("address of a photo", "address", "gbifid", "uuid")
_COLUMNS = ("url", "gbif_id", "uuid")
_CATALOGUE = """
    SELECT if(i % 2 = 0, 'https://inaturalist-open-data.s3.amazonaws.com/photos/' || i || '/original.jpg',
              'https://images.example.org/specimens/' || md5(i::VARCHAR) || '.jpg') AS source_url,
           1_000_000_000 + i AS gbif_id, md5('u' || i)::UUID::VARCHAR AS uuid
    FROM range({num}) r(i)
"""


def make(folder: Path, num_rows: int, num_tested: int, seed: int) -> dict[str, str]:
    """catalog.parquet and test.csv; gives the kind of each planted row by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    catalogue = folder / "catalog.parquet"
    rng = random.Random(seed)
    with duckdb.connect() as sql:
        if not catalogue.exists() or sql.sql(f"SELECT count(*) FROM '{catalogue}'").fetchall() != [(num_rows,)]:
            sql.execute(f"COPY ({_CATALOGUE.format(num=num_rows)}) TO '{catalogue}'")
        chosen = rng.sample(range(0, num_rows, 2), num_tested // 100)  # photos of iNaturalist
        chosen = [number + (KINDS[turn % len(KINDS)] == "address") for turn, number in enumerate(chosen)]
        sql.execute("CREATE TABLE chosen AS SELECT unnest(?) AS row", [chosen])
        rows = f"FROM ({_CATALOGUE.format(num=num_rows)}) JOIN chosen ON row = gbif_id - 1_000_000_000"
        of_row = {row: values for row, *values in sql.sql(f"SELECT row, source_url, gbif_id, uuid {rows}").fetchall()}
    planted: dict[str, str] = {}
    lines = [(f"clean-{n}", f"https://images.example.com/{n}.jpg", n, f"clean-{n}") for n in range(num_tested)]
    for turn, (at, number) in enumerate(zip(rng.sample(range(num_tested), len(chosen)), chosen, strict=True)):
        kind, (url, gbif_id, uuid) = KINDS[turn % len(KINDS)], of_row[number]
        name, *own = lines[at]
        if kind == "address of a photo":
            own[0] = url.replace("original.jpg", "medium.jpeg")
        elif kind == "address":
            own[0] = url.replace("https://", "http://www.") + "#top"
        else:
            own[_COLUMNS.index("gbif_id" if kind == "gbifid" else kind)] = {"gbifid": gbif_id, "uuid": uuid}[kind]
        lines[at] = (name, *own)
        planted[name] = kind
    with (folder / "test.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("name", *_COLUMNS), *lines])
    return planted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=50_000_000, help="of the catalogue")
    parser.add_argument("--tested", type=int, default=100_000, help="rows of the test set")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    planted = make(args.folder, args.rows, args.tested, args.seed)
    wrong = 0
    print("| rows of the catalogue | of the test set | planted | found | others | s | CPU s | peak MiB |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for _ in range(args.rounds):
        out = args.folder / "audited.csv"
        command = ["audit", str(args.folder / "test.csv"), "--against", str(args.folder / "catalog.parquet")]
        took = done([*PLANTMIX, *command, "--out", str(out)], sample_seconds=0.1).whole
        with out.open(newline="") as stream:
            leaks = {row["name"] for row in csv.DictReader(stream) if row["leak"]}
        found, others = len(leaks & planted.keys()), len(leaks - planted.keys())
        wrong += len(planted) - found + others
        figures = f"{took.seconds:.1f} | {took.cpu_seconds:.1f} | {took.peak_mib:.0f}"
        print(f"| {args.rows:,} | {args.tested:,} | {len(planted):,} | {found:,} | {others:,} | {figures} |")
        lost = Counter(planted[name] for name in planted.keys() - leaks)
        for kind, num in sorted(lost.items()):
            print(f"not found: {num:,} by {kind}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
