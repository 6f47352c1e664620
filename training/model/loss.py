"""The loss of a training: one object, which `loss.form` chooses, and what any loss needs of ranks and of large batches.

A loss says which parameters it needs beside the features, what is minimised and logged, and what held-out pairs have of
it. `LOSSES` names those that are here. Another one is one class in any module that Python can import, which implements
`Loss` and is named in a config: `loss: {form: my_losses:Sigmoid}`.

Shape letters: `B` pairs on this rank, `N` pairs on all ranks, `C` embedding width.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from pydantic import Field, field_validator
from torch import Tensor

from manifests.contract.settings import Settings
from manifests.errors import ConfigError
from manifests.services.packages import load_named
from training.model.dalip import DalipModel
from training.model.precision import full_precision

LOSSES = {
    "sum_of_similarities": "training.model.losses.contrastive:SumOfSimilarities",
    "sum_of_losses": "training.model.losses.contrastive:SumOfLosses",
}


class LossSettings(Settings):
    """What a training minimises.

    `first_order_weight` is alpha: f counts alpha and z 1 - alpha. `logit_scale_max` bounds exp(logit_scale) after each
    step; null leaves it free, as released. These defaults go with preset `dalip`. Under preset `released` a config
    takes `RELEASED_LOSS` for what it leaves out.
    """

    # Small runs (tests/benchmarks/results/training.md), judged by f and z together: the sum of similarities is ahead of
    # the sum of losses by 3.4 points (0.4 to 6.6) in the six seeds that chose it, and by 2.8 (0.1 to 5.9) in five other
    # seeds on pictures from other shops. z alone loses 4.6 points by it (1.7 to 7.7), f alone no measurable amount.
    # Alpha was tried with one seed.
    form: str = "sum_of_similarities"
    """sum_of_similarities: one loss over the sum of both similarities. sum_of_losses: the sum of two losses.
    MODULE:CLASS: a loss of your own."""
    first_order_weight: float = Field(default=0.5, ge=0.0, le=1.0)
    """f counts so much, z the rest."""
    logit_scale_max: float | None = Field(default=100.0, gt=1.0)
    """Bound of logit_scale; null: none."""
    same_label: Literal["negative", "masked", "positive"] = "negative"
    """Picture and text of two samples with one label. negative: pushed apart, as in CLIP; masked: left out; positive: a
    match, and all matches of a row share its target equally."""
    label_field: str = Field(default="text", min_length=1)
    """What equal labels share. text: the text drawn; taxon: the taxon that it names, and of a caption its text; a rank
    such as species; a column of samples.parquet; extra.KEY."""

    @field_validator("form")
    @classmethod
    def _names_a_loss(cls, form: str) -> str:
        if form not in LOSSES and ":" not in form:
            raise ValueError(f"no loss is called '{form}'; there are {', '.join(LOSSES)}, or MODULE:CLASS of yours")
        return form


# The released code's loss, held by a golden value in tests/unit/training/model: do not change a value here.
RELEASED_LOSS: dict[str, Any] = {"form": "sum_of_losses", "first_order_weight": 0.5, "logit_scale_max": None}


def loss_of_preset(settings: LossSettings, preset: str) -> LossSettings:
    """`settings`; under preset `released`, with the released values for what was not given."""
    if preset != "released":
        return settings
    stated = settings.model_dump(include=settings.model_fields_set)
    return LossSettings.model_validate(RELEASED_LOSS | stated)


class Loss(ABC):
    """What a model is trained by.

    `features` are what `DalipModel.forward` returns: `image_features`, `text_features` and `logit_scale`; unless the
    preset is `clip` also `image_second_order` and `text_second_order`; and `logit_bias` where the architecture has one.
    In a training `labels` (B,) may stand beside them, int64: `same_label_pairs` compares them over all ranks.
    """

    takes_labels: ClassVar[bool] = False  # whether it does what `loss.same_label` says

    def __init__(self, settings: LossSettings) -> None:
        self.settings = settings

    def prepare(self, model: DalipModel) -> None:
        """Freeze the parameters that this loss gives no gradient; called before the optimiser is made.

        Here that is the bias: a constant changes no softmax.
        """
        if getattr(model.clip, "logit_bias", None) is not None:
            model.clip.logit_bias.requires_grad_(False)

    @abstractmethod
    def __call__(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of a batch as `loss` and, detached, the terms to log, the same ones on every rank.

        The values are this rank's; their mean over ranks is the whole batch's.
        """

    @abstractmethod
    def of_pairs(self, features: Mapping[str, Tensor], batch_size: int) -> Tensor:
        """The loss of each held-out pair, float64, in batches of consecutive pairs.

        A rest smaller than a batch is left out, unless there is nothing else.
        """

    @abstractmethod
    def chance(self, batch_size: int) -> float:
        """The loss of a model that tells nothing apart."""

    def bound(self, model: DalipModel) -> None:
        """Keep the parameters within their bounds; called after each step of the optimiser."""
        if self.settings.logit_scale_max is not None:
            model.clamp_logit_scale(self.settings.logit_scale_max)


