"""Multi-head Brownian distance covariance (MBDC) as pure tensor functions.

Takes the token features of one tower and its anchor (the first-order feature), gives one vector a sample
that describes how the channels of those tokens co-vary. Reads and writes nothing; holds no parameters
(they are in `training.model.branch`); moves nothing between devices. The distance step runs in float32, or in
float64 when given float64, whatever autocast says: in bfloat16 its error is 0.016 at a scale of 1.1.

Shape letters: `B` batch, `M` tokens, `H` heads, `E` channels a head, `R` reduced channels a head, `P` those with room
up to a multiple of 8, `T` = R (R + 1) / 2 entries of an upper triangle.

Source: Wu et al., "Distribution Alignment-based Language-Image Pre-Training for Domain-Specific Data",
ICCV 2025, arXiv 2504.01386; steps numbered as the released code takes them (0 to 8).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

DISTANCE_EPS = 1e-5  # added under the square root, as released: keeps its slope finite on the diagonal
NORM_EPS = 1e-12  # a token or anchor of zeros has cosine 0, not NaN
_CACHED = 2**18  # numbers (1 MiB of float32) that stay in a core's own cache


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
        apply: Any = _WeighAndReduce.apply  # torch leaves it untyped
        reduced: Tensor = apply(unit_BHE, tokens_BMHE, reduce_RE, mask_BM)
        return reduced


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


def _channels_times(x_BMHE: Tensor, matrix_RE: Tensor) -> Tensor:
    """`x @ matrix.t()`, (B, M, H, R).

    In float32 on a CPU as a 1 x 1 convolution: there torch gives products to MKL, which on AMD processors uses half of
    their width, and convolutions to oneDNN. 50,176 rows of 128 by 46, one thread of a Zen 5: 2.8 ms in place of 9.8.
    """
    if not _by_convolution(x_BMHE):
        return x_BMHE @ matrix_RE.t()
    product = functional.conv2d(_as_images(x_BMHE), matrix_RE[:, :, None, None])
    return product.permute(0, 2, 3, 1).reshape(*x_BMHE.shape[:3], -1)


def _sum_of_outer(left_BMHR: Tensor, right_BMHE: Tensor) -> Tensor:
    """Sum over B, M and H of the outer products, (R, E): the gradient of the matrix of `_channels_times`."""
    if not _by_convolution(right_BMHE):
        return left_BMHR.flatten(0, 2).t() @ right_BMHE.flatten(0, 2)
    size = (left_BMHR.shape[-1], right_BMHE.shape[-1], 1, 1)
    gradient: Any = conv2d_weight  # torch leaves it untyped
    weight: Tensor = gradient(_as_images(right_BMHE), size, _as_images(left_BMHR))
    return weight.flatten(1)


def _by_convolution(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0


def _as_images(x_BMHE: Tensor) -> Tensor:
    """The same memory as images in the layout channels-last, 16 or more where that divides.

    On one thread torch gives 1 x 1 convolutions of fewer images to a kernel of its own, three times slower.
    """
    batch, tokens, heads, width = x_BMHE.shape
    images = batch if batch >= 16 else 16 if batch * tokens * heads % 16 == 0 else batch * tokens
    return x_BMHE.reshape(images, -1, 1, width).permute(0, 3, 1, 2)


class _WeighAndReduce(torch.autograd.Function):
    """`anchor_weights` times the reduced tokens; the backward touches the wide tokens four times, not fourteen."""

    @staticmethod
    def forward(ctx: Any, unit_BHE: Tensor, tokens_BMHE: Tensor, reduce_RE: Tensor, mask_BM: Tensor | None) -> Tensor:
        weights_BMH, cosine_BMH, norm_BMH = _cosine_softmax(unit_BHE, full_precision(tokens_BMHE), mask_BM)
        weighted_BMHR = full_precision(_channels_times(tokens_BMHE, reduce_RE)).mul_(weights_BMH.unsqueeze(-1))
        ctx.save_for_backward(unit_BHE, tokens_BMHE, reduce_RE, weights_BMH, cosine_BMH, norm_BMH, weighted_BMHR)
        return weighted_BMHR

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        unit_BHE, tokens_BMHE, reduce_RE, weights_BMH, cosine_BMH, norm_BMH, weighted_BMHR = ctx.saved_tensors
        with without_autocast(tokens_BMHE):
            # Softmax: its gradient needs that of each weight times the weight. Then cos = <x, u> / |x| with respect
            # to x: u / |x| - cos x / |x|^2.
            product_BMHR = grads[0] * weighted_BMHR
            times_weight_BMH = product_BMHR.sum(dim=-1)
            torch.mul(grads[0], weights_BMH.unsqueeze(-1), out=product_BMHR)
            to_reduced_BMHR = product_BMHR.to(tokens_BMHE.dtype)
            to_cosine_BMH = times_weight_BMH - weights_BMH * times_weight_BMH.sum(dim=1, keepdim=True)
            to_dot_BMH = to_cosine_BMH / norm_BMH
            along_BMH = -to_dot_BMH * cosine_BMH / norm_BMH
            # In place from here: a fresh array of this size costs as much in page faults as the arithmetic.
            wide_BMHE = _channels_times(to_reduced_BMHR, reduce_RE.t())
            wide_BMHE.addcmul_(tokens_BMHE, along_BMH.unsqueeze(-1).to(wide_BMHE.dtype))
            wide_BMHE.addcmul_(unit_BHE.unsqueeze(1).to(wide_BMHE.dtype), to_dot_BMH.unsqueeze(-1).to(wide_BMHE.dtype))
            per_head_BHD = torch.bmm(to_dot_BMH.transpose(1, 2), full_precision(tokens_BMHE).flatten(2))
            heads = unit_BHE.shape[1]
            per_pair_BHHE = per_head_BHD.view(-1, heads, heads, unit_BHE.shape[2])
            to_unit_BHE = per_pair_BHHE.diagonal(dim1=1, dim2=2).transpose(1, 2)
            to_reduce_RE = _sum_of_outer(to_reduced_BMHR, tokens_BMHE)
        return to_unit_BHE, wide_BMHE, to_reduce_RE, None


class _Distance(torch.autograd.Function):
    """Steps 5 and 6, after the rectifier of step 3 and the factor of step 4 where `rectified`: (B, H T).

    Works in place, on matrices that are symmetric and centring that is its own adjoint. The tokens come, and their
    gradient goes, as (B, M, H, R): what is before and behind would else run across two layouts, 5x slower.
    """

    @staticmethod
    def forward(ctx: Any, tokens_BMHR: Tensor, factor: Tensor | None, half_share: Tensor, rectified: bool) -> Tensor:
        batch, tokens, heads, width = tokens_BMHR.shape
        # With channels of zeros up to a multiple of 8: products 48 wide take 0.28 ms where 46 take 0.38 (32 of them).
        x_BHMP = tokens_BMHR.new_empty(batch, heads, tokens, width + -width % 8)
        x_BHMP[..., width:] = 0
        x_BHMR = x_BHMP[..., :width]
        x_BHMR.copy_(tokens_BMHR.transpose(1, 2))
        if rectified:
            x_BHMP.relu_()
        if factor is not None:
            x_BHMR.mul_(factor.transpose(1, 2))
        gram_BHRR = (x_BHMP.transpose(-1, -2) @ x_BHMP)[..., :width, :width]
        square_BHR = gram_BHRR.diagonal(dim1=-2, dim2=-1)
        distance_BHRR = square_BHR.unsqueeze(-1) + square_BHR.unsqueeze(-2)
        distance_BHRR.sub_(gram_BHRR, alpha=2).clamp_min_(0).mul_(half_share).add_(DISTANCE_EPS).sqrt_()
        ctx.save_for_backward(x_BHMP, factor, half_share, distance_BHRR)
        ctx.rectified = rectified
        row_T, column_T = _triangle_indices(x_BHMR)
        vector_NT = distance_BHRR.view(batch * heads, -1).index_select(1, row_T * width + column_T)
        shift_NR = _centring_shift(distance_BHRR).view(batch * heads, width)
        vector_NT.sub_(shift_NR.index_select(1, row_T)).sub_(shift_NR.index_select(1, column_T))
        return vector_NT.view(batch, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
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
            if ctx.rectified:  # what ReLU's own backward calls: one pass, in place, where a mask takes three
                torch.ops.aten.threshold_backward.grad_input(grad_BHMP, x_BHMP, 0, grad_input=grad_BHMP)
            grad_BHMR = grad_BHMP[..., :width]
            if factor is not None:
                grad_BHMR.mul_(factor.transpose(1, 2))
            return grad_BHMR.transpose(1, 2).contiguous(), None, None, None


def _centring_shift(symmetric_RR: Tensor) -> Tensor:
    """What double centring takes off each row and each column of a symmetric matrix: its mean less half the whole's."""
    mean_R = symmetric_RR.mean(dim=-1)
    return mean_R - mean_R.mean(dim=-1, keepdim=True) / 2


