"""The second branch of one tower: tokens and anchor in, the second feature z out.

It holds the parameters around the pure functions of `training.model.mbdc`, and the statistic of preset
`second_moment`. Every size follows from the settings and the
tower. Makes tensors only on the device of its input.

Shape letters as in `training.model.mbdc`; `C` is the width of the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.model import fast, mbdc
from training.model.precision import full_precision, without_autocast

NormKind = Literal["batch", "layer"]
DropoutAxis = Literal["channel", "token"]
ProjectionKind = Literal["full", "single"]
ReduceStart = Literal["linear", "convolution"]

BATCH_NORM_EPS = 1e-5
LAYER_NORM_EPS = 1e-7
_MOMENTUM = 0.1  # of the batch norms' running statistics
# Of Newton and Schulz. For 46 channels over 8, 81 and 196 tokens 7 steps come within 0.5, 4 and 2 % of the root; the
# source's 5 within 1, 18 and 18 %.
_ROOT_STEPS = 7


@dataclass(frozen=True)
class BranchShape:
    """All that fixes a branch; `training.model.dalip` fills it in from the settings and the tower."""

    embed_dim: int
    heads: int
    reduced_width: int
    norm: NormKind
    dropout: float
    dropout_axis: DropoutAxis
    projection: ProjectionKind
    reduce_start: ReduceStart = "linear"


class HeadBatchNorm(nn.Module):
    """Batch norm with one set of weights for all heads, but statistics of each head's own batch.

    Equals calling one BatchNorm on head after head: the running statistics move `heads` times a step. The statistics
    are those of this process's batch; a layer norm does not depend on the number of processes.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self.track = True  # `training.model.large_batches` runs a batch twice and must count it once

    def forward(self, tokens_BMHR: Tensor) -> Tensor:
        """Normalise (B, M, H, R) over batch and tokens, per head and channel."""
        if not self.training:
            scale_R = self.weight * (self.running_var + BATCH_NORM_EPS).rsqrt()
            return (tokens_BMHR - self.running_mean) * scale_R + self.bias
        heads = tokens_BMHR.shape[2]
        weight_N, bias_N = self.weight.repeat(heads), self.bias.repeat(heads)
        # With momentum 1 these two receive the statistics of this batch alone.
        mean_N, var_N = torch.zeros_like(weight_N), torch.ones_like(weight_N)
        flat_XN = tokens_BMHR.flatten(2).flatten(0, 1)
        normal_XN = functional.batch_norm(
            flat_XN, mean_N, var_N, weight_N, bias_N, training=True, momentum=1.0, eps=BATCH_NORM_EPS
        )
        if self.track:
            self._move_statistics(mean_N.view(heads, -1), var_N.view(heads, -1))
        return normal_XN.view_as(tokens_BMHR)

    @torch.no_grad()
    def _move_statistics(self, mean_HR: Tensor, var_HR: Tensor) -> None:
        """Exponential averages after one move a head, in closed form."""
        heads, keep = mean_HR.shape[0], 1.0 - _MOMENTUM
        share_H = _MOMENTUM * keep ** torch.arange(heads - 1, -1, -1, device=mean_HR.device)
        share_H = share_H.to(mean_HR.dtype)
        self.running_mean.mul_(keep**heads).add_(share_H @ mean_HR)
        self.running_var.mul_(keep**heads).add_(share_H @ var_HR)
        self.num_batches_tracked.add_(heads)


