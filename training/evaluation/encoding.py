"""Features of pictures, texts and classes under a trained model, and how alike they are.

There are three kinds of features: f (first order), z (second order), and both. Both means the weighted sum of the two
similarities, as in the loss, or one longer vector with that inner product. Reads pictures by `training.data.loader` and
`training.evaluation.set_layouts`; writes nothing. Gives up with RunError on features that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from manifests.services import open_clip_api as open_clip
from training.config import TrainSettings
from training.data import loader
from training.data.images import EvalView, model_input
from training.data.shards import SamplePool
from training.evaluation.metrics import require_finite
from training.evaluation.set_layouts import Item, load_pictures
from training.model.dalip import DalipModel, one_vector
from training.model.device import pick_device
from training.model.precision import autocast

FeatureKind = str  # f, z or both


@dataclass(frozen=True)
class Encoded:
    """First- and second-order features of N things, (N, C), L2-normalised, float32 on the CPU."""

    f: Tensor
    z: Tensor | None

    def rows(self, chosen: Sequence[int]) -> Encoded:
        """Return some of them."""
        index = torch.as_tensor(chosen)
        return Encoded(self.f[index], self.z[index] if self.z is not None else None)

    def require_finite(self, what: str) -> Encoded:
        """Return these features, if they are finite; `what` names them in the message.

        Raises: RunError.
        """
        for order, values in (("f", self.f), ("z", self.z)):
            if values is not None:
                require_finite(values, f"{what} ({order})")
        return self

    def vectors(self, kind: FeatureKind, first_order_weight: float) -> Tensor:
        """One vector a thing, whose inner products are the similarities of that kind."""
        if kind == "z" and self.z is not None:
            return self.z
        return one_vector(self.f, None if kind == "f" else self.z, first_order_weight)


def pair_features(images: Encoded, texts: Encoded) -> dict[str, Tensor]:
    """Features of pairs by the names that a loss knows."""
    features = {"image_features": images.f, "text_features": texts.f}
    if images.z is not None and texts.z is not None:
        features |= {"image_second_order": images.z, "text_second_order": texts.z}
    return features


def feature_kinds(model: DalipModel) -> tuple[FeatureKind, ...]:
    """Which features the model has: f alone for plain CLIP."""
    return ("f",) if model.second_order is None else ("f", "z", "both")


def evaluation_device(settings: TrainSettings) -> torch.device:
    """Return the GPU where there is one and the config does not ask for the CPU."""
    return pick_device("cpu" if settings.compute.device == "cpu" else "auto")


@torch.no_grad()
def encode_pairs(
    model: DalipModel, pool: SamplePool, rows: Sequence[int], settings: TrainSettings
) -> tuple[Encoded, Encoded]:
    """Features of the pictures and of the texts of some held-out samples, in their order."""
    preprocess = model.preprocess_settings
    images, texts = [], []
    for batch in loader.eval_batches(pool, rows, settings.data, model, settings.eval.batch_size):
        pictures = model_input(batch.images.to(model.device), preprocess)
        with autocast(settings.compute.precision, model.device):
            images.append(_encoded(*model.image_orders(pictures)))
            texts.append(_encoded(*model.text_orders(batch.tokens.to(model.device))))
    return (
        join_encoded(images).require_finite("held-out samples, picture features"),
        join_encoded(texts).require_finite("held-out samples, text features"),
    )


@torch.no_grad()
def encode_pictures(model: DalipModel, items: Sequence[Item], settings: TrainSettings, where: str) -> Encoded:
    """Features of the pictures of an evaluation set, in their order; `where` names the set in messages."""
    view = EvalView(model.preprocess_settings)
    pictures = load_pictures(items, view, settings.eval.batch_size, settings.data.num_workers)
    batches = [encode_views(model, pixels, settings.compute.precision) for pixels in pictures]
    return join_encoded(batches).require_finite(f"{where}, picture features")


@torch.inference_mode()
def encode_views(model: DalipModel, pixels: Tensor, precision: str) -> Encoded:
    """Features of a batch of views, uint8 (B, 3, H, W), under `compute.precision`."""
    images = model_input(pixels.to(model.device), model.preprocess_settings)
    with autocast(precision, model.device):
        return _encoded(*model.image_orders(images))


@torch.no_grad()
def encode_texts(model: DalipModel, texts: Sequence[str], batch_size: int, what: str) -> Encoded:
    """Features of texts, in their order; `what` names them in messages."""
    batches = []
    for start in range(0, len(texts), batch_size):
        tokens = model.tokenizer(list(texts[start : start + batch_size])).to(model.device)
        batches.append(_encoded(*model.text_orders(tokens)))
    return join_encoded(batches).require_finite(what)


def encode_classes(
    model: DalipModel, names: Sequence[str], templates: Sequence[Callable[[str], str]], where: str
) -> Encoded:
    """One text feature a class: the mean over the templates, normalised again, as open_clip's classifier."""
    f_rows, z_rows = [], []
    for name in names:
        texts = [template(name) for template in templates]
        encoded = encode_texts(model, texts, len(texts), f"{where}, class features")
        f_rows.append(encoded.f.mean(0))
        if encoded.z is not None:
            z_rows.append(encoded.z.mean(0))
    z_KC = normalize(torch.stack(z_rows), dim=-1) if z_rows else None
    return Encoded(normalize(torch.stack(f_rows), dim=-1), z_KC)


def prompt_templates(templates: str | Sequence[str]) -> list[Callable[[str], str]]:
    """Return the templates of a setting: open_clip's lists by name ("openai", "simple"), or texts with one {}."""
    if templates == "openai":
        return list(open_clip.OPENAI_IMAGENET_TEMPLATES)
    if templates == "simple":
        return list(open_clip.SIMPLE_IMAGENET_TEMPLATES)
    return [text.format for text in templates]


def similarity_of(left: Encoded, right: Encoded, kind: FeatureKind, first_order_weight: float) -> Tensor:
    """Cosines of f, of z, or their weighted sum: inner products of one vector a thing."""
    return left.vectors(kind, first_order_weight) @ right.vectors(kind, first_order_weight).t()


def _encoded(f: Tensor, z: Tensor | None) -> Encoded:
    return Encoded(f.float().cpu(), z.float().cpu() if z is not None else None)


def join_encoded(batches: Sequence[Encoded]) -> Encoded:
    """Those of all batches, in their order."""
    z_parts = [batch.z for batch in batches if batch.z is not None]
    return Encoded(torch.cat([batch.f for batch in batches]), torch.cat(z_parts) if z_parts else None)
