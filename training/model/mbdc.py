"""Multi-head Brownian distance covariance (MBDC), written as the formula: the second-order statistics of a tower.

Takes the token features of one tower and its anchor (the first-order feature). Gives one vector per sample, which
says how the channels of the tokens vary together. Pure functions; `training.model.branch` holds the parameters.

This file is for reading. The model calls `training.model.fast`, which computes `weigh_and_reduce` and
`rectify_and_compare` up to three times as fast. Tests hold both files to the golden values of the authors' code, and to
each other, gradients included.

Shape letters: `B` batch, `M` tokens, `H` heads, `E` channels a head, `R` reduced channels a head,
`T` = R (R + 1) / 2 entries of an upper triangle.

Source: Wu et al., "Distribution Alignment-based Language-Image Pre-Training for Domain-Specific Data",
ICCV 2025, arXiv 2504.01386; steps numbered in the order of the released code (0 to 8).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.model.precision import full_precision, without_autocast

DISTANCE_EPS = 1e-5  # under the square root, as released: keeps its slope finite on the diagonal
NORM_EPS = 1e-12  # a token or anchor of zeros has cosine 0, not NaN


def anchor_weights(anchor_BHE: Tensor, tokens_BMHE: Tensor, mask_BM: Tensor | None = None) -> Tensor:
    """Step 2: how much each token counts, (B, M, H): softmax over the tokens of cos(anchor, token) in each head.

    `mask_BM` is true where a token counts; the others get weight 0. Every sample needs at least one that counts.
    """
    unit_anchor_B1HE = functional.normalize(full_precision(anchor_BHE), dim=-1, eps=NORM_EPS).unsqueeze(1)
    unit_token_BMHE = functional.normalize(full_precision(tokens_BMHE), dim=-1, eps=NORM_EPS)
    cosine_BMH = (unit_anchor_B1HE * unit_token_BMHE).sum(dim=-1)
    if mask_BM is not None:
        cosine_BMH = cosine_BMH.masked_fill(~mask_BM.unsqueeze(-1), -torch.inf)
    return cosine_BMH.softmax(dim=1)


def weigh_and_reduce(
    anchor_BHE: Tensor, tokens_BMHE: Tensor, reduce_RE: Tensor, mask_BM: Tensor | None = None
) -> Tensor:
    """Return steps 2 and 3.

    Weigh the tokens, then reduce the channels of each head with one shared matrix, (B, M, H, R).
    """
    with without_autocast(tokens_BMHE):
        weights_BMH = anchor_weights(anchor_BHE, tokens_BMHE, mask_BM)
        return (full_precision(tokens_BMHE) * weights_BMH.unsqueeze(-1)) @ full_precision(reduce_RE).t()


def brownian_distance(tokens_BHMR: Tensor, num_tokens_B: Tensor | None = None) -> Tensor:
    """Step 5: the distance between every two channels over the tokens, double-centred, (B, H, R, R), symmetric.

    `num_tokens_B`: the tokens of each sample that are not padding, where padding is zeros; by default all M count.
    In bfloat16 the error would be 0.016 at a scale of 1.1, so the step runs in float32 or float64.
    """
    with without_autocast(tokens_BHMR):
        x_BHMR = full_precision(tokens_BHMR)
        num_tokens = x_BHMR.shape[2] if num_tokens_B is None else num_tokens_B.view(-1, 1, 1, 1)
        product_BHRR = x_BHMR.transpose(-1, -2) @ x_BHMR
        square_BHR1 = product_BHRR.diagonal(dim1=-1, dim2=-2).unsqueeze(-1)
        squared_distance_BHRR = (square_BHR1 + square_BHR1.transpose(-1, -2) - 2 * product_BHRR).clamp_min(0)
        distance_BHRR = torch.sqrt(squared_distance_BHRR / (2 * num_tokens) + DISTANCE_EPS)
        mean_BHR1 = distance_BHRR.mean(dim=-1, keepdim=True)
        return distance_BHRR - mean_BHR1 - mean_BHR1.transpose(-1, -2) + mean_BHR1.mean(dim=-2, keepdim=True)


def rectify_and_compare(tokens_BMHR: Tensor, factor: Tensor | None, num_tokens_B: Tensor | None = None) -> Tensor:
    """Return the ReLU of step 3, then steps 4 to 7.

    Normalised reduced tokens (B, M, H, R) to a vector per sample, (B, H T).

    `factor` is 0 for padding and for what dropout drops, in a shape that broadcasts to the tokens'. It must not be
    negative and gets no gradient. `num_tokens_B` as in `brownian_distance`.
    """
    x_BMHR = tokens_BMHR.relu() if factor is None else tokens_BMHR.relu() * factor
    matrix_BHRR = brownian_distance(x_BMHR.transpose(1, 2), num_tokens_B)
    row_T, column_T = torch.triu_indices(*matrix_BHRR.shape[-2:], device=matrix_BHRR.device)
    return matrix_BHRR[..., row_T, column_T].flatten(1)


def num_triangle(width: int) -> int:
    """Entries of the upper triangle of a `width` x `width` matrix, diagonal included."""
    return width * (width + 1) // 2


def num_second_order(heads: int, reduced_width: int) -> int:
    """Length of the second-order vector: one triangle a head (4 heads of 46 give 4324)."""
    return heads * num_triangle(reduced_width)
