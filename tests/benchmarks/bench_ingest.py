"""Time and memory of ingest, by format and number of rows; one process a run, so that peaks are its own.

    python tests/benchmarks/bench_ingest.py FOLDER --rows 250000 1000000 4000000

Writes tables of seeded rows (some 240 bytes each: URL on one of 600 hosts, caption, ranks, licence, owner) into
FOLDER, once, and reads them through the ingest stage's own `read_source`: the reader, the judgement of each row,
identities, duplicates (0.5 % of the records stand there twice), sorted Parquet out. `--peer PYTHON` also lets
python-dwca-reader, installed there, join the archive.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

FIELDS = ("id", "url", "caption", "kingdom", "family", "genus", "scientificName", "licence", "owner")
FORMATS = ("parquet", "csv", "csv.gz", "jsonl", "dwca")
WORDS = (
    "oak",
    "leaf",
    "bark",
    "flower",
    "in",
    "the",
    "spring",
    "garden",
    "near",
    "a",
    "river",
    "under",
    "bright",
    "sun",
)
PEER = """
import resource, sys, time
from dwca.read import DwCAReader
begun, num = time.monotonic(), 0
with DwCAReader(sys.argv[1]) as archive:
    for row in archive:
        num += len(row.extensions)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(time.monotonic() - begun, time.process_time(), peak, num)
