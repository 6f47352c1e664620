"""One vector for a picture and one for a text, whose inner product holds everything that a model has learnt.

A model with a second-order branch has two features of C numbers, f and z. The vector is [sqrt(a) f ; sqrt(1 - a) z],
2C numbers of length 1, where a is `loss.first_order_weight`. The inner product of two such vectors is the weighted sum
of both similarities. So zero-shot, search and any vector store get the gain of both features. A model without the
branch gives f.

    encoder = Encoder.open("my-model")  # folder of a run, of `dalip export --format huggingface`, or of `dalip import`
    scores = encoder.encode_pictures(["rose.jpg"]) @ encoder.encode_texts(["a photo of a rose."]).T
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from training.evaluation.encoding import Encoded, encode_captions, encode_pictures, feature_kinds
from training.evaluation.set_layouts import Item
from training.evaluation.trained_model import TrainedModel, open_trained_model


class Encoder:
    """A trained model as a function from pictures and texts to vectors, float32 on the CPU, of length 1."""

    def __init__(self, trained: TrainedModel) -> None:
        self._model, self._settings = trained.model, trained.settings
        self._kind = feature_kinds(trained.model)[-1]

    @classmethod
    def open(cls, path: str) -> Encoder:
        """The model of a folder: of a run, or of what `dalip export --format huggingface` and `dalip import` wrote.

        Raises: ConfigError.
        """
        return cls(open_trained_model(path))

    def encode_pictures(self, paths: Sequence[str | Path]) -> Tensor:
        """Vectors of picture files, (N, 2C).

        Raises: RunError for a file that is no picture, or features that are not finite.
        """
        items = [Item(Path(path).name, str(path)) for path in paths]
        return self._vectors(encode_pictures(self._model, items, self._settings, "pictures"))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Vectors of texts, (N, 2C).

        Raises: RunError for features that are not finite.
        """
        return self._vectors(encode_captions(self._model, texts, self._settings.eval.batch_size, "texts"))

    def _vectors(self, encoded: Encoded) -> Tensor:
        return encoded.vectors(self._kind, self._settings.loss.first_order_weight)
