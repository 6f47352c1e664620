"""The contrastive loss over first- and second-order features, across ranks and over accumulated batches.

Takes what `DalipModel.forward` returns. Every rank computes the loss of its own rows against the features of all ranks,
which are gathered with their gradient. The mean over ranks, which data parallelism takes anyway, is the loss and the
gradient of the whole batch. Every rank needs the same number of pairs.

Shape letters: `B` pairs on this rank, `N` pairs on all ranks, `C` embedding width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from manifests.settings import Settings
from training.model.precision import full_precision, without_autocast

LossForm = Literal["sum_of_losses", "sum_of_similarities"]

_SCALE = "logit_scale"  # the one output of the model that is no feature


class LossSettings(Settings):
    """The `loss` section of a training config.

    `first_order_weight` is alpha: f counts alpha and z 1 - alpha. `logit_scale_max` bounds exp(logit_scale) after each
    step; null leaves it free, as released. These defaults go with preset `dalip`. Under preset `released` a config
    takes `RELEASED_LOSS` for what it leaves out.
    """

    # Small runs (tests/benchmarks/results/learning.md), judged by f and z together: the sum of similarities is ahead of
    # the sum of losses by 3.4 points (0.4 to 6.6) in the six seeds that chose it, and by 2.8 (0.1 to 5.9) in five other
    # seeds on pictures from other shops. z alone loses 4.6 points by it (1.7 to 7.7), f alone no measurable amount.
    # Alpha was tried with one seed.
    form: LossForm = "sum_of_similarities"
    """One loss over the sum of both similarities, or the sum of two losses."""
    first_order_weight: float = Field(default=0.5, ge=0.0, le=1.0)
    """f counts so much, z the rest."""
    logit_scale_max: float | None = Field(default=100.0, gt=1.0)
    """Bound of logit_scale; null: none."""


# The released code's loss, held by a golden value in tests/unit/training/model: do not change a value here.
RELEASED_LOSS: dict[str, Any] = {"form": "sum_of_losses", "first_order_weight": 0.5, "logit_scale_max": None}


def loss_of_preset(settings: LossSettings, preset: str) -> LossSettings:
    """`settings`; under preset `released`, with the released values for what was not given."""
    if preset != "released":
        return settings
    given = settings.model_dump(include=settings.model_fields_set)
    return LossSettings.model_validate(RELEASED_LOSS | given)


def contrastive_loss(features: Mapping[str, Tensor], settings: LossSettings) -> dict[str, Tensor]:
    """The loss of a batch, from the output of `DalipModel.forward`.

    Returns `loss` and, for the log, the InfoNCE of each order alone: `first_order_loss` and, where there are
    second-order features, `second_order_loss`. The values are this rank's; their mean over ranks is the whole batch's.

    Source: `sum_of_losses` is the released code's, alpha InfoNCE(f) + (1 - alpha) InfoNCE(z). `sum_of_similarities`
    is the paper's figure, InfoNCE of alpha Sim(f) + (1 - alpha) Sim(z). InfoNCE: Radford et al. 2021, "Learning
    Transferable Visual Models From Natural Language Supervision".
    """
    first = _logits(features["image_features"], features["text_features"], features["logit_scale"])
    first_loss = _cross_entropy(first)
    if "image_second_order" not in features:
        return {"loss": first_loss, "first_order_loss": first_loss.detach()}
    second = _logits(features["image_second_order"], features["text_second_order"], features["logit_scale"])
    alpha = settings.first_order_weight
    second_loss = _cross_entropy(second)
    if settings.form == "sum_of_losses":
        loss = alpha * first_loss + (1 - alpha) * second_loss
    else:
        loss = _cross_entropy((alpha * first[0] + (1 - alpha) * second[0], alpha * first[1] + (1 - alpha) * second[1]))
    return {"loss": loss, "first_order_loss": first_loss.detach(), "second_order_loss": second_loss.detach()}


def gather_with_gradient(features_BC: Tensor) -> Tensor:
    """Features of all ranks in rank order, (N, C); the gradient of every rank flows back to its owner.

    Without a process group, or alone in it, this is `features_BC` itself.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features_BC
    apply: Any = _Gather.apply  # torch leaves it untyped
    gathered: Tensor = apply(features_BC)
    return gathered


