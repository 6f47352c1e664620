"""The controls of the study: second branches with another statistic of the same tokens than MBDC.

Compared with MBDC under equal conditions they tell a second-order statistic from a second head that sees the tokens.
What stands before and after the statistic is that of `training.model.branch`. `mean`, `max` and `attention` pool the
tokens to one vector and widen it, so that the branch has as many parameters as MBDC's; `token_mlp` widens each token
and pools then. `build_model` takes one as its `branch`.

Shape letters as in `training.model.branch`.
"""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.model import fast
from training.model.branch import BranchShape, SecondMoment, SecondOrderBranch, projection_layers
from training.model.mbdc import num_second_order
from training.model.precision import full_precision, without_autocast


class CovarianceBranch(SecondMoment):
    """The root of the covariance of the channels over the tokens, which drops their mean."""

    def moment(self, x_BHMR: Tensor, count: Tensor | int) -> Tensor:
        """About the mean, (B, H, R, R)."""
        mean_BH1R = x_BHMR.sum(dim=2, keepdim=True) / count
        return super().moment(x_BHMR, count) - mean_BH1R.transpose(-1, -2) @ mean_BH1R


class RectifiedMeanBranch(SecondMoment):
    """The steps of the second moment up to the ReLU, then the mean of the tokens alone: first order.

    It sees the same channels as the second moment. Its vector has R numbers a head where that has R (R + 1) / 2, so it
    has fewer parameters behind them.
    """

    def add_layers(self) -> int:
        """Make the layers of the second moment, one number a channel behind them."""
        super().add_layers()
        return self.shape.heads * self.shape.reduced_width

    def compare(self, tokens_BMHR: Tensor, factor: Tensor | None, num_tokens_B: Tensor | None) -> Tensor:
        """Return the mean over the tokens of the rectified channels, (B, H R)."""
        with without_autocast(tokens_BMHR):
            x_BMHR = full_precision(tokens_BMHR).relu()
            total_BHR = (x_BMHR if factor is None else x_BMHR * factor).sum(dim=1)
            count = tokens_BMHR.shape[1] if num_tokens_B is None else num_tokens_B.view(-1, 1, 1)
            return (total_BHR / count).flatten(1)


class WideRectifiedMeanBranch(RectifiedMeanBranch):
    """The same with a wider reduction, which gives it MBDC's number of parameters: 261 channels a head, not 23."""

    def __init__(self, shape: BranchShape) -> None:
        super().__init__(replace(shape, reduced_width=_matched_reduction(shape)))


class PooledBranch(SecondOrderBranch):
    """A second head on the pooled feature itself: it sees no token."""

    def add_layers(self) -> int:
        """None of its own."""
        return self.shape.embed_dim

    def statistics(
        self, anchor_BC: Tensor, tokens_BMW: Tensor, mask_BM: Tensor | None = None, projection_WC: Tensor | None = None
    ) -> Tensor:
        """The projected anchor, (B, C)."""
        projected_BC: Tensor = self.token_projection(anchor_BC)
        return projected_BC


class _PoolingBranch(SecondOrderBranch, ABC):
    """One vector pooled from the tokens, then a hidden layer as wide as MBDC's number of parameters allows."""

    def add_layers(self) -> int:
        """The layers of `pool`, and the hidden layer."""
        own = self.add_pool()
        width = _matched_width(self.shape, own)
        self.hidden = nn.Linear(self.shape.embed_dim, width)
        return width

    def add_pool(self) -> int:
        """Make the parameters of the pooling; returns their number."""
        return 0

    @abstractmethod
    def pool(self, tokens_BMW: Tensor, mask_BM: Tensor | None, projection_WC: Tensor | None) -> Tensor:
        """The pooled tokens behind their projection, (B, C)."""

    def statistics(
        self, anchor_BC: Tensor, tokens_BMW: Tensor, mask_BM: Tensor | None = None, projection_WC: Tensor | None = None
    ) -> Tensor:
        """The hidden layer over the pooled tokens, (B, T)."""
        hidden_BT = functional.gelu(self.hidden(self.pool(tokens_BMW, mask_BM, projection_WC)))
        return functional.dropout(hidden_BT, self.shape.dropout, self.training)


class MeanBranch(_PoolingBranch):
    """The mean of the tokens."""

    def pool(self, tokens_BMW: Tensor, mask_BM: Tensor | None, projection_WC: Tensor | None) -> Tensor:
        """The mean first: its projection is the mean of the projected tokens. Padding does not count."""
        mean_B1W = _mean(tokens_BMW, mask_BM).unsqueeze(1)
        return self.project_tokens(mean_B1W, projection_WC).squeeze(1)


