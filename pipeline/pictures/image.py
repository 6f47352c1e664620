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
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from PIL import Image, ImageFile, UnidentifiedImageError

from manifests.outcomes import Outcome
from pipeline.pictures import sniff
from pipeline.pictures.colour import UnsupportedMode, colour_std, is_srgb, simplify, to_srgb
from pipeline.pictures.consent import refusal_of
from pipeline.pictures.jpeg import jpeg_obstacle, without_metadata
from pipeline.pictures.phash import measure_luminance
from pipeline.pictures.settings import ImageSettings
from pipeline.pictures.shrink import REDUCING_GAP, shrink

# The formats of photos on the web. EPS is left out because it runs Ghostscript, and so are formats without a signature,
# which random bytes can pass for; only TGA is kept, because real collections hold it.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM", "HEIF", "TGA")
_ORIENTATION_TAG = 0x0112
_CAMERA_TAGS = (0x010F, 0x0110)  # make and model
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Bytes that a pixel takes at the peak of decoding and simplifying, measured on 16 Mpx pictures with Pillow 13. No
# picture may take more bytes than `max_pixels` of ALLOWED_BYTES each.
ALLOWED_BYTES = 8
_BYTES_OF_FORMAT = {"JPEG2000": 20, "WEBP": 17, "AVIF": 10, "HEIF": 10}
_BYTES_WITH_TRANSPARENCY = 12  # a palette, or one colour that is declared transparent


@dataclass(frozen=True, slots=True)
class Original:
    """What is known of the bytes as downloaded, stored or not; sizes after EXIF orientation."""

    num_bytes: int
    image_id: str
    width_px: int | None = None
    height_px: int | None = None
    format: str | None = None
    mode: str | None = None
    exif_orientation: int | None = None
    has_camera: bool | None = None


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A picture as it goes into the pool (`body`, a JPEG), with its measurements."""

    original: Original
    body: bytes
    stored_sha256: str
    pixels_sha256: str
    phash: int
    pixel_std: float
    colour_std: float
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


@dataclass(frozen=True, slots=True)
class PixelMeasures:
    """What is computed from stored pixels: here, and again when they are verified."""

    pixels_sha256: str
    phash: int
    pixel_std: float
    colour_std: float


class _WithoutPillowWarnings:
    """Pillow's warnings (odd EXIF, palettes, sizes) are off while any thread measures: none changes what we do.

    `warnings.catch_warnings` alone is not safe for threads: the first to leave would end the filter for the others, and
    the last would put it back for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._context = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._context = warnings.catch_warnings()
                self._context.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._num_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._context.__exit__(None, None, None)


_without_pillow_warnings = _WithoutPillowWarnings()
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


def measure_image(body: bytes, settings: ImageSettings, *, with_c2pa: bool = False) -> StoredImage | Rejected:
    """Turn the bytes of a download into a stored picture, or say why not; `with_c2pa` reads C2PA's assertion too."""
    if not body:
        return Rejected(Outcome.EMPTY_BODY, "no bytes")
    original = Original(len(body), hashlib.sha256(body).hexdigest())
    kind = sniff.image_kind(body)
    if kind == "WEBP" and (size := sniff.webp_size(body)) and size[0] * size[1] > settings.max_pixels:
        return _too_many_pixels(original, size, settings)
    with _without_pillow_warnings:
        try:
            image = Image.open(io.BytesIO(body), formats=_readable_formats())
        except UnidentifiedImageError:
            return _unreadable(body, kind, original)
        except Image.DecompressionBombError as error:
            return Rejected(Outcome.TOO_MANY_PIXELS, str(error), original)
        except Exception as error:  # on hostile bytes a parser raises anything: struct.error, KeyError, zlib.error ...
            return Rejected(Outcome.CORRUPT_IMAGE, _describe(error), original)
        with image:
            return _measure_open(image, body, original, settings, with_c2pa)


