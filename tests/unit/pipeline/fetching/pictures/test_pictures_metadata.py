"""JPEGs that are stored as they came: what cameras and owners wrote into them is left out, and no pixel changes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import PLAIN, check_measures, encode, passed_through, picture, stored
from PIL import Image, ImageCms

from manifests.pictures.jpeg import without_metadata


def test_small_jpeg_passes_through_unchanged():
    body = encode(picture(), "JPEG", quality=71)
    result, _ = stored(body)
    assert passed_through(result, body)
    assert result.body == body
    assert result.stored_sha256 == result.original.image_id
    check_measures(result)


def full_of_metadata(kind: str, image: Image.Image) -> bytes:
    """A JPEG of one of the forms that pass through, with all that a camera writes into it."""
    exif = Image.Exif()
    exif[0x010F] = "Secret Camera"
    exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 22.0, 30.0)})
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    forms = {
        "plain": {},
        "progressive": {"progressive": True},
        "restarts": {"restart_marker_blocks": 2},
        "444": {"subsampling": 0, "quality": 97},
        "rgb": {"keep_rgb": True},
    }
    return encode(image, "JPEG", exif=exif.tobytes(), icc_profile=profile, comment=b"Secret", **forms[kind])


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["plain", "progressive", "restarts", "444", "rgb"])
def test_metadata_of_a_photo_is_left_out_without_encoding_it_anew(kind, mode):
    body = full_of_metadata(kind, picture(mode=mode))
    result, image = stored(body + b"and a Secret film behind it")
    assert passed_through(result, body)
    assert b"Secret" not in result.body
    assert b"Exif" not in result.body
    assert "icc_profile" not in image.info
    assert image.tobytes() == Image.open(io.BytesIO(body)).tobytes()
    assert len(result.body) < len(body) - 500
    check_measures(result)
    again, _ = stored(result.body)
    assert again.body == result.body, "nothing more to leave out"
    kept, image = stored(body, PLAIN.model_copy(update={"keep_metadata": True}))
    assert kept.body == body
    assert kept.pixels_sha256 == result.pixels_sha256


def test_thumbnail_in_a_jfif_header_is_left_out():
    body = encode(picture(), "JPEG")
    thumbnail = bytes([2, 1]) + b"Secret"
    content = body[6:18] + thumbnail
    body = body[:2] + b"\xff\xe0" + (len(content) + 2).to_bytes(2, "big") + content + body[20:]
    result, image = stored(body)
    assert b"Secret" not in result.body
    assert image.info["jfif"] == 257
    assert image.tobytes() == Image.open(io.BytesIO(body)).tobytes()


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    seed=st.integers(0, 9),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
    restart=st.sampled_from([0, 1, 7]),
)
@settings(max_examples=60, deadline=None)
def test_pixels_do_not_change_with_the_metadata(width, height, seed, quality, subsampling, progressive, restart):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    body = encode(
        image,
        "JPEG",
        quality=quality,
        subsampling=subsampling,
        progressive=progressive,
        restart_marker_blocks=restart,
        comment=b"x" * 300,
    )
    stripped = without_metadata(body)
    assert stripped is not None
    assert len(stripped) == len(body) - 304
    assert Image.open(io.BytesIO(stripped)).tobytes() == Image.open(io.BytesIO(body)).tobytes()


@given(st.binary(max_size=200))
def test_no_bytes_break_the_search_for_metadata(data):
    for start in (b"", b"\xff\xd8", b"\xff\xd8\xff\xda\0\4ab"):
        found = without_metadata(start + data)
        assert found is None or found.endswith(b"\xff\xd9")


def test_a_camera_that_exif_names_is_noted():
    exif = Image.Exif()
    exif[0x0110] = "A Model"
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        assert stored(encode(picture(), kind, exif=exif))[0].original.has_camera is True, kind
        assert stored(encode(picture(), kind))[0].original.has_camera is False, kind
    exif[0x0110] = "  "
    assert stored(encode(picture(), "JPEG", exif=exif))[0].original.has_camera is False


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("RGB", "JPEG"), ("RGB", "PNG"), ("RGB", "WEBP")])
def test_a_grey_picture_has_no_spread_of_colours_whatever_its_mode(mode, kind):
    grey, colour = (picture(mode=each).convert(mode) for each in ("L", "RGB"))
    assert stored(encode(grey, kind))[0].colour_std < 1
    if mode == "RGB":
        assert stored(encode(colour, kind))[0].colour_std > 20