class TokenMlpBranch(MeanBranch):
    """The mean head with its hidden layer before the mean: a look at single tokens that is not linear.

    It has the layers and parameters of the mean head, and no second order.
    """

    def statistics(
        self, anchor_BC: Tensor, tokens_BMW: Tensor, mask_BM: Tensor | None = None, projection_WC: Tensor | None = None
    ) -> Tensor:
        """The mean of the hidden layer over the tokens, (B, T). The layers before it are linear: one product."""
        matrix_TW = self.hidden.weight @ self.token_projection.weight
        if projection_WC is not None:
            matrix_TW = matrix_TW @ projection_WC.t()
        hidden_BMT = fast.channels_times(tokens_BMW.unsqueeze(2), matrix_TW).squeeze(2) + self.hidden.bias
        mean_BT = _mean(functional.gelu(hidden_BMT), mask_BM)
        return functional.dropout(mean_BT, self.shape.dropout, self.training)


class MaxBranch(_PoolingBranch):
    """The largest value of each channel over the tokens."""

    def pool(self, tokens_BMW: Tensor, mask_BM: Tensor | None, projection_WC: Tensor | None) -> Tensor:
        """Padding is never the largest."""
        tokens_BMC = self.project_tokens(tokens_BMW, projection_WC)
        return _without(mask_BM, tokens_BMC).amax(dim=1)


class AttentionBranch(_PoolingBranch):
    """The mean of the tokens weighed by how well they fit a learned query, one query a head."""

    def add_pool(self) -> int:
        """The queries, which start at zero: as the mean."""
        self.query = nn.Parameter(torch.zeros(self.shape.heads, self.shape.embed_dim // self.shape.heads))
        return self.shape.embed_dim

    def pool(self, tokens_BMW: Tensor, mask_BM: Tensor | None, projection_WC: Tensor | None) -> Tensor:
        """Padding has weight 0."""
        tokens_BMC = self.project_tokens(tokens_BMW, projection_WC)
        tokens_BMHE = tokens_BMC.view(*tokens_BMC.shape[:2], *self.query.shape)
        fit_BMH = (tokens_BMHE * self.query).sum(dim=-1) * self.query.shape[1] ** -0.5
        weight_BMH = _without(mask_BM, fit_BMH).softmax(dim=1)
        pooled_BHE: Tensor = (tokens_BMHE * weight_BMH.unsqueeze(-1)).sum(dim=1)
        return pooled_BHE.flatten(1)


HEADS: dict[str, type[SecondOrderBranch]] = {
    "brownian": SecondOrderBranch,
    "covariance": CovarianceBranch,
    "uncentred": SecondMoment,
    "rect_mean": RectifiedMeanBranch,
    "rect_mean_wide": WideRectifiedMeanBranch,
    "mean": MeanBranch,
    "token_mlp": TokenMlpBranch,
    "max": MaxBranch,
    "attention": AttentionBranch,
    "pooled": PooledBranch,
}


def _mean(values_BMX: Tensor, mask_BM: Tensor | None) -> Tensor:
    """Over the tokens that are no padding, (B, X)."""
    if mask_BM is None:
        return values_BMX.mean(dim=1)
    return values_BMX.masked_fill(~mask_BM.unsqueeze(-1), 0.0).sum(dim=1) / mask_BM.sum(dim=1).view(-1, 1)


def _without(mask_BM: Tensor | None, values_BMX: Tensor) -> Tensor:
    """Padding at minus infinity."""
    return values_BMX if mask_BM is None else values_BMX.masked_fill(~mask_BM.unsqueeze(-1), -torch.inf)


def _matched_width(shape: BranchShape, own: int) -> int:
    """Width at which a branch with `own` parameters of pooling has as many as MBDC's, to half a row of a matrix."""
    widths = range(1, num_second_order(shape.heads, shape.reduced_width) + 1)
    return _nearest(widths, lambda width: (shape.embed_dim + 1) * width + _behind(shape, width) + own, shape)


def _matched_reduction(shape: BranchShape) -> int:
    """Return the reduced width at which a branch of one number a channel has as many parameters as MBDC's."""
    widths = range(1, num_second_order(1, shape.reduced_width) + 1)
    return _nearest(widths, lambda width: _reduction(shape, width) + _behind(shape, shape.heads * width), shape)


def _nearest(widths: Sequence[int], count: Callable[[int], int], shape: BranchShape) -> int:
    """Return the width whose number of parameters, which rises with it, is nearest to MBDC's."""
    length = num_second_order(shape.heads, shape.reduced_width)
    parameters_of_mbdc = _reduction(shape, shape.reduced_width) + _behind(shape, length)
    above = widths[min(bisect.bisect_left(widths, parameters_of_mbdc, key=count), len(widths) - 1)]
    return min(max(above - 1, 1), above, key=lambda width: abs(count(width) - parameters_of_mbdc))


def _reduction(shape: BranchShape, width: int) -> int:
    """Return the parameters of the reduction to `width` channels a head, and of its norm."""
    return shape.embed_dim // shape.heads * width + 2 * width


def _behind(shape: BranchShape, width: int) -> int:
    """Return the parameters of the last norm and the projection, of a vector of `width` numbers."""
    with torch.device("meta"):
        layers = projection_layers(shape, width)
    return 2 * width + sum(parameter.numel() for parameter in layers.parameters())
