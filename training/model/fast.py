"""All that is written by hand for speed: MBDC with its own gradients.

`weigh_and_reduce` and `rectify_and_compare` take and give what those of `training.model.mbdc` do, to rounding. Read
that file first; the comments here only say why something is done in another way. Forward and backward on one thread of
an Intel Xeon take 1 / 2.8 of the formula's time for 64 pictures of 196 tokens, 1 / 2.0 for 64 of 49, and 1 / 1.6 for 8
of 196 (2026-11, a busy machine). `tests/benchmarks/bench_mbdc.py` measures them against a loop over heads.

Shape letters as there, and `P`: the reduced channels of a head, filled up to a multiple of 8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.model.mbdc import DISTANCE_EPS, NORM_EPS
from training.model.precision import full_precision, without_autocast

_CACHED = 2**18  # numbers (1 MiB of float32) that stay in a core's own cache


def weigh_and_reduce(
    anchor_BHE: Tensor, tokens_BMHE: Tensor, reduce_RE: Tensor, mask_BM: Tensor | None = None
) -> Tensor:
    """Return steps 2 and 3, (B, M, H, R).

    The weight of a token is one number a head. It is applied after the reduction, to R channels instead of E.
    """
    reduce_RE = reduce_RE.to(tokens_BMHE.dtype)
    with without_autocast(tokens_BMHE):
        unit_BHE = functional.normalize(full_precision(anchor_BHE), dim=-1, eps=NORM_EPS)
        apply: Any = _WeighAndReduce.apply  # torch leaves it untyped
        reduced: Tensor = apply(unit_BHE, tokens_BMHE, reduce_RE, mask_BM)
        return reduced


def rectify_and_compare(tokens_BMHR: Tensor, factor: Tensor | None, num_tokens_B: Tensor | None = None) -> Tensor:
    """ReLU of step 3, steps 4 to 7, (B, H T)."""
    with without_autocast(tokens_BMHR):
        x_BMHR = full_precision(tokens_BMHR)
        if num_tokens_B is None:
            half_share = x_BMHR.new_full((1,), 0.5 / x_BMHR.shape[1])
        else:
            half_share = (0.5 / num_tokens_B.to(x_BMHR.dtype)).view(-1, 1, 1, 1)
        apply: Any = _Distance.apply  # torch leaves it untyped
        vector: Tensor = apply(x_BMHR, factor, half_share)
        return vector


class _WeighAndReduce(torch.autograd.Function):
    """The backward pass touches the wide tokens four times; autograd's would do so fourteen times."""

    @staticmethod
    def forward(ctx: Any, unit_BHE: Tensor, tokens_BMHE: Tensor, reduce_RE: Tensor, mask_BM: Tensor | None) -> Tensor:
        weights_BMH, cosine_BMH, norm_BMH = _cosine_softmax(unit_BHE, full_precision(tokens_BMHE), mask_BM)
        weighted_BMHR = full_precision(tokens_BMHE @ reduce_RE.t()).mul_(weights_BMH.unsqueeze(-1))
        ctx.save_for_backward(unit_BHE, tokens_BMHE, reduce_RE, weights_BMH, cosine_BMH, norm_BMH, weighted_BMHR)
        return weighted_BMHR

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        unit_BHE, tokens_BMHE, reduce_RE, weights_BMH, cosine_BMH, norm_BMH, weighted_BMHR = ctx.saved_tensors
        with without_autocast(tokens_BMHE):
            # The gradient of a softmax needs that of each weight times the weight. Then, with cos = <x, u> / |x|:
            # d cos / dx = u / |x| - cos x / |x|^2.
            product_BMHR = grads[0] * weighted_BMHR
            times_weight_BMH = product_BMHR.sum(dim=-1)
            torch.mul(grads[0], weights_BMH.unsqueeze(-1), out=product_BMHR)
            to_reduced_BMHR = product_BMHR.to(tokens_BMHE.dtype)
            to_cosine_BMH = times_weight_BMH - weights_BMH * times_weight_BMH.sum(dim=1, keepdim=True)
            to_dot_BMH = to_cosine_BMH / norm_BMH
            along_BMH = -to_dot_BMH * cosine_BMH / norm_BMH
            # In place from here: a fresh array of this size costs as much in page faults as the arithmetic.
            wide_BMHE = to_reduced_BMHR @ reduce_RE
            wide_BMHE.addcmul_(tokens_BMHE, along_BMH.unsqueeze(-1).to(wide_BMHE.dtype))
            wide_BMHE.addcmul_(unit_BHE.unsqueeze(1).to(wide_BMHE.dtype), to_dot_BMH.unsqueeze(-1).to(wide_BMHE.dtype))
            per_head_BHD = torch.bmm(to_dot_BMH.transpose(1, 2), full_precision(tokens_BMHE).flatten(2))
            heads = unit_BHE.shape[1]
            per_pair_BHHE = per_head_BHD.view(-1, heads, heads, unit_BHE.shape[2])
            to_unit_BHE = per_pair_BHHE.diagonal(dim1=1, dim2=2).transpose(1, 2)
            to_reduce_RE = to_reduced_BMHR.flatten(0, 2).t() @ tokens_BMHE.flatten(0, 2)
        return to_unit_BHE, wide_BMHE, to_reduce_RE, None


