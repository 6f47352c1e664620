"""Training a part of a tower: its last blocks, or low-rank adapters in its blocks (LoRA).

An adapter adds B A to a weight W, which stays as it was. It is a parametrisation of the weight: a layer computes with
one matrix, W + B A, as it will when A and B are merged. peft wraps whole layers instead. It knows no layer that takes
its projections as plain tensors, as open_clip's `Attention` does; the weights of torch's `MultiheadAttention`, of which
open_clip's towers are made, it merges and unmerges around each call. open_clip's own freezing of all but some blocks
fails for BERT, and counts groups of parameters, which are no blocks in a timm tower.

The factor alpha / r of the paper is 1, as by default in peft: under Adam, the learning rate turns the same knob.

Reads and writes nothing. Gives up with ConfigError on towers that are not made of attention blocks.

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from manifests.errors import ConfigError
from training.model.precision import without_autocast

Side = Literal["image", "text"]
Layers = Literal["attn", "mlp"]

# Where towers of open_clip, timm and Hugging Face keep their blocks.
_BLOCKS = ("transformer.resblocks", "trunk.blocks", "transformer.encoder.layer")
_IN_FRONT = re.compile(r"emb|_token|conv1|(ln|norm)_pre")  # parameters that come before the first block
_MARK = ".parametrizations."  # torch's, in the names of the tensors of an adapted weight


class LowRank(nn.Module):
    """W + B A, where A is (rank, inputs) and B (outputs, rank). It begins as W, because B is 0."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.down = nn.Parameter(weight.new_empty(rank, inputs))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight, in the precision of `weight`."""
        with without_autocast(weight):  # else the adapter would be rounded before it is added
            return _sum(weight, self.up, self.down)


def _sum(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return torch.addmm(weight, up, down)


def tower_blocks(clip: Any, side: Side) -> Sequence[nn.Module]:
    """Return the blocks of a tower in the order of their work; empty where it is not made of attention blocks."""
    tower = _tower(clip, side)
    for path in _BLOCKS:
        try:
            blocks = list(tower.get_submodule(path).children())
        except AttributeError:
            continue
        if blocks and all(hasattr(block, "attn") or hasattr(block, "attention") for block in blocks):
            return blocks
    return ()


def train_last_blocks(clip: Any, side: Side, num_blocks: int) -> None:
    """Freeze what is in front of the last blocks of a tower; what comes behind them trains with them.

    Raises: ConfigError for a tower of fewer blocks, or without.
    """
    blocks = _blocks(clip, side, f"lock.{side}_blocks")
    if num_blocks > len(blocks):
        raise ConfigError(
            f"lock.{side}_blocks is {num_blocks}, the {side} tower has {len(blocks)} blocks; leave it out to train all"
        )
    for block in blocks[: len(blocks) - num_blocks]:
        block.requires_grad_(False)
    for name, parameter in _tower(clip, side).named_parameters():
        if _IN_FRONT.search(name) and not name.startswith("visual."):  # which a text tower has beside it
            parameter.requires_grad_(False)


def add_adapters(clip: Any, side: Side, rank: int, layers: Sequence[Layers]) -> None:
    """Give an adapter to each matrix in the named layers of a tower, which is frozen before.

    Raises: ConfigError for a tower without blocks, and for a rank that spares nothing.
    """
    for block in _blocks(clip, side, "adapters"):
        for name, weight in list(block.named_parameters()):
            kind: Layers = "attn" if name.startswith("att") else "mlp"
            if weight.ndim != 2 or not name.endswith("weight") or kind not in layers:
                continue
            if rank >= min(weight.shape):
                raise ConfigError(
                    f"adapters.rank is {rank}, the {side} tower has matrices of {' x '.join(map(str, weight.shape))}: "
                    f"a rank below {min(weight.shape)} spares something"
                )
            owner, _, attribute = name.rpartition(".")
            register_parametrization(block.get_submodule(owner), attribute, LowRank(weight, rank), unsafe=True)


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a model whose adapters, if it has any, are added to the weights that they adapt."""
    weights = {}
    for name, tensor in state.items():
        owner, mark, rest = name.partition(_MARK)
        adapter = f"{owner}{mark}{rest.partition('.')[0]}.0."
        up, down = state.get(f"{adapter}up"), state.get(f"{adapter}down")
        if not mark or up is None or down is None:
            weights[name] = tensor
        elif rest.endswith(".original"):
            weights[name_of_weight(name)] = _sum(tensor, up, down)
    return weights


def name_of_weight(name: str) -> str:
    """Return the name of a parameter before it was adapted."""
    owner, mark, rest = name.partition(_MARK)
    return f"{owner}.{rest.removesuffix('.original')}" if mark else name


def _tower(clip: Any, side: Side) -> nn.Module:
    tower: nn.Module = clip.visual if side == "image" else getattr(clip, "text", clip)
    return tower


def _blocks(clip: Any, side: Side, key: str) -> Sequence[nn.Module]:
    blocks = tower_blocks(clip, side)
    if not blocks:
        raise ConfigError(
            f"{key}: the {side} tower has no attention blocks that are known here; train it whole, or set "
            f"lock.lock_{side}"
        )
    return blocks
