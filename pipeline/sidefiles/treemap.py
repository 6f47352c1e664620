"""Cut a rectangle into tiles as large as given numbers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """A tile in percent of the whole: left, top, width, height."""

    x: float
    y: float
    width: float
    height: float


WHOLE = Tile(0.0, 0.0, 100.0, 100.0)


def cut_into_tiles(sizes: Sequence[float], within: Tile = WHOLE, aspect: float = 1.0) -> list[Tile]:
    """One tile for each size, in their order, each as near to a square as this allows.

    `sizes` are above 0, the largest first; `aspect` is how many times wider than high one percent is.

    Source: Bruls, Huizing and van Wijk, "Squarified Treemaps", 2000.
    """
    tiles: list[Tile] = []
    left = within
    area = within.width * within.height / sum(sizes) if sizes else 0.0
    at = 0
    while at < len(sizes):
        stand = left.width * aspect >= left.height  # a column at the left, or a row at the top
        side = left.height if stand else left.width * aspect
        count = 1
        while at + count < len(sizes) and _worst(sizes[at : at + count + 1], side, area * aspect) <= _worst(
            sizes[at : at + count], side, area * aspect
        ):
            count += 1
        strip = sizes[at : at + count]
        thick = sum(strip) * area / (left.height if stand else left.width)
        along = 0.0
        for size in strip:
            length = size * area / thick
            if stand:
                tiles.append(Tile(left.x, left.y + along, thick, length))
            else:
                tiles.append(Tile(left.x + along, left.y, length, thick))
            along += length
        if stand:
            left = Tile(left.x + thick, left.y, left.width - thick, left.height)
        else:
            left = Tile(left.x, left.y + thick, left.width, left.height - thick)
        at += count
    return tiles


def _worst(strip: Sequence[float], side: float, area: float) -> float:
    """The worst ratio of the sides of tiles that lie along `side`."""
    total = sum(strip) * area
    return max(side**2 * max(strip) * area / total**2, total**2 / (side**2 * min(strip) * area))
