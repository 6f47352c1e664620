"""Two workers beside one, on Ray or in processes: wall seconds of the steps that handle pictures and captions.

    python tests/benchmarks/bench_scaling.py PHOTOS --pictures 8000 --rounds 2 --epochs 20 --executor processes

PHOTOS is a folder of JPEG files. Crops of them with numbered captions are written to local shards; builds of these by
turns with one worker and with two, each a `plantmix build` of its own over a fresh work folder. `--epochs` packs every
picture so often, since packing takes little time. A step lasts from the start of its first part to the commit of its
last, so the start of Ray counts nowhere, and what a worker loads (the language model, the scorer's weights) counts in
each. Wall clock, so the machine has to be idle.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import duckdb
import open_clip
import torch
import yaml
from PIL import Image

MODEL = Path(__file__).parents[2] / "configs/models/vit-tiny-demo.json"
STEPS = (("fetch", "local"), ("caption", "measure"), ("score", "measure"), ("pack", "write"))
SPAN = """
    SELECT stage, step, count(*), epoch(max(committed_at)) - min(epoch(committed_at) - seconds)
    FROM parts GROUP BY ALL
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--pictures", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--per-shard", type=int, default=500, help="samples of a shard, those read and those written")
    parser.add_argument("--executor", choices=["ray", "processes"], default="ray")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("TMPDIR")))
    make_shards(folder / "shards", args.photos, args.pictures, args.per_shard)
    write_weights(folder / "tiny.pt")
    found: dict[int, list[dict[tuple[str, str], tuple[int, float]]]] = {1: [], 2: []}
    for number in range(args.rounds):
        for workers in (1, 2) if number % 2 == 0 else (2, 1):
            found[workers].append(build(folder, args, workers))
    print(f"{args.pictures:,} pictures, {args.rounds} rounds, load {os.getloadavg()[0]:.1f}\n")
    print("| step | parts | one worker, s | two workers, s | times as fast |\n|---|---:|---:|---:|---:|")
    for step in STEPS:
        one, two = (statistics.median(spans[step][1] for spans in found[workers]) for workers in (1, 2))
        print(f"| {' '.join(step)} | {found[1][0][step][0]} | {one:.1f} | {two:.1f} | {one / two:.2f} |")
    shutil.rmtree(folder)


def make_shards(folder: Path, photos: Path, num: int, per_shard: int) -> None:
    """Crops of the photos, each a little smaller than the last of the same photo."""
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        sys.exit(f"{photos}: holds no JPEG file")
    folder.mkdir(parents=True)
    for first in range(0, num, per_shard):
        with tarfile.open(folder / f"{first // per_shard:05d}.tar", "w") as tar:
            for number in range(first, min(num, first + per_shard)):
                with Image.open(files[number % len(files)]) as photo:
                    cut, out = 2 * (number // len(files)), io.BytesIO()
                    width, height = photo.size
                    photo.convert("RGB").crop((cut, cut, width - cut, height - cut)).save(out, "JPEG", quality=92)
                text = f"a photo of fruit or vegetables on the shelf of a shop, number {number}".encode()
                for name, content in ((f"{number:08d}.jpg", out.getvalue()), (f"{number:08d}.txt", text)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def write_weights(path: Path) -> None:
    """Random ones: the work is the same."""
    open_clip.add_model_config(MODEL)
    torch.manual_seed(0)
    torch.save(open_clip.create_model(MODEL.stem).state_dict(), path)


def build(folder: Path, args: argparse.Namespace, num_workers: int) -> dict[tuple[str, str], tuple[int, float]]:
    """Parts and wall seconds by stage and step."""
    source = {"name": "photos", "domain": "plant", "webdataset": {"path": str(folder / "shards")}}
    config = {
        "name": "scaling",
        "work_dir": str(folder / "work"),
        "sources": [source | {"defaults": {"licence": "CC0-1.0"}}],
        "dedup": {"radius": 0},
        "caption": {"rules": [{}]},
        "score": {"model": str(MODEL), "pretrained": str(folder / "tiny.pt")},
        "mix": {"ratio": {"plant": 1}, "max_epochs": args.epochs},
        "pack": {"samples_per_shard": args.per_shard},
        "run": {"executor": args.executor, "num_workers": num_workers, "fetch_part_size": args.per_shard},
    }
    path = folder / "scaling.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "pipeline.cli", "--quiet", "build", str(path)], check=True)
    with duckdb.connect(folder / "work/catalog.duckdb", read_only=True) as catalog:
        rows = catalog.execute(SPAN).fetchall()
    shutil.rmtree(folder / "work")
    return {(stage, step): (parts, wall) for stage, step, parts, wall in rows}


if __name__ == "__main__":
    main()
