"""Features of pictures, texts and classes under a trained model, and how alike they are.

Features are f (first order), z (second order) or both: as the weighted sum of similarities that the loss weighs, or as
one longer vector with that inner product. Reads pictures by `training.data.loader` and
`training.evaluation.evalsets`; writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.config import TrainSettings
from training.data import loader
from training.data.images import EvalView, normalise
from training.data.shards import SamplePool
from training.evaluation.evalsets import Item, load_pictures
from training.evaluation.metrics import require_finite
from training.model.dalip import DalipModel

FeatureKind = str  # f, z or both


@dataclass(frozen=True)
class Encoded:
    """First- and second-order features of N things, (N, C), L2-normalised, float32 on the CPU."""

    f: Tensor
    z: Tensor | None

    def rows(self, chosen: Sequence[int]) -> Encoded:
        """Some of them."""
        index = torch.as_tensor(chosen)
        return Encoded(self.f[index], self.z[index] if self.z is not None else None)

    def require_finite(self, what: str) -> None:
        """Raises: RunError that says how many of `what` hold a NaN or an infinity."""
        for order, values in (("f", self.f), ("z", self.z)):
            if values is not None:
                require_finite(values, f"{what} ({order})")

    def vectors(self, kind: FeatureKind, first_order_weight: float) -> Tensor:
        """One vector a thing, whose inner products are the similarities of that kind."""
        if kind == "f" or self.z is None:
            return self.f
        if kind == "z":
            return self.z
        return torch.cat([first_order_weight**0.5 * self.f, (1 - first_order_weight) ** 0.5 * self.z], dim=1)


def feature_kinds(model: DalipModel) -> tuple[FeatureKind, ...]:
    """Which features the model has: f alone for plain CLIP."""
    return ("f",) if model.second_order is None else ("f", "z", "both")


@torch.no_grad()
def encode_pairs(
    model: DalipModel, pool: SamplePool, rows: Sequence[int], settings: TrainSettings, device: torch.device
) -> tuple[Encoded, Encoded]:
    """Image and text features of the given rows, in their order."""
    preprocess = model.preprocess_settings
    kept: list[list[Tensor]] = []
    for batch in loader.eval_batches(pool, rows, settings.data, model, settings.eval.batch_size):
        pixels = normalise(batch.images.to(device), preprocess.mean, preprocess.std)
        with _autocast(settings, device):
            output = model(pixels, batch.tokens.to(device))
        names = ("image_features", "image_second_order", "text_features", "text_second_order")
        kept.append([output[name].float().cpu() for name in names if name in output])
    parts = [torch.cat(column) for column in zip(*kept, strict=True)]
    if len(parts) == 2:
        return Encoded(parts[0], None), Encoded(parts[1], None)
    return Encoded(parts[0], parts[1]), Encoded(parts[2], parts[3])


@torch.no_grad()
def encode_pictures(model: DalipModel, items: Sequence[Item], settings: TrainSettings, device: torch.device) -> Encoded:
    """Features of the pictures of an evaluation set, in their order."""
    preprocess = model.preprocess_settings
    f_rows, z_rows = [], []
    for pixels in load_pictures(items, EvalView(preprocess), settings.eval.batch_size, settings.data.num_workers):
        images = normalise(pixels.to(device), preprocess.mean, preprocess.std)
        with _autocast(settings, device):
            if model.second_order is None:
                f_rows.append(model.encode_image(images).float().cpu())
                continue
            f, z = model.encode_image(images, second_order=True)
        f_rows.append(f.float().cpu())
        z_rows.append(z.float().cpu())
    return Encoded(torch.cat(f_rows), torch.cat(z_rows) if z_rows else None)


@torch.no_grad()
def encode_texts(model: DalipModel, texts: Sequence[str], batch_size: int, device: torch.device) -> Encoded:
    """Features of texts, in their order."""
    tokenizer = model.tokenizer
    f_rows, z_rows = [], []
    for start in range(0, len(texts), batch_size):
        tokens = tokenizer(list(texts[start : start + batch_size])).to(device)
        if model.second_order is None:
            f_rows.append(model.encode_text(tokens).float().cpu())
            continue
        f, z = model.encode_text(tokens, second_order=True)
        f_rows.append(f.float().cpu())
        z_rows.append(z.float().cpu())
    return Encoded(torch.cat(f_rows), torch.cat(z_rows) if z_rows else None)


def encode_classes(
    model: DalipModel, names: Sequence[str], templates: Sequence[Callable[[str], str]], device: torch.device
) -> Encoded:
    """One text feature a class: the mean over the templates, normalised again, as open_clip's classifier."""
    unit = torch.nn.functional.normalize
    f_rows, z_rows = [], []
    for name in names:
        encoded = encode_texts(model, [template(name) for template in templates], len(templates), device)
        f_rows.append(encoded.f.mean(0))
        if encoded.z is not None:
            z_rows.append(encoded.z.mean(0))
    f_KC = unit(torch.stack(f_rows), dim=-1)
    return Encoded(f_KC, unit(torch.stack(z_rows), dim=-1) if z_rows else None)


def prompt_templates(templates: str | Sequence[str]) -> list[Callable[[str], str]]:
    """The templates of a setting: open_clip's lists by name ("openai", "simple"), or texts with one {}."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    if templates == "openai":
        return list(OPENAI_IMAGENET_TEMPLATES)
    if templates == "simple":
        return list(SIMPLE_IMAGENET_TEMPLATES)
    return [text.format for text in templates]


def similarity_of(left: Encoded, right: Encoded, kind: FeatureKind, first_order_weight: float) -> Tensor:
    """Cosines of f, of z, or their weighted sum."""
    first = left.f @ right.f.t()
    if kind == "f" or left.z is None or right.z is None:
        return first
    second = left.z @ right.z.t()
    return second if kind == "z" else first_order_weight * first + (1 - first_order_weight) * second


def _autocast(settings: TrainSettings, device: torch.device) -> Any:
    if settings.compute.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if settings.compute.precision == "bf16" else torch.float16)
