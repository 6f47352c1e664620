"""Measure `plantmix browse` on metadata alone: the index, the first page, filters, counts, one image, galleries.

    python tests/benchmarks/bench_browse.py [--rows 1000000,13000000]

The tables are synthetic Parquet parts; MACROS and TABLES say what is assumed. Each size runs in a process of its own,
so that its peak memory can be told. The disk's cache is warm.
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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from starlette.testclient import TestClient

from manifests.contract.catalog import Catalog
from manifests.contract.reader import SAMPLE_VIEWS
from manifests.contract.records import Funnel, PartFile, PartRecord, StageRecord
from pipeline.browse.app import Pages, make_app
from pipeline.browse.evaluation import EvaluationPictures
from pipeline.browse.filters import Filters
from pipeline.browse.image_index import ImageIndex
from pipeline.browse.index_process import IndexProcess
from pipeline.browse.snapshot import IMAGES_FILE, open_snapshot
from pipeline.store.writing import ROW_GROUP_ROWS

PART_ROWS = 500_000
TARGETS = {"first page": 1.0, "filter": 2.0, "counts": 3.0}
ROOT = Path(__file__).resolve().parents[2]

# One row i; u(k) is even in [0, 1), z(n, k) a rank below n with Zipf's law.
MACROS = """
    CREATE MACRO u(i, k) AS (hash(i * 31 + k) % 1000003) / 1000003.0;
    CREATE MACRO z(n, i, k) AS floor(pow(n, u(i, k)))::INT - 1;
    CREATE MACRO word(n) AS
        ['leaf','flower','red','tree','on','the','a','garden','close','with','of','photo'][n % 12 + 1]
        || CASE WHEN n < 12 THEN '' ELSE n::VARCHAR END;
    CREATE MACRO id(i) AS md5(i::VARCHAR);
    CREATE MACRO plant(i) AS i % 13 < 10;
    CREATE MACRO ok(i) AS u(i, 1) >= 0.12;
    CREATE MACRO failure(i) AS ['http_404','connect_timeout','http_5xx','not_an_image','robots_disallowed',
        'image_too_small','dns_failure','http_410'][z(8, i, 2) + 1];
    CREATE MACRO rule(i) AS ['not_empty','min_chars','not_filename_like','max_chars','language'][z(5, i, 3) + 1];
    CREATE MACRO ending(i) AS CASE WHEN NOT ok(i) THEN 'fetch' WHEN u(i, 4) < 0.06 THEN 'caption'
        WHEN u(i, 4) < 0.14 THEN 'near' WHEN u(i, 4) < 0.17 THEN 'exact' WHEN u(i, 4) < 0.1705 THEN 'leak'
        ELSE 'keep' END;
    CREATE MACRO given(i) AS CASE WHEN plant(i)
        THEN 'A photo of Genus' || z(60000, i, 5) % 9000 || ' species' || z(60000, i, 5) || ', ' || word(z(3000, i, 6))
        ELSE array_to_string(list_transform(range(5 + (u(i, 7) * 12)::INT),
            lambda k: word(z(30000, i, 20 + k::INT))), ' ') END;
