"""One large batch, of which each rank, or each of several micro-batches, holds a part.

A contrastive loss compares every pair with all others. So features and labels of all ranks are gathered, and a step may
be computed from micro-batches with the gradient of the whole.

Shape letters: `B` pairs on this rank, `N` pairs on all ranks, `C` embedding width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.model.precision import full_precision


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
    """Return whether text (or picture) j of all ranks has the label of this rank's picture (or text) i, (B, N).

    False for a sample and itself.
    """
    alone = _world_size() == 1
    same_BN = labels_B[:, None] == (labels_B if alone else _of_all_ranks(labels_B))
    same_BN.diagonal(0 if alone else dist.get_rank() * len(labels_B)).fill_(False)
    return same_BN


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _of_all_ranks(features: Tensor) -> Tensor:
    parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, features.contiguous())
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
    loss: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    *,
    modules: Sequence[torch.nn.Module] = (),
    backward: Callable[[Tensor], None] = torch.autograd.backward,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, Tensor]:
    """Gradients of one large batch from `num_chunks` smaller ones that fit the memory.

    `forward(i)` runs the model on chunk i. Each chunk runs twice: first without gradients, to cache its features. The
    loss over all chunks gives the gradient of every cached feature and of the scales. The second run passes these
    gradients on through the model. Dropout draws the same in both runs. Modules with a `track` flag (running
    statistics) among `modules` count each chunk once, and so do the scales.

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
    losses = loss(leaves)
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
    """Return the cached features as one batch that takes gradients; the scales are those of the first chunk."""
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
    """Return a scalar whose gradient through the chunk at `rows` is the large batch's."""
    terms = []
    for name, value in output.items():
        grad = feature_grads[name]
        if grad is None or (_is_scale(name) and not with_scales):
            continue
        share = grad if _is_scale(name) else grad[rows]
        terms.append((full_precision(value) * full_precision(share)).sum())
    return torch.stack(terms).sum()


def _is_scale(name: str) -> bool:
    """Return whether an output of the model is a parameter of the loss, and no feature of the pairs."""
    return not name.endswith(("_features", "_second_order"))


def _random_state() -> tuple[Tensor, list[Tensor]]:
    device_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), device_states


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
