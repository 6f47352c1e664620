"""Any picture that Pillow opens, as 8-bit sRGB on a background of one colour.

Two steps, with the resize between them. `simplify` gives a mode that can be resized. `to_srgb` then applies profile and
transparency, to the few pixels that are left.
Gives up with UnsupportedMode for pixels whose range of values is unknown.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from manifests.pictures.bounds import MOST_PROFILE_BYTES

_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_STRIP_PIXELS = 1 << 20
_POWERS = np.stack([np.arange(256), np.arange(256) ** 2], axis=1)  # the values of a channel and their squares
_PROFILE_SPACE = {"RGB ": ("RGB", "RGBA"), "GRAY": ("L", "LA"), "CMYK": ("CMYK",), "Lab ": ("LAB",)}


class UnsupportedMode(Exception):  # noqa: N818  (an answer about one picture, turned into an outcome)
    """Nothing says which value of the picture's pixels is white."""


def simplify(image: Image.Image) -> Image.Image:
    """Return the same picture in L, LA, RGB, RGBA, CMYK or LAB with 8 bits a channel, without palette.

    Raises: UnsupportedMode for floating point and 32-bit integers.
    """
    mode = image.mode
    if mode in ("RGB", "L", "RGBA", "LA", "CMYK", "LAB"):
        if mode in ("RGB", "L") and "transparency" in image.info:
            return image.convert("RGBA")  # one colour is declared transparent
        return image
    if mode == "P":
        return image.convert("RGBA" if "transparency" in image.info else "RGB")
    if mode == "1":
        return image.convert("L")
    if mode in ("PA", "RGBa", "La", "RGBX", "YCbCr", "HSV"):
        return image.convert({"PA": "RGBA", "RGBa": "RGBA", "La": "LA"}.get(mode, "RGB"))
    if mode in _SIXTEEN_BIT or mode == "I":
        extrema: Any = image.getextrema() if mode == "I" else (0, 65535)
        if extrema[0] < 0 or extrema[1] > 65535:
            raise UnsupportedMode("32-bit integer pixels")
        return _from_sixteen_bit(image)
    raise UnsupportedMode(f"pixels of mode {mode}")


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    """Convert to L strip by strip: 3 bytes of memory a pixel, where the whole picture at once takes 19."""
    made = Image.new("L", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        values = np.asarray(strip).astype(np.uint32)
        made.paste(Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)), (0, top))
    return made


def to_srgb(image: Image.Image, icc_profile: bytes | None, background: tuple[int, int, int]) -> Image.Image:
    """Return a simplified picture as sRGB.

    Its profile is applied if it can be read, alpha is composited on `background`.
    """
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    if icc_profile:
        image = _apply_profile(image, icc_profile)
    if image.mode == "LAB":
        image = _apply_lab(image)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return rgb
    below = Image.new("RGB", image.size, background)
    below.paste(rgb, mask=alpha)
    return below


def is_srgb(icc_profile: bytes) -> bool:
    """Return true for a profile that is named sRGB, or that cannot be read: the pixels then stay as they are."""
    return len(icc_profile) > MOST_PROFILE_BYTES or _is_srgb(icc_profile)


@lru_cache(maxsize=256)
def _is_srgb(icc_profile: bytes) -> bool:
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        name = str(profile.profile.profile_description or "")
        space = profile.profile.xcolor_space
    except (ImageCms.PyCMSError, OSError, AttributeError, ValueError):
        return True
    return space == "RGB " and "srgb" in name.lower().replace(" ", "").replace("-", "")


@lru_cache(maxsize=64)
def _transform(icc_profile: bytes, mode: str) -> Any:
    """Return a profile's transform to sRGB; None when the profile is broken or does not fit the kind of pixels."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        if mode not in _PROFILE_SPACE.get(profile.profile.xcolor_space, ()):
            return None
        return ImageCms.buildTransform(profile, _srgb_profile(), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


@lru_cache(maxsize=1)
def _srgb_profile() -> Any:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _apply_profile(image: Image.Image, icc_profile: bytes) -> Image.Image:
    if is_srgb(icc_profile):
        return image
    opaque = image.convert(image.mode.rstrip("A")) if image.mode in ("RGBA", "LA") else image
    transform = _transform(icc_profile, opaque.mode)
    if transform is None:
        return image
    converted = ImageCms.applyTransform(opaque, transform)
    return image if converted is None else converted


def colour_std(rgb: Image.Image) -> float:
    """Return how far the colours of a picture are spread, apart from light and dark: 0 for grey, about 2 for sepia.

    The root of the summed variances of Cb and Cr. It is measured on means of 4 x 4 pixels, in a third of the time that
    all pixels take. Photos of groceries have 12 and more.
    """
    counts = np.array(rgb.reduce(4).convert("YCbCr").histogram()[256:], np.int64).reshape(2, 256)
    num, ((cb, cb_squared), (cr, cr_squared)) = int(counts[0].sum()), (counts @ _POWERS).tolist()
    return math.sqrt(num * (cb_squared + cr_squared) - cb * cb - cr * cr) / num


def _apply_lab(image: Image.Image) -> Image.Image:
    lab = ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(lab, _srgb_profile(), "LAB", "RGB")
    converted = ImageCms.applyTransform(image, transform)
    return image if converted is None else converted
