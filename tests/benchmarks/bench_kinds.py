"""Error rates of the detectors of `pipeline.scoring.kinds` on real pictures that were judged by eye.

    python tests/benchmarks/bench_kinds.py FOLDER...

Reads the labels of kinds.csv, finds the pictures by their sha256 anywhere in the folders, stores each as a
build does by default (shorter side 256 px) and scores it. Writes the scores beside the labels and prints the rates.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from pathlib import Path

from manifests.pictures.opening import open_stored
from pipeline.fetching.pictures.image import measure_image
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.scoring.kinds import FaceScorer, TextScorer
from pipeline.scoring.scorers import find_boxes

LABELS = Path(__file__).parent / "kinds.csv"
THRESHOLDS = {"face": (0.6, 0.7, 0.8, 0.9), "text": (0.005, 0.01, 0.02, 0.05, 0.1)}
DIGITS = 16  # of the sha256 that the labels name


def main(folders: list[str]) -> None:
    with LABELS.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    asked = {row["sha256"] for row in rows}
    bodies: dict[str, bytes] = {}
    for path in (path for folder in folders for path in Path(folder).rglob("*") if path.is_file()):
        body = path.read_bytes()
        if (digits := hashlib.sha256(body).hexdigest()[:DIGITS]) in asked:
            bodies[digits] = body
    faces, text = FaceScorer(), TextScorer()
    faces.load()
    text.load()
    for row in rows:
        if row["sha256"] in bodies:
            stored = measure_image(bodies[row["sha256"]], ImageSettings())
            image = open_stored(stored.body).convert("RGB")
            row["face_score"] = f"{find_boxes(faces, [image])[0][0]:.2f}"
            row["text_score"] = f"{text.score([image], [''])[0]:.4f}"
    with LABELS.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(bodies)} of {len(rows)} pictures are here")
    for kind, thresholds in THRESHOLDS.items():
        for threshold in thresholds:
            told = []
            for label in sorted({row[kind] for row in rows}):
                own = [float(row[f"{kind}_score"]) for row in rows if row[kind] == label]
                told.append(f"{label} {sum(score > threshold for score in own)} of {len(own)}")
            print(f"{kind} above {threshold}: {', '.join(told)}")


if __name__ == "__main__":
    main(sys.argv[1:])
