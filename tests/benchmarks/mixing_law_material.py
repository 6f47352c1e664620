"""The material of the mixing-law study: one stratified release of photos, drawings and icons, built with plantmix.

    python tests/benchmarks/mixing_law_material.py CORPUS GROCERY WORK

CORPUS holds images/ and pairs.parquet (pictures of Debian and npm packages with their captions), GROCERY is the
Grocery Store dataset (Klasson et al., WACV 2019) with train/, val/ and classes.csv. Writes into WORK one table a
domain, pictures.yaml, and what `plantmix build` makes of them. tests/benchmarks/protocols/mixing-law.md says why so.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from pipeline.cli import main as plantmix

DOMAINS = ("photos", "drawings", "icons")
NUM_HELDOUT = 1000
RELEASE = "mixing-law"
SIZE_PX = 96  # shorter side as stored; the models see 64

Row = tuple[str, str, str]
"""File within the source's folder, caption, licence."""


def corpus_rows(corpus: Path) -> Iterator[tuple[str, Row]]:
    """(source, row) of every captioned picture of the packages, keywords included; emoji are the icons."""
    columns = ["url_path", "caption", "keywords", "source_package", "licence", "kind", "tier"]
    for entry in pq.read_table(corpus / "pairs.parquet", columns=columns).to_pylist():
        emoji = "emoji" in entry["source_package"]
        if not entry["caption"] or (entry["tier"] != "core" and not emoji):
            continue
        domain = "icons" if emoji else "photos" if entry["kind"] == "photo" else "drawings"
        words = ", ".join(filter(None, (entry["caption"], entry["keywords"])))
        yield domain, (entry["url_path"].removeprefix("images/"), words, entry["licence"])


def grocery_rows(grocery: Path) -> Iterator[tuple[str, Row]]:
    """Photos of fruit, vegetables and cartons, captioned by their class."""
    with (grocery / "classes.csv").open(encoding="utf-8") as stream:
        kinds = {row["Class Name (str)"]: row["Coarse Class Name (str)"] for row in csv.DictReader(stream)}
    for split in ("train", "val"):
        for line in (grocery / f"{split}.txt").read_text(encoding="utf-8").splitlines():
            path = line.split(",")[0]
            name = path.split("/")[-2]
            caption = f"a photo of {name}, a kind of {kinds[name]}".replace("-", " ").replace("_", " ")
            yield "groceries", (path, caption, "MIT")


def build_config(corpus: Path, grocery: Path, work: Path) -> dict[str, object]:
    """The build: near duplicates out, one picture a caption of drawings and icons, 1,000 held out of each domain."""
    columns = {"file": "file", "caption": "caption", "licence": "licence"}
    folders = dict.fromkeys(DOMAINS, corpus / "images") | {"groceries": grocery}
    return {
        "name": RELEASE,
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "grocery", "work"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Row]] = defaultdict(list)
    for source, row in (*corpus_rows(args.corpus), *grocery_rows(args.grocery)):
        rows[source].append(row)
    for name, own in rows.items():
        with (args.work / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("file", "caption", "licence"), *own])
    config = args.work / "pictures.yaml"
    config.write_text(yaml.safe_dump(build_config(args.corpus, args.grocery, args.work), sort_keys=False))
    return plantmix(["build", str(config)])


if __name__ == "__main__":
    raise SystemExit(main())
