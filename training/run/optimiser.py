"""AdamW over the model's parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from manifests.errors import ConfigError
from training.config import BETAS, EPS, OptimiserSettings, ScheduleSettings
from training.model.dalip import DalipModel


def build_optimiser(model: DalipModel, settings: OptimiserSettings) -> torch.optim.AdamW:
    """Fused AdamW with a group for each role and decay; a group's `lr_ratio` scales the rate of the schedule.

    Raises: ConfigError when everything is frozen.
    """
    groups: list[dict[str, Any]] = [
        {
            "params": group.parameters,
            "weight_decay": settings.weight_decay if group.decay else 0.0,
            "lr_ratio": settings.second_order_lr_ratio if group.role == "second_order" else 1.0,
            "role": group.role,
        }
        for group in model.parameter_groups()
    ]
    if not any(group["role"] != "scale" for group in groups):
        raise ConfigError("every tower is locked and there is no second-order branch: nothing is left to train")
    return torch.optim.AdamW(groups, lr=settings.lr, betas=BETAS, eps=EPS, fused=True)


def lr_ratio_at(step: int, num_steps: int, schedule: ScheduleSettings) -> float:
    """Return the rate of a step (0-based) over the peak rate: linear warm-up, then cosine to 0."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / max(1, num_steps - schedule.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its rate."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_ratio"]


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """As torch's `clip_grad_norm_`; on a CPU it leaves gradients alone that torch would multiply by 1."""
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if not (norm.is_cpu and limit / (float(norm) + 1e-6) >= 1.0):
        clip_grads_with_norm_(parameters, limit, norm)
    return norm
