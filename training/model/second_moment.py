"""Preset `second_moment`: MBDC's steps, with the root of the tokens' second moment in place of Brownian distance.

Shape letters as in `training.model.branch`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.model.branch import BranchShape, SecondOrderBranch
from training.model.mbdc import DISTANCE_EPS
from training.model.precision import full_precision, without_autocast

# Of Newton and Schulz. For 46 channels over 8, 81 and 196 tokens 7 steps come within 0.5, 4 and 2 % of the root; the
# source's 5 within 1, 18 and 18 %.
_ROOT_STEPS = 7


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
        """Of the channels over the tokens, about zero, (B, H, R, R). Padding is zeros; `count` tokens are not."""
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

    def forward(
        self, anchor_BC: Tensor, tokens_BMW: Tensor, mask_BM: Tensor | None = None, projection_WC: Tensor | None = None
    ) -> Tensor:
        """The feature z, (B, C), as `SecondOrderBranch.forward` gives it."""
        z_BC: Tensor = self.second_moment(anchor_BC, tokens_BMW, mask_BM, projection_WC)
        return z_BC


def matrix_square_root(matrix_RR: Tensor) -> Tensor:
    """The square root of symmetric matrices without negative eigenvalues (..., R, R), by products alone.

    Coupled iteration of Newton and Schulz on the matrix over its trace. DISTANCE_EPS on the diagonal keeps a matrix of
    zeros finite. The inverse begins as the identity, and the last one is not needed: three products fewer.
    """
    identity_RR = torch.eye(matrix_RR.shape[-1], dtype=matrix_RR.dtype, device=matrix_RR.device)
    raised_RR = matrix_RR + DISTANCE_EPS * identity_RR
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
