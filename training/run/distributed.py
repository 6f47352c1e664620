"""Several processes as one: joining them to a group, work for rank 0 alone, means and lists over ranks.

Reads the environment that torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK). Without it there is one process, and every
function here costs nothing. Gives up with ConfigError on a device that is not there, and on processes of unlike runs.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from manifests.contract.settings import differences
from manifests.errors import ConfigError, PlantMixError
from training.model.device import pick_device

T = TypeVar("T")

# The longest that rank 0 may work alone while the others wait, such as for the upload of a checkpoint.
GROUP_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class Ranks:
    """This process's place among all: rank 0 writes files and prints."""

    rank: int
    world_size: int
    device: torch.device
    share: tuple[int, int] = (0, 1)
    """Its number among the processes that divide the files of this machine, and how many they are."""

    @property
    def is_main(self) -> bool:
        """True in the one process that writes."""
        return self.rank == 0


def this_rank(device: str) -> Ranks:
    """Return this process among those that torchrun started, with its device; it has not joined them yet.

    Raises: ConfigError for a GPU that is not there.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    # A launcher shows each process all GPUs of the machine, or only its own.
    picked = pick_device(device, local)
    if picked.type == "cuda":
        torch.cuda.set_device(picked)
    # Without torchrun nobody says how many processes a machine has: then all processes divide the files.
    on_machine = os.environ.get("LOCAL_WORLD_SIZE")
    return Ranks(rank, world_size, picked, (local, int(on_machine)) if on_machine else (rank, world_size))


def join_ranks(ranks: Ranks) -> None:
    """Join the process group, if there are several processes.

    Work that takes long is done before: from here on processes wait for each other, for `GROUP_TIMEOUT` at most.
    """
    if ranks.world_size > 1 and not dist.is_initialized():
        backend = "nccl" if ranks.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=GROUP_TIMEOUT, **_meeting_place())


def _meeting_place() -> dict[str, Any]:
    """Where the processes find each other, when torchrun on one machine has started them again; else torch's own.

    Torchrun with a fixed address keeps its store, and in it the addresses of the processes that were lost (torch 2.13).
    On several machines (c10d) each start has a new store, and the machines may count restarts differently.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {}
    store, rank, world_size = next(rendezvous("env://", timeout=GROUP_TIMEOUT))
    return {"store": PrefixStore(f"restart-{restarts}", store), "rank": rank, "world_size": world_size}


def stop_ranks(ranks: Ranks) -> None:
    """Leave the process group; nothing may refer to it any more.

    Freeing a DistributedDataParallel after its group hangs (gloo, torch 2.13), so garbage is collected first.
    """
    if ranks.world_size > 1 and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def wrap_model(model: nn.Module, ranks: Ranks, *, compiled: bool) -> Any:
    """Return the model as each process calls it: gradients are averaged over ranks in the backward pass."""
    called: Any = torch.compile(model) if compiled else model
    if ranks.world_size == 1:
        return called
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(called, device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None)


def on_main(ranks: Ranks, work: Callable[[], T]) -> T:
    """Run `work` on rank 0 alone and return its result, or raise its error, on every rank."""
    if ranks.world_size == 1:
        return work()
    outcome: list[Any] = [attempt(work) if ranks.is_main else None]
    dist.broadcast_object_list(outcome, src=0, device=ranks.device)
    if isinstance(outcome[0], PlantMixError):
        raise outcome[0]
    result: T = outcome[0]
    return result


def attempt(work: Callable[[], T]) -> T | PlantMixError:
    """Return what `work` returns, or its error, so that this process can tell the others before it ends."""
    try:
        return work()
    except PlantMixError as error:
        return error


def agree(ranks: Ranks, outcome: T | PlantMixError) -> T:
    """Return this rank's outcome of an `attempt`, if all ranks were successful.

    Else the first error, raised on every rank.
    """
    errors = gather_from_ranks(outcome if isinstance(outcome, PlantMixError) else None, ranks)
    for error in errors:
        if error is not None:
            raise error
    return cast(T, outcome)


def mean_over_ranks(values: list[float], ranks: Ranks) -> list[float]:
    """Each number averaged over all ranks; a flag (0 or 1) is above 0 when any rank set it."""
    if ranks.world_size == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64 if ranks.device.type == "cpu" else torch.float32)
    tensor = tensor.to(ranks.device)
    dist.all_reduce(tensor)
    averaged: list[float] = (tensor / ranks.world_size).tolist()
    return averaged


def gather_from_ranks(value: T, ranks: Ranks) -> list[T]:
    """Return the values of all ranks, in rank order, on every rank; they are pickled, so keep them small."""
    if ranks.world_size == 1:
        return [value]
    parts: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(parts, value)
    return parts


def gather_on_main(value: T, ranks: Ranks) -> list[T]:
    """Return the values of all ranks, in rank order, on rank 0; an empty list elsewhere."""
    if ranks.world_size == 1:
        return [value]
    parts: list[Any] = [None] * ranks.world_size if ranks.is_main else []
    dist.gather_object(value, parts if ranks.is_main else None)
    return parts


def require_same(values: dict[str, Any], ranks: Ranks) -> None:
    """See that all processes train the same run; `values` are all that shapes it.

    Raises: ConfigError on every rank, with the first one that differs and what differs.
    """
    first, *others = gather_from_ranks(values, ranks)
    for rank, other in enumerate(others, 1):
        if changes := differences(first, other):
            raise ConfigError(
                f"rank {rank} would train another run than rank 0 ({'; '.join(changes[:3])}); give every process the "
                "same config and the same release"
            )
