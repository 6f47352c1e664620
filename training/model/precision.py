"""Which steps run in full precision, whatever autocast says, and the autocast of a run's `compute.precision`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return the context for a model's forward pass under `compute.precision`: fp32, bf16 or fp16."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, _AUTOCAST_TYPES[precision])


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Return a context in which operations on the device of `x` keep the precision of their inputs."""
    if not torch.amp.is_autocast_available(x.device.type):  # the meta device, which only works out shapes
        return nullcontext()
    return torch.autocast(device_type=x.device.type, enabled=False)


def full_precision(x: Tensor) -> Tensor:
    """`x` as it is when float64, else in float32."""
    return x if x.dtype == torch.float64 else x.float()
