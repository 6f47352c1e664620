"""A scorer as a user would write one: the mean brightness of a picture; it notes each load in a file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.scoring.scorers import Box

UNSURE_BELOW = 0.405  # brightness: no photo of tests/photos is nearer to it than 0.015


def brightness_of(image: Any) -> float:
    """Mean of a picture, 0 to 1."""
    return sum(image.convert("L").resize((8, 8)).tobytes()) / 64 / 255


class Brightness:
    name = "brightness"

    def __init__(self, log: str) -> None:
        self._log = Path(log)

    def check(self) -> None:
        """Nothing to be had."""

    def load(self) -> None:
        with self._log.open("a") as stream:
            stream.write(f"{os.getpid()}\n")

    def score(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
        assert len(images) == len(texts)
        return [brightness_of(image) for image in images]


class NoScorer:
    name = "none"


class Middle:
    """A detector: the middle of every picture, as sure as the picture is bright."""

    name = "middle"

    def load(self) -> None:
        """Nothing to be had."""

    def boxes(self, images: Sequence[Any]) -> list[list[Box]]:
        return [[Box(0.25, 0.25, 0.75, 0.75, brightness_of(image))] for image in images]


class Unsure:
    """The brightness of a picture, and no number for a dark one."""

    name = "unsure"

    def load(self) -> None:
        """Nothing to be had."""

    def score(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
        values = [brightness_of(image) for image in images]
        return [value if value >= UNSURE_BELOW else math.nan for value in values]


class Faulty:
    """A detector that gives one box, always the same."""

    name = "faulty"

    def __init__(self, box: Sequence[float]) -> None:
        self._box = Box(*box)

    def load(self) -> None:
        """Nothing to be had."""

    def boxes(self, images: Sequence[Any]) -> list[list[Box]]:
        return [[self._box] for _ in images]


class Colours:
    """The brightness of grey pictures; NaN for red ones, infinity for green ones, minus infinity for blue ones."""

    name = "colours"

    def load(self) -> None:
        """Nothing to be had."""

    def score(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
        return [self._score(*image.resize((1, 1)).getpixel((0, 0))) for image in images]

    def _score(self, *mean: int) -> float:
        odd = (float("nan"), float("inf"), float("-inf"))
        return odd[mean.index(max(mean))] if max(mean) - min(mean) > 50 else sum(mean) / 3 / 255
