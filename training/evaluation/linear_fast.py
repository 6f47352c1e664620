"""Linear layers on AMD processors, faster: as 1 x 1 convolutions, for inference in float32.

torch gives matrix products to MKL, which uses half of the vector width of AMD processors, and convolutions to oneDNN,
which uses all of it. 3,200 rows of 768 by 3,072 on one thread of a Zen 5: 153 ms as a product, 83 ms as a convolution
(2026-11). The results are the same to rounding. Elsewhere nothing changes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_FEWEST_IMAGES = 16  # torch gives 1 x 1 convolutions of fewer to a kernel of its own, three times as slow
_FEWEST_NUMBERS = 1 << 16  # of the input; below it the call costs more than is won


def fast_linear(device: torch.device) -> AbstractContextManager[None]:
    """A context for the forward pass of a model in evaluation mode, without gradients, on `device`."""
    return _by_convolution() if device.type == "cpu" and _is_amd() else nullcontext()


@contextmanager
def _by_convolution() -> Iterator[None]:
    # torch's fused attention would hide its products from the mode below.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _ByConvolution():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _ByConvolution(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and not kwargs and _fits(args[0]):
            return _as_convolution(*args)
        return func(*args, **(kwargs or {}))


def _fits(x: Tensor) -> bool:
    large = x.ndim == 3 and len(x) >= _FEWEST_IMAGES and x.numel() >= _FEWEST_NUMBERS
    return large and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _as_convolution(x_BME: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    batch, tokens, width = x_BME.shape
    images = x_BME.contiguous().view(batch, tokens, 1, width).permute(0, 3, 1, 2)
    product = functional.conv2d(images, weight[:, :, None, None], bias)
    return product.permute(0, 2, 3, 1).reshape(batch, tokens, -1)


@functools.cache
def _is_amd() -> bool:
    path = Path("/proc/cpuinfo")
    return path.is_file() and "AuthenticAMD" in path.read_text(encoding="utf-8", errors="replace")
