"""measure_image: every kind of picture, turned, converted and measured right, and every refusal."""

from __future__ import annotations

import io
import os
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from measuring import (
    PLAIN,
    check_measures,
    difference,
    encode,
    passed_through,
    picture,
    png_that_claims,
    rejected,
    stored,
    swapped_profile,
)
from PIL import Image, ImageCms, ImageOps

from manifests.contract.outcomes import Outcome
from manifests.pictures.colour import simplify
from manifests.pictures.sniff import image_kind, webp_size
from pipeline.fetching.pictures.image import StoredImage, measure_image, measure_pixels
from pipeline.fetching.pictures.settings import ImageSettings


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("size", [(90, 60), (800, 600)])
def test_orientation_is_pixel_correct(orientation, kind, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    body = encode(picture(*size), kind, exif=exif.tobytes() if kind != "TIFF" else exif, **options)
    result, image = stored(body)
    right = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
    assert (result.original.width_px, result.original.height_px) == right.size
    assert result.original.exif_orientation == orientation
    expected = right if min(size) <= 256 else right.resize(image.size, Image.Resampling.BICUBIC)
    assert difference(image, expected) < 2.5
    if orientation != 1:
        turned_back = right.resize(image.size).transpose(Image.Transpose.ROTATE_180)
        assert difference(image, turned_back) > 10
    assert "exif" not in image.info or passed_through(result, body)
    check_measures(result)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (encode(picture(), "PNG"), "not a JPEG"),
        (encode(picture(600, 400), "JPEG"), "too large"),
        (encode(picture(mode="CMYK"), "JPEG"), "CMYK"),
    ],
)
def test_other_pictures_are_encoded_anew(body, why):
    result, image = stored(body)
    assert not passed_through(result, body), why
    assert image.mode == "RGB"
    check_measures(result)


def test_grey_jpeg_passes_through_and_is_measured_as_rgb():
    body = encode(picture(mode="L"), "JPEG")
    result, image = stored(body)
    assert passed_through(result, body)
    assert image.mode == "L"
    check_measures(result)


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        ("keep_ratio", (1000, 500), (512, 256)),
        ("keep_ratio", (500, 1000), (256, 512)),
        ("keep_ratio", (257, 300), (256, 299)),
        ("keep_ratio", (200, 100), (200, 100)),
        ("keep_ratio_largest", (1000, 500), (256, 128)),
        ("no", (1000, 500), (1000, 500)),
    ],
)
def test_resize_modes_only_make_smaller(resize, size, expected):
    _, image = stored(encode(picture(*size), "JPEG"), ImageSettings(resize=resize))
    assert image.size == expected


def test_large_jpeg_decoded_at_reduced_scale_looks_like_the_full_decode():
    big = picture(3000, 2000)
    result, image = stored(encode(big, "JPEG", quality=95))
    assert (result.original.width_px, result.original.height_px) == (3000, 2000)
    assert difference(image, big.resize(image.size, Image.Resampling.LANCZOS)) < 2.0


def test_16_bit_grey_keeps_its_greys():
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    result, image = stored(encode(Image.fromarray(values), "PNG"))
    assert result.original.mode.startswith("I")
    assert np.abs(np.asarray(image.convert("L"), int) - values.astype(int) // 257).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_on_the_stated_background(mode):
    image = Image.new(mode, (64, 64), (0,) * len(mode))
    how = ImageSettings(min_side_px=1)
    _, clear = stored(encode(image, "PNG"), how)
    assert np.abs(np.asarray(clear, int) - 255).max() <= 3
    image.putalpha(128)
    _, half = stored(encode(image, "PNG"), how)
    assert np.abs(np.asarray(half, int) - 127).max() <= 3


def test_transparent_palette_colour_lies_on_the_background():
    image = Image.new("P", (64, 64), 3)
    image.putpalette([v for n in range(16) for v in (n * 10, 0, 0)])
    _, out = stored(encode(image, "PNG", transparency=3))
    assert np.asarray(out).min() >= 250
    _, out = stored(encode(image, "GIF", transparency=3))
    assert np.asarray(out).min() >= 250


def test_colour_key_of_rgb_png_lies_on_the_background():
    _, out = stored(encode(Image.new("RGB", (64, 64), (1, 2, 3)), "PNG", transparency=(1, 2, 3)))
    assert np.asarray(out).min() >= 250


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animated_gives_its_first_frame(kind):
    frames = [picture(seed=seed) for seed in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    body = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    _, image = stored(body)
    assert difference(image, frames[0]) < (12 if kind == "GIF" else 3)
    assert difference(image, frames[1]) > 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(64, 64), (600, 600)])