class _Gather(torch.autograd.Function):
    """Forward: all_gather. Backward: the sum over ranks of the gradients of this rank's rows.

    torch's own (torch.distributed.nn) is deprecated since 2.13, and what replaces it is private and not in 2.7.
    """

    @staticmethod
    def forward(ctx: Any, features_BC: Tensor) -> Tensor:
        parts = [torch.empty_like(features_BC) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features_BC.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad_NC = grads[0].contiguous()
        dist.all_reduce(grad_NC)
        rows = grad_NC.shape[0] // dist.get_world_size()
        start = dist.get_rank() * rows
        return grad_NC[start : start + rows]


def accumulate_backward(
    forward: Callable[[int], Mapping[str, Tensor]],
    num_chunks: int,
    settings: LossSettings,
    *,
    modules: Sequence[torch.nn.Module] = (),
    backward: Callable[[Tensor], None] = torch.autograd.backward,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, Tensor]:
    """Gradients of one large batch from `num_chunks` smaller ones that fit the memory.

    `forward(i)` runs the model on chunk i. Each chunk runs twice: first without gradients, to cache its features. The
    loss over all chunks gives the gradient of every cached feature and of the scale. The second run passes these
    gradients on through the model. Dropout draws the same in both runs. Modules with a `track` flag (running
    statistics) among `modules` count each chunk once, and so does the scale.

    `backward` takes the surrogate loss of a chunk: with a gradient scaler, pass the scaler's. `no_sync` is the context
    for all chunks but the last (DistributedDataParallel.no_sync). Returns what `contrastive_loss` returns, detached.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
    """
    trackers: list[Any] = [part for module in modules for part in module.modules() if hasattr(part, "track")]
    states, chunks = [], []
    for index in range(num_chunks):
        states.append(_random_state())
        with torch.no_grad():
            chunks.append(dict(forward(index)))
    bounds = [0, *itertools.accumulate(len(chunk["image_features"]) for chunk in chunks)]
    leaves = _as_leaves(chunks)
    losses = contrastive_loss(leaves, settings)
    grads = torch.autograd.grad(losses["loss"], list(leaves.values()), allow_unused=True)
    feature_grads = dict(zip(leaves, grads, strict=True))
    end_state = _random_state()
    try:
        for part in trackers:
            part.track = False
        for index in range(num_chunks):
            last = index == num_chunks - 1
            _set_random_state(states[index])
            with nullcontext() if last else no_sync():
                output = forward(index)
                rows = slice(bounds[index], bounds[index + 1])
                backward(_surrogate(output, feature_grads, rows, with_scale=last))
    finally:
        for part in trackers:
            part.track = True
        _set_random_state(end_state)
    return {name: value.detach() for name, value in losses.items()}


def _logits(image_BC: Tensor, text_BC: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled similarities (B, N): this rank's images to all texts, this rank's texts to all images.

    In full precision, whatever autocast says. In bfloat16 the gradient of the features is off by 0.5 % at a scale of
    14 and by 8 % at 100 (256 pairs, 512 wide).
    """
    with without_autocast(image_BC):
        image_BC, text_BC, scale = full_precision(image_BC), full_precision(text_BC), full_precision(scale)
        all_text_NC, all_image_NC = gather_with_gradient(text_BC), gather_with_gradient(image_BC)
        return scale * image_BC @ all_text_NC.t(), scale * text_BC @ all_image_NC.t()


def _cross_entropy(logits: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over both directions. The columns of lower ranks come first; after them, row i belongs to column i."""
    image_BN, text_BN = logits
    rows = image_BN.shape[0]
    first = dist.get_rank() * rows if image_BN.shape[1] != rows else 0
    target_B = torch.arange(first, first + rows, device=image_BN.device)
    with without_autocast(image_BN):
        image_BN, text_BN = full_precision(image_BN), full_precision(text_BN)
        return (functional.cross_entropy(image_BN, target_B) + functional.cross_entropy(text_BN, target_B)) / 2


def _as_leaves(chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The cached features as one batch that takes gradients; the scale is that of the first chunk."""
    return {
        name: (value if name == _SCALE else torch.cat([chunk[name] for chunk in chunks])).detach().requires_grad_()
        for name, value in chunks[0].items()
    }


def _surrogate(
    output: Mapping[str, Tensor],
    feature_grads: Mapping[str, Tensor | None],
    rows: slice,
    *,
    with_scale: bool,
) -> Tensor:
    """A scalar whose gradient through the chunk at `rows` is the large batch's."""
    terms = []
    for name, value in output.items():
        grad = feature_grads[name]
        if grad is None or (name == _SCALE and not with_scale):
            continue
        share = grad if name == _SCALE else grad[rows]
        terms.append((full_precision(value) * full_precision(share)).sum())
    return torch.stack(terms).sum()


def _random_state() -> tuple[Tensor, list[Tensor]]:
    device_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), device_states


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
