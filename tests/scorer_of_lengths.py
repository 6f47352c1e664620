"""Scorers for tests: how many words a text has, over how wide its picture is; and how bright a picture is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import ImageStat


class Lengths:
    """Counts words."""

    name = "length"

    def load(self) -> None:
        """Nothing to load."""

    def score(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
        return [len(text.split()) + image.width / 1000 for image, text in zip(images, texts, strict=True)]


class Brightness:
    """Mean lightness of a picture, 0 to 1; ignores the text."""

    name = "bright"

    def load(self) -> None:
        """Nothing to load."""

    def score(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
        return [ImageStat.Stat(image.convert("L")).mean[0] / 255 for image in images]
