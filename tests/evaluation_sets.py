"""Evaluation sets on disk, in each layout that is read, out of drawn samples."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from PIL import Image
from tars import tar_of

PER_TAR = 7


def _webp(jpg: bytes) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(jpg)).save(stream, "WEBP")
    return stream.getvalue()


def classes_of(samples: list[Any]) -> list[str]:
    return sorted({sample.category for sample in samples})


def write_tars(folder: Path, samples: list[Any], *, captions: bool = False) -> Path:
    """clip_benchmark's layout; every third picture a WebP, `.cls` without line end as its own builder writes it."""
    place, classes = folder / "test", classes_of(samples)
    place.mkdir(parents=True)
    for number, start in enumerate(range(0, len(samples), PER_TAR)):
        members = []
        for i, sample in enumerate(samples[start : start + PER_TAR], start):
            image = ("webp", _webp(sample.jpg)) if i % 3 == 0 else ("jpg", sample.jpg)
            answer = ("cls", str(classes.index(sample.category)).encode())
            if captions:
                answer = ("txt", f"{sample.text}\none more {sample.text}".encode())
            members += [(f"s{i:07d}.{ending}", content) for ending, content in (image, answer)]
        (place / f"{number}.tar").write_bytes(tar_of(members))
    (place / "nshards.txt").write_text(f"{number + 1}\n")
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    return folder


def write_folders(folder: Path, samples: list[Any]) -> Path:
    for sample in samples:
        place = folder / "test" / sample.category.replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{sample.record_key}.jpg").write_bytes(sample.jpg)
    return folder


def write_table(folder: Path, samples: list[Any]) -> Path:
    """As BioCLIP's sets: ranks and a common name in metadata.csv; the shape stands for the species."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for sample in samples:
        colour, shape = sample.category.split()
        (folder / "images" / f"{sample.record_key}.jpg").write_bytes(sample.jpg)
        rows.append({"filepath": f"images/{sample.record_key}.jpg", "kingdom": "Forma", "genus": colour,
                     "species": shape, "common_name": f"{colour} {shape} thing"})  # fmt: skip
    with (folder / "metadata.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder
