"""The material of the study of choosing: one stratified release of photos, drawings and icons, built with plantmix.

That of the mixing-law study: photos are the Grocery Store dataset (Klasson et al., WACV 2019) and photos of Debian
packages, drawings are Open Clip Art and drawings of Debian packages, icons the emoji of three vendors.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from pipeline.cli import main as plantmix

DOMAINS = ("photos", "drawings", "icons")
NUM_HELDOUT = 1000
SIZE_PX = 96  # shorter side as stored; the models see 64

Row = tuple[str, str, str]
"""File within the source's folder, caption, licence."""


def build(grocery: Path, corpus: Path, work: Path) -> None:
    """Tables, config and work folder below `work`.

    Raises: SystemExit when the build does not end.
    """
    work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Row]] = defaultdict(list)
    for source, row in (*_corpus_rows(corpus), *_grocery_rows(grocery)):
        rows[source].append(row)
    for name, own in rows.items():
        with (work / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("file", "caption", "licence"), *own])
    config = work / "pictures.yaml"
    config.write_text(yaml.safe_dump(_config(grocery, corpus, work), sort_keys=False))
    if plantmix(["build", str(config)]):
        raise SystemExit(f"{config}: the build did not end")


def _corpus_rows(corpus: Path) -> Iterator[tuple[str, Row]]:
    """(source, row) of every captioned picture of the packages, keywords included; emoji are the icons."""
    columns = ["url_path", "caption", "keywords", "source_package", "licence", "kind", "tier"]
    for entry in pq.read_table(corpus / "pairs.parquet", columns=columns).to_pylist():
        emoji = "emoji" in entry["source_package"]
        if not entry["caption"] or (entry["tier"] != "core" and not emoji):
            continue
        domain = "icons" if emoji else "photos" if entry["kind"] == "photo" else "drawings"
        words = ", ".join(filter(None, (entry["caption"], entry["keywords"])))
        yield domain, (entry["url_path"].removeprefix("images/"), words, entry["licence"])


def _grocery_rows(grocery: Path) -> Iterator[tuple[str, Row]]:
    """Photos of fruit, vegetables and cartons, captioned by their class."""
    with (grocery / "classes.csv").open(encoding="utf-8") as stream:
        kinds = {row["Class Name (str)"]: row["Coarse Class Name (str)"] for row in csv.DictReader(stream)}
    for split in ("train", "val"):
        for line in (grocery / f"{split}.txt").read_text(encoding="utf-8").splitlines():
            path = line.split(",")[0]
            name = path.split("/")[-2]
            caption = f"a photo of {name}, a kind of {kinds[name]}".replace("-", " ").replace("_", " ")
            yield "groceries", (path, caption, "MIT")


def _config(grocery: Path, corpus: Path, work: Path) -> dict[str, object]:
    """Near duplicates out, one picture a caption of drawings and icons, 1,000 held out of each domain."""
    columns = {"file": "file", "caption": "caption", "licence": "licence"}
    folders = dict.fromkeys(DOMAINS, corpus / "images") | {"groceries": grocery}
    return {
        "name": "choosing",
        "work_dir": str(work / "build"),
        "sources": [
            {
                "name": name,
                "domain": name if name in DOMAINS else "photos",
                "folder": {"path": str(path.resolve()), "table": str((work / f"{name}.csv").resolve()),
                           "columns": columns},
            }
            for name, path in folders.items()
        ],
        "fetch": {"image": {"size_px": SIZE_PX, "min_side_px": 24}},
        "dedup": {"radius": 4},
        "caption": {"rules": [{"preset": "general", "min_words": 1, "min_chars": 2}]},
        "select": {
            "licences": {"allow": ["known", "unknown"]},
            "balance": {"seed": 0, "caps": [{"by": "text", "at_most": 1, "domains": ["drawings", "icons"]}]},
        },
        "mix": {
            "ratio": dict.fromkeys(DOMAINS, 1),
            "heldout": {"num_samples": dict.fromkeys(DOMAINS, NUM_HELDOUT)},
            "seed": 0,
        },
        "pack": {"kind": "stratified", "samples_per_shard": 500},
    }  # fmt: skip
