"""Open a picture from its bytes. Both packages open pictures here alone, so both see the same pixels.

Bytes in; a picture of Pillow's out, first its header, then its pixels. No file on a disk, no network. Whatever bytes
come, the answer is a picture or Unreadable, which holds an outcome.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from PIL import Image, ImageFile, UnidentifiedImageError

from manifests.contract.outcomes import Outcome
from manifests.pictures import sniff
from manifests.pictures.bounds import MOST_PIXELS
from manifests.pictures.colour import UnsupportedMode, is_srgb, simplify, to_srgb
from manifests.pictures.cost import too_costly
from manifests.pictures.jpeg import jpeg_obstacle

# The formats of photos on the web. EPS is left out because it runs Ghostscript, and so are formats without a signature,
# which random bytes can pass for; only TGA is kept, because real collections hold it.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM", "HEIF", "TGA")
WHITE = (255, 255, 255)
_ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture stand upright, by its EXIF orientation."""

# Bytes that a pixel takes at the peak of decoding and simplifying, measured on 16 Mpx pictures with Pillow 13. No
# picture may take more bytes than `max_pixels` of ALLOWED_BYTES each.
ALLOWED_BYTES = 8
_BYTES_OF_FORMAT = {"JPEG2000": 20, "WEBP": 17, "AVIF": 10, "HEIF": 10}
_BYTES_WITH_TRANSPARENCY = 12  # a palette, or one colour that is declared transparent
_ADDRESS = re.compile(r" ?<_io\.BytesIO object at 0x[0-9a-f]+>")  # Pillow names it; it is another one in each process


class Unreadable(Exception):  # noqa: N818  (an answer about one picture, turned into an outcome)
    """Why a picture is not read: an outcome, words for people and, where they were read, size and format."""

    def __init__(
        self, outcome: Outcome, detail: str, size: tuple[int, int] | None = None, kind: str | None = None
    ) -> None:
        super().__init__(f"{outcome}: {detail}")
        self.outcome, self.detail, self.size, self.kind = outcome, detail, size, kind


class _WithoutPillowWarnings:
    """Pillow's warnings (odd EXIF, palettes, sizes) are off while any thread reads: none changes what we do.

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


without_pillow_warnings = _WithoutPillowWarnings()


@contextmanager
def as_unreadable() -> Iterator[None]:
    """On hostile bytes a parser raises anything: struct.error, KeyError, zlib.error. All of it becomes Unreadable."""
    try:
        yield
    except Unreadable:
        raise
    except UnsupportedMode as error:
        raise Unreadable(Outcome.UNSUPPORTED_IMAGE, str(error)) from None
    except Image.DecompressionBombError as error:
        raise Unreadable(Outcome.TOO_MANY_PIXELS, str(error)) from None
    except Exception as error:
        words = _ADDRESS.sub("", f"{type(error).__name__}: {error}")
        raise Unreadable(Outcome.CORRUPT_IMAGE, words[:200]) from None


def open_picture(body: bytes, max_pixels: int = MOST_PIXELS) -> ImageFile.ImageFile:
    """Return a picture of at most `max_pixels`, its header read and nothing decoded. The caller closes it.

    Raises: Unreadable.
    """
    if not body:
        raise Unreadable(Outcome.EMPTY_BODY, "no bytes")
    kind = sniff.image_kind(body)
    if kind == "WEBP" and (size := sniff.webp_size(body)):
        _check_size(size, kind, max_pixels)
    if costly := too_costly(body, kind, max_pixels):
        raise Unreadable(Outcome.TOO_COSTLY, costly)
    with without_pillow_warnings, as_unreadable():
        try:
            image = Image.open(io.BytesIO(body), formats=_readable_formats())
        except UnidentifiedImageError:
            raise _unidentified(body, kind) from None
    _check_size(image.size, image.format or "", max_pixels, _bytes_per_pixel(image))
    return image


def open_stored(body: bytes) -> ImageFile.ImageFile:
    """Return a picture that a build stored or a release holds: always a JPEG. Raises: what Pillow does."""
    return Image.open(io.BytesIO(body), formats=("JPEG",))


def upright_srgb(image: Image.Image) -> Image.Image:
    """Return the pixels of an open picture as `plantmix` stores them, not resized: RGB, upright, on white.

    Raises: Unreadable.
    """
    icc_profile = image.info.get("icc_profile")
    with without_pillow_warnings, as_unreadable():
        image.load()
        orientation = orientation_of(image)  # of TIFF: Pillow turns those itself when it loads them
        rgb = to_srgb(simplify(image), icc_profile, WHITE)
        return rgb if orientation == 1 else rgb.transpose(TURNS[orientation])


def is_plain(image: Image.Image) -> bool:
    """Return true when the decoded pixels are those that are seen: grey or sRGB, opaque and upright."""
    icc_profile = image.info.get("icc_profile")
    return (
        image.mode in ("RGB", "L")
        and "transparency" not in image.info
        and (not icc_profile or is_srgb(icc_profile))
        and orientation_of(image) == 1
    )


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation; 1 when it is absent or not one of the eight."""
    value = exif_of(image).get(_ORIENTATION_TAG, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def exif_of(image: Image.Image) -> Mapping[int, Any]:
    """Return the EXIF of an open picture."""
    if image.format in ("JPEG", "PPM") and "exif" not in image.info:
        return {}  # saves 0.1 ms: getexif would look for XMP
    return image.getexif()


def _check_size(size: tuple[int, int], kind: str, max_pixels: int, bytes_per_pixel: int = ALLOWED_BYTES) -> None:
    """Raise Unreadable for more pixels than are allowed, or as many that take more memory."""
    num_pixels = size[0] * size[1]
    if num_pixels * max(bytes_per_pixel, ALLOWED_BYTES) <= max_pixels * ALLOWED_BYTES:
        return
    detail = f"{size[0]} x {size[1]} px, allowed {max_pixels} pixels"
    if num_pixels <= max_pixels:
        detail += f" of {ALLOWED_BYTES} bytes; a pixel of this {kind} takes {bytes_per_pixel} to decode"
    raise Unreadable(Outcome.TOO_MANY_PIXELS, detail, size, kind)


def _bytes_per_pixel(image: ImageFile.ImageFile) -> int:
    """Bytes that decoding takes at its peak; 8 or fewer for everything that is not listed."""
    listed = _BYTES_OF_FORMAT.get(image.format or "", ALLOWED_BYTES)
    return max(listed, _BYTES_WITH_TRANSPARENCY) if "transparency" in image.info else listed


def _unidentified(body: bytes, kind: str | None) -> Unreadable:
    """Why no plugin reads the bytes: another kind of file, a format that this Pillow lacks, or a broken header."""
    if kind is None:
        return Unreadable(Outcome.NOT_AN_IMAGE, sniff.other_kind(body))
    if kind == "JPEG" and (obstacle := jpeg_obstacle(body)):
        return Unreadable(Outcome.UNSUPPORTED_IMAGE, obstacle)
    if kind not in _readable_formats():
        return Unreadable(Outcome.UNSUPPORTED_IMAGE, f"{kind} cannot be read here")
    return Unreadable(Outcome.CORRUPT_IMAGE, f"{kind} with a broken header")


@lru_cache(maxsize=1)
def _readable_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
