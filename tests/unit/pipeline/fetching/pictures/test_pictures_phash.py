"""Both hashes equal imagehash.phash, of the picture and of its mirror image, also where rounding decides.

The spread is the deviation of the pixels.
"""

from __future__ import annotations

from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.fetching.pictures import phash
from pipeline.fetching.pictures.phash import measure_luminance

PHOTOS = sorted((Path(__file__).parents[4] / "photos").glob("*.jpg"))


def phash_of(image: Image.Image) -> int:
    found = measure_luminance(image)
    assert found.phash_mirrored == expected(ImageOps.mirror(image))
    assert found.pixel_std == pytest.approx(float(np.asarray(image).std()), abs=1e-6)
    return found.phash


def expected(image: Image.Image) -> int:
    return int(str(imagehash.phash(image)), 16)


@pytest.mark.parametrize("size", [(1200, 900), (900, 1200), (1023, 1024), (400, 30), (30, 400), (32, 32)])
def test_the_filter_is_that_of_pillow_to_the_last_bit(size):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 2, (size[1], size[0]), dtype=np.uint8) * 255  # as far from its mean as can be
    image = Image.fromarray(pixels)
    assert phash_of(image) == expected(image)
    if size[0] >= size[1]:
        by_pillow = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS))
        assert (phash._shrunk(pixels.astype(np.float64)) == by_pillow).all()


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_photos_at_several_sizes(path):
    with Image.open(path) as photo:
        luminance = photo.convert("L")
    for size in (luminance.size, (256, 192), (192, 256), (40, 31), (33, 400), (1, 1)):
        image = luminance.resize(size)
        assert phash_of(image) == expected(image), size


def test_noise_of_many_sizes():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 150, 2)
        image = Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8))
        assert phash_of(image) == expected(image), (height, width)


@pytest.mark.parametrize("kind", ["flat", "across", "down", "mirrored", "checked", "dot"])
def test_pictures_where_rounding_decides(kind):
    y, x = np.mgrid[:64, :64]
    values = {
        "flat": np.full((64, 64), 137),
        "across": x * 4,
        "down": y * 4,
        "mirrored": np.minimum(x, 63 - x) * 4 + np.minimum(y, 63 - y) * 4,
        "checked": (x // 8 + y // 8) % 2 * 255,
        "dot": (x == 31) * (y == 31) * 255,
    }[kind]
    image = Image.fromarray(np.minimum(values, 255).astype(np.uint8))
    assert phash_of(image) == expected(image)


def test_the_hash_of_the_middle_sees_the_middle_alone():
    with Image.open(PHOTOS[0]) as photo:
        luminance = photo.convert("L").resize((256, 256))
    framed = luminance.copy()
    for box in ((0, 0, 256, 40), (0, 216, 256, 256)):
        framed.paste(0, box)
    assert measure_luminance(framed).middle_hash == measure_luminance(luminance).middle_hash
    assert measure_luminance(framed).phash != measure_luminance(luminance).phash
    covered = luminance.copy()
    covered.paste(255, (64, 64, 192, 192))
    assert (measure_luminance(covered).middle_hash ^ measure_luminance(luminance).middle_hash).bit_count() > 16


def test_an_even_middle_has_one_hash_whatever_the_noise():
    rng = np.random.default_rng(0)
    for _ in range(20):
        noisy = Image.fromarray(rng.integers(198, 203, (256, 256), dtype=np.uint8))
        measures = measure_luminance(noisy)
        assert (measures.middle_hash, measures.middle_mirrored) == (0, 0)
