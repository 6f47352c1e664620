"""Blur places in a stored picture, so that what they showed cannot be made out again.

A stored JPEG and boxes in, a JPEG of the same size out. It is encoded with the tables of the stored one, so that its
quality is the same, and without EXIF, whose thumbnail would show what is blurred.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageFilter, JpegImagePlugin

from manifests.pictures.opening import open_stored

MARGIN = 0.15  # of a box's sides that is blurred around it: hair, chin, ears
CELLS = 4  # along the longer side of a box; each becomes one colour before it is smoothed


def blur_boxes(body: bytes, boxes: Sequence[Mapping[str, float]]) -> bytes:
    """Return the picture with every box blurred.

    `left`, `top`, `right`, `bottom` are shares of its width and height.
    """
    stored: Any = open_stored(body)
    with stored:
        tables, sampling = stored.quantization, JpegImagePlugin.get_sampling(stored)
        image = Image.new(stored.mode, stored.size)
        image.paste(stored)
    for box in boxes:
        _blur(image, box)
    stream = io.BytesIO()
    image.save(stream, "JPEG", qtables=tables, subsampling=sampling)
    return stream.getvalue()


def _blur(image: Image.Image, box: Mapping[str, float]) -> None:
    """Only means over large cells are left of a box, so a filter that sharpens brings nothing back."""
    wide, high = ((box[end] - box[start]) * MARGIN for start, end in (("left", "right"), ("top", "bottom")))
    left, top = max(0.0, box["left"] - wide) * image.width, max(0.0, box["top"] - high) * image.height
    right, bottom = min(1.0, box["right"] + wide) * image.width, min(1.0, box["bottom"] + high) * image.height
    area = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
    size = (area[2] - area[0], area[3] - area[1])
    if min(size) < 1:
        return
    cell = max(1.0, max(size) / CELLS)
    cells = image.crop(area).resize([max(1, round(side / cell)) for side in size], Image.Resampling.BOX)
    image.paste(cells.resize(size, Image.Resampling.NEAREST).filter(ImageFilter.BoxBlur(cell / 2)), area[:2])
