"""How many planted copies of evaluation photos a build finds, and how many clean pictures it loses with them.

    python tests/benchmarks/bench_decontamination.py --photos FOLDER --num 2000 --clean FOLDER FOLDER --work SCRATCH

Takes `--num` photos of a folder as evaluation set. The source holds a copy of each in every way of WAYS (the same
bytes, re-encoded, resized, mirrored, and what else a re-uploader does, with a random strength), and as clean pictures
the other photos and all below the clean folders. Builds up to select (`plantmix build --to select`) with radius 8 and
then with the default, and prints Markdown: the share of each kind within each radius, and what the default radius
drops in all. Clean pictures that leak are listed: whether they are lost wrongly is for the eye to say.
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
from bench_hash_quality import TRANSFORMS
from PIL import Image, ImageOps

ASKED = ("same bytes", "JPEG 30-95", "resize 0.25-2x", "mirror image, JPEG 60-95")
OTHERS = tuple(name for name in TRANSFORMS if name not in ASKED and not name.startswith("mirror"))
WAYS = (*ASKED, *OTHERS)
RADII = (0, 2, 4, 5, 6, 8)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def plant(job: tuple[str, int, str]) -> None:
    """The copies of one photo, as `way-photo.suffix`."""
    path, seed, folder = job
    rng = np.random.default_rng(seed)
    photo = Image.open(path).convert("RGB")
    for way, name in enumerate(WAYS):
        file = Path(folder) / f"{way:02d}-{seed:05d}.jpg"
        if name == "same bytes":
            shutil.copy(path, file)
        elif name == "JPEG 30-95":
            photo.save(file, quality=int(rng.integers(30, 96)))
        elif name.startswith("mirror"):
            ImageOps.mirror(photo).save(file, quality=int(rng.integers(60, 96)))
        elif name.startswith("WebP"):
            photo.save(file.with_suffix(".webp"), quality=int(rng.integers(50, 91)))
        else:
            TRANSFORMS[name](photo, rng).save(file, quality=90)


def lay_out(args: argparse.Namespace) -> None:
    photos = sorted(path for path in args.photos.rglob("*.jpg"))
    photos = [photos[place] for place in np.random.default_rng(0).permutation(len(photos))]
    shown, clean = photos[: args.num], [(path, args.photos.name) for path in photos[args.num :]]
    for folder in args.clean:
        clean += [(p, folder.name) for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES]
    for name in ("set", "source/planted", "source/clean"):
        (args.work / name).mkdir(parents=True)
    for place, path in enumerate(shown):
        shutil.copy(path, args.work / f"set/{place:05d}.jpg")
    for place, (path, kind) in enumerate(clean):
        shutil.copy(path, args.work / f"source/clean/{kind}-{place:06d}-{path.stem}{path.suffix}")
    with ProcessPoolExecutor(2) as pool:
        jobs = [(str(path), place, str(args.work / "source/planted")) for place, path in enumerate(shown)]
        list(pool.map(plant, jobs, chunksize=32))


def build(work: Path, radius: int | None) -> None:
    """One build up to select; None takes the default radius."""
    config = {
        "name": "leaks",
        "work_dir": str(work / "work"),
        "sources": [
            {
                "name": "pictures",
                "domain": "any",
                "folder": {"path": str(work / "source"), "captions": "none"},
                "defaults": {"caption": "a picture of something", "licence": "CC0-1.0"},
            }
        ],
        "evaluation": [
            {"name": "set", "folder": {"path": str(work / "set")}} | ({} if radius is None else {"radius": radius})
        ],
        "mix": {"ratio": {"any": 1}},
        "run": {"num_workers": 2},
    }
    path = work / f"config-{radius}.yaml"
    path.write_text(yaml.safe_dump(config))
    start = time.perf_counter()
    command = [sys.executable, "-m", "pipeline.cli", "build", str(path), "--to", "select"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"built in {time.perf_counter() - start:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)


SEEN = """
    CREATE TEMP TABLE seen AS SELECT regexp_extract(record_key, '([^/]+)/([^-/]+)-', ['folder', 'kind']) AS of, l.*
        EXCLUDE (sample_id), record_key, CASE WHEN matched IN ('bytes', 'pixels') THEN 0 ELSE distance END AS apart
    FROM candidates c JOIN facts f USING (sample_id) LEFT JOIN leaks l USING (sample_id) WHERE outcome = 'ok'
"""


def report(work: Path) -> None:
    """By radius, from the build at radius 8: what each smaller radius would have found."""
    from manifests.reader import open_reader

    with open_reader(str(work)) as sql:
        sql.execute(SEEN)
        print("\n| picture | num | " + " | ".join(f"within {radius}" for radius in RADII) + " |")
        print("|---|---|" + "---|" * len(RADII))
        for folder, kind in _kinds(sql):
            shares = ", ".join(
                f"sum((matched IS NOT NULL AND matched <> 'duplicate' AND apart <= {radius})::INT)" for radius in RADII
            )
            num, *found = sql.execute(
                f"SELECT count(*), {shares} FROM seen WHERE of.folder = ? AND of.kind = ?", [folder, kind]
            ).fetchall()[0]
            name = f"clean, {kind}" if folder == "clean" else WAYS[int(kind)]
            print(f"| {name} | {num:,} | " + " | ".join(f"{100 * count / num:.2f} %" for count in found) + " |")


def report_default(work: Path) -> None:
    """What the default radius drops in all, by evidence; the clean pictures lost by name."""
    from manifests.reader import open_reader

    with open_reader(str(work)) as sql:
        sql.execute(SEEN)
        print("\n| picture | num | lost at the default radius | share |\n|---|---|---|---|")
        for folder, kind in _kinds(sql):
            num, lost = sql.execute(
                "SELECT count(*), count(matched) FROM seen WHERE of.folder = ? AND of.kind = ?", [folder, kind]
            ).fetchall()[0]
            name = f"clean, {kind}" if folder == "clean" else WAYS[int(kind)]
            print(f"| {name} | {num:,} | {lost:,} | {100 * lost / num:.3f} % |")
        lost = sql.execute(
            "SELECT record_key, evaluation_member, matched, distance FROM seen "
            "WHERE of.folder = 'clean' AND matched IS NOT NULL ORDER BY ALL"
        ).fetchall()
        print(f"\nclean pictures lost: {len(lost)}")
        for row in lost:
            print("-", *row)


def _kinds(sql: object) -> list[tuple[str, str]]:
    return sql.execute("SELECT DISTINCT of.folder, of.kind FROM seen ORDER BY of.folder DESC, of.kind").fetchall()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--clean", type=Path, nargs="*", default=[])
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    start = time.perf_counter()
    lay_out(args)
    print(f"laid out in {time.perf_counter() - start:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    build(args.work, max(RADII))
    report(args.work / "work")
    build(args.work, None)
    report_default(args.work / "work")


if __name__ == "__main__":
    main()
