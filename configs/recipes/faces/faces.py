"""Faces by a scorer plug-in: the frontal detector of OpenCV, whose weights lie in the wheel opencv-python-headless."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.scoring.scorers import Box

MOST_CERTAIN = 8.0  # of the detector's stage weights: what a clear face reaches


class Faces:
    """Boxes of faces, with a confidence from 0 to 1."""

    name = "faces"

    def load(self) -> None:
        """Read the weights, once a worker."""
        import cv2

        cv2.setNumThreads(1)
        self._detector = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_frontalface_default.xml")

    def boxes(self, images: Sequence[Any]) -> list[list[Box]]:
        """Return the boxes of each picture, their sides as shares of its width and height."""
        return [self._boxes(image) for image in images]

    def _boxes(self, image: Any) -> list[Box]:
        width, height = image.size
        grey = np.asarray(image.convert("L"))
        found, _, weights = self._detector.detectMultiScale3(grey, 1.1, 5, outputRejectLevels=True)
        return [
            Box(x / width, y / height, (x + w) / width, (y + h) / height, min(1.0, max(0.0, weight / MOST_CERTAIN)))
            for (x, y, w, h), weight in zip(found, weights, strict=True)
        ]
