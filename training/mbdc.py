"""Multi-head Brownian distance covariance (MBDC) as pure tensor functions.

Takes the token features of one tower and its anchor (the first-order feature), gives one vector a sample
that describes how the channels of those tokens co-vary. Reads and writes nothing; holds no parameters
(they are in `training.branch`); moves nothing between devices. The distance step runs in float32, or in
float64 when given float64, whatever autocast says: in bfloat16 its error is 0.016 at a scale of 1.1.

Shape letters: `B` batch, `M` tokens, `H` heads, `E` channels a head, `R` reduced channels a head,
`T` = R (R + 1) / 2 entries of an upper triangle.

Source: Wu et al., "Distribution Alignment-based Language-Image Pre-Training for Domain-Specific Data",
ICCV 2025, arXiv 2504.01386; steps numbered as the released code takes them (0 to 8).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

DISTANCE_EPS = 1e-5  # added under the square root, as released: keeps its slope finite on the diagonal
NORM_EPS = 1e-12  # a token or anchor of zeros has cosine 0, not NaN


def num_triangle(width: int) -> int:
    """Entries of the upper triangle of a `width` x `width` matrix, diagonal included."""
    return width * (width + 1) // 2


def num_second_order(heads: int, reduced_width: int) -> int:
    """Length of the second-order vector: one triangle a head (4 heads of 46 give 4324)."""
    return heads * num_triangle(reduced_width)


def full_precision(x: Tensor) -> Tensor:
    """`x` as it is when float64, else in float32."""
    return x if x.dtype == torch.float64 else x.float()


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """A context in which operations on the device of `x` keep the precision of their inputs."""
    if not torch.amp.is_autocast_available(x.device.type):  # the meta device, which only works out shapes
        return nullcontext()
    return torch.autocast(device_type=x.device.type, enabled=False)


def anchor_weights(anchor_BHE: Tensor, tokens_BMHE: Tensor, mask_BM: Tensor | None = None) -> Tensor:
    """Step 2: how much each token counts, softmax over the tokens of cos(anchor, token), a head at a time.

    `mask_BM` is true where a token counts; the others get weight 0. Returns weights (B, M, H), which sum to
    1 over M. Every sample must have at least one token that counts.
    """
    unit_BHE = functional.normalize(full_precision(anchor_BHE), dim=-1, eps=NORM_EPS)
    return _cosine_softmax(unit_BHE, full_precision(tokens_BMHE), mask_BM)[0]


def weigh_and_reduce(
    anchor_BHE: Tensor, tokens_BMHE: Tensor, reduce_RE: Tensor, mask_BM: Tensor | None = None
) -> Tensor:
    """Steps 2 and 3: weigh the tokens, then reduce each head's channels with one shared matrix.

    The weight of a token is one number a head, so it is applied after the reduction, to R channels in place
    of E; the result is the same. Returns (B, M, H, R) in full precision.
    """
    reduce_RE = reduce_RE.to(tokens_BMHE.dtype)
    with without_autocast(tokens_BMHE):
        unit_BHE = functional.normalize(full_precision(anchor_BHE), dim=-1, eps=NORM_EPS)
        reduced: Tensor = _WeighAndReduce.apply(unit_BHE, tokens_BMHE, reduce_RE, mask_BM)  # type: ignore[no-untyped-call]
        return reduced


def _cosine_softmax(unit_BHE: Tensor, tokens_BMHE: Tensor, mask_BM: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, cosines and token norms, each (B, M, H)."""
    norm_BMH = torch.linalg.vector_norm(tokens_BMHE, dim=-1).clamp_min(NORM_EPS)
    cosine_BMH = (tokens_BMHE * unit_BHE.unsqueeze(1)).sum(dim=-1) / norm_BMH
    scored_BMH = cosine_BMH
    if mask_BM is not None:
        scored_BMH = cosine_BMH.masked_fill(~mask_BM.unsqueeze(-1), -torch.inf)
    return scored_BMH.softmax(dim=1), cosine_BMH, norm_BMH


def _block_diagonal(unit_BHE: Tensor) -> Tensor:
    """(B, H E, H): head h's vector in column h. One product over all heads, where a head at a time copies tokens."""
    return torch.diag_embed(unit_BHE.transpose(1, 2)).transpose(1, 2).flatten(1, 2)


