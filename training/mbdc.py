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

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional

DISTANCE_EPS = 1e-5  # added under the square root, as released: keeps its slope finite on the diagonal


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
    return torch.autocast(device_type=x.device.type, enabled=False)


def anchor_weights(anchor_BHE: Tensor, tokens_BMHE: Tensor, mask_BM: Tensor | None = None) -> Tensor:
    """Step 2: how much each token counts, softmax over the tokens of cos(anchor, token), a head at a time.

    `mask_BM` is true where a token counts; the others get weight 0. Returns weights (B, M, H), which sum to
    1 over M. Every sample must have at least one token that counts.
    """
    with without_autocast(tokens_BMHE):
        anchor_BHE, tokens_BMHE = full_precision(anchor_BHE), full_precision(tokens_BMHE)
        anchor_BHE = functional.normalize(anchor_BHE, dim=-1)
        dot_BMH = torch.einsum("bmhe,bhe->bmh", tokens_BMHE, anchor_BHE)
        norm_BMH = torch.linalg.vector_norm(tokens_BMHE, dim=-1).clamp_min(1e-12)
        cosine_BMH = dot_BMH / norm_BMH
        if mask_BM is not None:
            cosine_BMH = cosine_BMH.masked_fill(~mask_BM.unsqueeze(-1), -torch.inf)
        weights_BMH: Tensor = cosine_BMH.softmax(dim=1)
        return weights_BMH


def reduce_tokens(tokens_BMHE: Tensor, weights_BMH: Tensor, reduce_RE: Tensor) -> Tensor:
    """Steps 2 and 3: weigh the tokens and reduce each head's channels with one shared matrix.

    The weight of a token is one number a head, so it is applied after the reduction, to R channels in place
    of E; the result is the same. Returns (B, H, M, R) in full precision.
    """
    reduced_BMHR = tokens_BMHE @ reduce_RE.t()
    return (full_precision(reduced_BMHR) * weights_BMH.unsqueeze(-1)).transpose(1, 2)


def brownian_distance(tokens_BHMR: Tensor, num_tokens_B: Tensor | None = None) -> Tensor:
    """Step 5: double-centred distances between the channels over the tokens, (B, H, R, R), symmetric.

    D[k, l] = ||x_k - x_l||^2, clamped at 0, times 1 / (2 M), sqrt(. + 1e-5), then each row's and each column's
    mean taken off and the total mean put back. `num_tokens_B` gives M for each sample when padding
    has been set to zero; by default M is the length of the token axis.
    """
    with without_autocast(tokens_BHMR):
        x_BHMR = full_precision(tokens_BHMR)
        gram_BHRR = x_BHMR.transpose(-1, -2) @ x_BHMR
        square_BHR = gram_BHRR.diagonal(dim1=-2, dim2=-1)
        squared_BHRR = square_BHR.unsqueeze(-1) + square_BHR.unsqueeze(-2) - 2 * gram_BHRR
        if num_tokens_B is None:
            scaled_BHRR = squared_BHRR.clamp_min(0) * (0.5 / x_BHMR.shape[-2])
        else:
            scaled_BHRR = squared_BHRR.clamp_min(0) * (0.5 / num_tokens_B.to(x_BHMR.dtype)).view(-1, 1, 1, 1)
        distance_BHRR = (scaled_BHRR + DISTANCE_EPS).sqrt()
        row_BHR = distance_BHRR.mean(dim=-1)
        total_BH = row_BHR.mean(dim=-1)
        # The matrix is symmetric: its column means are its row means.
        centre_BHRR = row_BHR.unsqueeze(-1) + row_BHR.unsqueeze(-2) - total_BH[..., None, None]
        return distance_BHRR - centre_BHRR


def upper_triangle(matrix_RR: Tensor) -> Tensor:
    """Step 6: the upper triangle with the diagonal of (..., R, R), row by row, as (..., T)."""
    width = matrix_RR.shape[-1]
    row_T, column_T = torch.triu_indices(width, width, device=matrix_RR.device)
    return matrix_RR.flatten(-2).index_select(-1, row_T * width + column_T)


def second_order(tokens_BHMR: Tensor, num_tokens_B: Tensor | None = None) -> Tensor:
    """Steps 5 to 7: reduced tokens to one vector a sample, (B, H T), heads one after another."""
    return upper_triangle(brownian_distance(tokens_BHMR, num_tokens_B)).flatten(1)
