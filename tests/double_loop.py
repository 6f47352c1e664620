"""The contrastive losses one logit at a time: the oracle for `loss.same_label`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from training.model.presets import LossSettings


def by_hand(logits: Tensor, labels: Tensor, same_label: str) -> Tensor:
    """The mean over rows and columns, one logit at a time."""
    total, size = torch.zeros((), dtype=torch.float64), len(logits)
    for matrix in (logits, logits.t()):
        for i in range(size):
            alike = [j for j in range(size) if j != i and labels[j] == labels[i]]
            matches = [i, *(alike if same_label == "positive" else [])]
            denominator = torch.zeros((), dtype=torch.float64)
            for j in range(size):
                if not (same_label == "masked" and j in alike):
                    denominator = denominator + matrix[i, j].exp()
            for k in matches:
                total = total - (matrix[i, k] - denominator.log()) / len(matches)
    return total / (2 * size)


def expected_loss(features: Mapping[str, Tensor], settings: LossSettings, labels: Tensor) -> Tensor:
    """Of f and z together."""
    alpha, scale = settings.first_order_weight, features["logit_scale"]
    first = scale * features["image_features"] @ features["text_features"].t()
    second = scale * features["image_second_order"] @ features["text_second_order"].t()
    if settings.form == "sum_of_similarities":
        return by_hand(alpha * first + (1 - alpha) * second, labels, settings.same_label)
    parts = [by_hand(logits, labels, settings.same_label) for logits in (first, second)]
    return alpha * parts[0] + (1 - alpha) * parts[1]