"""


def rows(num: int) -> Iterator[dict[str, str]]:
    draw = random.Random(0)
    for number in range(num):
        key = number if number % 100 else number // 2
        caption = " ".join(draw.choices(WORDS, k=12))
        genus = draw.choice(("Quercus", "Rosa", "Acer", "Salix"))
        yield {
            "id": str(key),
            "url": f"https://images{draw.randrange(600)}.example.org/collection/{number:09d}/full.jpg",
            "caption": f'{caption}, "{genus}"' if number % 10 == 0 else caption,
            "kingdom": "Plantae",
            "family": "" if number % 7 == 0 else "Fagaceae",
            "genus": genus,
            "scientificName": f"{genus} species{draw.randrange(9999)} L.",
            "licence": "http://creativecommons.org/licenses/by/4.0/legalcode",
            "owner": f"Owner {draw.randrange(5000)}",
        }


def write_table(folder: Path, kind: str, num: int) -> Path:
    path = folder / f"{num}.{'zip' if kind == 'dwca' else kind}"
    if path.exists():
        return path
    if kind == "dwca":
        return write_archive(path, num)
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(name, pa.string()) for name in FIELDS])
        with pq.ParquetWriter(path, schema) as writer:
            some = []
            for row in rows(num):
                some.append(row)
                if len(some) == 50_000:
                    writer.write_table(pa.Table.from_pylist(some, schema))
                    some = []
            if some:
                writer.write_table(pa.Table.from_pylist(some, schema))
        return path
    import gzip

    with gzip.open(path, "wt", newline="") if kind.endswith("gz") else path.open("w", newline="") as stream:
        if kind == "jsonl":
            stream.writelines(json.dumps(row) + "\n" for row in rows(num))
        else:
            writer_ = csv.DictWriter(stream, FIELDS)
            writer_.writeheader()
            writer_.writerows(rows(num))
    return path


def write_archive(path: Path, num: int) -> Path:
    """A GBIF-like archive of `num` media rows on two thirds as many records."""
    from darwin_core import DWC, GBIF, MULTIMEDIA_TERMS, OCCURRENCE_TERMS, describe, meta_xml, short

    num_records = max(1, num * 2 // 3)
    records = [short(term) for term in OCCURRENCE_TERMS]
    media = [short(term) for term in MULTIMEDIA_TERMS]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        core = describe("core", f"{DWC}Occurrence", "occurrence.txt", OCCURRENCE_TERMS, "id")
        extension = describe("extension", f"{GBIF}Multimedia", "multimedia.txt", MULTIMEDIA_TERMS, "coreid")
        archive.writestr("meta.xml", meta_xml(core, extension))
        archive.writestr("metadata.xml", "<eml/>")
        with archive.open("occurrence.txt", "w", force_zip64=True) as out:
            out.write(("\t".join(records) + "\n").encode())
            for number, row in enumerate(rows(num_records)):
                values = {
                    **row,
                    "gbifID": str(number),
                    "basisOfRecord": "HUMAN_OBSERVATION",
                    "locality": row["caption"],
                }
                out.write(("\t".join(values.get(name, "") for name in records) + "\n").encode())
        with archive.open("multimedia.txt", "w", force_zip64=True) as out:
            out.write(("\t".join(media) + "\n").encode())
            for number, row in enumerate(rows(num)):
                values = {
                    "gbifID": str(number % num_records),
                    "type": "StillImage",
                    "identifier": row["url"],
                    "title": row["caption"],
                    "license": row["licence"],
                    "rightsHolder": row["owner"],
                }
                out.write(("\t".join(values.get(name, "") for name in media) + "\n").encode())
    return path


def ingest(path: Path, kind: str, memory_gb: float) -> None:
    """Run in a process of its own: read one source, print seconds, rows and peak memory."""
    from pipeline.sources.settings import SourceSettings
    from pipeline.stages.ingest import read_source

    if kind == "dwca":
        where = {"basisOfRecord": ["HumanObservation"], "kingdom": ["Plantae"], "licence": ["CC-BY"]}
        origin: dict[str, object] = {"dwca": {"path": str(path), "caption": ["media.title"], "where": where}}
    else:
        columns = {
            "record_key": "id",
            "url": "url",
            "caption": "caption",
            "taxon_kingdom": "kingdom",
            "taxon_family": "family",
            "taxon_genus": "genus",
            "taxon_scientific_name": "scientificName",
            "licence": "licence",
            "rights_holder": "owner",
        }
        origin = {"table": str(path), "columns": columns}
    source = SourceSettings.model_validate({"name": "bench", "domain": "plant", **origin})
    with tempfile.TemporaryDirectory(dir=path.parent) as workdir:
        started, cpu = time.monotonic(), time.process_time()
        result = read_source({"source": source, "workdir": workdir, "stem": "bench", "memory_gb": memory_gb})
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu
    assert result.funnel is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{seconds:.2f} {cpu_seconds:.2f} {peak:.0f} {result.funnel.num_in} {result.funnel.num_kept}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--memory-gb", type=float, default=4.0, help="run.memory_gb; the default of a build is 4")
    parser.add_argument("--peer", help="python with python-dwca-reader, for the archive")
    parser.add_argument("--one", nargs=2, metavar=("FORMAT", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        ingest(Path(args.one[1]), args.one[0], args.memory_gb)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    print("| format | rows | file MB | wall s | CPU s | peak MiB | rows/s | kept | load |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for kind in args.formats:
        for num in args.rows:
            path = write_table(args.folder, kind, num)
            load = os.getloadavg()[0]
            command = [sys.executable, __file__, str(args.folder), "--memory-gb", str(args.memory_gb)]
            done = subprocess.run(
                [*command, "--one", kind, str(path)], capture_output=True, text=True, check=True
            ).stdout.split()
            wall, cpu, peak, num_in, num_kept = (float(value) for value in done)
            size = path.stat().st_size / 1e6
            print(
                f"| {kind} | {num_in:,.0f} | {size:.0f} | {wall:.1f} | {cpu:.1f} | {peak:.0f} | {num_in / wall:,.0f} "
                f"| {num_kept:,.0f} | {load:.1f} |",
                flush=True,
            )
            if kind == "dwca" and args.peer:
                peer = subprocess.run([args.peer, "-c", PEER, str(path)], capture_output=True, text=True, check=True)
                wall, cpu, peak, num_in = (float(value) for value in peer.stdout.split())
                print(
                    f"| python-dwca-reader, join alone | {num_in:,.0f} | {size:.0f} | {wall:.1f} | {cpu:.1f} "
                    f"| {peak:.0f} | {num_in / wall:,.0f} | | |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
