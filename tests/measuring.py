"""Drawn pictures for tests of measure_image, and its measurements against plain computations."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib

import imagehash
import numpy as np
import pytest
from misbehaving.answers import encode as encode
from PIL import Image, ImageCms

from manifests.pictures.jpeg import without_metadata
from pipeline.fetching.pictures.image import Rejected, StoredImage, measure_image
from pipeline.fetching.pictures.settings import ImageSettings

PLAIN = ImageSettings(min_side_px=1, max_pixels=30_000_000)


def picture(width=90, height=60, mode="RGB", seed=0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def swapped_profile() -> bytes:
    """sRGB with its red and blue primaries swapped, under another name: cannot be mistaken for sRGB."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12)
    place = {bytes(data[at : at + 4]): at for at in entries}
    red, blue = place[b"rXYZ"], place[b"bXYZ"]
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data).replace("sRGB built-in".encode("utf-16-be"), "swap built-in".encode("utf-16-be"))


def png_that_claims(width: int, height: int) -> bytes:
    """A tiny PNG whose head says another size."""
    body = bytearray(encode(Image.new("1", (8, 8)), "PNG"))
    body[16:24] = struct.pack(">II", width, height)
    body[29:33] = struct.pack(">I", zlib.crc32(bytes(body[12:29])))
    return bytes(body)


def stored(body: bytes, how: ImageSettings = PLAIN) -> tuple[StoredImage, Image.Image]:
    result = measure_image(body, how)
    assert isinstance(result, StoredImage), result
    image = Image.open(io.BytesIO(result.body))
    image.load()
    return result, image


def passed_through(result: StoredImage, body: bytes) -> bool:
    """True when the coded pixels are those of `body`, with or without its metadata."""
    return result.body in (body, without_metadata(body))


def rejected(body: bytes, how: ImageSettings = PLAIN) -> Rejected:
    result = measure_image(body, how)
    assert isinstance(result, Rejected), "not refused"
    return result


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference of two pictures of one size, in grey levels."""
    assert a.size == b.size
    return float(np.abs(np.asarray(a.convert("RGB"), float) - np.asarray(b.convert("RGB"), float)).mean())


def check_measures(result: StoredImage) -> None:
    """Each measurement against a plain computation from the stored bytes."""
    image = Image.open(io.BytesIO(result.body))
    rgb = image.convert("RGB")
    assert result.stored_sha256 == hashlib.sha256(result.body).hexdigest()
    assert (result.stored_width_px, result.stored_height_px) == image.size
    assert result.phash == int(str(imagehash.phash(image)), 16)
    raw = struct.pack(">II", *image.size) + np.asarray(rgb).tobytes()
    assert result.pixels_sha256 == hashlib.sha256(raw).hexdigest()
    assert result.pixel_std == pytest.approx(np.asarray(image.convert("L"), float).std(), abs=1e-9)
    colours = np.asarray(rgb.reduce(4).convert("YCbCr"), float)[..., 1:].reshape(-1, 2)
    assert result.colour_std == pytest.approx(np.hypot(*colours.std(axis=0)), abs=1e-9)
    assert image.format == "JPEG"
