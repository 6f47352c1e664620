"""DALIP from Python: load a model, make vectors of pictures and texts, tell pictures apart by labels.

    from training.api import encode_images, encode_texts, load, predict, read_taxa

Reads models and pictures; writes nothing. These names and their arguments are stable.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manifests.contract.release import Release
from training.evaluation.encoder import Encoder, Picture
from training.using.labels import Labels, labels_of_release
from training.using.predict import Classifier, PredictOptions

logger = logging.getLogger(__name__)

Features = Literal["f", "z", "both"]


class Prediction(NamedTuple):
    """A label and how likely it is, 0 to 1."""

    label: str
    probability: float


def load(
    path: str | Path, *, device: Literal["auto", "cpu", "cuda"] = "auto", architecture: str | None = None
) -> Encoder:
    """Return the model of a run, of a folder of `dalip export`, `dalip import` or open_clip, or of `hf-hub:OWNER/NAME`.

    A file of weights serves too, with its `architecture` where the file does not say it: open_clip's name or a .json.
    `device` auto takes the GPU where there is one. `model.fingerprint` names what vectors of this model depend on.

    Raises: ConfigError for a folder without a model, or a GPU that is not there.
    """
    return Encoder.open(str(path), device, architecture)


def encode_images(
    model: Encoder, pictures: Sequence[Picture], *, features: Features | None = None, batch_size: int = 64
) -> NDArray[np.float32]:
    """Vectors of pictures, (N, 2C) float32 of length 1; (N, C) for features f or z, or a model without z.

    None means all features that the model has: f and z as one vector, whose inner products add up both similarities.

    Raises: RunError for a picture that cannot be read; ConfigError for features that the model has not.
    """
    vectors: NDArray[np.float32] = model.encode_pictures(pictures, features, batch_size=batch_size).numpy()
    return vectors


def encode_texts(model: Encoder, texts: Sequence[str], *, features: Features | None = None) -> NDArray[np.float32]:
    """Vectors of texts, in the space of those of pictures: (N, 2C) float32 of length 1.

    Raises: ConfigError for features that the model has not.
    """
    if not texts:
        return np.zeros((0, model.width(features)), np.float32)
    vectors: NDArray[np.float32] = model.encode_texts(texts, features).numpy()
    return vectors


def read_taxa(release: str | Path, rank: str = "species") -> Labels:
    """Return the taxa of a release at a rank, as labels for `predict`, with the ranks above them.

    Raises: ConfigError for no release, and for one without taxa of that rank.
    """
    return labels_of_release(Release.open(str(release)), rank)


def predict(
    model: Encoder,
    pictures: Sequence[Picture],
    labels: Sequence[str] | Labels,
    *,
    within: str | Sequence[str] | None = None,
    templates: Sequence[str] = ("a photo of a {}.",),
    top: int = 5,
    scale: float | None = None,
    batch_size: int = 64,
) -> list[list[Prediction]]:
    """Return the `top` most likely labels of each picture, the best first.

    Probabilities are softmax(scale x similarity). `scale` None takes that of the training, which nobody has calibrated;
    `dalip predict` prints a calibrated one.

    `within` leaves only the labels within a taxon, of `read_taxa`, or a checklist: a file, or names. What falls outside
    is logged; names that no label has, as a warning.

    Raises: RunError for a picture that cannot be read; ConfigError for a template without one {}, and for a group that
        no label or one lies in.
    """
    options = PredictOptions(templates=tuple(templates), top=top)
    if not isinstance(labels, Labels):
        labels = Labels(tuple(labels), (None,) * len(labels))
    if within is not None:
        labels, notes = labels.within(within, "within")
        for level, note in zip((logging.INFO, logging.WARNING), notes, strict=False):
            logger.log(level, note)
    classifier = Classifier(model, labels, options)
    predictions = []
    for views in model.views(pictures, batch_size):
        similarity_NK = classifier.similarity(views)
        best, number = (similarity_NK * (scale or model.logit_scale)).softmax(1).topk(min(top, len(labels.names)))
        for values, numbers in zip(best.tolist(), number.tolist(), strict=True):
            predictions.append([Prediction(labels.names[i], value) for i, value in zip(numbers, values, strict=True)])
    return predictions
