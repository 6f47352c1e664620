"""A loss from outside the package: each pair for itself, with a bias that is trained (SigLIP)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from training.model.dalip import DalipModel
from training.tasks.task import Task, Values


class Sigmoid(Task):
    takes_labels = True

    def prepare(self, model: DalipModel) -> None:
        """The bias gets a gradient."""

    def __call__(self, features: Values, columns: Values) -> dict[str, Tensor]:
        loss = self.of_pairs(features, columns, len(features["image_features"])).mean()
        return {"loss": loss, "bias": features["logit_bias"].detach()}

    def of_pairs(self, features: Values, columns: Values, batch_size: int) -> Tensor:
        image, text = features["image_features"], features["text_features"]
        parts = []
        for start in range(0, len(image) - batch_size + 1, batch_size):
            rows = slice(start, start + batch_size)
            logits = features["logit_scale"] * image[rows] @ text[rows].t() + features["logit_bias"]
            own, labels = torch.eye(batch_size, dtype=torch.bool), columns.get("labels")
            alike = own if labels is None else labels[rows, None] == labels[rows]
            match = alike if self.settings.same_label == "positive" else own
            losses = -logsigmoid(logits * torch.where(match, 1, -1))
            left_out = alike & ~own if self.settings.same_label == "masked" else torch.zeros_like(own)
            parts.append(losses.masked_fill(left_out, 0).sum(1))
        return torch.cat(parts)

    def chance(self, batch_size: int) -> float:
        return batch_size * math.log(2)
