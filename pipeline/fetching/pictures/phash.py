"""The hashes of a picture and of its mirror image, and the spread of its luminance.

`phash` is `imagehash.phash` with its first bit highest. `middle_hash` sees the middle alone, half as wide and half as
high as the picture: so it tells sheets of one layout apart (manifests/contract/copies.py).

Luminance in, numbers out; pure. Source: imagehash 4.3 (32 x 32 pixels, DCT-II both ways, the 8 x 8 lowest frequencies
against their median). Filter and transform are products of matrices, which is faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from operator import mul

import numpy as np
from PIL import Image, ImageOps

_SIDE_PX, _NUM_LOW = 32, 8
_COSINES = 2.0 * np.cos(np.pi / (2 * _SIDE_PX) * np.outer(np.arange(_NUM_LOW), 2 * np.arange(_SIDE_PX) + 1))
_TURNED = np.ascontiguousarray(_COSINES.T)
# Mirroring changes nothing but the sign of the odd horizontal frequencies. Of 2,640 photos of groceries, 126 of them
# taller than wide, every hash made so was `imagehash.phash` of the mirrored photo (2026-11-29).
_SIGNS = np.array([[[1.0] * _NUM_LOW], [[1.0, -1.0] * (_NUM_LOW // 2)]])  # of the picture and of its mirror image
# Frequencies are at most 4 * 32 * 32 * 255, so two ways to add them differ by less than 1e-8.
_CLOSE = 1e-5
# Of the middle, 16 x 16 of the 32 x 32 pixels, the signs of 64 frequencies. The ten lowest are left out: in them
# plants on sheets are alike. Waves of less than a level count as none: in a smooth middle noise
# would decide. All numbers are whole, and sums stay below 2**53, so every processor gives the same bits.
_MIDDLE = slice(_SIDE_PX // 4, _SIDE_PX - _SIDE_PX // 4)
_MIDDLE_PX = _SIDE_PX // 2
_WAVES = sorted(np.ndindex(12, 12), key=lambda wave: (sum(wave), wave))[11:75]  # (down, across)
_WHOLE = np.rint(2048 * np.cos(np.pi / (2 * _MIDDLE_PX) * np.outer(np.arange(12), 2 * np.arange(_MIDDLE_PX) + 1)))
_WHOLE_TURNED = np.ascontiguousarray(_WHOLE.T)
_DOWN, _ACROSS = np.array(_WAVES).T
_FAINT = _MIDDLE_PX**2 * 1024**2
_MIDDLE_SIGNS = np.stack([np.ones(64), np.where(_ACROSS % 2, -1.0, 1.0)])
_MOST_PIXELS = 1 << 20  # as float64: 8 MiB
_LEVELS = range(256)
_SQUARES = [level * level for level in _LEVELS]
_REACH, _WEIGHT_BITS = 3.0, 22  # of Pillow's LANCZOS; pixels of the result, and bits behind the point


@dataclass(frozen=True, slots=True)
class LightMeasures:
    """Measures of the luminance: hashes, and its exact standard deviation."""

    phash: int
    phash_mirrored: int
    middle_hash: int
    middle_mirrored: int
    pixel_std: float


def measure_luminance(luminance: Image.Image) -> LightMeasures:
    """Return the measures of a picture of mode L."""
    if luminance.width * luminance.height > _MOST_PIXELS:
        small = _shrunk_by_pillow(luminance)
        return LightMeasures(*_hashes_of(small, luminance), *_middles_of(small), _spread(luminance))
    size = luminance.height, luminance.width
    pixels = np.frombuffer(luminance.tobytes(), np.uint8).astype(np.float64).reshape(size)
    # Pillow filters rows first; Pillow 13 was seen to filter columns first, in some pictures taller than wide
    across_first = luminance.width >= luminance.height
    small = _shrunk(pixels) if across_first else _shrunk_by_pillow(luminance)
    # whole numbers below 2**53, so these sums are exact
    spread = _deviation(pixels.size, int(pixels.sum()), int(np.vdot(pixels, pixels)))
    return LightMeasures(*_hashes_of(small, luminance), *_middles_of(small), spread)


def _hashes_of(small: np.ndarray, luminance: Image.Image) -> tuple[int, int]:
    """Return the hash of pixels (32, 32) and that of their mirror image."""
    low = np.dot(np.dot(_COSINES, small), _TURNED)
    both = (low * _SIGNS).reshape(2, -1)
    below, above = np.sort(both)[:, _NUM_LOW**2 // 2 - 1 :][:, :2].T
    bits = both > ((below + above) / 2)[:, None]
    if (above - below).min() < _CLOSE:  # one colour, or symmetric: rounding decides, so it must be imagehash's own
        import imagehash

        pictures = luminance, ImageOps.mirror(luminance)
        for number in np.flatnonzero(above - below < _CLOSE):
            bits[number] = imagehash.phash(pictures[number]).hash.ravel()
    hashes: list[int] = np.packbits(bits).view(">u8").tolist()
    return hashes[0], hashes[1]


def _middles_of(small: np.ndarray) -> tuple[int, int]:
    """Return the hash of the middle of pixels (32, 32), and that of its mirror image."""
    waves = np.dot(np.dot(_WHOLE, small[_MIDDLE, _MIDDLE]), _WHOLE_TURNED)[_DOWN, _ACROSS]
    hashes: list[int] = np.packbits(waves * _MIDDLE_SIGNS > _FAINT).view(">u8").tolist()
    return hashes[0], hashes[1]


def _spread(luminance: Image.Image) -> float:
    counts = luminance.histogram()
    return _deviation(sum(counts), sum(map(mul, counts, _LEVELS)), sum(map(mul, counts, _SQUARES)))


def _deviation(num: int, total: int, squares: int) -> float:
    """Return the standard deviation of whole numbers, from their count, sum and sum of squares."""
    return float((squares * num - total * total) ** 0.5 / num)


def _shrunk_by_pillow(luminance: Image.Image) -> np.ndarray:
    small = luminance.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    return np.frombuffer(small.tobytes(), np.uint8).astype(np.float64).reshape(_SIDE_PX, _SIDE_PX)


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W) at 32 x 32, as Pillow's LANCZOS makes them: rows first, each pass rounded to 8 bits."""
    height, width = pixels.shape
    rows = pixels
    if width != _SIDE_PX:  # without most of the weights that are 0
        rows = _rounded(np.concatenate([pixels[:, reached] @ weights for reached, weights in _bands(width)], axis=1))
    return rows if height == _SIDE_PX else _rounded(_weights(height).T @ rows)