def measure_pixels(image: Image.Image) -> PixelMeasures:
    """Hashes and spread of a decoded stored picture; `phash` is imagehash.phash with its first bit highest."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    luminance = image.convert("L")
    digest = hashlib.sha256(struct.pack(">II", *rgb.size))
    digest.update(rgb.tobytes())
    return PixelMeasures(digest.hexdigest(), *measure_luminance(luminance), colour_std(rgb))


def _measure_open(
    image: ImageFile.ImageFile, body: bytes, original: Original, settings: ImageSettings, with_c2pa: bool
) -> StoredImage | Rejected:
    raw_size = image.size
    if raw_size[0] * raw_size[1] > settings.max_pixels:
        return _too_many_pixels(original, raw_size, settings, image.format)
    if raw_size[0] * raw_size[1] * _bytes_per_pixel(image) > settings.max_pixels * ALLOWED_BYTES:
        refused = _too_many_pixels(original, raw_size, settings, image.format)
        more = f" of {ALLOWED_BYTES} bytes; a pixel of this {image.format} takes {_bytes_per_pixel(image)} to decode"
        return replace(refused, detail=refused.detail + more)
    mode = image.mode
    icc_profile = image.info.get("icc_profile")
    try:
        orientation = left_to_turn = _orientation(image)
        if image.format == "TIFF":  # Pillow turns these itself, some releases before and some after loading
            image.load()
            raw_size, left_to_turn = image.size, _orientation(image)
        turned = (raw_size[1], raw_size[0]) if left_to_turn >= 5 else raw_size
        original = replace(original, width_px=turned[0], height_px=turned[1], format=image.format or "", mode=mode)
        original = replace(original, exif_orientation=orientation, has_camera=_has_camera(image))
        if refusal := _bad_shape(original, settings):
            return refusal
        target = _target_size(raw_size, settings)
        image.draft(None, (int(target[0] * REDUCING_GAP), int(target[1] * REDUCING_GAP)))
        image.load()
        simple = simplify(image)
        said = refusal_of(image, body, with_c2pa=with_c2pa)
    except UnsupportedMode as error:
        return Rejected(Outcome.UNSUPPORTED_IMAGE, str(error), original)
    except Image.DecompressionBombError as error:
        return Rejected(Outcome.TOO_MANY_PIXELS, str(error), original)
    except Exception as error:  # as above, for decoders
        return Rejected(Outcome.CORRUPT_IMAGE, _describe(error), original)
    fits = simple.size == target
    untouched = orientation == 1 and fits and mode in ("RGB", "L") and image.format == "JPEG"
    if untouched and (not icc_profile or is_srgb(icc_profile)):
        kept = body if settings.keep_metadata else without_metadata(body)
        if kept is not None:
            return _store(kept, simple, original, said)
    if not fits:
        simple = shrink(simple, target)
        image.close()  # what comes next uses its memory, which still lies in the core's cache
    final = to_srgb(simple, icc_profile, settings.background)
    if left_to_turn != 1:
        final = final.transpose(_TURNS[left_to_turn])
    stored = _encode(final, settings.jpeg_quality)
    size = final.size
    final.close()
    again = Image.new("RGB", size, None)  # not filled with black: the decoder sets every pixel
    again.frombytes(stored, "jpeg", "RGB", "")  # the decoder alone: its header is our own
    return _store(stored, again, original, said)


def _encode(image: Image.Image, quality: int) -> bytes:
    """A JPEG. While Pillow encodes into a file other threads may run, but not while it encodes into a Python object."""
    stream: Any = io.BytesIO()
    if hasattr(os, "memfd_create"):
        if not hasattr(_mine, "stream"):
            _mine.stream = _MemoryFile()
        stream = _mine.stream
    stream.seek(0)
    image.save(stream, "JPEG", quality=quality, subsampling="4:2:0", optimize=False)
    num_bytes = stream.tell()
    stream.seek(0)
    found: bytes = stream.read(num_bytes)
    if num_bytes > _MOST_KEPT_BYTES:
        stream.truncate(0)
    return found


def _bytes_per_pixel(image: ImageFile.ImageFile) -> int:
    """Bytes that decoding takes at its peak; 8 or fewer for everything that is not listed."""
    known = _BYTES_OF_FORMAT.get(image.format or "", ALLOWED_BYTES)
    return max(known, _BYTES_WITH_TRANSPARENCY) if "transparency" in image.info else known


def _store(body: bytes, pixels: Image.Image, original: Original, detail: str | None) -> StoredImage:
    measures = measure_pixels(pixels)
    return StoredImage(
        original=original,
        body=body,
        stored_sha256=hashlib.sha256(body).hexdigest(),
        pixels_sha256=measures.pixels_sha256,
        phash=measures.phash,
        pixel_std=measures.pixel_std,
        colour_std=measures.colour_std,
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


def _bad_shape(original: Original, settings: ImageSettings) -> Rejected | None:
    width, height = original.width_px or 0, original.height_px or 0
    if min(width, height) < settings.min_side_px:
        return Rejected(
            Outcome.IMAGE_TOO_SMALL, f"{width} x {height} px, shortest side allowed {settings.min_side_px}", original
        )
    ratio = max(width, height) / min(width, height)
    if ratio > settings.max_aspect_ratio:
        return Rejected(
            Outcome.ASPECT_TOO_EXTREME, f"{width} x {height} px, ratio allowed {settings.max_aspect_ratio:g}", original
        )
    return None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 when it is absent or not one of the eight."""
    value = _exif(image).get(_ORIENTATION_TAG, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _has_camera(image: Image.Image) -> bool:
    """Whether EXIF names the camera, as it does where a picture was never saved anew by a tool that drops it."""
    exif = _exif(image)
    return any(str(exif.get(tag, "")).strip("\0 ") for tag in _CAMERA_TAGS)


def _exif(image: Image.Image) -> Mapping[int, Any]:
    if image.format == "JPEG" and "exif" not in image.info:
        return {}  # saves 0.1 ms: getexif would look for XMP
    return image.getexif()


def _too_many_pixels(
    original: Original, size: tuple[int, int], settings: ImageSettings, kind: str | None = "WEBP"
) -> Rejected:
    detail = f"{size[0]} x {size[1]} px, allowed {settings.max_pixels} pixels"
    return Rejected(
        Outcome.TOO_MANY_PIXELS, detail, Original(original.num_bytes, original.image_id, size[0], size[1], kind)
    )


def _unreadable(body: bytes, kind: str | None, original: Original) -> Rejected:
    """Why no plugin reads the bytes: another kind of file, a format that this Pillow lacks, or a broken header."""
    if kind is None:
        return Rejected(Outcome.NOT_AN_IMAGE, sniff.other_kind(body), original)
    if kind == "JPEG" and (obstacle := jpeg_obstacle(body)):
        return Rejected(Outcome.UNSUPPORTED_IMAGE, obstacle, original)
    if kind not in _readable_formats():
        return Rejected(Outcome.UNSUPPORTED_IMAGE, f"{kind} cannot be read here", original)
    return Rejected(Outcome.CORRUPT_IMAGE, f"{kind} with a broken header", original)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


@lru_cache(maxsize=1)
def _readable_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
