"""Lay out the plant sets of published.yaml from Meta-Album's downloads: an archive or a folder NAME_Mini for each.

    python configs/evaluation/lay_out.py DOWNLOADS data/evaluation

A download has images/ and labels.csv (FILE_NAME, CATEGORY). Out of it comes a folder with the same pictures and a
metadata.csv (filepath, class), which `dalip eval` and `dalip table` read. Sets that are not there are named. A folder
that exists is left as it is.
"""

from __future__ import annotations

import csv
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDERS = {
    "PLT_NET_Mini": "plantnet",
    "FNG_Mini": "fungi",
    "PLT_VIL_Mini": "plant_village",
    "MED_LF_Mini": "medicinal_leaf",
    "PLT_DOC_Mini": "plant_doc",
}


def main(downloads: Path, target: Path) -> int:
    """Lay out what is there; 1 where a set is missing."""
    missing = []
    for name, folder in FOLDERS.items():
        if (target / folder).exists():
            print(f"{folder}: is there, left as it is")
        elif (num := lay_out(downloads / name, target / folder)) is None:
            missing.append(name)
        else:
            print(f"{folder}: {num:,} pictures")
    if missing:
        print(f"not in {downloads}, as .zip or folder: {', '.join(missing)}")
    return 1 if missing else 0


def lay_out(download: Path, target: Path) -> int | None:
    """Write a set as a whole; the number of its pictures, None where there is no download."""
    archive = download.with_suffix(".zip")
    with tempfile.TemporaryDirectory(dir=_made(target.parent)) as scratch:
        unpacked = download
        if archive.is_file():
            unpacked = Path(scratch) / "unpacked"
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(unpacked)
        tables = sorted(unpacked.rglob("labels.csv")) if unpacked.is_dir() else []
        if not tables:
            return None
        part = _made(Path(scratch) / "part")
        with tables[0].open(encoding="utf-8", newline="") as stream:
            rows = [(f"images/{row['FILE_NAME']}", row["CATEGORY"]) for row in csv.DictReader(stream)]
        shutil.copytree(tables[0].parent / "images", part / "images")
        with (part / "metadata.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([("filepath", "class"), *rows])
        part.rename(target)
    return len(rows)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