def test_colour_profile_is_applied(kind, size):
    body = encode(Image.new("RGB", size, (250, 10, 10)), kind, icc_profile=swapped_profile())
    result, image = stored(body)
    assert not passed_through(result, body)
    assert np.abs(np.asarray(image, int) - [10, 10, 250]).max() <= 12
    assert "icc_profile" not in image.info


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("profile", [SRGB, b"no profile at all" * 20])
def test_srgb_or_a_broken_profile_changes_nothing(profile):
    assert stored(encode(picture(), "JPEG", icc_profile=profile))[0].body == encode(picture(), "JPEG")


def test_profile_of_alpha_picture_keeps_alpha():
    image = Image.new("RGBA", (64, 64), (250, 10, 10, 0))
    _, out = stored(encode(image, "PNG", icc_profile=swapped_profile()))
    assert np.asarray(out).min() >= 250


def test_cmyk_has_the_right_colours():
    image = Image.new("RGB", (64, 64), (200, 40, 90)).convert("CMYK")
    _, out = stored(encode(image, "JPEG", quality=95))
    assert np.abs(np.asarray(out, int) - [200, 40, 90]).max() <= 6


@pytest.mark.parametrize("kind", ["BMP", "PPM", "TGA", "JPEG2000", "AVIF", "TIFF", "PNG", "WEBP", "GIF"])
def test_formats_that_are_read(kind):
    result, image = stored(encode(picture(), kind))
    assert result.original.format == kind
    assert image.size == (90, 60)


JPEG = encode(picture(320, 240), "JPEG", quality=90)
DEPTH = JPEG.index(b"\xff\xc0") + 4


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_files_are_refused(kind, keep):
    body = encode(picture(320, 240), kind)
    assert rejected(body[: int(len(body) * keep)]).outcome is Outcome.CORRUPT_IMAGE


@pytest.mark.parametrize(
    ("body", "outcome", "detail"),
    [
        (b"", Outcome.EMPTY_BODY, "no bytes"),
        (b"<!DOCTYPE html><p>", Outcome.NOT_AN_IMAGE, "HTML"),
        (b"\n  <HTML><p>", Outcome.NOT_AN_IMAGE, "HTML"),
        (b"<?xml version='1.0'?><svg/>", Outcome.NOT_AN_IMAGE, "SVG"),
        (b"<?xml version='1.0'?><error/>", Outcome.NOT_AN_IMAGE, "XML"),
        (b"%PDF-1.4", Outcome.NOT_AN_IMAGE, "PDF"),
        (b'{"a":1}', Outcome.NOT_AN_IMAGE, "JSON"),
        (b"not found", Outcome.NOT_AN_IMAGE, "text"),
        (b"PK\x03\x04aaaa", Outcome.NOT_AN_IMAGE, "zip"),
        (bytes(range(128, 256)), Outcome.NOT_AN_IMAGE, "bytes"),
        (b"\x00\x00\x00\x20ftypheic\x00\x00", Outcome.UNSUPPORTED_IMAGE, "HEIC cannot be read here"),
        (b"\xff\x0a" + b"\0" * 40, Outcome.UNSUPPORTED_IMAGE, "JPEG XL cannot be read here"),
        (JPEG[:DEPTH] + b"\x0c" + JPEG[DEPTH + 1 :], Outcome.UNSUPPORTED_IMAGE, "12-bit JPEG"),
        (encode(Image.new("F", (64, 64), 0.5), "TIFF"), Outcome.UNSUPPORTED_IMAGE, "pixels of mode F"),
        (JPEG[:30], Outcome.CORRUPT_IMAGE, None),
    ],
)
def test_refusals(body, outcome, detail):
    found = rejected(body)
    assert found.outcome is outcome
    assert detail is None or found.detail == detail


def test_shapes_are_checked_and_still_recorded():
    how = ImageSettings(min_side_px=50, max_aspect_ratio=3)
    small = rejected(encode(picture(200, 49), "JPEG"), how)
    assert small.outcome is Outcome.IMAGE_TOO_SMALL
    assert small.detail == "200 x 49 px, shortest side allowed 50"
    assert (small.original.width_px, small.original.height_px, small.original.format) == (200, 49, "JPEG")
    long = rejected(encode(picture(400, 100), "JPEG"), how)
    assert (long.outcome, long.detail) == (Outcome.ASPECT_TOO_EXTREME, "400 x 100 px, ratio allowed 3")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "JPEG", "BMP"])
