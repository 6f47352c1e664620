"""How many planted copies of evaluation photos a build finds, and how many clean photos it loses with them.

    python tests/benchmarks/bench_decontamination.py --photos FOLDER --num 2000 --clean FOLDER FOLDER --work SCRATCH

Takes `--num` photos of a folder as evaluation set. The source holds four copies of each: the same bytes, JPEG of
quality 30 to 95, resized 0.25 to 2 times, and the mirror image (JPEG 60 to 95); and as clean pictures the other photos
and all below the clean folders. Builds up to select (`plantmix build --to select`) and counts by the catalogue: caught
copies a kind and radius, clean pictures lost. Prints Markdown. Clean pictures that leak are listed: whether they are
lost wrongly is for the eye to say.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageOps

WAYS = ("exact", "encoded", "resized", "mirrored")
RADII = (0, 2, 4, 6, 8)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def plant(job: tuple[str, int, str]) -> None:
    """The four copies of one photo."""
    path, seed, folder = job
    rng = np.random.default_rng(seed)
    photo = Image.open(path).convert("RGB")
    names = {way: Path(folder) / f"{way}-{seed:05d}.jpg" for way in WAYS}
    shutil.copy(path, names["exact"])
    photo.save(names["encoded"], quality=int(rng.integers(30, 96)))
    factor = 2 ** rng.uniform(-2, 1)
    size = (max(32, round(photo.width * factor)), max(32, round(photo.height * factor)))
    photo.resize(size, Image.Resampling.BICUBIC).save(names["resized"], quality=90)
    ImageOps.mirror(photo).save(names["mirrored"], quality=int(rng.integers(60, 96)))


def lay_out(args: argparse.Namespace) -> Path:
    photos = sorted(path for path in args.photos.rglob("*.jpg"))
    photos = [photos[place] for place in np.random.default_rng(0).permutation(len(photos))]
    shown, clean = photos[: args.num], photos[args.num :]
    for folder in args.clean:
        clean += sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    for name in ("set", "source/planted", "source/clean"):
        (args.work / name).mkdir(parents=True)
    for place, path in enumerate(shown):
        shutil.copy(path, args.work / f"set/{place:05d}.jpg")
    for place, path in enumerate(clean):
        shutil.copy(path, args.work / f"source/clean/{place:06d}-{path.stem}{path.suffix}")
    with ProcessPoolExecutor(2) as pool:
        jobs = [(str(path), place, str(args.work / "source/planted")) for place, path in enumerate(shown)]
        list(pool.map(plant, jobs, chunksize=32))
    config = {
        "name": "leaks",
        "work_dir": str(args.work / "work"),
        "sources": [
            {
                "name": "pictures",
                "domain": "any",
                "folder": {"path": str(args.work / "source"), "captions": "none"},
                "defaults": {"caption": "a picture of something", "licence": "CC0-1.0"},
            }
        ],
        "evaluation": [{"name": "set", "folder": {"path": str(args.work / "set")}}],
        "mix": {"ratio": {"any": 1}},
        "run": {"num_workers": 2},
    }
    path = args.work / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def report(work: Path) -> None:
    from manifests.reader import open_reader

    with open_reader(str(work)) as sql:
        sql.execute(
            "CREATE TEMP TABLE seen AS SELECT split_part(split_part(record_key, '/', -1), '-', 1) AS way, "
            "c.record_key LIKE 'planted/%' AS planted, l.* EXCLUDE (sample_id), c.record_key, "
            "CASE WHEN matched IN ('bytes', 'pixels') THEN 0 ELSE distance END AS apart "
            "FROM candidates c JOIN facts f USING (sample_id) LEFT JOIN leaks l USING (sample_id) WHERE outcome = 'ok'"
        )
        print("| picture | num | " + " | ".join(f"within {radius}" for radius in RADII) + " |")
        print("|---|---|" + "---|" * len(RADII))
        for way in [*WAYS, "clean"]:
            where = "NOT planted" if way == "clean" else f"planted AND way = '{way}'"
            shares = ", ".join(
                f"avg((matched IS NOT NULL AND matched <> 'duplicate' AND apart <= {radius})::INT)" for radius in RADII
            )
            num, *found = sql.execute(f"SELECT count(*), {shares} FROM seen WHERE {where}").fetchall()[0]
            print(f"| {way} | {num:,} | " + " | ".join(f"{100 * share:.2f} %" for share in found) + " |")
        lost = sql.execute(
            "SELECT record_key, evaluation_member, matched, distance FROM seen "
            "WHERE NOT planted AND matched IS NOT NULL"
        ).fetchall()
        print(f"\nclean pictures lost: {len(lost)}")
        for row in lost[:20]:
            print("-", *row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--clean", type=Path, nargs="*", default=[])
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    start = time.perf_counter()
    config = lay_out(args)
    print(f"laid out in {time.perf_counter() - start:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "pipeline.cli", "build", str(config), "--to", "select"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"built in {time.perf_counter() - start:.0f} s, load {os.getloadavg()[0]:.1f}\n", flush=True)
    report(args.work / "work")


if __name__ == "__main__":
    main()
