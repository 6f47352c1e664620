"""A loss from outside the package: each pair for itself, with a bias that is trained (SigLIP)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from training.model.dalip import DalipModel
from training.model.loss import Loss


class Sigmoid(Loss):
    def prepare(self, model: DalipModel) -> None:
        """The bias gets a gradient."""

    def __call__(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        loss = self.of_pairs(features, len(features["image_features"])).mean()
        return {"loss": loss, "bias": features["logit_bias"].detach()}

    def of_pairs(self, features: Mapping[str, Tensor], batch_size: int) -> Tensor:
        image, text = features["image_features"], features["text_features"]
        parts = []
        for start in range(0, len(image) - batch_size + 1, batch_size):
            rows = slice(start, start + batch_size)
            logits = features["logit_scale"] * image[rows] @ text[rows].t() + features["logit_bias"]
            parts.append(-logsigmoid(logits * (2 * torch.eye(batch_size) - 1)).sum(1))
        return torch.cat(parts)

    def chance(self, batch_size: int) -> float:
        return batch_size * math.log(2)