"""
TABLES = {
    "candidates": "id(i) AS sample_id, if(plant(i), if(i % 3 = 0, 'herbaria', 'gbif'), 'web') AS source, "
    "if(plant(i), 'plant', 'general') AS domain, i::VARCHAR AS record_key, i AS row_number, "
    "'https://' || host(i) || '/' || id(i) || '.jpg' AS url, given(i) AS caption, "
    "if(plant(i), 'Plantae', NULL) AS taxon_kingdom, "
    "if(plant(i), 'class' || z(60000, i, 5) % 14, NULL) AS taxon_class, "
    "if(plant(i), 'Family' || z(60000, i, 5) % 430, NULL) AS taxon_family, "
    "if(plant(i), 'Genus' || z(60000, i, 5) % 9000 || ' species' || z(60000, i, 5), NULL) AS taxon_scientific_name",
    "facts": "id(i) AS sample_id, if(ok(i), 'ok', failure(i)) AS outcome, host(i) AS host, "
    "if(ok(i), hash(i), NULL) AS phash, if(ok(i), 100 + (u(i, 8) * 4000)::INT, NULL)::INT AS width_px, "
    "if(ok(i), 100 + (u(i, 9) * 3000)::INT, NULL)::INT AS height_px, "
    "if(ok(i), (i // 5000) || '.tar', NULL) AS pool_file, if(ok(i), (i % 5000) * 20000, NULL)::BIGINT AS \"offset\", "
    "if(ok(i), 20000, NULL)::BIGINT AS length",
    "captions": "id(i) AS sample_id, given(i) AS text, "
    "if(plant(i), 'Genus' || z(60000, i, 5) % 9000 || ' species' || z(60000, i, 5), NULL) AS taxon_name, "
    "['CC-BY-4.0','CC0-1.0','CC-BY-NC-4.0','unknown','CC-BY-SA-4.0','CC-BY-ND-4.0'][z(6, i, 10) + 1] AS licence_id, "
    "['en','es','de','fr','pt','nl','sv','zh'][z(8, i, 11) + 1] AS language",
    "decisions": "id(i) AS sample_id, ending(i) = 'keep' AS keep, "
    "CASE ending(i) WHEN 'fetch' THEN 'fetch' WHEN 'caption' THEN 'caption' WHEN 'keep' THEN NULL ELSE 'select' END "
    "AS stage, "
    "CASE ending(i) WHEN 'fetch' THEN failure(i) WHEN 'caption' THEN rule(i) WHEN 'near' THEN 'near_duplicate' "
    "WHEN 'exact' THEN 'exact_duplicate' WHEN 'leak' THEN 'eval_leak' END AS reason, "
    "if(ending(i) IN ('near', 'exact'), id(i - i % 7), NULL) AS other_sample_id, "
    "if(ending(i) = 'near', 2, NULL)::UTINYINT AS distance, if(ending(i) = 'leak', 'cub', NULL) AS evaluation_set",
    "scores": "id(i) AS sample_id, 'clip' AS scorer, (0.1 + u(i, 12) * 0.3)::FLOAT AS score",
    "draws": "id(i) AS sample_id, 0 AS copy, if(plant(i), 'plant', 'general') AS domain, 'train' AS split",
    "placements": "id(i) AS sample_id, 0 AS copy, if(plant(i), 'plant', 'general') AS domain, 'train' AS split, "
    "'big-' || lpad((i // 10000)::VARCHAR, 6, '0') || '.tar' AS shard, (i % 10000)::INT AS position, id(i) AS key, "
    "0::BIGINT AS jpg_offset, 20000::BIGINT AS jpg_length",
}
HOST = """CREATE MACRO host(i) AS CASE WHEN plant(i) THEN ['inaturalist-open-data.s3.amazonaws.com','api.gbif.org',
    'mediaphoto.mnhn.fr','content.eol.org','herbaria.plants.ox.ac.uk'][z(5, i, 13) + 1]
    ELSE 'host' || z(40000, i, 13) || '.example' END"""
PLACED = "WHERE ending(i) = 'keep' AND u(i, 14) < 0.9"
ROWS = {"draws": PLACED, "placements": PLACED, "scores": "WHERE ok(i)", "captions": "WHERE ok(i)"}


def main() -> None:
    """Make the tables of each size, look at them, print the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="1000000,13000000")
    parser.add_argument("--one", type=int, help="run one size and print its figures")
    parser.add_argument("--folder", help="where the tables of --one lie")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(Path(args.folder), args.one)))
        return
    found = []
    for num in map(int, args.rows.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            make_work_folder(Path(folder), num)
            command = [sys.executable, __file__, "--one", str(num), "--folder", folder]
            printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        found.append(json.loads(printed.splitlines()[-1]))
        print(found[-1], flush=True)
    print(report(found))


def make_work_folder(folder: Path, num_rows: int) -> None:
    """A catalogue and its Parquet parts; 10 of 13 rows are plants, an eighth was not fetched, 11 % are duplicates."""
    connection = duckdb.connect()
    connection.execute(MACROS + HOST)
    with Catalog.open(str(folder)) as catalog:
        for table, columns in TABLES.items():
            stage, schema, _ = SAMPLE_VIEWS[table]
            (folder / "tables" / stage).mkdir(parents=True, exist_ok=True)
            catalog.open_stage(stage, stage, {})
            for at, start in enumerate(range(0, num_rows, PART_ROWS)):
                path = f"tables/{stage}/{table}-{at:03d}.parquet"
                stop = min(num_rows, start + PART_ROWS)
                rows = connection.sql(
                    f"SELECT {columns} FROM range({start}, {stop}) t(i) {ROWS.get(table, '')} ORDER BY sample_id"
                ).to_arrow_table()
                for field in schema:
                    if field.name not in rows.column_names:
                        rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
                pq.write_table(
                    rows.select(schema.names).cast(schema),
                    folder / path,
                    compression="zstd",
                    row_group_size=ROW_GROUP_ROWS,
                )
                file = PartFile(table, path, rows.num_rows, 0, "")
                part = PartRecord(path, stage, table, stage, (file,), None, {}, 0.0, 1)
                catalog.commit_parts(stage, {at: part})
        for stage in ("ingest", "fetch", "dedup", "caption", "score", "select", "mix", "pack"):
            catalog.open_stage(stage, stage, {})
            catalog.seal_stage(StageRecord(stage, stage, Funnel(num_rows, num_rows), {"radius": 4}))


def measure(folder: Path, num_rows: int) -> dict[str, Any]:
    """Seconds of each question, asked once: on the clock, and of the processor. And the peak memory of the process."""
    seconds: dict[str, tuple[float, float]] = {}

    def timed(name: str, question: Callable[[], Any], into: dict[str, tuple[float, float]] = seconds) -> Any:
        started, worked = time.monotonic(), time.process_time()
        answer = question()
        into[name] = time.monotonic() - started, time.process_time() - worked
        return answer

    with ExitStack() as stack:
        private = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        snapshot = timed("opening", lambda: stack.enter_context(open_snapshot(str(folder), private)))
        pages = Pages(snapshot, "", lambda life: (), EvaluationPictures(snapshot, ()))
        client = TestClient(make_app(pages, token="t", port=1), base_url="http://127.0.0.1:1", follow_redirects=False)
        client.get("/?open=t")
        timed("waiting page", lambda: client.get("/"))
        timed("index", lambda: make(str(folder), private))
        child = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds["index"] = seconds["index"][0], child.ru_utime + child.ru_stime
        peak_index = child.ru_maxrss / 1024
        stack.enter_context(snapshot.attached(snapshot.index / IMAGES_FILE, read_only=True))
        image_index = timed("opening the index", lambda: ImageIndex(snapshot))
        index_bytes = sum(path.stat().st_size for path in snapshot.index.iterdir())
        pages.open(image_index)
        timed("first page", lambda: client.get("/"))
        cases = {f"{facet.name}={row['value']}": Filters(chosen={facet.name: (row["value"],)})
                 for facet, shown in zip(image_index.facets, image_index.counts(Filters())[1], strict=True)
                 for row in (shown["values"][0], shown["values"][-1])}  # fmt: skip
        cases |= {
            "a common word": Filters(words="photo"),
            "a rare word": Filters(words="garden28999"),
            "no such word": Filters(words="nowhere"),
            "three words": Filters(words="red tree leaf"),
            "a taxon": Filters(taxon="Genus77 species77"),
            "words and facets": Filters(words="flower", chosen={"domain": ("plant",), "reason": ("near_duplicate",)}),
        }
        filters: dict[str, tuple[float, float]] = {}
        counts: dict[str, tuple[float, float]] = {}
        for name, one in cases.items():  # a search for words is one walk over the captions, which the counts use too
            timed(name, lambda one=one: image_index.page(one), filters)
            timed(name, lambda one=one: image_index.counts(one), counts)
        image = image_index.page(Filters(chosen={"reason": ("near_duplicate",)}))[0][0]
        deep = Filters(after="f" * 4 + "0" * 28)
        timed("a page near the end", lambda: image_index.page(deep))
        timed("one image", lambda: client.get(f"/image/{image['id']}"))
        for page in ("/reasons", "/duplicates", "/leaks"):
            timed(page, lambda page=page: client.get(page))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "rows": num_rows, "seconds": seconds, "filters": filters, "counts": counts,
        "peak_index_mib": peak_index, "peak_mib": peak, "index_mb": index_bytes / 1e6, "load": os.getloadavg()[0],
    }  # fmt: skip


