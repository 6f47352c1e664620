"""The contrastive losses over first- and second-order features: InfoNCE, as two forms of one sum.

Every rank computes the loss of its own rows against the features of all ranks, which are gathered with their gradient.
The mean over ranks, which data parallelism takes anyway, is the loss and the gradient of the whole batch. Every rank
needs the same number of pairs.

Where there is a column of labels, `loss.same_label` says what the pairs S(i) of row i count that are not its own and
share its label. With s the logits of a row, in either direction:

    negative   log sum_j exp(s_j) - s_i
    masked     log sum_{j not in S(i)} exp(s_j) - s_i
    positive   log sum_j exp(s_j) - mean over k in {i} and S(i) of s_k

`masked` is the elimination of Huynh et al. 2022, "Boosting Contrastive Self-Supervised Learning with False Negative
Cancellation". `positive` is the loss of Yang et al. 2022, "Unified Contrastive Learning in Image-Text-Label Space"
(UniCL), which Khosla et al. 2020 (SupCon) call L_out: cross-entropy with a target spread evenly over all matches.

Source: `SumOfLosses` is the released code's, alpha InfoNCE(f) + (1 - alpha) InfoNCE(z). `SumOfSimilarities` is the
paper's figure, InfoNCE of alpha Sim(f) + (1 - alpha) Sim(z). InfoNCE: Radford et al. 2021, "Learning Transferable
Visual Models From Natural Language Supervision".

Shape letters: `B` pairs on this rank, `N` pairs on all ranks, `C` embedding width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from training.model.dalip import one_vector
from training.model.large_batches import gather_with_gradient, same_label_pairs
from training.model.precision import full_precision, without_autocast
from training.tasks.task import LABELS, Task, Values

Logits = tuple[Tensor, Tensor]  # (B, N): this rank's images to all texts, this rank's texts to all images
Order = tuple[Logits, Tensor]  # and the InfoNCE of this order alone

_BLOCK_PAIRS = 1024  # side of the largest block of logits of held-out pairs: 8 MiB in float64


class Contrastive(Task):
    """The base of both forms. Logs the InfoNCE of each order alone: `first_order_loss` and `second_order_loss`."""

    takes_labels = True

    def __call__(self, features: Values, columns: Values) -> dict[str, Tensor]:
        """Return the terms of the loss. The second order is left out where there are no features of it.

        With labels also the share of pairs of two samples that have one label: `same_label_share`.
        """
        same_BN, terms = None, {}
        if LABELS in columns:
            same_BN = same_label_pairs(columns[LABELS])
            num_others = max(1, same_BN.shape[1] - 1)
            terms = {"same_label_share": same_BN.sum() / (len(same_BN) * num_others)}
            same_BN = same_BN if self.settings.same_label != "negative" else None
        first = _logits(features["image_features"], features["text_features"], features["logit_scale"])
        first_loss = self.cross_entropy(first, same_BN)
        if "image_second_order" not in features:
            return {"loss": first_loss, "first_order_loss": first_loss.detach()} | terms
        second = _logits(features["image_second_order"], features["text_second_order"], features["logit_scale"])
        second_loss = self.cross_entropy(second, same_BN)
        loss = self.joined((first, first_loss), (second, second_loss), same_BN)
        terms = {"first_order_loss": first_loss.detach(), "second_order_loss": second_loss.detach()} | terms
        return {"loss": loss} | terms

    @abstractmethod
    def joined(self, first: Order, second: Order, same_BN: Tensor | None) -> Tensor:
        """Return the loss, from the logits and the InfoNCE of each order."""

    def note_on(self, losses: Mapping[str, float]) -> str | None:
        """Return the note on a batch that `masked` leaves no negatives."""
        if self.settings.same_label != "masked" or losses["same_label_share"] < 1:
            return None
        return (
            f"loss.same_label: masked: all pairs of a batch share one label of '{self.settings.label_field}', so the "
            "loss is 0 and nothing is learned from it; name another loss.label_field, or mix the batches"
        )

    def chance(self, batch_size: int) -> float:
        """Return the loss of equal similarities. Where pairs are masked it is lower; that is not counted."""
        return math.log(batch_size)

    def cross_entropy(self, logits: Logits, same_BN: Tensor | None) -> Tensor:
        """Mean over both directions. The columns of lower ranks come first; after them, row i belongs to column i."""
        image_BN, text_BN = logits
        rows = image_BN.shape[0]
        first = dist.get_rank() * rows if image_BN.shape[1] != rows else 0
        target: Tensor = torch.arange(first, first + rows, device=image_BN.device)
        with without_autocast(image_BN):
            image_BN, text_BN = full_precision(image_BN), full_precision(text_BN)
            if same_BN is not None and self.settings.same_label == "masked":
                image_BN, text_BN = (part.masked_fill(same_BN, -torch.inf) for part in (image_BN, text_BN))
            elif same_BN is not None:
                target = same_BN.to(image_BN.dtype)
                target.diagonal(first).fill_(1)
                target /= target.sum(dim=1, keepdim=True)
            return (functional.cross_entropy(image_BN, target) + functional.cross_entropy(text_BN, target)) / 2

    def of_two_sides(self, image_NC: Tensor, text_NC: Tensor, scale: Tensor, columns: Values, size: int) -> Tensor:
        """InfoNCE of each held-out pair, in batches of `size`."""
        labels_N = columns.get(LABELS) if self.settings.same_label != "negative" else None
        return _of_pairs(image_NC, text_NC, scale, size, labels_N, masked=self.settings.same_label == "masked")


class SumOfLosses(Contrastive):
    """Each order is compared for itself."""

    def joined(self, first: Order, second: Order, same_BN: Tensor | None) -> Tensor:
        """Return the weighted sum of both losses."""
        alpha = self.settings.first_order_weight
        return alpha * first[1] + (1 - alpha) * second[1]

    def of_pairs(self, features: Values, columns: Values, batch_size: int) -> Tensor:
        """Return the weighted sum of both losses."""
        alpha, rest = self.settings.first_order_weight, (features["logit_scale"], columns, batch_size)
        first = self.of_two_sides(features["image_features"], features["text_features"], *rest)
        if "image_second_order" not in features:
            return first
        second = self.of_two_sides(features["image_second_order"], features["text_second_order"], *rest)
        return alpha * first + (1 - alpha) * second


class SumOfSimilarities(Contrastive):
    """The similarities of both orders are added up, then compared."""

    def joined(self, first: Order, second: Order, same_BN: Tensor | None) -> Tensor:
        """Return the loss of the weighted sum."""
        alpha = self.settings.first_order_weight
        there, back = (alpha * one + (1 - alpha) * two for one, two in zip(first[0], second[0], strict=True))
        return self.cross_entropy((there, back), same_BN)

    def of_pairs(self, features: Values, columns: Values, batch_size: int) -> Tensor:
        """Return the loss of one vector a thing, whose inner products are the weighted sum."""
        image, text = (
            one_vector(
                features[f"{side}_features"], features.get(f"{side}_second_order"), self.settings.first_order_weight
            )
            for side in ("image", "text")
        )
        return self.of_two_sides(image, text, features["logit_scale"], columns, batch_size)


def _logits(image_BC: Tensor, text_BC: Tensor, scale: Tensor) -> Logits:
    """Scaled similarities.

    In full precision, whatever autocast says. In bfloat16 the gradient of the features is off by 0.5 % at a scale of
    14 and by 8 % at 100 (256 pairs, 512 wide).
    """
    with without_autocast(image_BC):
        image_BC, text_BC, scale = full_precision(image_BC), full_precision(text_BC), full_precision(scale)
        all_text_NC, all_image_NC = gather_with_gradient(text_BC), gather_with_gradient(image_BC)
        return scale * image_BC @ all_text_NC.t(), scale * text_BC @ all_image_NC.t()


def _of_pairs(
    image_NC: Tensor, text_NC: Tensor, scale: Tensor, batch_size: int, labels_N: Tensor | None, *, masked: bool
) -> Tensor:
    """InfoNCE of each pair, mean of both directions, in float64; with labels those of one are masked, or matches.

    Logits are made in blocks, so that memory does not grow with the batch. Sums over rows and columns of exp(logits),
    kept as logarithms, grow block by block.
    """
    size = min(batch_size, len(image_NC))
    parts = []
    for start in range(0, len(image_NC) - size + 1, size):
        image, text = image_NC[start : start + size], text_NC[start : start + size]
        blocks = [slice(i, min(i + _BLOCK_PAIRS, size)) for i in range(0, size, _BLOCK_PAIRS)]
        to_text, to_image = (torch.full((size,), -torch.inf, dtype=torch.float64) for _ in range(2))
        # Of the matches of a pair: the sum of their logits in both directions, and their number.
        matched, num_matches = torch.zeros(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64)
        for rows in blocks:
            for columns in blocks:
                logits = (scale * image[rows] @ text[columns].t()).double()
                if rows == columns:
                    matched[rows] += 2 * logits.diagonal()
                if labels_N is not None:
                    labels = labels_N[start : start + size]
                    same = labels[rows, None] == labels[columns]
                    if rows == columns:
                        same.fill_diagonal_(False)
                    if masked:
                        logits.masked_fill_(same, -torch.inf)
                    else:
                        matched[rows] += (logits * same).sum(1)
                        matched[columns] += (logits * same).sum(0)
                        num_matches[rows] += same.sum(1)
                to_text[rows] = torch.logaddexp(to_text[rows], logits.logsumexp(1))
                to_image[columns] = torch.logaddexp(to_image[columns], logits.logsumexp(0))
        parts.append((to_text + to_image - matched / num_matches) / 2)
    return torch.cat(parts)
