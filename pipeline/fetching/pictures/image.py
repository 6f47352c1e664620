"""One decode a picture: validate, turn, convert to sRGB, shrink, re-encode, and measure what is stored.

Takes the bytes of one download, gives a StoredImage (bytes for the pool and every measured fact) or a
Rejected (an outcome and what is known of the bytes). Pure: no file on a disk, no network. Whatever bytes come, the
answer is one of the two.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from PIL import Image, ImageFile

from manifests.contract.outcomes import Outcome
from manifests.pictures.authors import authors_of
from manifests.pictures.colour import colour_std, simplify, to_srgb
from manifests.pictures.jpeg import without_metadata
from manifests.pictures.opening import (
    TURNS,
    Unreadable,
    as_unreadable,
    exif_of,
    is_plain,
    open_picture,
    orientation_of,
    without_pillow_warnings,
)
from pipeline.fetching.pictures.consent import refusal_of
from pipeline.fetching.pictures.limits import refusal_of_shape
from pipeline.fetching.pictures.phash import measure_luminance
from pipeline.fetching.pictures.settings import BACKGROUND, ImageSettings
from pipeline.fetching.pictures.shrink import REDUCING_GAP, shrink

_CAMERA_TAGS = (0x010F, 0x0110)  # make and model


@dataclass(frozen=True, slots=True)
class Original:
    """Measures of the bytes as downloaded, stored or not; sizes after EXIF orientation."""

    num_bytes: int
    image_id: str
    width_px: int | None = None
    height_px: int | None = None
    format: str | None = None
    mode: str | None = None
    exif_orientation: int | None = None
    has_camera: bool | None = None
    file_creator: str | None = None
    file_rights: str | None = None


@dataclass(frozen=True, slots=True)
class PixelMeasures:
    """Measures of stored pixels, computed twice: here, and again when they are verified."""

    pixels_sha256: str
    phash: int
    phash_mirrored: int
    middle_hash: int
    middle_mirrored: int
    pixel_std: float
    colour_std: float


@dataclass(frozen=True, slots=True)
class StoredImage(PixelMeasures):
    """A picture as it goes into the pool (`body`, a JPEG), with its measurements."""

    original: Original
    body: bytes
    stored_sha256: str
    stored_width_px: int
    stored_height_px: int
    detail: str | None = None
    """What the picture says against training (consent.py)."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a download is not stored."""

    outcome: Outcome
    detail: str
    original: Original | None = None


Fact = dict[str, Any]
"""Columns of the table of facts (manifests.contract.tables.FACTS)."""
_OF_ORIGINAL = [field.name for field in fields(Original)]
_OF_STORED = [field.name for field in fields(StoredImage) if field.name not in ("original", "body")]


def fact_of(result: StoredImage | Rejected) -> Fact:
    """Return the fields that a measurement adds to the fact of a row: its fields have the names of the columns."""
    original = {name: getattr(result.original, name) for name in _OF_ORIGINAL} if result.original is not None else {}
    if isinstance(result, Rejected):
        return {"outcome": result.outcome.value, "detail": result.detail, **original}
    return original | {name: getattr(result, name) for name in _OF_STORED}


_mine = threading.local()  # `stream`: where a thread encodes its pictures
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _mine.__dict__.clear())  # else two processes would write into one file
_MOST_KEPT_BYTES = 1 << 22  # of memory that a thread keeps for the next picture


class _MemoryFile(io.FileIO):
    """A file in memory that is closed with its last reference, which a thread holds as long as it lives."""

    def __init__(self) -> None:
        super().__init__(os.memfd_create("jpeg"), "w+b")

    def __del__(self) -> None:
        self.close()


def measure_image(body: bytes, settings: ImageSettings) -> StoredImage | Rejected:
    """Turn the bytes of a download into a stored picture, or say why not."""
    original = Original(len(body), hashlib.sha256(body).hexdigest())
    with without_pillow_warnings:
        try:
            image = open_picture(body, settings.max_pixels)
        except Unreadable as why:
            width_px, height_px = why.size or (None, None)
            original = replace(original, width_px=width_px, height_px=height_px, format=why.kind)
            return Rejected(why.outcome, why.detail, original if body else None)
        with image:
            return _measure_open(image, body, original, settings)