def _rounded(sums: np.ndarray) -> np.ndarray:
    return np.clip(np.floor((sums + (1 << _WEIGHT_BITS - 1)) / (1 << _WEIGHT_BITS)), 0.0, 255.0)


@lru_cache(maxsize=512)
def _weights(num_pixels: int) -> np.ndarray:
    """Weights (num_pixels, 32) of 32 results, whole numbers: products with 8-bit pixels are exact.

    Source: Pillow's Resample.c, `precompute_coeffs` and `normalize_coeffs_8bpc`.
    """
    scale = num_pixels / _SIDE_PX
    wider = max(scale, 1.0)
    weights = np.zeros((num_pixels, _SIDE_PX))
    for column in range(_SIDE_PX):
        centre = (column + 0.5) * scale
        places = range(max(0, int(centre - _REACH * wider + 0.5)), min(num_pixels, int(centre + _REACH * wider + 0.5)))
        shares = [_lanczos((position - centre + 0.5) * (1.0 / wider)) for position in places]
        total = sum(shares)
        for position, share in zip(places, shares, strict=True):
            scaled = share / total * (1 << _WEIGHT_BITS)
            weights[position, column] = int(scaled + math.copysign(0.5, scaled))
    return weights


@lru_cache(maxsize=512)
def _bands(num_pixels: int) -> list[tuple[slice, np.ndarray]]:
    """Return the weights in four bands of eight results: which pixels a band reaches, and their weights."""
    bands = []
    for band in np.hsplit(_weights(num_pixels), 4):
        reached = np.flatnonzero(band.any(axis=1))
        pixels = slice(int(reached[0]), int(reached[-1]) + 1)
        bands.append((pixels, np.ascontiguousarray(band[pixels])))
    return bands


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / _REACH) if -_REACH <= x < _REACH else 0.0


def _sinc(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0