def make_loss(settings: LossSettings) -> Loss:
    """The loss of a config.

    Raises: ConfigError for a module or class that is not there, or is no whole `Loss`.
    """
    kind = load_named("loss.form", LOSSES.get(settings.form, settings.form))
    if not (isinstance(kind, type) and issubclass(kind, Loss)):
        raise ConfigError(f"loss.form: {settings.form} is no class of training.model.loss.Loss")
    if kind.__abstractmethods__:
        raise ConfigError(f"loss.form: {settings.form} must define {', '.join(sorted(kind.__abstractmethods__))}")
    loss = kind(settings)
    if settings.same_label != "negative" and not loss.takes_labels:
        raise ConfigError(
            f"loss.same_label: {settings.same_label} has no effect on loss.form {settings.form}, which does not set "
            "takes_labels; set it to negative, or let the loss read features['labels']"
        )
    return loss


def one_vector(f_NC: Tensor, z_NC: Tensor | None, first_order_weight: float) -> Tensor:
    """f and z as one vector, whose inner products are the weighted sum of both similarities; f where there is no z."""
    if z_NC is None:
        return f_NC
    return torch.cat([first_order_weight**0.5 * f_NC, (1 - first_order_weight) ** 0.5 * z_NC], dim=1)


def gather_with_gradient(features_BC: Tensor) -> Tensor:
    """Features of all ranks in rank order, (N, C); the gradient of every rank flows back to its owner.

    Without a process group, or alone in it, this is `features_BC` itself.
    """
    if _world_size() == 1:
        return features_BC
    apply: Any = _Gather.apply  # torch leaves it untyped
    gathered: Tensor = apply(features_BC)
    return gathered


def same_label_pairs(labels_B: Tensor) -> Tensor:
    """Whether text (or picture) j of all ranks has the label of this rank's picture (or text) i, (B, N).

    False for a sample and itself.
    """
    alone = _world_size() == 1
    same_BN = labels_B[:, None] == (labels_B if alone else _of_all_ranks(labels_B))
    same_BN.diagonal(0 if alone else dist.get_rank() * len(labels_B)).fill_(False)
    return same_BN


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _of_all_ranks(own: Tensor) -> Tensor:
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """Forward: all_gather. Backward: the sum over ranks of the gradients of this rank's rows.

    torch's own (torch.distributed.nn) is deprecated since 2.13, and what replaces it is private and not in 2.7.
    """

    @staticmethod
    def forward(ctx: Any, features_BC: Tensor) -> Tensor:
        return _of_all_ranks(features_BC)

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
    loss: Loss,
    *,
    beside: Mapping[str, Tensor] | None = None,
    modules: Sequence[torch.nn.Module] = (),
    backward: Callable[[Tensor], None] = torch.autograd.backward,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, Tensor]:
    """Gradients of one large batch from `num_chunks` smaller ones that fit the memory.

    `forward(i)` runs the model on chunk i. Each chunk runs twice: first without gradients, to cache its features. The
    loss over all chunks gives the gradient of every cached feature and of the scales. The second run passes these
    gradients on through the model. Dropout draws the same in both runs. Modules with a `track` flag (running
    statistics) among `modules` count each chunk once, and so do the scales. `beside` goes to the loss with the features
    and takes no gradient, as the labels of all chunks.

    `backward` takes the surrogate loss of a chunk: with a gradient scaler, pass the scaler's. `no_sync` is the context
    for all chunks but the last (DistributedDataParallel.no_sync). Returns what the loss returns, detached.

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
    losses = loss({**leaves, **(beside or {})})
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
                backward(_surrogate(output, feature_grads, rows, with_scales=last))
    finally:
        for part in trackers:
            part.track = True
        _set_random_state(end_state)
    return {name: value.detach() for name, value in losses.items()}


def _as_leaves(chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The cached features as one batch that takes gradients; the scales are those of the first chunk."""
    return {
        name: (value if _is_scale(name) else torch.cat([chunk[name] for chunk in chunks])).detach().requires_grad_()
        for name, value in chunks[0].items()
    }


def _surrogate(
    output: Mapping[str, Tensor],
    feature_grads: Mapping[str, Tensor | None],
    rows: slice,
    *,
    with_scales: bool,
) -> Tensor:
    """A scalar whose gradient through the chunk at `rows` is the large batch's."""
    terms = []
    for name, value in output.items():
        grad = feature_grads[name]
        if grad is None or (_is_scale(name) and not with_scales):
            continue
        share = grad if _is_scale(name) else grad[rows]
        terms.append((full_precision(value) * full_precision(share)).sum())
    return torch.stack(terms).sum()


def _is_scale(name: str) -> bool:
    """Whether an output of the model is a parameter of the loss, and no feature."""
    return name.startswith("logit_")


def _random_state() -> tuple[Tensor, list[Tensor]]:
    device_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), device_states


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