def measure_pixels(image: Image.Image) -> PixelMeasures:
    """Hashes and spread of a decoded stored picture; `phash` is imagehash.phash with its first bit highest."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    luminance = image.convert("L")
    digest = hashlib.sha256(struct.pack(">II", *rgb.size))
    digest.update(rgb.tobytes())
    return PixelMeasures(digest.hexdigest(), **asdict(measure_luminance(luminance)), colour_std=colour_std(rgb))


def _measure_open(
    image: ImageFile.ImageFile, body: bytes, original: Original, settings: ImageSettings
) -> StoredImage | Rejected:
    raw_size, mode = image.size, image.mode
    icc_profile = image.info.get("icc_profile")
    try:
        with as_unreadable():
            orientation = left_to_turn = orientation_of(image)
            if image.format == "TIFF":  # Pillow turns these itself, some releases before and some after loading
                image.load()
                raw_size, left_to_turn = image.size, orientation_of(image)
            turned = (raw_size[1], raw_size[0]) if left_to_turn >= 5 else raw_size
            original = replace(original, width_px=turned[0], height_px=turned[1], format=image.format or "", mode=mode)
            exif = exif_of(image)  # names the camera where no tool that drops it has saved the picture anew
            has_camera = any(str(exif.get(tag, "")).strip("\0 ") for tag in _CAMERA_TAGS)
            original = replace(original, exif_orientation=orientation, has_camera=has_camera)
            if refusal := refusal_of_shape(*turned, settings):
                return Rejected(*refusal, original)
            target = _target_size(raw_size, settings)
            image.draft(None, (int(target[0] * REDUCING_GAP), int(target[1] * REDUCING_GAP)))
            image.load()
            authors = authors_of(image)  # of a PNG, some lie behind the pixels
            original = replace(original, file_creator=authors.creator, file_rights=authors.rights)
            simple = simplify(image)
            statement = refusal_of(image)
    except Unreadable as why:
        return Rejected(why.outcome, why.detail, original)
    fits = simple.size == target
    if fits and image.format == "JPEG" and is_plain(image):
        kept = body if settings.keep_metadata else without_metadata(body)
        if kept is not None:
            return _store(kept, simple, original, statement)
    if not fits:
        simple = shrink(simple, target)
        image.close()  # what comes next uses its memory, which still lies in the core's cache
    final = to_srgb(simple, icc_profile, BACKGROUND)
    if left_to_turn != 1:
        final = final.transpose(TURNS[left_to_turn])
    stored = _encode(final, settings.jpeg_quality)
    size = final.size
    final.close()
    again = Image.new("RGB", size, None)  # not filled with black: the decoder sets every pixel
    again.frombytes(stored, "jpeg", "RGB", "")  # the decoder alone: its header is our own
    return _store(stored, again, original, statement)


def _encode(image: Image.Image, quality: int) -> bytes:
    """Return a JPEG.

    While Pillow encodes into a file other threads may run, but not while it encodes into a Python object.
    """
    stream: Any = io.BytesIO()
    if hasattr(os, "memfd_create"):
        if not hasattr(_mine, "stream"):
            _mine.stream = _MemoryFile()
        stream = _mine.stream
    stream.seek(0)
    image.save(stream, "JPEG", quality=quality, subsampling="4:2:0", optimize=False)
    num_bytes = stream.tell()
    stream.seek(0)
    encoded: bytes = stream.read(num_bytes)
    if num_bytes > _MOST_KEPT_BYTES:
        stream.truncate(0)
    return encoded


def _store(body: bytes, pixels: Image.Image, original: Original, detail: str | None) -> StoredImage:
    return StoredImage(
        **asdict(measure_pixels(pixels)),
        original=original,
        body=body,
        stored_sha256=hashlib.sha256(body).hexdigest(),
        stored_width_px=pixels.width,
        stored_height_px=pixels.height,
        detail=detail,
    )


def _target_size(size: tuple[int, int], settings: ImageSettings) -> tuple[int, int]:
    """Size after the resize, in the orientation of `size`; never larger than that, never below 1 px."""
    if settings.resize == "no":
        return size
    side = min(size) if settings.resize == "keep_ratio" else max(size)
    if side <= settings.size_px:
        return size
    return (
        max(1, (size[0] * settings.size_px * 2 + side) // (2 * side)),
        max(1, (size[1] * settings.size_px * 2 + side) // (2 * side)),
    )