class _Distance(torch.autograd.Function):
    """Works in place. The distances are symmetric and centring is its own adjoint, which saves half of the work.

    Tokens and their gradient have the layout (B, M, H, R), as the norm before this step has. Another layout here would
    make the norm five times as slow.
    """

    @staticmethod
    def forward(ctx: Any, tokens_BMHR: Tensor, factor: Tensor | None, half_share: Tensor) -> Tensor:
        batch, tokens, heads, width = tokens_BMHR.shape
        # With channels of zeros up to a multiple of 8: products 48 wide take 0.28 ms where 46 take 0.38 (32 of them).
        x_BHMP = tokens_BMHR.new_empty(batch, heads, tokens, width + -width % 8)
        x_BHMP[..., width:] = 0
        x_BHMR = x_BHMP[..., :width]
        x_BHMR.copy_(tokens_BMHR.transpose(1, 2))
        x_BHMP.relu_()
        if factor is not None:
            x_BHMR.mul_(factor.transpose(1, 2))
        gram_BHRR = (x_BHMP.transpose(-1, -2) @ x_BHMP)[..., :width, :width]
        square_BHR = gram_BHRR.diagonal(dim1=-2, dim2=-1)
        distance_BHRR = square_BHR.unsqueeze(-1) + square_BHR.unsqueeze(-2)
        distance_BHRR.sub_(gram_BHRR, alpha=2).clamp_min_(0).mul_(half_share).add_(DISTANCE_EPS).sqrt_()
        ctx.save_for_backward(x_BHMP, factor, half_share, distance_BHRR)
        row_T, column_T = torch.triu_indices(width, width, device=x_BHMR.device)
        vector_NT = distance_BHRR.view(batch * heads, -1).index_select(1, row_T * width + column_T)
        shift_NR = _centring_shift(distance_BHRR).view(batch * heads, width)
        vector_NT.sub_(shift_NR.index_select(1, row_T)).sub_(shift_NR.index_select(1, column_T))
        return vector_NT.view(batch, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x_BHMP, factor, half_share, distance_BHRR = ctx.saved_tensors
        batch, heads, _, width = distance_BHRR.shape
        with without_autocast(x_BHMP):
            # The gradient of the triangle and of its mirror image, on the diagonal twice, centred.
            grad_NT = grads[0].reshape(batch * heads, -1)
            pull_BHRR = grad_NT.index_select(1, _mirror_indices(distance_BHRR)).view(batch, heads, width, width)
            pull_BHRR.diagonal(dim1=-2, dim2=-1).mul_(2)
            shift_BHR = _centring_shift(pull_BHRR)
            pull_BHRR.sub_(shift_BHR.unsqueeze(-1)).sub_(shift_BHR.unsqueeze(-2))
            # d/dx_k of sum_l pull[k, l] ||x_k - x_l||^2 / 2 = sum_l pull[k, l] (x_k - x_l): a Laplacian. Where the
            # clamp held, the two channels are equal and this is 0 by itself.
            laplacian_BHRR = pull_BHRR.div_(distance_BHRR).mul_(-half_share)
            laplacian_BHRR.diagonal(dim1=-2, dim2=-1).sub_(laplacian_BHRR.sum(dim=-1))
            room = -width % 8
            grad_BHMP = x_BHMP @ functional.pad(laplacian_BHRR, (0, room, 0, room))
            # What ReLU's own backward calls: one pass, in place, where a mask takes three.
            torch.ops.aten.threshold_backward.grad_input(grad_BHMP, x_BHMP, 0, grad_input=grad_BHMP)
            grad_BHMR = grad_BHMP[..., :width]
            if factor is not None:
                grad_BHMR.mul_(factor.transpose(1, 2))
            return grad_BHMR.transpose(1, 2).contiguous(), None, None


def _cosine_softmax(unit_BHE: Tensor, tokens_BMHE: Tensor, mask_BM: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, cosines and token norms, each (B, M, H)."""
    norm_BMH = torch.linalg.vector_norm(tokens_BMHE, dim=-1).clamp_min(NORM_EPS)
    # On a CPU a few samples at a time, a megabyte: a fresh array as large as the tokens costs more than its arithmetic.
    on_cpu = tokens_BMHE.device.type == "cpu"
    step = max(1, _CACHED // max(1, tokens_BMHE.shape[1:].numel()) if on_cpu else len(tokens_BMHE))
    pairs = zip(torch.split(tokens_BMHE, step), torch.split(unit_BHE.unsqueeze(1), step), strict=True)
    cosine_BMH = torch.cat([(tokens * unit).sum(dim=-1) for tokens, unit in pairs]) / norm_BMH
    scored_BMH = cosine_BMH
    if mask_BM is not None:
        scored_BMH = cosine_BMH.masked_fill(~mask_BM.unsqueeze(-1), -torch.inf)
    return scored_BMH.softmax(dim=1), cosine_BMH, norm_BMH


def _centring_shift(symmetric_RR: Tensor) -> Tensor:
    """Return the shift by double centring of each row and column of a symmetric matrix.

    Its mean less half the whole's.
    """
    mean_R = symmetric_RR.mean(dim=-1)
    return mean_R - mean_R.mean(dim=-1, keepdim=True) / 2


def _mirror_indices(x_BHRR: Tensor) -> Tensor:
    """For each entry of a whole matrix, row by row, its place in the upper triangle."""
    line_R = torch.arange(x_BHRR.shape[-1], device=x_BHRR.device)
    low_RR, high_RR = torch.minimum(line_R[:, None], line_R), torch.maximum(line_R[:, None], line_R)
    # Row k of the triangle begins at k R - k (k - 1) / 2, with the entry (k, k).
    return (low_RR * x_BHRR.shape[-1] - low_RR * (low_RR - 1) // 2 + high_RR - low_RR).flatten()