def _triangle_indices(x_BHMR: Tensor) -> Tensor:
    width = x_BHMR.shape[-1]
    return torch.triu_indices(width, width, device=x_BHMR.device)


def _mirror_indices(x_BHMR: Tensor) -> Tensor:
    """For each entry of a whole matrix, row by row, its place in the upper triangle."""
    line_R = torch.arange(x_BHMR.shape[-1], device=x_BHMR.device)
    low_RR, high_RR = torch.minimum(line_R[:, None], line_R), torch.maximum(line_R[:, None], line_R)
    # Row k of the triangle begins at k R - k (k - 1) / 2, with the entry (k, k).
    return (low_RR * x_BHMR.shape[-1] - low_RR * (low_RR - 1) // 2 + high_RR - low_RR).flatten()


def brownian_distance(tokens_BHMR: Tensor, num_tokens_B: Tensor | None = None) -> Tensor:
    """Step 5: double-centred distances between the channels over the tokens, (B, H, R, R), symmetric.

    D[k, l] = ||x_k - x_l||^2, clamped at 0, times 1 / (2 M), sqrt(. + 1e-5), then each row's and each column's
    mean taken off and the total mean put back. `num_tokens_B` gives M for each sample when padding
    has been set to zero; by default M is the length of the token axis.
    """
    batch, heads, _, width = tokens_BHMR.shape
    vector_NT = second_order(tokens_BHMR, num_tokens_B).view(batch * heads, -1)
    return vector_NT.index_select(1, _mirror_indices(tokens_BHMR)).view(batch, heads, width, width)


def second_order(tokens_BHMR: Tensor, num_tokens_B: Tensor | None = None) -> Tensor:
    """Steps 5 to 7: reduced tokens to one vector a sample, (B, H T), heads one after another."""
    return _distances(tokens_BHMR.transpose(1, 2), None, num_tokens_B, rectified=False)


def rectify_and_compare(tokens_BMHR: Tensor, factor: Tensor | None, num_tokens_B: Tensor | None = None) -> Tensor:
    """The rectifier of step 3, steps 4 to 7: normalised reduced tokens (B, M, H, R) to one vector a sample, (B, H T).

    `factor` says what of a token or channel is kept (0 for padding and what dropout drops), in a shape that
    broadcasts to the tokens'; it must not be negative and gets no gradient. `num_tokens_B` as in `brownian_distance`.
    """
    return _distances(tokens_BMHR, factor, num_tokens_B, rectified=True)


def _distances(tokens_BMHR: Tensor, factor: Tensor | None, num_tokens_B: Tensor | None, *, rectified: bool) -> Tensor:
    with without_autocast(tokens_BMHR):
        x_BMHR = full_precision(tokens_BMHR)
        if num_tokens_B is None:
            half_share = x_BMHR.new_full((1,), 0.5 / x_BMHR.shape[1])
        else:
            half_share = (0.5 / num_tokens_B.to(x_BMHR.dtype)).view(-1, 1, 1, 1)
        apply: Any = _Distance.apply  # torch leaves it untyped
        vector: Tensor = apply(x_BMHR, factor, half_share, rectified)
        return vector
