"""The state of a run: model, optimiser, sample order and counters; how they are made, saved and restored.

`save` writes a checkpoint. The same settings and seed make the same state in every process. Gives up with ConfigError
on settings that do not fit together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch

from manifests.errors import ConfigError
from training.config import TrainSettings
from training.data import loader
from training.data.columns import BatchColumns
from training.data.sampling import BatchPlan, SampleOrder, mix_seed
from training.data.shards import SamplePool
from training.model.adapters import Side, add_adapters
from training.model.build import build_model
from training.model.dalip import DalipModel
from training.model.weights import set_preprocessing
from training.record.checkpoint import begin_with
from training.record.run_folder import RunFolder
from training.run.distributed import Ranks, on_main, wrap_model
from training.run.optimiser import build_optimiser
from training.tasks.task import Task, make_task, open_columns


@dataclass
class Progress:
    """The counters of a run; a checkpoint holds them beside the weights."""

    step: int = 0  # steps done
    seconds: float = 0.0  # spent training, before and after interruptions
    wait_seconds: float = 0.0  # of those, spent waiting for data
    corrupt: dict[int, str] = field(default_factory=dict)  # row -> reason, over all ranks
    skipped: int = 0  # latest steps in a row that fp16 left out


@dataclass(frozen=True)
class Trainer:
    """The objects that the steps of a run work with."""

    settings: TrainSettings
    ranks: Ranks
    pool: SamplePool
    order: SampleOrder
    plan: BatchPlan
    model: DalipModel
    wrapped: Any  # the model as it is called: compiled, or inside DistributedDataParallel
    task: Task
    columns: BatchColumns  # that the task needs
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    num_steps: int


def build_trainer(settings: TrainSettings, pool: SamplePool, ranks: Ranks, *, resumes: bool = False) -> Trainer:
    """Model, optimiser and order of samples for one process; the same initial weights in each.

    With `resumes` the pretrained weights are not read, because a checkpoint will be restored.

    Raises: ConfigError.
    """
    per_rank, rest = divmod(settings.data.batch_size, ranks.world_size * settings.compute.accumulate)
    if rest or per_rank < 1:
        raise ConfigError(
            f"data.batch_size {settings.data.batch_size} does not divide among {ranks.world_size} processes x "
            f"{settings.compute.accumulate} micro-batches"
        )
    order = loader.build_order(pool, settings.data, settings.release, settings.seed)
    num_samples = sum(len(part.rows) for part in order.strata)
    if settings.data.batch_size > num_samples and not resumes:  # earlier versions began such runs
        raise ConfigError(
            f"data.batch_size {settings.data.batch_size:,} is above the {num_samples:,} samples of split "
            f"'{settings.data.split}': a batch would hold samples more than once, and compare them with themselves; "
            f"set it to {num_samples:,} or less"
        )
    torch.manual_seed(mix_seed(settings.seed, 0x696E6974) >> 1)
    task = make_task(settings.loss, settings.data.cache_dir)
    without, text_alone = settings.model.model_copy(update={"pretrained": None}), task.takes_text_tower
    chosen = without if resumes else begin_with(settings.model, may_be_text_alone=text_alone)
    model = build_model(chosen, may_be_text_alone=text_alone)
    _set_up_towers(model, settings)
    model.terms.update(task.terms(model))
    model.to(ranks.device)
    task.prepare(model)
    optimiser = build_optimiser(model, settings.optimiser)
    model.train()
    return Trainer(
        settings=settings,
        ranks=ranks,
        pool=pool,
        order=order,
        plan=BatchPlan(per_rank, ranks.world_size, ranks.rank),
        model=model,
        wrapped=wrap_model(model, ranks, compiled=settings.compute.compile),
        task=task,
        columns=open_columns(task, settings, pool, order),
        optimiser=optimiser,
        scaler=torch.amp.GradScaler(ranks.device.type, enabled=settings.compute.precision == "fp16"),
        num_steps=count_steps(settings, order.epoch_size),
    )


def count_steps(settings: TrainSettings, epoch_size: int) -> int:
    """Optimiser steps of the run; the last one may reach into the next epoch, so that its batch is full."""
    if settings.schedule.steps is not None:
        return settings.schedule.steps
    return max(1, math.ceil((settings.schedule.epochs or 0.0) * epoch_size / settings.data.batch_size))


def save(trainer: Trainer, progress: Progress, run: RunFolder) -> None:
    """Write a checkpoint; every rank has to call this, rank 0 writes."""
    content = {
        "state_dict": dict(trainer.model.state_dict()),
        "optimiser": trainer.optimiser.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "preprocess": dict(trainer.model.clip.visual.preprocess_cfg),
        "seconds": progress.seconds,
        "wait_seconds": progress.wait_seconds,
        "corrupt": dict(progress.corrupt),
        "skipped": progress.skipped,
    }
    if trainer.columns.outside:
        content["outside"] = {name: values.content for name, values in trainer.columns.outside.items()}
    on_main(trainer.ranks, lambda: run.save(progress.step, content))


def restore(trainer: Trainer, content: dict[str, Any], changed: Sequence[str] = ()) -> Progress:
    """Take weights and optimiser from a checkpoint; returns the counters.

    The optimiser takes its moments from there and its hyperparameters from the config. `changed` names the settings
    that differ from the run's, for messages.

    Raises: ConfigError when the weights or the optimiser's state do not fit.
    """
    _check_fit(trainer, content, changed)
    _check_outside(trainer, content, changed)
    trainer.model.load_state_dict(content["state_dict"])
    set_preprocessing(trainer.model, content["preprocess"])
    configured = [{k: v for k, v in group.items() if k != "params"} for group in trainer.optimiser.param_groups]
    trainer.optimiser.load_state_dict(content["optimiser"])
    for group, values in zip(trainer.optimiser.param_groups, configured, strict=True):
        group.update(values)
    if content["scaler"]:  # empty unless the run was in fp16
        trainer.scaler.load_state_dict(content["scaler"])
    return Progress(
        content["step"],
        content["seconds"],
        content["wait_seconds"],
        dict(content["corrupt"]),
        content.get("skipped", 0),
    )


def _check_fit(trainer: Trainer, content: dict[str, Any], changed: Sequence[str]) -> None:
    own, stored = trainer.model.state_dict(), content["state_dict"]
    groups = content["optimiser"]["param_groups"]
    trained = [(group["role"], len(group["params"])) for group in trainer.optimiser.param_groups]
    fits = own.keys() == stored.keys() and all(own[name].shape == stored[name].shape for name in own)
    if fits and trained == [(group["role"], len(group["params"])) for group in groups]:
        return
    listed = "; ".join(text for text in changed if text.startswith(("model.", "lock.", "adapters")))
    raise ConfigError(
        f"a resume cannot change {listed or 'the model'}: the checkpoint's weights or optimiser state do not fit. "
        "Set it back, or choose another --output and start from the old weights with model.pretrained"
    )


def _check_outside(trainer: Trainer, content: dict[str, Any], changed: Sequence[str]) -> None:
    for name, values in trainer.columns.outside.items():
        if not changed and content.get("outside", {}).get(name) != values.content:
            raise ConfigError(
                f"a resume cannot change the files behind column '{name}', and they hold other values now "
                f"({values.note}); put them back, or choose another --output and start from the old weights with "
                "model.pretrained"
            )


def _set_up_towers(model: DalipModel, settings: TrainSettings) -> None:
    """Lock or adapt towers and spare their memory as the config says.

    Raises: ConfigError for towers that cannot be.
    """
    lock, adapters = settings.lock, settings.adapters
    for side in get_args(Side):
        is_locked, num_blocks = getattr(lock, f"lock_{side}"), getattr(lock, f"{side}_blocks")
        if is_locked or num_blocks is not None:
            model.lock_tower(side, num_blocks)
        elif adapters is not None:
            model.lock_tower(side)
            add_adapters(model.clip, side, adapters.rank, adapters.layers)
    if settings.compute.grad_checkpointing:
        model.clip.set_grad_checkpointing()