def make(folder: str, private: Path) -> None:
    """The index, made as the command makes it."""
    with IndexProcess(folder, private) as index_process:
        index_process.wait(lambda share: None)


def report(found: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    loads = ", ".join(format(one["load"], ".1f") for one in found)
    head = "| | " + " | ".join(f"{one['rows']:,}" for one in found) + " |"
    lines = [
        "# Browsing: measured", "",
        f"{date.today()}, commit {commit}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"Python {platform.python_version()}, other work running beside (load {loads}). Command: "
        f"`python tests/benchmarks/bench_browse.py --rows {','.join(str(one['rows']) for one in found)}`. Metadata is "
        "synthetic (MACROS and TABLES of the script); no pictures are behind it. Every question was asked once.", "",
        "The target is for 13,000,000 rows: first page under 1 s, any filter under 2 s, counts under 3 s, under 2 GiB. "
        "The index is made once for each content of a folder, in a process of its own; meanwhile the pages tell what "
        "the catalogue knows. In brackets: processor seconds of all threads, which other work beside it lengthens less "
        "than the clock.", "",
        head, "|---|" + "---:|" * len(found),
    ]  # fmt: skip

    def add(name: str, values: list[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(values) + " |")

    def both(values: Sequence[Sequence[float]]) -> list[str]:
        return [f"{wall:.2f} ({worked:.2f})" for wall, worked in values]

    for name in ("opening", "waiting page"):
        add(f"{name}, s", both([one["seconds"][name] for one in found]))
    add("making the index, s", both([one["seconds"]["index"] for one in found]))
    add("index on disk, MB", [f"{one['index_mb']:,.0f}" for one in found])
    add("peak memory of making it (target 2,048), MiB", [f"{one['peak_index_mib']:,.0f}" for one in found])
    add("peak memory of answering (target 2,048), MiB", [f"{one['peak_mib']:,.0f}" for one in found])
    add("opening a kept index, s", both([one["seconds"]["opening the index"] for one in found]))
    add("first page (target 1), s", both([one["seconds"]["first page"] for one in found]))
    for kind, target in (("filters", "filter"), ("counts", "counts")):
        worst = [max(one[kind].items(), key=lambda item: item[1][1]) for one in found]
        title = f"slowest of {len(found[0][kind])} {'filters' if kind == 'filters' else 'counts beside filters'}"
        shown = [f"{text} {name}" for (name, _), text in zip(worst, both([each for _, each in worst]), strict=True)]
        add(f"{title} (target {TARGETS[target]:.0f}), s", shown)
        add("their median, s", both([sorted(one[kind].values())[len(one[kind]) // 2] for one in found]))
    for name in ("a page near the end", "one image", "/reasons", "/duplicates", "/leaks"):
        add(f"{name}, s", both([one["seconds"][name] for one in found]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
