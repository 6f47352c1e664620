"""Distinct photos of about 8 kB, cut and blended from real ones: any picture by its number, in half a millisecond.

A picture is a cut of one photo, with a cut of another one showing through in soft patches. Nine of ten are no larger
than a build stores them, the others are made smaller and encoded anew. Copies are made from the bytes of their
original, as a stranger would make them. The bytes follow from the photos, the seed and Pillow's version.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from million.rows import Rows

VERSION = 2  # raise it where a number gives another picture
_SIDE_PX = 348  # of the shorter side of a photo
_NUM_PATCHES = 32
_GENERAL = "Packages"  # folder of the photos whose pictures are general; all others are plants


class Pictures:
    """Pictures from the photos of a folder, all held in memory (0.4 MB each)."""

    def __init__(self, folder: Path, rows: Rows) -> None:
        paths = sorted(folder.rglob("*.jpg"))
        if len(paths) < 2:
            raise SystemExit(f"{folder} has {len(paths)} photos (*.jpg); two are needed, some thousands are better")
        self._rows = rows
        self._photos = [_opened(path) for path in paths]
        self._names = [path.parent.name if path.parent != folder else path.stem for path in paths]
        general = [n for n, path in enumerate(paths) if _GENERAL in path.parts]
        plants = [n for n, path in enumerate(paths) if _GENERAL not in path.parts]
        self._of_domain = [np.array(general or plants), np.array(plants or general)]
        rng = np.random.default_rng(rows.seed)
        small = [Image.fromarray(rng.integers(0, 256, (5, 5), np.uint8)) for _ in range(_NUM_PATCHES)]
        self._patches = [image.resize((2 * _SIDE_PX, 2 * _SIDE_PX), Image.Resampling.BICUBIC) for image in small]

    def names(self, number: int) -> tuple[str, str]:
        """What its two photos show."""
        _, one, two = self._start(number)
        return self._names[one], self._names[two]

    def body(self, number: int) -> bytes:
        """The bytes that its address answers with, where the row is well."""
        if number < self._rows.num and (how := self._rows.change[number]):
            return changed(self.body(int(self._rows.other[number])), str(how))
        rng, one, two = self._start(number)
        long = int(rng.integers(176, 257) if rng.random() < 0.9 else rng.integers(270, 330))
        short = max(160, round(long / rng.uniform(1.0, 1.25)))
        size = (long, short) if rng.random() < 0.5 else (short, long)
        cuts = [_cut(self._photos[n], size, rng) for n in (one, two)]
        patches = _cut(self._patches[int(rng.integers(_NUM_PATCHES))], size, rng)
        return _encoded(Image.composite(*cuts, patches), int(rng.integers(62, 83)))

    def _start(self, number: int) -> tuple[np.random.Generator, int, int]:
        rng = np.random.default_rng([self._rows.seed, number])
        is_plant = number >= self._rows.num or bool(self._rows.is_plant[number])
        own = self._of_domain[is_plant]
        return rng, int(own[rng.integers(len(own))]), int(rng.integers(len(self._photos)))


def changed(body: bytes, how: str) -> bytes:
    """A copy of a picture, as somebody else would have made it."""
    if how == "same bytes":
        return body
    with Image.open(io.BytesIO(body)) as image:
        if how == "reencoded":
            return _encoded(image, 60)
        if how == "resized":
            width, height = image.size
            return _encoded(image.resize((round(0.7 * width), round(0.7 * height)), Image.Resampling.LANCZOS), 85)
        return _encoded(ImageOps.mirror(image), 85)


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        photo = image.convert("RGB")
    scale = _SIDE_PX / min(photo.size)
    return photo if scale == 1 else photo.resize((round(scale * photo.width), round(scale * photo.height)))


def _cut(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    left, top = int(rng.integers(image.width - size[0] + 1)), int(rng.integers(image.height - size[1] + 1))
    return image.crop((left, top, left + size[0], top + size[1]))


def _encoded(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()
