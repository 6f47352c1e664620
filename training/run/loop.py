"""One training run from start to end; `train` and `run_steps` read top to bottom.

Reads a release and a config; writes the run's folder (`training.record.run_folder` names the files). The same config,
release and number of ranks give the same run, interrupted or not, on a CPU bit for bit. SIGTERM, SIGUSR1 and Ctrl-C
stop it with a checkpoint. A loss or gradient that is not finite stops it without one, and its batch is written to a
file.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from manifests.errors import ConfigError, RunError
from manifests.services.scheduling import STOP_SIGNALS, handling
from manifests.stores.storage import hash_file
from training.config import LINE_SECONDS, TrainSettings
from training.data import loader
from training.data.columns import txt_columns
from training.data.images import model_input
from training.data.sampling import mix_seed
from training.data.shards import SamplePool, open_pool
from training.model.adapters import merged
from training.model.large_batches import accumulate_backward
from training.model.precision import autocast
from training.record import tracking
from training.record.checkpoint import lock_folder, save_model
from training.record.log import LOG_FILE, RunLog, read_log
from training.record.run_folder import RunFolder, RunState
from training.run import failures
from training.run.distributed import (
    Ranks,
    agree,
    attempt,
    join_ranks,
    mean_over_ranks,
    on_main,
    require_same,
    stop_ranks,
    this_rank,
)
from training.run.memory import memory_of
from training.run.optimiser import clip_gradients, lr_ratio_at, set_lr
from training.run.state import Progress, Trainer, build_trainer, restore, save
from training.run.stopping import StoppedError, stop_event
from training.run.validation import validate
from training.tasks.task import KIND, Task, losses_of, make_task, needed_columns

_LOST_LOCK_SECONDS = 120.0  # NFS gives up the locks of a lost machine after 90 s (lease time of Linux's server)


def train(
    settings: TrainSettings,
    *,
    resume: bool = True,
    allow_changed: bool = False,
    pool: SamplePool | None = None,
) -> tuple[dict[str, Any], bool]:
    """Train as configured; returns the summary, and whether the run was finished before and is reused.

    `resume` False trains anew and replaces what the folder holds. `allow_changed` goes on from a checkpoint of another
    config or release. `pool` has the rows of the release, read from copies that lie elsewhere.

    Raises: ConfigError, IntegrityError before anything is written; RunError when the run cannot go on.
    """
    # -- check everything before anything is written
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"  # torchrun lost a process and began again
    tracking.check_packages(settings.log)
    releases = loader.open_sources(settings.release, settings.data, settings.data.split)
    run = RunFolder(
        settings,
        [release.fingerprint for release in releases],
        resume=resume or restarted,
        allow_changed=allow_changed,
    )
    run.take_up()
    state = run.inspect()
    if state.kind == "finished":
        return run.finish(), True
    to_check = releases if pool is None and settings.data.check_shards else []
    pool = pool or open_pool(releases, settings.data.split)
    task = make_task(settings.loss, settings.data.cache_dir)
    heldout: list[Any] = []
    if settings.eval.every_steps:  # a split or column that is missing stops the run now, not at the first validation
        heldout = loader.open_sources(settings.release, settings.data, str(settings.eval.split))
        needed = needed_columns(task, settings.model.projectors)
        txt_columns(open_pool(heldout, str(settings.eval.split)), needed)

    # Each process reads its share of the bytes before it joins the others, so none waits in the group meanwhile.
    ranks = this_rank(settings.compute.device)
    checked = attempt(lambda: _read_ahead(to_check, heldout if to_check else [], task, pool, settings, ranks))

    # -- join the other processes, train, leave them
    # While torch waits for others, no handler of Python runs: until the steps a signal ends one of several at once.
    default = handling(signal.SIG_DFL, *STOP_SIGNALS) if ranks.world_size > 1 else nullcontext()
    with default:
        join_ranks(ranks)
        try:
            evaluation = {f"eval.{key}": getattr(settings.eval, key) for key in ("every_steps", "split", "batch_size")}
            together = {"checkpoint.every_steps": settings.checkpoint.every_steps} | evaluation
            require_same(run.identity | together, ranks)
            agree(ranks, checked)
            return _train_on(ranks, run, pool, state, _LOST_LOCK_SECONDS if restarted else 0.0)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # its frames refer to the group, see stop_ranks
            if (explained := failures.explain(error, run.folder)) is not None:
                raise explained from None
            raise
        finally:
            stop_ranks(ranks)


def _read_ahead(
    training: Sequence[Any], heldout: Sequence[Any], task: Task, pool: SamplePool, settings: TrainSettings, ranks: Ranks
) -> None:
    loader.check_shards(training, settings.data.split, share=ranks.share)
    loader.check_shards(heldout, str(settings.eval.split), share=ranks.share)
    for column in task.columns().values() if ranks.world_size > 1 else ():
        if column.takes_long:
            column.open(pool, settings.data.text.members)


def _train_on(
    ranks: Ranks, run: RunFolder, pool: SamplePool, seen: RunState, lock_seconds: float
) -> tuple[dict[str, Any], bool]:
    """Run within the process group; nothing refers to the group when this returns.

    `seen` is the state of the folder before it was locked. It decides how the model is made.
    """
    settings = run.settings
    if settings.compute.num_threads is not None:
        torch.set_num_threads(settings.compute.num_threads)
    trainer = build_trainer(settings, pool, ranks, resumes=seen.checkpoint is not None)
    with ExitStack() as stack:
        # -- the run's folder, and where to go on
        on_main(ranks, lambda: stack.enter_context(lock_folder(run.folder, lock_seconds)))
        state = on_main(ranks, run.inspect_bytes)
        if state.kind == "finished":  # by another process in the meantime
            return on_main(ranks, run.summary), True
        if seen.checkpoint is not None and state.checkpoint is None:
            raise RunError(
                f"{run.folder}: its checkpoints were removed while this run began; run the same command again"
            )
        progress = Progress()
        if state.checkpoint is not None:
            if ranks.world_size > 1:  # the other machines need what rank 0 has chosen
                on_main(ranks, run.offer)
            progress = restore(trainer, run.load(state.checkpoint), state.changed)
            if progress.step > trainer.num_steps:
                raise ConfigError(
                    f"{run.folder}: its checkpoint is of step {progress.step:,}, and the schedule ends at step "
                    f"{trainer.num_steps:,}: a run cannot end before it; set a length of {progress.step:,} steps or "
                    "more, or choose another --output"
                )
        lost = on_main(ranks, lambda: run.prepare(state, progress.step, loader.drawn_shares(pool, trainer.order)))
        if ranks.is_main:
            stack.callback(run.close)
        trackers: list[tracking.Tracker] = []
        on_main(
            ranks,
            lambda: trackers.extend(tracking.open_trackers(run.folder, progress.step, settings.log, run.identity)),
        )
        log_file = run.folder / LOG_FILE if ranks.is_main else None
        log = RunLog(log_file, LINE_SECONDS, trackers=tuple(trackers))
        stack.callback(log.close)
        _announce(trainer, state, progress, log)
        if lost is not None:
            log.print_line(lost)

        # -- the steps
        stop = stack.enter_context(stop_event())
        run_steps(trainer, progress, stop, log, run)

        # -- the end: final weights, then the summary, which marks a finished run
        return on_main(ranks, lambda: _finish(trainer, progress, run)), False


def run_steps(trainer: Trainer, progress: Progress, stop: threading.Event, log: RunLog, run: RunFolder) -> None:
    """Every step from `progress` to the last, with log, validation and checkpoints between them.

    Raises: StoppedError on a signal; RunError on a loss or gradient that is not finite, or too many broken samples.
    """
    settings, num_steps = trainer.settings, trainer.num_steps
    micro = settings.compute.accumulate
    remaining = range(progress.step * micro, num_steps * micro)
    on_gpu = trainer.ranks.device.type == "cuda"
    batches = loader.iterate(
        loader.train_loader(
            trainer.pool, trainer.order, trainer.plan, remaining, settings.data, trainer.model, pin=on_gpu
        )
    )
    noted = set[str]()
    while progress.step < num_steps:
        # -- data
        started = time.perf_counter()
        chunk = [next(batches) for _ in range(micro)]
        waited = time.perf_counter() - started
        new_corrupt = {row: why for batch in chunk for row, why in batch.corrupt if row not in progress.corrupt}

        # -- forward, backward, update
        set_lr(trainer.optimiser, settings.optimiser.lr * lr_ratio_at(progress.step, num_steps, settings.schedule))
        torch.manual_seed(mix_seed(settings.seed, progress.step, trainer.ranks.rank, 0x73746570) >> 1)
        losses = compute_gradients(trainer, chunk)
        finite = all(math.isfinite(value) for value in losses.values())
        flags = [float(bool(new_corrupt)), float(not finite), float(stop.is_set())]
        *means, corrupt, broken, stopping = mean_over_ranks([*losses.values(), *flags], trainer.ranks)
        if corrupt > 0:  # on some rank; all ranks take part
            failures.record_corrupt(trainer, new_corrupt, progress, log)
        if broken > 0:
            failures.stop_not_finite(trainer, chunk, progress, losses, run.folder, "loss")
        grad_norm = update_weights(trainer)
        if failures.gradient_ends_run(trainer, progress, math.isfinite(grad_norm)):
            failures.stop_not_finite(trainer, chunk, progress, losses, run.folder, "gradient")
        progress.step += 1
        progress.seconds += time.perf_counter() - started
        progress.wait_seconds += waited

        # -- log
        last, terms = progress.step == num_steps, dict(zip(losses, means, strict=True))
        if (note := trainer.task.note_on(terms)) is not None and note not in noted:
            noted.add(note)
            log.event("note", step=progress.step, note=note)
            log.print_line(f"step {progress.step}  {note}")
        if last or progress.step % settings.log.every_steps == 0:
            _log_step(trainer, progress, terms, grad_norm, log)
        if settings.eval.every_steps and (last or progress.step % settings.eval.every_steps == 0):
            validate(trainer, progress.step, log)

        # -- checkpoint
        if last or stopping > 0 or progress.step % settings.checkpoint.every_steps == 0:
            save(trainer, progress, run)
        if stopping > 0 and not last:
            raise StoppedError(
                f"stopped by a signal after step {progress.step} of {num_steps}, a checkpoint is saved; "
                "run the same command to go on"
            )


def compute_gradients(trainer: Trainer, chunk: list[loader.Batch]) -> dict[str, float]:
    """Forward and backward of one optimiser step; returns this rank's losses."""
    device = trainer.ranks.device
    preprocess = trainer.model.preprocess_settings
    whole_texts = trainer.settings.compute.compile  # it would compile anew for other lengths
    inputs = [
        (
            model_input(batch.images.to(device, non_blocking=True), preprocess),
            (batch.tokens if whole_texts else trainer.model.cut_texts(batch.tokens)).to(device, non_blocking=True),
        )
        for batch in chunk
    ]
    of_batches = [trainer.columns.of(batch.rows, batch.members, batch.texts) for batch in chunk]
    kinds = [values.pop(KIND).to(device) if KIND in values else None for values in of_batches]
    columns = {
        name: torch.cat([values[name] for values in of_batches]).to(device, non_blocking=True) for name in of_batches[0]
    }

    def forward(index: int) -> dict[str, Tensor]:
        with autocast(trainer.settings.compute.precision, device):
            features: dict[str, Tensor] = trainer.wrapped(*inputs[index], kinds[index])
        return features

    def backward(loss: Tensor) -> None:
        scaled: Any = trainer.scaler.scale(loss)
        scaled.backward()

    def loss(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return losses_of(trainer.task, features, columns)

    trainer.optimiser.zero_grad(set_to_none=True)
    if len(inputs) == 1:
        losses = loss(forward(0))
        backward(losses["loss"])
    else:
        losses = accumulate_backward(
            forward,
            len(inputs),
            loss,
            modules=[trainer.model],
            backward=backward,
            no_sync=trainer.wrapped.no_sync if trainer.ranks.world_size > 1 else nullcontext,
        )
    return {name: float(value.detach()) for name, value in losses.items()}


def update_weights(trainer: Trainer) -> float:
    """Clip, step, clamp; returns the gradient's norm before clipping."""
    settings, parameters = trainer.settings, [p for p in trainer.model.parameters() if p.requires_grad]
    trainer.scaler.unscale_(trainer.optimiser)
    limit = settings.optimiser.clip_norm if settings.optimiser.clip_norm is not None else math.inf
    norm = clip_gradients(parameters, limit)
    trainer.scaler.step(trainer.optimiser)
    trainer.scaler.update()
    trainer.task.bound(trainer.model)
    return float(norm)


def _log_step(trainer: Trainer, progress: Progress, losses: dict[str, float], grad_norm: float, log: RunLog) -> None:
    lr = trainer.settings.optimiser.lr * lr_ratio_at(progress.step - 1, trainer.num_steps, trainer.settings.schedule)
    seen = progress.step * trainer.settings.data.batch_size
    seconds, num_devices = max(progress.seconds, 1e-9), trainer.ranks.world_size
    speed, wait = seen / seconds, progress.wait_seconds / seconds
    log.event(
        "step",
        step=progress.step,
        epoch=seen / trainer.order.epoch_size,
        samples_seen=seen,
        **losses,
        lr=lr,
        logit_scale=float(trainer.model.clip.logit_scale.detach().exp()),
        grad_norm=grad_norm if math.isfinite(grad_norm) else None,  # fp16 skips such a step
        samples_per_second=round(speed, 2),
        samples_per_second_per_device=round(speed / num_devices, 2),
        data_wait_share=round(wait, 4),
    )
    per_device = f" ({speed / num_devices:.0f} a device)" if num_devices > 1 else ""
    left = (trainer.num_steps - progress.step) * progress.seconds / progress.step
    log.progress(
        f"step {progress.step}/{trainer.num_steps}  epoch {seen / trainer.order.epoch_size:.2f}  "
        f"loss {losses['loss']:.4f}  lr {lr:.2e}  {speed:.0f} samples/s{per_device}  data wait {wait:.0%}  "
        f"ETA {timedelta(seconds=round(left))}",
        always=progress.step == trainer.num_steps,
    )


def _announce(trainer: Trainer, state: RunState, progress: Progress, log: RunLog) -> None:
    pool, settings = trainer.pool, trainer.settings
    started_from = settings.model.pretrained if state.kind == "new" else None
    new = list(trainer.model.new_parameters) if started_from is not None else None
    unused = list(trainer.model.unused_tensors)
    memory = memory_of(trainer.model, settings.compute, trainer.plan.batch_size, trainer.ranks.world_size)
    log.event(
        "start" if state.kind == "new" else "resume",
        step=progress.step,
        num_steps=trainer.num_steps,
        epoch_size=trainer.order.epoch_size,
        world_size=trainer.ranks.world_size,
        device=str(trainer.ranks.device),
        changed=list(state.changed),
        memory=vars(memory),
        **({"damaged": [path.name for path in state.damaged]} if state.damaged else {}),
        **({"pretrained": started_from, "new_parameters": new, "unused_tensors": unused} if new is not None else {}),
    )
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    where = f"{trainer.ranks.world_size} x {trainer.ranks.device.type}"
    log.print_line(
        f"{settings.model.preset}: {parameters:,} parameters on {where}, "
        f"{len(pool):,} samples ({', '.join(pool.domains)}), "
        f"{trainer.num_steps:,} steps of {settings.data.batch_size}"
    )
    for line in [*memory.lines(), *setting_notes(trainer)]:
        log.print_line(line)
    for note in pool.notes:
        log.event("left_out", step=progress.step, note=note)
        log.print_line(note)
    for name, values in trainer.columns.outside.items():
        log.event("column", step=progress.step, name=name, note=values.note, sha256=values.content)
        log.print_line(values.note)
    if new is not None:
        total = sum(1 for _ in trainer.model.parameters())
        log.print_line(
            f"weights from {started_from}: {total - len(new)} of {total} tensors; new: {_by_part(new)}; of the "
            f"weights, not used: {_by_part(unused)} (names: {LOG_FILE})"
        )
    if state.kind == "new" and (random := trainer.model.num_left_random(all_new=started_from is None)):
        log.print_line(
            f"{random:,} parameters of the towers are random and stay so, by lock, adapters or loss.teacher: name "
            "weights that fit them in model.pretrained, or let them train"
        )
    if trainer.ranks.is_main and (absent := loader.absent_members(pool, settings.data))[0]:
        log.print_line(
            f"data.text: no sample looked at has {', '.join(absent[0])}; they have: {', '.join(absent[1]) or 'none'}"
        )
    for path in state.damaged:
        log.print_line(f"{path}: damaged, its bytes are not those that were written; removed")
    if state.kind == "resume":
        log.print_line(f"going on after step {progress.step} from {state.checkpoint}")


def _by_part(names: Sequence[str]) -> str:
    """Return the number of tensors, in all and in each part of the model."""
    parts = Counter(".".join(name.split(".")[: 2 if name.startswith("clip.") else 1]) for name in names)
    return f"{len(names)}" + (f" ({', '.join(f'{part} {count}' for part, count in parts.items())})" if parts else "")


def setting_notes(trainer: Trainer) -> list[str]:
    """Lines about settings whose effect may surprise."""
    settings, pool = trainer.settings, trainer.pool
    notes = []
    if settings.data.mixture is None and any(pool.stratified):
        shares = {part.name: part.weight for part in trainer.order.strata}
        listed = ", ".join(
            f"{name.partition(':')[2]} {share / sum(shares.values()):.3f}" for name, share in shares.items()
        )
        by = "sizes" if loader.share_weights(settings.release, settings.data) is None else "weights"
        what = "domains" if settings.data.shards else "a stratified release"
        notes.append(f"{what} without data.mixture: drawn in proportion to the {by} ({listed})")
    if (warmup := settings.schedule.warmup_steps) > trainer.num_steps:
        notes.append(
            f"schedule.warmup_steps {warmup:,} is longer than the run of {trainer.num_steps:,} steps: the learning "
            f"rate ends at {trainer.num_steps / warmup:.2g} of optimiser.lr"
        )
    return notes


def _finish(trainer: Trainer, progress: Progress, run: RunFolder) -> dict[str, Any]:
    """Write the final weights and the summary; its final loss is the mean over the last tenth of the logged steps."""
    weights = merged(trainer.model.state_dict())
    preprocess, architecture = dict(trainer.model.clip.visual.preprocess_cfg), run.identity["model"]["architecture"]
    path = save_model(run.folder, weights, trainer.settings, preprocess, architecture)
    losses = [item["loss"] for item in read_log(run.folder / LOG_FILE, "step")]  # none where the log was lost
    tail = losses[-max(1, len(losses) // 10) :]
    seen = progress.step * trainer.settings.data.batch_size
    seconds = max(progress.seconds, 1e-9)
    summary = {
        "steps": progress.step,
        "samples_seen": seen,
        "epochs": seen / trainer.order.epoch_size,
        "first_loss": losses[0] if losses else None,
        "final_loss": sum(tail) / len(tail) if tail else None,
        "chance_loss": trainer.task.chance(trainer.settings.data.batch_size),
        "logit_scale": float(trainer.model.clip.logit_scale.detach().exp()),
        "seconds": progress.seconds,
        "samples_per_second": seen / seconds,
        "data_wait_share": progress.wait_seconds / seconds,
        "corrupt_samples": len(progress.corrupt),
        "model_sha256": hash_file(str(path)).sha256,
        "releases": run.identity["releases"]["fingerprints"],
    }
    return run.finish(summary)
