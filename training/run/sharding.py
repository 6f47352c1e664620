"""FSDP2: weights, gradients and optimiser state sharded among the ranks, and whole again for a checkpoint.

Shards a model in place: every block of the towers, each branch, then the rest. State has two forms: DTensors, of which
each rank holds a shard, and whole tensors on the CPU. A checkpoint holds whole tensors, so it has one layout whatever
the number of processes. To gather them every rank has to take part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from training.run.distributed import Ranks


def shard_model(model: nn.Module, ranks: Ranks) -> None:
    """Shard the parameters of `model` among all ranks, in place; single numbers (the scales) stay whole on each."""
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    whole = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    for part in _blocks(model):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=whole)


def is_sharded(model: nn.Module) -> bool:
    """True for a model that `shard_model` has sharded."""
    return isinstance(model, FSDPModule)


def average_whole_gradients(model: nn.Module, ranks: Ranks) -> None:
    """Average over ranks the gradients of whole parameters; FSDP's backward does so for the sharded ones."""
    for parameter in model.parameters():
        if not isinstance(parameter, DTensor) and parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(ranks.world_size)


@contextmanager
def without_gradient_sync(model: nn.Module) -> Iterator[None]:
    """Keep gradients on each rank: for all but the last of several backward passes."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def reshard(model: nn.Module) -> None:
    """Shard again the parameters that a forward pass without a backward has left whole."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def clip_sharded_gradients(parameters: list[nn.Parameter], limit: float) -> float:
    """As `clip_grad_norm_`, which does not take sharded and whole parameters together."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squares = torch.zeros((), dtype=torch.float64)
    for gradient in gradients:
        norm = torch.linalg.vector_norm(gradient)
        squares += (norm.full_tensor() if isinstance(norm, DTensor) else norm).double().cpu() ** 2
    total = float(squares.sqrt())
    if total > limit:
        for gradient in gradients:
            gradient.mul_(limit / (total + 1e-6))
    return total


def gather_state(values: Any) -> Any:
    """Nested state with every sharded tensor made whole on the CPU; every rank has to call this."""
    if isinstance(values, DTensor):
        return values.full_tensor().detach().cpu()
    if isinstance(values, Mapping):
        return {name: gather_state(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(gather_state(value) for value in values)
    return values


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor sharded as `like` is, or unchanged when `like` is whole."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)


def shard_optimiser_state(optimiser: torch.optim.Optimizer, whole: Mapping[str, Any]) -> dict[str, Any]:
    """The whole state dict of an optimiser, sharded as its parameters are."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state = {
        number: {
            name: shard_like(value, parameters[number]) if value.shape == parameters[number].shape else value
            for name, value in entries.items()
        }
        for number, entries in whole["state"].items()
    }
    return {**whole, "state": state}


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The parts that are gathered one at a time: the blocks of each tower, and the second-order branches."""
    for name, part in model.named_children():
        if isinstance(part, nn.ModuleList):
            yield from (block for block in part if any(True for _ in block.parameters()))
        elif name in ("image_branch", "text_branch"):
            yield part
        else:
            yield from _blocks(part)
