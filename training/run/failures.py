"""Faults of a run, and which of them end it: broken samples, losses and gradients that are not finite.

Writes to the run's log and, when a loss or gradient is not finite, `RUN/not-finite-*.json`. Gives up with RunError. All
ranks stop together: they agree on what they found before any of them stops.
"""

from __future__ import annotations

import contextlib
import errno
import re
import time
import traceback
from pathlib import Path

from manifests.errors import PlantMixError, RetryableError, RunError
from manifests.services.packages import mistake_in
from manifests.stores.storage import publish_json
from training.data import loader
from training.record.log import RunLog
from training.run.distributed import gather_from_ranks
from training.run.state import Progress, Trainer

# The scale of fp16 starts at 2^16 and halves with every step left out, so a run finds its scale in a few steps. Twenty
# in a row bring it to 2^-4. At 1e-3 only a gradient above 6e7 does not fit float16, so the scale is not to blame.
_HEARD_SECONDS = 1.0  # a process closes its connections before its end is told
MAX_SKIPPED_STEPS = 20
MIN_LOSS_SCALE = 1e-3


def record_corrupt(trainer: Trainer, reasons: dict[int, str], progress: Progress, log: RunLog) -> None:
    """Log and count the broken samples that all ranks found in a step; every rank has to call this.

    Raises: RunError on every rank, past `data.max_corrupt_samples`.
    """
    for part in gather_from_ranks(reasons, trainer.ranks):
        for row, reason in part.items():
            if row not in progress.corrupt:
                progress.corrupt[row] = reason
                log.event("corrupt_sample", step=progress.step + 1, sample=trainer.pool.names([row])[0], reason=reason)
    limit = trainer.settings.data.max_corrupt_samples
    if len(progress.corrupt) > limit:
        names = trainer.pool.names(list(progress.corrupt)[:3])
        shown = "; ".join(f"{name}: {reason}" for name, reason in zip(names, progress.corrupt.values(), strict=False))
        raise RunError(
            f"{len(progress.corrupt)} broken samples, more than data.max_corrupt_samples = {limit}; first: {shown}; "
            f"{trainer.pool.cure_of(list(progress.corrupt))}, or raise the limit"
        )


def gradient_ends_run(trainer: Trainer, progress: Progress, finite: bool) -> bool:
    """Return whether the gradient of a step ends the run. fp16 leaves out some steps whose gradient is not finite.

    Gradients are averaged over ranks, so all of them decide alike.
    """
    if not trainer.scaler.is_enabled():
        return not finite
    progress.skipped = 0 if finite else progress.skipped + 1
    return progress.skipped >= MAX_SKIPPED_STEPS or (not finite and trainer.scaler.get_scale() < MIN_LOSS_SCALE)


def explain(error: BaseException, folder: Path) -> PlantMixError | None:
    """Return the cure for a lost loader process, a full disk, or a plug-in; None for any other error."""
    text = " ".join(str(error).split())
    # torch raises it wherever the trainer happens to be when it hears that the process ended.
    if isinstance(error, RuntimeError) and re.match(r"DataLoader worker \(pid", text):
        return _loader_is_gone(text)
    if isinstance(error, (ConnectionError, FileNotFoundError, EOFError)) and _was_fetching_tensors(error):
        with contextlib.suppress(RuntimeError):  # what torch raises when it hears of the process: here, and no later
            time.sleep(_HEARD_SECONDS)
        return _loader_is_gone(f"it ended before its batch was taken ({type(error).__name__}).")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RunError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); make room, then run the same command "
            "to go on from the last checkpoint"
        )
    return mistake_in(error)


def _loader_is_gone(text: str) -> RetryableError:
    return RetryableError(
        f"a loader process is gone: {text} If memory ran out, lower data.num_workers; "
        "run the same command to go on from the last checkpoint"
    )


def _was_fetching_tensors(error: BaseException) -> bool:
    """Return whether the error rose while this process fetched the tensors of a batch from a loader process."""
    modules = {frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)}
    return "torch.multiprocessing.reductions" in modules


def stop_not_finite(
    trainer: Trainer, chunk: list[loader.Batch], progress: Progress, losses: dict[str, float], folder: Path, what: str
) -> None:
    """End the run and write down the batch; what was saved before is whole.

    Raises: RunError, always.
    """
    step = progress.step + 1
    skipped = f", as those of the {progress.skipped - 1} steps before" if progress.skipped > 1 else ""
    rows = [row for batch in chunk for row in batch.rows.tolist()]
    report = {
        "step": step,
        "not_finite": what,
        "losses": {k: str(v) for k, v in losses.items()},
        "samples": trainer.pool.names(rows),
    }
    path = folder / f"not-finite-step-{step:08d}-rank-{trainer.ranks.rank}.json"
    publish_json(path, report)
    raise RunError(
        f"the {what} of step {step} is not finite{skipped}; its {len(rows)} samples are listed in {path}. The last "
        "checkpoint is from before: lower optimiser.lr, set optimiser.clip_norm, or use bf16 instead of fp16"
    )
