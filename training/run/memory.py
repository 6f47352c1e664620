"""The trainable part of a model and its memory on each device: by arithmetic, before the first step.

Parameters, gradients and the two moments of AdamW are counted. What the blocks of the towers keep for the backward pass
is an estimate by their shapes, and nothing else is in it: not the second-order branches, no kernels' workspace. No card
has been asked. Reads a model; writes nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from training.config import ComputeSettings
from training.model.adapters import Side, tower_blocks
from training.model.dalip import DalipModel

_MOMENTS = 2  # of AdamW
# Tensors of the width of a token that a block keeps: the inputs of both norms, of query, key and value, of the output
# and of the MLP (5), query, key and value (3), and the inner tensor of the MLP before and after its activation (8).
_KEPT = 16


@dataclass(frozen=True)
class Memory:
    """Counts of a model, and bytes on each device."""

    parameters: int
    trained: dict[str, int]  # parameters by their role
    parameter_bytes: int
    gradient_bytes: int
    optimiser_bytes: int
    activation_bytes: int | None  # an estimate; None for a tower without blocks that are known
    num_pairs: int  # that are computed together

    def lines(self) -> list[str]:
        """Return the two lines of a log."""
        num = sum(self.trained.values())
        roles = ", ".join(f"{role} {count:,}" for role, count in sorted(self.trained.items()))
        activations = "activations are not estimated for these towers"
        if self.activation_bytes is not None:
            activations = (
                f"what the towers' blocks keep of {self.num_pairs:,} pairs about {_gb(self.activation_bytes)} (an "
                "estimate, not measured on a card)"
            )
        return [
            f"trained: {num:,} of {self.parameters:,} parameters, {num / self.parameters:.1%} ({roles})",
            f"memory of a device by arithmetic: parameters {_gb(self.parameter_bytes)}, gradients "
            f"{_gb(self.gradient_bytes)}, AdamW {_gb(self.optimiser_bytes)}; {activations}",
        ]


def memory_of(model: DalipModel, compute: ComputeSettings, num_pairs: int, world_size: int) -> Memory:
    """Return the memory of a training, of which each device computes `num_pairs` together.

    Of several devices each holds every gradient twice: DistributedDataParallel sends them from buckets of its own.
    """
    trained: Counter[str] = Counter()
    num_bytes = 0
    for group in model.parameter_groups():
        trained[group.role] += sum(parameter.numel() for parameter in group.parameters)
        num_bytes += sum(_bytes(parameter) for parameter in group.parameters)
    kept = [_kept_by_tower(model.clip, side, compute, num_pairs) for side in get_args(Side)]
    return Memory(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=dict(trained),
        parameter_bytes=sum(map(_bytes, model.parameters())),
        gradient_bytes=num_bytes * (2 if world_size > 1 else 1),
        optimiser_bytes=_MOMENTS * num_bytes,
        activation_bytes=None if None in kept else sum(filter(None, kept)),
        num_pairs=num_pairs,
    )


def _kept_by_tower(clip: Any, side: Side, compute: ComputeSettings, num_pairs: int) -> int | None:
    """Bytes that the blocks of a tower keep for the backward pass; None where its shapes are not known.

    Nothing is kept in front of the first block that trains. An adapted weight is kept as the sum that it is.
    """
    blocks, num_tokens = tower_blocks(clip, side), _num_tokens(clip, side)
    norm = next((part for block in blocks[:1] for part in block.modules() if isinstance(part, nn.LayerNorm)), None)
    if norm is None or num_tokens is None:
        return None
    trains = [any(parameter.requires_grad for parameter in block.parameters()) for block in blocks]
    num_blocks = len(blocks) - trains.index(True) if True in trains else 0
    itemsize = 4 if compute.precision == "fp32" else 2
    of_one = num_pairs * num_tokens * norm.weight.numel() * itemsize
    if compute.grad_checkpointing:
        return (num_blocks + _KEPT) * of_one if num_blocks else 0
    originals = (p for block in blocks for name, p in block.named_parameters() if name.endswith(".original"))
    return num_blocks * _KEPT * of_one + sum(p.numel() for p in originals) * itemsize


def _num_tokens(clip: Any, side: Side) -> int | None:
    """Return the tokens of a picture, from its table of positions, or of a text."""
    if side == "text":
        return int(clip.context_length)
    tables = (p for name, p in clip.visual.named_parameters() if name.endswith(("positional_embedding", "pos_embed")))
    table = next(tables, None)
    return None if table is None else table.shape[-2]


def _bytes(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 5e6 else f"{num_bytes / 1e6:.2f} MB"
