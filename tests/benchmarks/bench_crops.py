"""Whether hashes of the central part of a picture find cropped copies: recall by crop, and unlike pairs.

    python tests/benchmarks/bench_crops.py --photos FOLDER

Cuts 3 to 15 % off the width and height of each photo: evenly, at one side alone, or anywhere, at JPEG quality 85.
Prints the share of crops within the radius of their original, for the hash of the whole (today), with one more hash of
the central 92 %, and with four more (96, 92, 88 and 84 %), then how many pairs of different photos lie as near.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.pictures.phash import measure_luminance, one_blas_thread

CENTRAL = (1.0, 0.96, 0.92, 0.88, 0.84)
FAMILIES = {"whole": [0], "and 92 %": [0, 2], "and four": [0, 1, 2, 3, 4]}


def cut(image: Image.Image, share: float, kind: str, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    if kind == "one side":
        box, side = [0, 0, width, height], int(rng.integers(4))
        off = round(image.size[side % 2] * share)
        box[side] += off if side < 2 else -off
    else:
        x, y = (0.5, 0.5) if kind == "even" else rng.random(2)
        left, top = x * width * share, y * height * share
        box = [round(value) for value in (left, top, left + width * (1 - share), top + height * (1 - share))]
    return image.crop(tuple(box))


def hash_of(image: Image.Image) -> int:
    small = image.copy()
    small.thumbnail((256, 256))
    return measure_luminance(small.convert("L"))[0]


def encoded(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return Image.open(stream)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--radius", type=int, default=4)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    photos = [Image.open(path).convert("RGB") for path in sorted(args.photos.rglob("*.jpg"))[:: args.every]]
    with one_blas_thread():
        hashes = np.array(
            [[hash_of(cut(photo, 1 - share, "even", rng)) for share in CENTRAL] for photo in photos], np.uint64
        )
        for percent in (3, 5, 8, 10, 12, 15):
            for kind in ("even", "one side", "anywhere"):
                crops = [hash_of(encoded(cut(photo, percent / 100, kind, rng))) for photo in photos]
                apart = np.bitwise_count(np.array(crops, np.uint64)[:, None] ^ hashes)
                shares = (f"{(apart[:, which].min(1) <= args.radius).mean():.2f}" for which in FAMILIES.values())
                print(f"{percent} %, {kind}:", *shares)
    for name, which in FAMILIES.items():
        apart = np.bitwise_count(hashes[:, None, :1] ^ hashes[None, :, which]).min(2)
        np.fill_diagonal(apart, 64)
        print(f"unlike pairs, {name}: {(apart <= args.radius).sum()} of {apart.size - len(apart)}")


if __name__ == "__main__":
    main()
