"""Which real pictures count as copies: photos made anew in many ways do, other sheets of one layout do not."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from building import ROOT
from PIL import Image, ImageFilter, ImageOps
from sheets import draw_sheet

from manifests.contract.copies import MIDDLE_RADIUS, RADIUS
from pipeline.fetching.pictures.image import StoredImage, measure_image
from pipeline.fetching.pictures.settings import ImageSettings

PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))[:6]


def encoded(image: Image.Image, quality: int = 90) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def _scaled_copy(image: Image.Image, factor: float) -> bytes:
    return encoded(scaled(image, factor))


def hashes_of(body: bytes, **settings: int) -> tuple[np.ndarray, np.ndarray]:
    """Both hashes of a stored picture, then both of its mirror image, shape (2,) each."""
    stored = measure_image(body, ImageSettings(**settings))
    assert isinstance(stored, StoredImage)
    names = (("phash", "middle_hash"), ("phash_mirrored", "middle_mirrored"))
    values = asdict(stored)
    as_it_is, turned = (np.array([values[name] for name in pair], np.uint64) for pair in names)
    return as_it_is, turned


def are_copies(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((np.bitwise_count(one ^ other) <= (RADIUS, MIDDLE_RADIUS)).all())


MADE: dict[str, Callable[[Image.Image], bytes]] = {
    **{f"quality {quality}": partial(encoded, quality=quality) for quality in (50, 70, 95)},
    **{f"{factor} times": partial(_scaled_copy, factor=factor) for factor in (0.25, 0.5, 2)},
    "grey": lambda image: encoded(image.convert("L")),
    "small and poor": lambda image: encoded(scaled(image, 0.25), 50),
}


@pytest.mark.parametrize("how", MADE)
def test_a_photo_made_anew_is_a_copy(how: str) -> None:
    for photo in PHOTOS:
        with Image.open(photo) as image:
            image.load()
        original = hashes_of(encoded(image, 92))[0]
        made, turned = MADE[how](image), MADE[how](ImageOps.mirror(image))
        assert are_copies(original, hashes_of(made)[0]), photo.stem
        assert are_copies(original, hashes_of(made, size_px=64, jpeg_quality=60)[0]), photo.stem
        assert are_copies(original, hashes_of(turned)[1]), photo.stem


def test_noise_decides_nothing_in_a_smooth_picture() -> None:
    for photo in sorted((ROOT / "tests/photos").glob("*.jpg")):
        with Image.open(photo) as image:
            smooth = image.resize((256, 256)).filter(ImageFilter.GaussianBlur(14))
        small = encoded(smooth.resize((64, 64)), 70)
        assert are_copies(hashes_of(encoded(smooth))[0], hashes_of(small)[0]), photo.stem


def test_a_mirror_image_has_the_hashes_that_were_foretold() -> None:
    for photo in PHOTOS:
        with Image.open(photo) as image:
            as_it_is, turned = hashes_of(encoded(scaled(image, 0.5), 95))
            (mirrored, back) = hashes_of(encoded(scaled(ImageOps.mirror(image), 0.5), 95))
        assert (np.bitwise_count(turned ^ mirrored) <= 2).all(), photo.stem
        assert (np.bitwise_count(back ^ as_it_is) <= 2).all(), photo.stem


@pytest.mark.parametrize("num", [250, pytest.param(2_000, marks=pytest.mark.slow)])
def test_sheets_of_one_layout_are_no_copies_of_each_other(num: int) -> None:
    hashes = np.stack([hashes_of(encoded(draw_sheet(seed)))[0] for seed in range(num)])
    one, other = np.triu_indices(num, 1)
    whole, middle = np.bitwise_count(hashes[one] ^ hashes[other]).T
    near = whole <= RADIUS
    assert near.sum() > num / 20, "the layout alone makes them alike"
    assert not (middle[near] <= MIDDLE_RADIUS).any()


def test_copies_of_a_sheet_are_found() -> None:
    for seed in range(20):
        sheet = draw_sheet(seed)
        original = hashes_of(encoded(sheet))[0]
        for made in (encoded(sheet, 60), encoded(scaled(sheet, 0.6)), encoded(scaled(sheet, 1.5), 80)):
            assert are_copies(original, hashes_of(made)[0]), seed
    assert not any(
        are_copies(*pair) for pair in combinations([hashes_of(encoded(draw_sheet(seed)))[0] for seed in range(20)], 2)
    )
