"""Write N pictures into one file, with an index, the tables of a build, its two configs and an evaluation set.

Reads the photos of a folder. Writes FOLDER: `pictures.bin`, `rows.parquet` (offset, length, host, fault, what is
planted, how the row must end), `plant.parquet`, `general.csv`, `captions.parquet`, `all.csv` for the peer,
`evaluation/`, `settings.json`. At 1 M about 8 GB, and 14 CPU minutes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from million.pictures import VERSION, Pictures
from million.rows import FORBIDDEN, OTHERS, OWNER, TAXA, Rows, as_table, caption, plan_rows

_AT_ONCE = 500  # pictures that a process makes before it hands them over
_made: list[Pictures] = []  # of this process; those that it forks share its photos


def make(folder: Path, photos: Path, num: int, seed: int, first_port: int) -> dict[str, Any]:
    """All files; figures for the report. A folder that holds the same pictures already is left as it is."""
    settings = {"num": num, "seed": seed, "first_port": first_port, "photos": str(photos), "version": VERSION}
    kept = folder / "settings.json"
    made = json.loads(kept.read_text()) if kept.exists() and (folder / "pictures.bin").exists() else {}
    if settings.items() <= made.items():
        return dict(made)
    folder.mkdir(parents=True, exist_ok=True)
    rows = plan_rows(num, seed)
    _made[:] = [Pictures(photos, rows)]
    digest, num_bytes = hashlib.sha256(), 0
    lengths, texts = np.empty(num, np.int64), []
    starts = range(0, num, _AT_ONCE)
    with multiprocessing.get_context("fork").Pool(2) as pool, (folder / "pictures.bin").open("wb") as stream:
        for bodies, names in pool.imap(functools.partial(_make_some, num), starts):
            lengths[len(texts) : len(texts) + len(bodies)] = [len(body) for body in bodies]
            texts += [caption(len(texts) + n, pair) for n, pair in enumerate(names)]
            for body in bodies:
                digest.update(body)
                num_bytes += stream.write(body)
            if len(texts) % 50_000 == 0:
                print(f"{len(texts):,} of {num:,} pictures, {num_bytes / 1e9:.2f} GB", file=sys.stderr, flush=True)
    (folder / "evaluation").mkdir(exist_ok=True)
    for number in range(num, num + rows.num_evaluation):
        (folder / f"evaluation/{number}.jpg").write_bytes(_made[0].body(number))
    _made.clear()
    offsets = np.cumsum(lengths) - lengths
    pq.write_table(as_table(rows, offsets, lengths), folder / "rows.parquet")
    write_tables(folder, rows, texts, first_port)
    figures = {**settings, "num_bytes": num_bytes, "sha256": digest.hexdigest()}
    kept.write_text(json.dumps(figures))
    return figures


def _make_some(num: int, start: int) -> tuple[list[bytes], list[tuple[str, str]]]:
    numbers = range(start, min(num, start + _AT_ONCE))
    return [_made[0].body(number) for number in numbers], [_made[0].names(number) for number in numbers]


def write_tables(folder: Path, rows: Rows, texts: list[str], first_port: int) -> None:
    """A list of addresses for each domain, and the texts of both in a third table, in another order."""
    everything = np.arange(rows.num)
    keys = np.array([rows.key(number) for number in everything])
    urls = np.array([f"http://127.0.0.1:{first_port + port}/{n}.jpg" for n, port in enumerate(rows.port)])
    urls[rows.role == "no_address"] = ""
    columns = {
        "key": keys,
        "url": urls,
        "taxon": np.where(rows.is_plant, np.array(TAXA)[everything % len(TAXA)], ""),
        "licence": np.where(rows.role == "forbidden", FORBIDDEN, "CC-BY-4.0"),
        "owner": np.where(rows.is_owned, OWNER, OTHERS),
    }
    plants, general = (pa.table({k: v[which] for k, v in columns.items()}) for which in (rows.is_plant, ~rows.is_plant))
    pq.write_table(plants, folder / "plant.parquet")
    pc.write_csv(general.drop_columns(["taxon"]), folder / "general.csv")
    pc.write_csv(pa.table({"url": urls[urls != ""], "caption": np.array(texts)[urls != ""]}), folder / "all.csv")
    told = np.random.default_rng(rows.seed).permutation(np.flatnonzero(rows.role != "no_caption"))
    pq.write_table(pa.table({"key": keys[told], "text": np.array(texts)[told]}), folder / "captions.parquet")


def write_config(folder: Path, work: Path, name: str, ratio: dict[str, int]) -> Path:
    """A build as the reference recipe is: two domains, joined captions, an evaluation set, held-out samples."""
    settings = json.loads((folder / "settings.json").read_text())
    columns = {"record_key": "key", "url": "url", "caption": [], "licence": "licence", "rights_holder": "owner"}
    texts = str(folder / "captions.parquet")
    joined = [{"join": texts, "on": {"record_key": "key"}, "text": "text", "kind": "caption"}]
    plants = {**columns, "taxon_scientific_name": "taxon"}
    config = {
        "name": name,
        "work_dir": str(work),
        "sources": [
            {
                "name": domain, "domain": domain, "table": str(folder / file), "columns": mapped, "captions": joined,
                "priority": int(domain == "plant"),
            }
            for domain, file, mapped in (("plant", "plant.parquet", plants), ("general", "general.csv", columns))
        ],
        "evaluation": [{"name": "test", "folder": {"path": str(folder / "evaluation")}}],
        "fetch": {
            "image": {"jpeg_quality": 85},  # 1 M pictures and a takedown must fit into 30 GB
            "network": {
                "allow_private_addresses": ["127.0.0.1"],
                "hosts": [{"pattern": "127.0.0.1", "requests_per_second": None, "connections": 16}],
            }
        },
        "caption": {
            "rules": [
                {"domains": ["plant"], "preset": "plant", "min_chars": 2},
                {"preset": "general", "min_words": 3, "languages": {"allow": ["en"]}},
            ]
        },
        "mix": {"ratio": ratio, "heldout": {"share": 0.005}},
        # small builds have many parts and shards too, so that a kill meets more than one
        "pack": {"samples_per_shard": max(20, min(1000, settings["num"] // 40))},
        "run": {
            "executor": "processes", "num_workers": os.cpu_count(),
            "fetch_part_size": max(50, min(10_000, settings["num"] // 20)),
        },
    }  # fmt: skip
    path = folder / f"{name}.json"  # json is YAML too
    path.write_text(json.dumps(config, indent=1))
    return path
