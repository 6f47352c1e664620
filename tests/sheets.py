"""Herbarium sheets of one layout: paper with frame, label, ruler and barcode, and a drawn plant in the middle."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

WIDTH_PX, HEIGHT_PX = 260, 390


def _layout() -> Image.Image:
    rng = random.Random(0)
    sheet = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), (236, 230, 214))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((0, 0, WIDTH_PX - 1, HEIGHT_PX - 1), outline=(120, 110, 100), width=3)
    draw.rectangle((158, 320, 252, 380), fill=(250, 248, 240), outline=(90, 80, 70))
    for line in range(5):
        draw.line((164, 332 + 9 * line, rng.randint(200, 246), 332 + 9 * line), fill=(60, 60, 60))
    for mark in range(12):
        draw.rectangle((8 + 9 * mark, 366, 16 + 9 * mark, 380), fill=tuple(rng.randint(0, 255) for _ in range(3)))
        draw.line((8 + 9 * mark, 352, 8 + 9 * mark, 360), fill=(0, 0, 0))
        draw.line((14 + 4 * mark, 12, 14 + 4 * mark, 28), fill=(0, 0, 0), width=rng.choice((1, 2)))
    return sheet


LAYOUT = _layout()


def draw_sheet(seed: int) -> Image.Image:
    """The sheet of one plant; another number draws another plant."""
    rng = random.Random(seed)
    sheet = LAYOUT.copy()
    draw = ImageDraw.Draw(sheet)
    stem = (rng.randint(70, 130), rng.randint(60, 100), rng.randint(30, 60))
    leaf = (rng.randint(60, 140), rng.randint(80, 130), rng.randint(30, 70))
    length_px, breadth = rng.randint(12, 40), rng.uniform(0.15, 0.55)

    def branch(x: float, y: float, angle: float, step: float, num_left: int) -> None:
        end_x, end_y = x + step * math.cos(angle), y - step * math.sin(angle)
        draw.line((x, y, end_x, end_y), fill=stem, width=max(1, num_left // 2))
        for side in (-1, 1):
            if rng.random() < 0.8:
                turned, long = angle + side * rng.uniform(0.5, 1.3), length_px * rng.uniform(0.6, 1.2)
                ahead, aside = (long * math.cos(turned), -long * math.sin(turned)), long * breadth / 2
                across = (aside * math.sin(turned), aside * math.cos(turned))
                middle = end_x + ahead[0] / 2, end_y + ahead[1] / 2
                corners = [(end_x, end_y), (middle[0] + across[0], middle[1] + across[1])]
                corners += [(end_x + ahead[0], end_y + ahead[1]), (middle[0] - across[0], middle[1] - across[1])]
                draw.polygon(corners, fill=leaf)
        for _ in range(rng.choice((1, 2, 2, 3)) if num_left > 1 else 0):
            branch(end_x, end_y, angle + rng.uniform(-0.7, 0.7), step * rng.uniform(0.6, 1), num_left - 1)

    branch(WIDTH_PX / 2 + rng.uniform(-20, 20), 300, math.pi / 2 + rng.uniform(-0.2, 0.2), rng.uniform(30, 62), 5)
    return sheet
