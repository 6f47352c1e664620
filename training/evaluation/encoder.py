"""One vector for a picture and one for a text, whose inner product holds everything that a model has learnt.

A model with a second-order branch has two features of C numbers, f and z. The vector is [sqrt(a) f ; sqrt(1 - a) z],
2C numbers of length 1, where a is `loss.first_order_weight`. The inner product of two such vectors is the weighted sum
of both similarities. So zero-shot, search and any vector store get the gain of both features. A model without the
branch gives f.

    encoder = Encoder.open("my-model")  # folder of a run, of `dalip export --format huggingface`, or of `dalip import`
    scores = encoder.encode_pictures(["rose.jpg"]) @ encoder.encode_texts(["a photo of a rose."]).T

Reads a model and pictures; writes nothing.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifests.errors import ConfigError, RunError
from training.data.images import CorruptSample, EvalView
from training.evaluation.encoding import (
    Encoded,
    FeatureKind,
    encode_classes,
    encode_texts,
    encode_views,
    evaluation_device,
    feature_kinds,
)
from training.evaluation.set_layouts import Item
from training.evaluation.trained_model import TrainedModel, open_trained_model
from training.model.architecture import architecture_config, forward_settings
from training.model.device import pick_device

Picture = str | Path | bytes | Any  # a file, its bytes, or a PIL.Image.Image


class Encoder:
    """A trained model as a function from pictures and texts to vectors, float32 on the CPU, of length 1.

    Every method that gives vectors takes the kind of features: f, z or both. None means all that the model has.
    """

    def __init__(self, trained: TrainedModel, device: str = "cpu") -> None:
        self.trained, self.model = trained, trained.model
        self.settings, self.source = trained.settings, trained.source
        self.place = trained.named or str(trained.folder.resolve())  # by which it is opened again
        self.kinds = feature_kinds(trained.model)
        self.model.to(evaluation_device(trained.settings) if device == "auto" else pick_device(device))

    @classmethod
    def open(cls, path: str, device: str = "cpu", architecture: str | None = None) -> Encoder:
        """Return the model of a run, of a folder, of a file of weights or of the hub, as `open_trained_model` finds it.

        `device` is cpu, cuda, or auto: the GPU where there is one.

        Raises: ConfigError.
        """
        return cls(open_trained_model(path, architecture=architecture), device)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identity of all that a vector depends on beside its picture or text: 64 hex digits.

        A run and its export have the same. It covers weights, architecture, preparation of pictures, and the weight of
        f and z.
        """
        settings, digest = self.model.settings, hashlib.sha256()
        prepared = {key: value for key, value in self.model.clip.visual.preprocess_cfg.items() if key != "size"}
        head = {
            "architecture": forward_settings(architecture_config(settings.architecture)),
            "preprocess": prepared,
            "second_order": self.model.second_order and vars(self.model.second_order),
            "first_order_weight": self._weight if len(self.kinds) > 1 else None,
            "precision": self.settings.compute.precision,
        } | ({"kind": self.model.kind} if self.model.kind else {})
        digest.update(json.dumps(head, sort_keys=True).encode("utf-8"))
        state = self.model.state_dict()
        for name, tensor in sorted((name, state[name]) for name in state if not name.startswith("terms.")):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def logit_scale(self) -> float:
        """The scale by which the training multiplied similarities before its softmax."""
        return float(self.model.clip.logit_scale.detach().exp())

    def width(self, kind: FeatureKind | None = None) -> int:
        """Numbers of a vector."""
        return int(self.encode_texts([""], kind).shape[1])

    def view(self) -> EvalView:
        """Return how a picture is prepared: as in an evaluation."""
        return EvalView(self.model.preprocess_settings)

    def encode_pictures(
        self, pictures: Sequence[Picture], kind: FeatureKind | None = None, *, batch_size: int = 64
    ) -> Tensor:
        """Vectors of pictures, (N, 2C).

        Raises: RunError for a picture that cannot be read, or features that are not finite.
        """
        parts = [self.encode_views(views, kind) for views in self.views(pictures, batch_size)]
        return torch.cat(parts) if parts else torch.zeros(0, self.width(kind))

    def views(self, pictures: Sequence[Picture], batch_size: int) -> Iterator[Tensor]:
        """Batches of pictures as `view` prepares them, uint8 (B, 3, H, W).

        Raises: RunError for a picture that cannot be read.
        """
        view = self.view()
        for start in range(0, len(pictures), batch_size):
            views = []
            for number, picture in enumerate(pictures[start : start + batch_size], start):
                file = Path(picture) if isinstance(picture, (str, Path)) else None
                try:
                    views.append(view(picture if file is None else Item(str(file), str(file)).read()))
                except (CorruptSample, OSError) as error:
                    what = f"picture {number} ({file or type(picture).__name__})"
                    raise RunError(f"{what} cannot be read: {error}") from None
            yield torch.stack(views)

    def encode_views(self, pixels: Tensor, kind: FeatureKind | None = None) -> Tensor:
        """Vectors of a batch that `view` prepared, uint8 (B, 3, H, W).

        Raises: RunError for features that are not finite.
        """
        encoded = encode_views(self.model, pixels, self.settings.compute.precision)
        return self.vectors(encoded.require_finite("picture features"), kind)

    def encode_texts(self, texts: Sequence[str], kind: FeatureKind | None = None) -> Tensor:
        """Vectors of texts, (N, 2C).

        Raises: RunError for features that are not finite.
        """
        encoded = encode_texts(self.model, texts, self.settings.eval.batch_size, "texts, caption features")
        return self.vectors(encoded, kind)

    def encode_classes(
        self, names: Sequence[str], templates: Sequence[Callable[[str], str]], kind: FeatureKind | None = None
    ) -> Tensor:
        """One vector a class, (K, 2C): the mean over the templates of f and of z, each normalised again.

        Raises: RunError for features that are not finite.
        """
        return self.vectors(encode_classes(self.model, names, templates, "labels"), kind)

    def vectors(self, encoded: Encoded, kind: FeatureKind | None = None) -> Tensor:
        """One vector a thing of features that this model gave.

        Raises: ConfigError for a kind that the model has not.
        """
        if kind is not None and kind not in self.kinds:
            raise ConfigError(f"{self.source}: has no features '{kind}'; it has {', '.join(self.kinds)}")
        return encoded.vectors(kind or self.kinds[-1], self._weight)

    @property
    def _weight(self) -> float:
        return self.settings.loss.first_order_weight
