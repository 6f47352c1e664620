"""What goes wrong in a run, and when it ends it: broken samples, gradients that are not finite, lost processes.

Takes the batches of a step; broken samples are named and counted over all ranks. Writes to the run's log and, when a
loss or gradient is not finite, `RUN/not-finite-*.json`. Gives up with RunError. Whatever is collective here is reached
by every rank at once.
"""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

from manifests.errors import RunError
from manifests.storage import publish_bytes
from training.data import loader
from training.record.log import RunLog
from training.run.distributed import gather_from_ranks
from training.run.state import Progress, Trainer

# fp16's scale starts at 2^16 and halves with every step left out: a run finds its scale in a few steps. Twenty in a row
# bring it to 2^-4; at 1e-3 a gradient has to be above 6e7 not to fit float16, so that the scale is not what is wrong.
MAX_SKIPPED_STEPS = 20
MIN_LOSS_SCALE = 1e-3


def new_corrupt(chunk: list[loader.Batch], progress: Progress) -> dict[int, str]:
    """The broken samples this rank met in a step, row -> reason, less those known before."""
    return {row: reason for batch in chunk for row, reason in batch.corrupt if row not in progress.corrupt}


def note_corrupt(trainer: Trainer, found: dict[int, str], progress: Progress, log: RunLog) -> None:
    """Name and count what all ranks have found in a step; collective, so that all stop together past the limit.

    Raises: RunError, on every rank.
    """
    for part in gather_from_ranks(found, trainer.ranks):
        for row, reason in part.items():
            if row not in progress.corrupt:
                progress.corrupt[row] = reason
                log.event("corrupt_sample", step=progress.step + 1, sample=trainer.pool.names([row])[0], reason=reason)
    loader.check_corrupt(progress.corrupt, trainer.settings.data.max_corrupt_samples, trainer.pool)


def is_gradient_lost(trainer: Trainer, progress: Progress, finite: bool) -> bool:
    """Whether the gradient of a step ends the run; fp16 leaves such steps out, but not for ever.

    Gradients are averaged over ranks, so that all of them say the same.
    """
    if not trainer.scaler.is_enabled():
        return not finite
    progress.skipped = 0 if finite else progress.skipped + 1
    return progress.skipped >= MAX_SKIPPED_STEPS or (not finite and trainer.scaler.get_scale() < MIN_LOSS_SCALE)


def own_error(error: BaseException, folder: Path) -> RunError | None:
    """What torch or the system says of a lost loader process or a full disk, in words of ours; None for all else."""
    text = " ".join(str(error).split())
    # torch raises it wherever the trainer happens to be when the signal of the child's end comes.
    if isinstance(error, RuntimeError) and re.match(r"DataLoader worker \(pid", text):
        return RunError(
            f"a loader process is gone: {text} If memory ran out, lower data.num_workers or data.prefetch_batches; "
            "run the same command to go on from the last checkpoint"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RunError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); make room, then run the same command "
            "to go on from the last checkpoint"
        )
    return None


def stop_not_finite(
    trainer: Trainer, chunk: list[loader.Batch], progress: Progress, losses: dict[str, float], folder: Path, what: str
) -> None:
    """Name the batch and end the run; what was saved before is whole.

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
    publish_bytes(str(path), (json.dumps(report, indent=2) + "\n").encode("utf-8"))
    raise RunError(
        f"the {what} of step {step} is not finite{skipped}; its {len(rows)} samples are listed in {path}. The last "
        "checkpoint is from before: lower optimiser.lr, set optimiser.clip_norm, or use bf16 in place of fp16"
    )