class _WeighAndReduce(torch.autograd.Function):
    """`anchor_weights` times the reduced tokens; the backward touches the wide tokens four times, not fourteen."""

    @staticmethod
    def forward(ctx: Any, unit_BHE: Tensor, tokens_BMHE: Tensor, reduce_RE: Tensor, mask_BM: Tensor | None) -> Tensor:
        weights_BMH, cosine_BMH, norm_BMH = _cosine_softmax(unit_BHE, full_precision(tokens_BMHE), mask_BM)
        reduced_BMHR = full_precision(tokens_BMHE @ reduce_RE.t())
        ctx.save_for_backward(unit_BHE, tokens_BMHE, reduce_RE, weights_BMH, cosine_BMH, norm_BMH, reduced_BMHR)
        return reduced_BMHR * weights_BMH.unsqueeze(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        unit_BHE, tokens_BMHE, reduce_RE, weights_BMH, cosine_BMH, norm_BMH, reduced_BMHR = ctx.saved_tensors
        with without_autocast(tokens_BMHE):
            to_reduced_BMHR = (grads[0] * weights_BMH.unsqueeze(-1)).to(tokens_BMHE.dtype)
            to_weights_BMH = (grads[0] * reduced_BMHR).sum(dim=-1)
            # Softmax, then cos = <x, u> / |x| with respect to x: u / |x| - cos x / |x|^2.
            to_cosine_BMH = weights_BMH * (to_weights_BMH - (weights_BMH * to_weights_BMH).sum(dim=1, keepdim=True))
            to_dot_BMH = to_cosine_BMH / norm_BMH
            along_BMH = -to_dot_BMH * cosine_BMH / norm_BMH
            # In place from here: a fresh array of this size costs as much in page faults as the arithmetic.
            wide_BMHE = (to_reduced_BMHR.flatten(0, 2) @ reduce_RE).view_as(tokens_BMHE)
            wide_BMHE.addcmul_(tokens_BMHE, along_BMH.unsqueeze(-1).to(wide_BMHE.dtype))
            units_BHD = _block_diagonal(unit_BHE).transpose(1, 2).to(wide_BMHE.dtype)
            wide_BMHE.flatten(2).baddbmm_(to_dot_BMH.to(wide_BMHE.dtype), units_BHD)
            per_head_BHD = torch.bmm(to_dot_BMH.transpose(1, 2), full_precision(tokens_BMHE).flatten(2))
            heads = unit_BHE.shape[1]
            per_pair_BHHE = per_head_BHD.view(-1, heads, heads, unit_BHE.shape[2])
            to_unit_BHE = per_pair_BHHE.diagonal(dim1=1, dim2=2).transpose(1, 2)
            to_reduce_RE = to_reduced_BMHR.flatten(0, 2).t() @ tokens_BMHE.flatten(0, 2)
        return to_unit_BHE, wide_BMHE, to_reduce_RE, None


class _Distance(torch.autograd.Function):
    """Step 5; the backward uses that the matrices are symmetric and centring is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x_BHMR: Tensor, half_share: Tensor) -> Tensor:
        x_BHMR = x_BHMR.contiguous()  # once here, in place of once for each product below
        gram_BHRR = x_BHMR.transpose(-1, -2) @ x_BHMR
        square_BHR = gram_BHRR.diagonal(dim1=-2, dim2=-1)
        squared_BHRR = square_BHR.unsqueeze(-1) + square_BHR.unsqueeze(-2) - 2 * gram_BHRR
        distance_BHRR = (squared_BHRR.clamp_min(0) * half_share + DISTANCE_EPS).sqrt()
        ctx.save_for_backward(x_BHMR, half_share, distance_BHRR)
        return _centre(distance_BHRR)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x_BHMR, half_share, distance_BHRR = ctx.saved_tensors
        with without_autocast(x_BHMR):
            # Where the clamp held, the two channels are equal and the gradient below is 0 by itself.
            pull_BHRR = _centre_any(grads[0]) * (half_share / (2 * distance_BHRR))
            pull_BHRR = 2 * (pull_BHRR + pull_BHRR.transpose(-1, -2))
            # d/dx_k of sum_l pull[k, l] ||x_k - x_l||^2 / 2 = sum_l pull[k, l] (x_k - x_l): a Laplacian.
            laplacian_BHRR = torch.diag_embed(pull_BHRR.sum(dim=-1)) - pull_BHRR
            grad_BHMR = x_BHMR @ laplacian_BHRR
            # Laid out as the tokens come, (B, M, H, R): what follows would else run across two layouts, 5x slower.
            return grad_BHMR.transpose(1, 2).contiguous().transpose(1, 2), None


def _centre(symmetric_RR: Tensor) -> Tensor:
    """Double centring of a symmetric matrix: its column means are its row means."""
    mean_R = symmetric_RR.mean(dim=-1)
    return symmetric_RR - (mean_R.unsqueeze(-1) + mean_R.unsqueeze(-2) - mean_R.mean(dim=-1)[..., None, None])


def _centre_any(matrix_RR: Tensor) -> Tensor:
    """Double centring of any matrix."""
    row_R, column_R = matrix_RR.mean(dim=-1), matrix_RR.mean(dim=-2)
    return matrix_RR - (row_R.unsqueeze(-1) + column_R.unsqueeze(-2) - row_R.mean(dim=-1)[..., None, None])


def brownian_distance(tokens_BHMR: Tensor, num_tokens_B: Tensor | None = None) -> Tensor:
    """Step 5: double-centred distances between the channels over the tokens, (B, H, R, R), symmetric.

    D[k, l] = ||x_k - x_l||^2, clamped at 0, times 1 / (2 M), sqrt(. + 1e-5), then each row's and each column's
    mean taken off and the total mean put back. `num_tokens_B` gives M for each sample when padding
    has been set to zero; by default M is the length of the token axis.
    """
    with without_autocast(tokens_BHMR):
        x_BHMR = full_precision(tokens_BHMR)
        if num_tokens_B is None:
            half_share = x_BHMR.new_full((1,), 0.5 / x_BHMR.shape[-2])
        else:
            half_share = (0.5 / num_tokens_B.to(x_BHMR.dtype)).view(-1, 1, 1, 1)
        distance: Tensor = _Distance.apply(x_BHMR, half_share)  # type: ignore[no-untyped-call]
        return distance


def upper_triangle(matrix_RR: Tensor) -> Tensor:
    """Step 6: the upper triangle with the diagonal of (..., R, R), row by row, as (..., T)."""
    width = matrix_RR.shape[-1]
    row_T, column_T = torch.triu_indices(width, width, device=matrix_RR.device)
    return matrix_RR.flatten(-2).index_select(-1, row_T * width + column_T)


def second_order(tokens_BHMR: Tensor, num_tokens_B: Tensor | None = None) -> Tensor:
    """Steps 5 to 7: reduced tokens to one vector a sample, (B, H T), heads one after another."""
    return upper_triangle(brownian_distance(tokens_BHMR, num_tokens_B)).flatten(1)