def test_too_many_pixels_are_seen_before_decoding(kind):
    body = encode(Image.new("L", (3000, 2000)), kind)
    found = rejected(body, ImageSettings(max_pixels=5_000_000))
    assert found.outcome is Outcome.TOO_MANY_PIXELS
    assert "3000 x 2000" in found.detail


@pytest.mark.parametrize(
    ("kind", "clear", "allowed"),
    [("PNG", False, True), ("WEBP", False, False), ("JPEG2000", False, False), ("PNG", True, False)],
)
def test_formats_that_take_more_memory_may_have_fewer_pixels(kind, clear, allowed):
    body = encode(picture(1000, 1000), kind, **({"transparency": (1, 2, 3)} if clear else {}))
    found = measure_image(body, ImageSettings(max_pixels=1_100_000))
    if allowed:
        assert isinstance(found, StoredImage)
    else:
        assert found.outcome is Outcome.TOO_MANY_PIXELS
        assert found.detail.startswith("1000 x 1000 px, allowed 1100000 pixels of 8 bytes; a pixel of this ")


def test_a_16_bit_picture_takes_little_more_memory_than_its_pixels():
    values = np.arange(4000 * 2000, dtype=np.uint32).reshape(2000, 4000) % 65536
    body = encode(Image.fromarray(values.astype(np.uint16)), "PNG")
    image = Image.open(io.BytesIO(body))
    image.load()
    tracemalloc.start()
    grey = simplify(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20  # it was 16 bytes a pixel, 128 MB
    assert (np.asarray(grey) == (values * 255 + 32767) // 65535).all()


def test_pixels_beyond_pillows_own_limit_are_an_outcome_too():
    assert rejected(png_that_claims(60_000, 60_000)).outcome is Outcome.TOO_MANY_PIXELS


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}])
def test_webp_size_is_read_from_the_header(options):
    body = encode(picture(301, 202), "WEBP", **options)
    assert image_kind(body) == "WEBP"
    assert webp_size(body) == (301, 202)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.data_too_large])
@given(data=st.data())
def test_hostile_bytes_always_end_in_one_of_the_two(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF", "TGA"]))
    body = bytearray(encode(picture(48, 40), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, min(400, len(body) - 1)))] = data.draw(st.integers(0, 255))
    result = measure_image(bytes(body), PLAIN)
    if isinstance(result, StoredImage):
        check_measures(result)
    else:
        assert result.outcome in set(Outcome) - {Outcome.OK}


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    seed=st.integers(0, 9),
    mode=st.sampled_from(["RGB", "L", "RGBA", "P"]),
)
def test_measures_hold_for_any_shape(width, height, seed, mode):
    how = ImageSettings(min_side_px=1, max_aspect_ratio=1000)
    result, image = stored(encode(picture(width, height, mode, seed), "PNG"), how)
    assert min(image.size) <= 256
    assert min(image.size) == min(256, width, height)
    check_measures(result)


def test_measure_pixels_of_a_stored_picture_gives_the_recorded_values():
    result, image = stored(JPEG)
    again = measure_pixels(image)
    assert (again.phash, again.pixels_sha256, again.pixel_std) == (result.phash, result.pixels_sha256, result.pixel_std)


def test_flat_picture_has_no_spread():
    result, _ = stored(encode(Image.new("RGB", (300, 300), (7, 77, 177)), "PNG"))
    assert result.pixel_std == 0.0


def test_threads_leave_the_warnings_as_they_were():
    odd = encode(picture(), "JPEG")[:-2] + b"\xff\xd9"
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\xff" + b"\1" * 20  # Pillow: "Corrupt EXIF data", "Truncated File Read"
    odd = odd[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + odd[2:]
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: measure_image(odd, PLAIN), range(200)))
    assert all(isinstance(result, StoredImage) for result in results), "warnings are errors in the tests"
    assert warnings.filters == before


@pytest.mark.parametrize("in_a_file", [True, False])
def test_what_is_stored_is_what_pillow_encodes_whatever_was_encoded_before(in_a_file, monkeypatch):
    if not in_a_file:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    rng = np.random.default_rng(3)
    for width, height in [(90, 60), (2600, 2600), (40, 30), (91, 61), (2600, 2600), (3, 2)]:  # the large ones: 8 MB
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        stored = measure_image(encode(image, "BMP"), PLAIN.model_copy(update={"resize": "no", "max_aspect_ratio": 9.0}))
        assert stored.body == encode(image, "JPEG", quality=PLAIN.jpeg_quality, subsampling="4:2:0")
