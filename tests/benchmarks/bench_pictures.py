"""What a photo costs after its bytes have come: CPU milliseconds of `measure_image`, and of each of its steps.

    python tests/benchmarks/bench_pictures.py PHOTO_FOLDER [--num 400] [--rounds 5] [--tree ANOTHER_CHECKOUT]
    python tests/benchmarks/bench_pictures.py PHOTO_FOLDER --num 40 --quality

One thread, the steps of a photo one after the other as in a build, so that each finds the caches as the last one left
them. `--tree` measures the code of another checkout, in turn with this one. Prints a Markdown table with the median of
the rounds. `--quality` compares `shrink` and filters of Pillow with a Lanczos filter that computes in floats. Measures,
asserts nothing but that every photo was stored.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

# Runs in a process of its own, in the tree that it measures. Of nested steps the outermost counts.
MEASURE = """
import json, sys, time
from pathlib import Path
from PIL import Image, ImageFile
from pipeline.pictures import image as room
from pipeline.pictures.settings import ImageSettings
bodies = [Path(path).read_bytes() for path in json.loads(sys.stdin.read())]
spent, inside, loads = {}, [], []

def timed(place, name, step):
    function = getattr(place, name)
    def call(*args, **kwargs):
        if inside:
            return function(*args, **kwargs)
        inside.append(step)
        loads.extend([1] if step == "decode" else [])
        started = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            shown = "decode what is stored" if name == "frombytes" or len(loads) > 1 and step == "decode" else step
            spent[shown] = spent.get(shown, 0.0) + time.thread_time() - started
            inside.pop()
    setattr(place, name, call)

def measure_all():
    started = time.thread_time()
    for body in bodies:
        loads.clear()
        assert isinstance(room.measure_image(body, settings), room.StoredImage)
    return time.thread_time() - started

settings = ImageSettings()
measure_all()
total = measure_all()  # without the clocks
timed(Image, "open", "open")
timed(Image, "frombytes", "decode what is stored")
timed(ImageFile.ImageFile, "load", "decode")
timed(*((room, "shrink") if hasattr(room, "shrink") else (Image.Image, "resize")), "shrink")
timed(Image.Image, "save", "encode")
for name in ("measure_luminance", "phash_of", "_spread"):  # the last two in trees before 2026-11-26
    if hasattr(room, name):
        timed(room, name, "pHash and spread")
timed(Image.Image, "tobytes", "pixel bytes")
timed(Image.Image, "convert", "luminance")
measure_all()
spent["all of measure_image"] = total
print(json.dumps({step: 1000 * seconds / len(bodies) for step, seconds in spent.items()}))
"""


def measure(tree: Path, paths: list[str]) -> dict[str, float]:
    """CPU milliseconds a photo by step, with the code in a tree."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE],
        input=json.dumps(paths),
        capture_output=True,
        text=True,
        check=True,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
    )
    return dict(json.loads(run.stdout))


def print_quality(paths: list[str]) -> None:
    """Mean PSNR in dB against Pillow's LANCZOS of floats, by how many times smaller the photos become."""
    import numpy as np
    from PIL import Image

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from pipeline.pictures.shrink import REDUCING_GAP, shrink

    pillow = Image.Resampling
    ways = {"ours": shrink} | {
        name: lambda photo, size, one=one: photo.resize(size, one, reducing_gap=REDUCING_GAP)
        for name, one in (("HAMMING", pillow.HAMMING), ("BICUBIC", pillow.BICUBIC))
    }
    print(f"| times smaller | {' | '.join(ways)} |\n|---|{'---:|' * len(ways)}")
    for ratio in (1.05, 1.36, 1.7, 2.0, 2.9, 3.6):
        found: dict[str, list[float]] = {name: [] for name in ways}
        for path in paths:
            photo = Image.open(path).convert("RGB")
            size = (round(photo.width / ratio), round(photo.height / ratio))
            bands = [Image.fromarray(np.asarray(band, np.float32)) for band in photo.split()]
            best = np.stack([np.asarray(band.resize(size, pillow.LANCZOS)) for band in bands], -1).clip(0, 255)
            for name, way in ways.items():
                error = np.mean((np.asarray(way(photo, size), float) - best) ** 2)
                found[name].append(10 * np.log10(255**2 / error))
        print(f"| {ratio} | {' | '.join(f'{np.mean(values):.1f}' for values in found.values())} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder with JPEG photos, searched recursively")
    parser.add_argument("--num", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tree", type=Path, help="another checkout, measured beside this one")
    parser.add_argument("--quality", action="store_true", help="compare filters instead of times")
    options = parser.parse_args()
    every = sorted(options.photos.resolve().rglob("*.jpg"))
    paths = [str(path) for path in every[:: max(1, len(every) // options.num)][: options.num]]
    if options.quality:
        print_quality(paths)
        return
    trees = {"this tree": Path(__file__).parents[2]} | ({"other tree": options.tree.resolve()} if options.tree else {})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for _ in range(options.rounds):
        for name, tree in trees.items():
            found[name].append(measure(tree, paths))
    load = os.getloadavg()[0]
    print(
        f"{platform.machine()}, Python {platform.python_version()}, {len(paths)} photos, {options.rounds} rounds, ",
        end="",
    )
    print(f"load {load:.1f} at the end\n\n| step | {' | '.join(f'{name}, ms' for name in trees)} |")
    print("|---|" + "---:|" * len(trees))
    for step in found["this tree"][0]:
        cells = [f"{statistics.median(run[step] for run in found[name]):.2f}" for name in trees]
        print(f"| {step} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
