"""The second-order branch of one tower: tokens and anchor in, the second-order feature z out.

Holds the parameters around the pure functions of `training.mbdc`. Every size is computed from the settings
and the tower. Makes tensors only on the device of its input; works for a batch of 1.

Shape letters as in `training.mbdc`, and `C` the width of the output (the model's embedding),
`W` the width of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from training import mbdc

NormKind = Literal["batch", "layer"]
DropoutAxis = Literal["channel", "token"]
ProjectionKind = Literal["full", "single", "low_rank"]

BATCH_NORM_EPS = 1e-5
LAYER_NORM_EPS = 1e-7


@dataclass(frozen=True)
class BranchShape:
    """All that fixes a branch: what `training.model` resolves from a preset and the user's settings."""

    token_width: int
    embed_dim: int
    heads: int
    reduced_width: int
    norm: NormKind
    dropout: float
    dropout_axis: DropoutAxis
    projection: ProjectionKind
    projection_rank: int

    @property
    def second_order_width(self) -> int:
        """Length of the vector before the last projection."""
        return mbdc.num_second_order(self.heads, self.reduced_width)


class HeadBatchNorm(nn.Module):
    """Batch norm with one set of weights for all heads but statistics of each head's own batch.

    Equals calling one BatchNorm on head after head: the running statistics move `heads` times a step. Statistics
    are those of this process's batch: under data parallelism choose `layer` to be free of the process count.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, width: int, eps: float = BATCH_NORM_EPS, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self.track = True  # the accumulation of `training.loss` runs a batch twice and must count it once

    def forward(self, tokens_BHMR: Tensor) -> Tensor:
        """Normalise (B, H, M, R) over batch and tokens, per head and channel."""
        if not self.training:
            scale_R = self.weight * (self.running_var + self.eps).rsqrt()
            return (tokens_BHMR - self.running_mean) * scale_R + self.bias
        heads = tokens_BHMR.shape[1]
        var_HR, mean_HR = torch.var_mean(tokens_BHMR, dim=(0, 2), correction=0)
        if self.track:
            self._move_statistics(mean_HR.detach(), var_HR.detach(), tokens_BHMR.numel() // mean_HR.numel(), heads)
        scale_HR = self.weight * (var_HR + self.eps).rsqrt()
        shift_HR = self.bias - mean_HR * scale_HR
        return tokens_BHMR * scale_HR.unsqueeze(1) + shift_HR.unsqueeze(1)

    @torch.no_grad()
    def _move_statistics(self, mean_HR: Tensor, var_HR: Tensor, count: int, heads: int) -> None:
        """Exponential averages after `heads` moves in a row, in closed form."""
        keep = 1.0 - self.momentum
        share_H = self.momentum * keep ** torch.arange(heads - 1, -1, -1, device=mean_HR.device)
        unbiased = count / max(count - 1, 1)
        mean_R = (share_H.to(mean_HR.dtype) @ mean_HR).to(self.running_mean.dtype)
        var_R = (share_H.to(var_HR.dtype) @ var_HR).to(self.running_var.dtype) * unbiased
        self.running_mean.mul_(keep**heads).add_(mean_R)
        self.running_var.mul_(keep**heads).add_(var_R)
        self.num_batches_tracked.add_(heads)


class TokenLayerNorm(nn.Module):
    """Layer norm over the reduced channels of each token, one set of weights for all heads."""

    def __init__(self, width: int, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens_BHMR: Tensor) -> Tensor:
        """Normalise (B, H, M, R) over R."""
        return functional.layer_norm(tokens_BHMR, self.weight.shape, self.weight, self.bias, self.eps)


class SecondOrderBranch(nn.Module):
    """Steps 0 to 8 for one tower. Source: the released DALIP code's structure, sizes computed."""

    def __init__(self, shape: BranchShape) -> None:
        super().__init__()
        self.shape = shape
        head_width = shape.embed_dim // shape.heads
        self.token_projection = nn.Linear(shape.token_width, shape.embed_dim, bias=False)
        self.reduce = nn.Linear(head_width, shape.reduced_width, bias=False)
        self.norm: nn.Module
        if shape.norm == "batch":
            self.norm = HeadBatchNorm(shape.reduced_width)
        else:
            self.norm = TokenLayerNorm(shape.reduced_width)
        self.second_order_norm = nn.LayerNorm(shape.second_order_width, eps=LAYER_NORM_EPS)
        self.projection = _projection(shape)

    def forward(self, anchor_BW: Tensor, tokens_BMW: Tensor, mask_BM: Tensor | None = None) -> Tensor:
        """The second-order feature z, (B, C), not normalised.

        `mask_BM` is true for the tokens that count; None counts all of them.
        """
        return self.project(self.statistics(anchor_BW, tokens_BMW, mask_BM))

    def statistics(self, anchor_BW: Tensor, tokens_BMW: Tensor, mask_BM: Tensor | None = None) -> Tensor:
        """Steps 0 to 7: the vector of distances, (B, H T), in full precision."""
        heads = self.shape.heads
        tokens_BMHE = self.token_projection(tokens_BMW).unflatten(-1, (heads, -1))
        anchor_BHE = self.token_projection(anchor_BW).unflatten(-1, (heads, -1))
        weights_BMH = mbdc.anchor_weights(anchor_BHE, tokens_BMHE, mask_BM)
        reduced_BHMR = mbdc.reduce_tokens(tokens_BMHE, weights_BMH, self.reduce.weight)
        with mbdc.without_autocast(reduced_BHMR):
            reduced_BHMR = self._drop(self.norm(reduced_BHMR).relu())
            if mask_BM is None:
                return mbdc.second_order(reduced_BHMR)
            reduced_BHMR = reduced_BHMR * mask_BM[:, None, :, None]
            return mbdc.second_order(reduced_BHMR, mask_BM.sum(dim=1))

    def project(self, vector_BT: Tensor) -> Tensor:
        """Step 8: layer norm, then the projection to the embedding width."""
        with mbdc.without_autocast(vector_BT):
            vector_BT = self.second_order_norm(vector_BT)
        projected_BC: Tensor = self.projection(vector_BT)
        return projected_BC

    def _drop(self, tokens_BHMR: Tensor) -> Tensor:
        """Step 4: drop whole channels (released, image) or whole tokens (released, text) of a head."""
        if not self.training or self.shape.dropout == 0.0:
            return tokens_BHMR
        batch, heads, tokens, width = tokens_BHMR.shape
        if self.shape.dropout_axis == "channel":
            keep = tokens_BHMR.new_ones(batch, heads, 1, width)
        else:
            keep = tokens_BHMR.new_ones(batch, heads, tokens, 1)
        return tokens_BHMR * functional.dropout(keep, self.shape.dropout)


def _projection(shape: BranchShape) -> nn.Sequential:
    width, embed_dim = shape.second_order_width, shape.embed_dim
    if shape.projection == "full":
        return nn.Sequential(nn.Linear(width, width), nn.Linear(width, embed_dim, bias=False))
    if shape.projection == "single":
        return nn.Sequential(nn.Linear(width, embed_dim))
    rank = shape.projection_rank
    return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, embed_dim))