class SecondOrderBranch(nn.Module):
    """Steps 0 to 8 for one tower. Source: the structure of the released DALIP code, sizes computed.

    A branch with another statistic replaces `compare` (`SecondMoment`).
    """

    def __init__(self, shape: BranchShape) -> None:
        super().__init__()
        self.shape = shape
        self.token_projection = nn.Linear(shape.embed_dim, shape.embed_dim, bias=False)
        width = self.add_layers()
        self.second_order_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.projection = projection_layers(shape, width)

    def add_layers(self) -> int:
        """Make the layers of the statistic: the reduction of each head's channels, and its norm. Returns its length."""
        shape = self.shape
        self.reduce = nn.Linear(shape.embed_dim // shape.heads, shape.reduced_width, bias=False)
        if shape.reduce_start == "convolution":
            # The authors' code draws its 1 x 1 convolutions so: std sqrt(2 / 46) = 0.209 at 46 channels, where a linear
            # layer of 128 inputs starts at 0.051. Batch norm does not undo the difference: at the smaller start the
            # variance of its input is near its eps. Source: `image_reduce` of the golden values has that std.
            nn.init.kaiming_normal_(self.reduce.weight, mode="fan_out", nonlinearity="relu")
        self.norm: nn.Module
        if shape.norm == "batch":
            self.norm = HeadBatchNorm(shape.reduced_width)
        else:
            self.norm = nn.LayerNorm(shape.reduced_width, eps=LAYER_NORM_EPS)
        return mbdc.num_second_order(shape.heads, shape.reduced_width)

    def forward(self, anchor_BC: Tensor, tokens_BMC: Tensor, mask_BM: Tensor | None = None) -> Tensor:
        """Return the feature z, (B, C), not normalised.

        `mask_BM` is true for the tokens that count; None counts all of them.
        """
        return self.project(self.statistics(anchor_BC, tokens_BMC, mask_BM))

    def project(self, vector_BT: Tensor) -> Tensor:
        """Step 8: layer norm, then the projection to the embedding width."""
        with without_autocast(vector_BT):
            vector_BT = self.second_order_norm(vector_BT)
        projected_BC: Tensor = self.projection(vector_BT)
        return projected_BC

    def statistics(self, anchor_BC: Tensor, tokens_BMC: Tensor, mask_BM: Tensor | None = None) -> Tensor:
        """Return steps 0 to 7: the vector of distances, (B, H T), in full precision."""
        heads = self.shape.heads
        tokens_BMHE = self.token_projection(tokens_BMC).unflatten(-1, (heads, -1))
        anchor_BHE = self.token_projection(anchor_BC).unflatten(-1, (heads, -1))
        reduced_BMHR = fast.weigh_and_reduce(anchor_BHE, tokens_BMHE, self.reduce.weight, mask_BM)
        with without_autocast(reduced_BMHR):
            num_tokens_B = None if mask_BM is None else mask_BM.sum(dim=1)
            factor = self._keep_factor(reduced_BMHR, mask_BM)
            return self.compare(self.norm(reduced_BMHR), factor, num_tokens_B)

    def compare(self, tokens_BMHR: Tensor, factor: Tensor | None, num_tokens_B: Tensor | None) -> Tensor:
        """ReLU, steps 4 to 7: how the reduced channels vary together, (B, H T)."""
        return fast.rectify_and_compare(tokens_BMHR, factor, num_tokens_B)

    def _keep_factor(self, tokens_BMHR: Tensor, mask_BM: Tensor | None) -> Tensor | None:
        """Step 4: 0 for padding, and for the whole channels (released, image) or tokens (released, text) dropped."""
        factor = None if mask_BM is None else mask_BM[:, :, None, None].to(tokens_BMHR.dtype)
        if self.training and self.shape.dropout > 0.0:
            batch, tokens, heads, width = tokens_BMHR.shape
            per_channel = self.shape.dropout_axis == "channel"
            keep = tokens_BMHR.new_ones((batch, 1, heads, width) if per_channel else (batch, tokens, heads, 1))
            kept = functional.dropout(keep, self.shape.dropout)
            factor = kept if factor is None else factor * kept
        return factor


class SecondMoment(SecondOrderBranch):
    """MBDC's steps with another step 5: the matrix square root of the second moment of the channels about zero.

    About zero the moment holds the mean of the tokens, as Brownian distance does and a covariance does not. Layers and
    parameters are MBDC's. Source of the root: Li et al. 2018, "Towards Faster Training of Global Covariance Pooling
    Networks by Iterative Matrix Square Root Normalization" (iSQRT-COV).
    """

    def compare(self, tokens_BMHR: Tensor, factor: Tensor | None, num_tokens_B: Tensor | None) -> Tensor:
        """ReLU, then the root of the second moment of each head, its upper triangle, (B, H T)."""
        with without_autocast(tokens_BMHR):
            x_BMHR = full_precision(tokens_BMHR).relu()
            x_BHMR = (x_BMHR if factor is None else x_BMHR * factor).transpose(1, 2)
            count = x_BHMR.shape[2] if num_tokens_B is None else num_tokens_B.view(-1, 1, 1, 1)
            root_BHRR = matrix_square_root(self.moment(x_BHMR, count))
            row_T, column_T = torch.triu_indices(*root_BHRR.shape[-2:], device=root_BHRR.device)
            return root_BHRR[..., row_T, column_T].flatten(1)

    def moment(self, x_BHMR: Tensor, count: Tensor | int) -> Tensor:
        """Return the second moment of the channels over the tokens, about zero, (B, H, R, R).

        Padding is zeros; `count` tokens are not.
        """
        return x_BHMR.transpose(-1, -2) @ x_BHMR / count


class SecondMomentBranch(nn.Module):
    """A branch of preset `second_moment`.

    Its tensors have the shapes of MBDC's and another meaning. So they lie one name deeper, and no weights of one
    statistic load as those of the other.
    """

    def __init__(self, shape: BranchShape) -> None:
        super().__init__()
        self.second_moment = SecondMoment(shape)

    @property
    def token_projection(self) -> nn.Linear:
        """As that of `SecondOrderBranch`."""
        return self.second_moment.token_projection

    def forward(self, anchor_BC: Tensor, tokens_BMC: Tensor, mask_BM: Tensor | None = None) -> Tensor:
        """Return the feature z, (B, C), as `SecondOrderBranch.forward` gives it."""
        z_BC: Tensor = self.second_moment(anchor_BC, tokens_BMC, mask_BM)
        return z_BC


def matrix_square_root(matrix_RR: Tensor) -> Tensor:
    """Return the square root of symmetric matrices without negative eigenvalues (..., R, R), by products alone.

    Coupled iteration of Newton and Schulz on the matrix over its trace. `mbdc.DISTANCE_EPS` on the diagonal keeps a
    matrix of zeros finite. The inverse begins as the identity, and the last one is not needed: three products fewer.
    """
    identity_RR = torch.eye(matrix_RR.shape[-1], dtype=matrix_RR.dtype, device=matrix_RR.device)
    raised_RR = matrix_RR + mbdc.DISTANCE_EPS * identity_RR
    trace_11 = raised_RR.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    root_RR = raised_RR / trace_11
    inverse_RR = (3 * identity_RR - root_RR) / 2
    root_RR = root_RR @ inverse_RR
    for left in range(_ROOT_STEPS - 2, -1, -1):
        step_RR = (3 * identity_RR - inverse_RR @ root_RR) / 2
        root_RR = root_RR @ step_RR
        if left:
            inverse_RR = step_RR @ inverse_RR
    return root_RR * trace_11.sqrt()


def projection_layers(shape: BranchShape, width: int) -> nn.Sequential:
    """Step 8 behind its norm: a vector of `width` numbers to the embedding width."""
    embed_dim = shape.embed_dim
    if shape.projection == "full":
        return nn.Sequential(nn.Linear(width, width), nn.Linear(width, embed_dim, bias=False))
    return nn.Sequential(nn.Linear(width, embed_dim))
