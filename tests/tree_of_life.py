"""TreeOfLife-10M and TreeOfLife-200M as they are laid out, and a list of a web crawl, with a few rows of their schemas.

Source: the data cards of imageomics/TreeOfLife-10M and imageomics/TreeOfLife-200M on the Hugging Face Hub.
"""

from __future__ import annotations

import csv
import gzip
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tars import tar_of
from walk.web import picture

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
TAXA = (
    ("Plantae", "Tracheophyta", "Magnoliopsida", "Fagales", "Fagaceae", "Quercus", "robur", "English oak"),
    ("Plantae", "Tracheophyta", "Liliopsida", "Poales", "Poaceae", "Poa", "angustifolia", "Narrow-leaved meadow-grass"),
    ("Animalia", "Arthropoda", "Insecta", "Lepidoptera", "Nymphalidae", "Vanessa", "atalanta", "Red Admiral"),
    ("Plantae", "Tracheophyta", "Magnoliopsida", "Rosales", "Rosaceae", "Malus", "sylvestris", "Crab apple"),
)
OWNERS = ("Sofia Almeida", "Kew Gardens", "not provided")
CATALOG_10M = (
    *("split", "treeoflife_id", "eol_content_id", "eol_page_id", "bioscan_part", "bioscan_filename"),
    *("inat21_filename", "inat21_cls_name", "inat21_cls_num", *RANKS, "common"),
)
LICENSES_10M = (
    *("treeoflife_id", "eol_content_id", "eol_page_id", "md5", "medium_source_url", "eol_full_size_copy_url"),
    *("license_name", "copyright_owner", "license_link", "title"),
)
NUM_10M = 12
OF_OTHERS = ("inat21_filename", "bioscan_filename")  # of rows whose pictures are not in the tars


def id_of(number: int) -> str:
    """The same id each time, as the data sets write theirs."""
    return str(uuid.UUID(int=0xAA563519_6D97_47C3_BCDA_0000_0000_0000 + 7919 * number))


def write_csv(path: Path, names: Iterable[str], rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(names), restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_10m(folder: Path) -> None:
    """Two tars of 6 pictures each; the catalogue has all of them, 3 rows of others, and two of train_small twice."""
    (folder / "dataset/EOL").mkdir(parents=True)
    for tar in range(2):
        members = [(f"{id_of(n)}.jpg", picture(n, "jpg")) for n in range(6 * tar, 6 * tar + 6)]
        packed = gzip.compress(tar_of(members), mtime=0)
        (folder / f"dataset/EOL/image_set_0{tar + 1}.tar.gz").write_bytes(packed)
    catalog, licenses = [], []
    for n in reversed(range(NUM_10M + 3)):  # in another order than the tars
        *ranks, common = TAXA[n % 4]
        is_eol = n < NUM_10M
        row = {"treeoflife_id": id_of(n)}
        of_eol = {"eol_content_id": 20_000_000 + n, "eol_page_id": 40_000 + n % 4}
        origin = of_eol if is_eol else {OF_OTHERS[n % len(OF_OTHERS)]: f"{n}.jpg"}
        catalog.append(
            {
                **row,
                **origin,
                "split": "val" if n == 5 else "train",
                **dict(zip(RANKS, ranks, strict=True)),
                "common": common,
            }
        )
        if n in (1, 2):
            catalog.append({**catalog[-1], "split": "train_small"})
        if is_eol and n != 7:  # whose licence nobody knows
            name, link = (("cc-by-nc", "4.0/"), ("cc-by", "2.0/"), ("cc-by-nc-nd", "4.0/"))[n % 3]
            link = f"https://creativecommons.org/licenses/{name.removeprefix('cc-')}/{link}"
            owner = {
                "license_name": name,
                "license_link": link,
                "copyright_owner": OWNERS[n % 3],
                "title": "not provided",
            }
            licenses.append({**row, **of_eol, "medium_source_url": f"https://www.flickr.com/photos/{n}", **owner})
    write_csv(folder / "metadata/catalog.csv", CATALOG_10M, catalog)
    write_csv(folder / "metadata/licenses.csv", LICENSES_10M, licenses)


def write_200m(folder: Path, address: str, num: int = 16) -> None:
    """A catalogue of pictures below an address, and their provenance in another order."""
    types = ("Citizen Science", "Museum Specimen: Plant", "Unidentified", "Camera-trap")
    catalog, provenance = [], []
    for n in range(num):
        *ranks, common = TAXA[n % 4]
        source = "eol" if types[n // 4 % 4] == "Unidentified" else "gbif"
        origin = {"uuid": id_of(n), "source_id": str(4_000_000_000 + n), "data_source": source}
        url = {"source_url": f"{address}/{n}.jpg"}
        basis = None if source == "eol" else "HUMAN_OBSERVATION"
        basis = "PRESERVED_SPECIMEN" if n // 4 % 4 == 1 else basis
        named = {"scientific_name": f"{ranks[5]} {ranks[6]}", "common": common, "publisher": None}
        shard = {"shard_filename": f"shard-{n // 8:05}.tar", "shard_file_path": None, "base_dataset_file_path": None}
        row = {**origin, **url, **dict(zip(RANKS, ranks, strict=True)), **named, "basisOfRecord": basis}
        catalog.append({**row, "img_type": types[n // 4 % 4], **shard})
        name = ("cc-by", "cc-by-nc", "cc0")[n % 3]
        link = f"https://creativecommons.org/licenses/{name.removeprefix('cc-')}/4.0/" if name != "cc0" else None
        owner = {"license_name": name, "license_link": link, "copyright_owner": OWNERS[n % 3], "title": "not provided"}
        provenance.append({**origin, **url, **owner})
    (folder / "dataset/metadata").mkdir(parents=True, exist_ok=True)
    texts = pa.schema([(name, pa.string()) for name in catalog[0]])
    pq.write_table(pa.Table.from_pylist(catalog, texts), folder / "dataset/catalog.parquet")
    texts = pa.schema([(name, pa.string()) for name in provenance[0]])
    pq.write_table(pa.Table.from_pylist(provenance[::-1], texts), folder / "dataset/metadata/provenance.parquet")


def write_web_list(folder: Path, address: str, num: int = 9) -> None:
    """Two files of addresses and texts, as LAION's and CC12M's are handed on: sizes beside them, no licence."""
    rows = [
        {"url": f"{address}/web/{n}.jpg", "text": f"a quiet street in town {n}", "width": 640, "height": 480}
        for n in range(num)
    ]
    folder.mkdir(parents=True)
    for part, some in enumerate((rows[: num // 2], rows[num // 2 :])):
        pq.write_table(pa.Table.from_pylist(some), folder / f"part-{part:05}.parquet")
