"""The detail of a picture in pixels: the least size that would show it as it is.

A copy that was blown up has more pixels and no more detail. Pure: a decoded picture in, a number out.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

# The square of frequencies that holds so much of the spectrum, each frequency weighted by itself, since pictures have
# less of the high ones. Of 168 copies of grocery photos that were blown up 1.25 to 2 times (photos of 128 and 200 px,
# JPEG quality 80 and 95, three filters), the original had more detail in 99 %. Of 56 photos of 256 px and their reduced
# copies the larger one had more in 96 %.
_SHARE = 0.95
_STEPS = 200  # up to the highest frequency that the pixels can hold


def detail_px(image: Image.Image) -> int:
    """Return the number of pixels that the detail of a picture fills; at most its own number of pixels.

    The sums differ between processors in their last bits, but the answer is counted in steps and does not.
    """
    light = np.asarray(image.convert("L"), np.float64)
    height, width = light.shape
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])  # the edges are no detail
    power = np.abs(np.fft.rfft2((light - light.mean()) * window)) ** 2
    across = np.maximum(np.abs(np.fft.fftfreq(height))[:, None], np.fft.rfftfreq(width)[None, :]) * 2
    steps = np.minimum((across * _STEPS).astype(np.int64), _STEPS - 1)
    held = np.cumsum(np.bincount(steps.ravel(), (power * across).ravel(), _STEPS))
    if held[-1] == 0:
        return 1
    reached = int(np.searchsorted(held, _SHARE * held[-1])) + 1
    return int(max(1, reached * reached * width * height // _STEPS**2))
