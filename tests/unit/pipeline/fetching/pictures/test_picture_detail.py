"""Detail of real photos: a copy that was blown up has no more of it, a copy that was reduced has less."""

from __future__ import annotations

import io

import pytest
from building import ROOT
from PIL import Image

from pipeline.fetching.pictures.detail import detail_px
from pipeline.fetching.pictures.shrink import shrink

PHOTOS = [Image.open(path).convert("RGB") for path in sorted((ROOT / "tests/photos").glob("*.jpg"))]


def stored(image: Image.Image, factor: float = 1.0, quality: int = 95) -> Image.Image:
    """A copy of another size, at most 256 px, through JPEG as all pictures of the pool."""
    size = (round(image.width * factor), round(image.height * factor))
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=quality)
    copy = Image.open(stream)
    return copy if max(size) <= 256 else stored(shrink(copy, (256, 256)))


@pytest.mark.parametrize("factor", [1.25, 1.5, 2.0])
@pytest.mark.parametrize("quality", [80, 95])
def test_a_blown_up_copy_holds_less_detail_than_its_original(factor: float, quality: int) -> None:
    won = [detail_px(photo) > 1.02 * detail_px(stored(photo, factor, quality)) for photo in PHOTOS]
    assert sum(won) >= 14, f"of {len(won)}"


@pytest.mark.parametrize("factor", [0.5, 0.8])
def test_a_reduced_copy_holds_less_detail_too(factor: float) -> None:
    won = [detail_px(stored(photo)) > detail_px(stored(photo, factor)) for photo in PHOTOS]
    assert sum(won) >= 14, f"of {len(won)}"


def test_odd_pictures_have_some() -> None:
    assert detail_px(Image.new("RGB", (300, 200), "white")) == 1
    assert 1 <= detail_px(Image.new("L", (1, 1))) <= 1
    noise = Image.effect_noise((64, 48), 80)
    assert 0.8 * 64 * 48 < detail_px(noise) <= 64 * 48
