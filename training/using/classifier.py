"""Probabilities of labels from similarities: the scale that makes them true, and their sums up the ranks.

Pure functions on tensors. The probabilities of N pictures over K labels are softmax(scale x similarity). `fit_scale`
finds the scale under which the right labels of other pictures are the most likely (temperature scaling; the scale is
one over the temperature). `calibration_error` says how far probabilities are from how often they are right.

Shape letters: `N` pictures, `K` labels, `G` taxa of a higher rank.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (temperature by likelihood; expected calibration
error over 15 bins of equal width).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from manifests.contract.tables import TAXON_RANKS
from manifests.names.species import taxon_keys
from training.using.labels import Labels

NUM_BINS = 15
_SCALES = (1e-3, 1e5)  # beyond them: all labels alike, and one label for sure
_HALVINGS = 60


@dataclass(frozen=True)
class Calibration:
    """The fitted scale, and the errors before and after; the error after is of pictures that it was not fitted to.

    The scale is None where the pictures have none: all are right, say, so that the surest one is the likeliest.
    """

    scale: float | None
    num_pictures: int
    accuracy: float
    error_before: float
    error_after: float


def fit_scale(similarity_NK: Tensor, labels_N: Tensor) -> float:
    """Return the scale with the least negative log-likelihood.

    That is convex in the scale, so its slope has one zero.
    """
    similarity_NK = similarity_NK.double()
    right_N = similarity_NK.gather(1, labels_N[:, None])[:, 0]
    low, high = (math.log(scale) for scale in _SCALES)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected_N = ((similarity_NK * math.exp(middle)).softmax(1) * similarity_NK).sum(1)
        if float((expected_N - right_N).mean()) > 0:
            high = middle
        else:
            low = middle
    return math.exp((low + high) / 2)


def calibration_error(probability_NK: Tensor, labels_N: Tensor) -> float:
    """Return expected calibration error of the best label.

    |how sure - how often right|, weighed by the pictures of a bin.
    """
    sure_N, chosen_N = probability_NK.double().max(1)
    right_N = (chosen_N == labels_N).double()
    bins_N = (sure_N * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    gap = torch.zeros(NUM_BINS, dtype=torch.float64).index_add_(0, bins_N, sure_N - right_N)
    return float(gap.abs().sum()) / len(labels_N)


def _within_bounds(scale: float) -> bool:
    low, high = _SCALES
    return low * 1.01 < scale < high / 1.01


def calibrate(similarity_NK: Tensor, labels_N: Tensor, scale_before: float) -> Calibration:
    """Fit the scale on all pictures; the error after comes from two halves, each under the scale of the other."""
    order = torch.randperm(len(labels_N), generator=torch.Generator().manual_seed(0))
    halves = order.tensor_split(2)
    after_NK = torch.empty_like(similarity_NK, dtype=torch.float64)
    for half, other in (halves, halves[::-1]):
        scale = fit_scale(similarity_NK[other], labels_N[other])
        after_NK[half] = (similarity_NK[half].double() * scale).softmax(1)
    before_NK = (similarity_NK.double() * scale_before).softmax(1)
    scale = fit_scale(similarity_NK, labels_N)
    return Calibration(
        scale=scale if _within_bounds(scale) else None,
        num_pictures=len(labels_N),
        accuracy=float((similarity_NK.argmax(1) == labels_N).double().mean()),
        error_before=calibration_error(before_NK, labels_N),
        error_after=calibration_error(after_NK, labels_N),
    )


@dataclass(frozen=True)
class RankSums:
    """The taxa of one rank above the labels, and which of them each label lies in; G stands for none."""

    rank: str
    names: tuple[str, ...]  # (G,)
    taxon_numbers: Tensor  # (K,)

    def best(self, probability_NK: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number of the most likely taxon of each picture, and its probability, each (N,)."""
        sums_NG = probability_NK.new_zeros(len(probability_NK), len(self.names) + 1)
        sums_NG.index_add_(1, self.taxon_numbers, probability_NK)
        probability_N, chosen_N = sums_NG[:, :-1].max(1)
        return chosen_N, probability_N.clamp(max=1.0)


def rank_sums(labels: Labels) -> tuple[RankSums, ...]:
    """Return how probabilities add up, for each rank above the labels, the nearest first."""
    sums = []
    for rank in labels.ranks_above:
        index = TAXON_RANKS.index(rank)
        keys = taxon_keys([(taxon.ranks[0], taxon.ranks[index]) if taxon else ("", "") for taxon in labels.taxa])
        taxa = sorted({key for key in keys if key[1]})
        number = {key: i for i, key in enumerate(taxa)}
        members = torch.tensor([number.get(key, len(taxa)) for key in keys])
        sums.append(RankSums(rank, tuple(name for _, name in taxa), members))
    return tuple(sums)
