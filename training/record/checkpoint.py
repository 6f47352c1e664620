"""The folder of a run: its files, and whether a run may go on in it. `training.record.run_files` says whose they are.

    RUN/config.json                  the settings, as `dalip eval RUN` reads them
    RUN/run.json                     identity of the run: all that shapes the weights, the releases' fingerprints
    RUN/log.jsonl                    what happened, a JSON object a line (RUN/tensorboard, RUN/wandb if wanted)
    RUN/checkpoints/step-00000100.pt the newest few checkpoints
    RUN/model.pt                     the final weights (averaged ones if the run keeps an average)
    RUN/summary.json                 written last: the run is finished

Every file is published whole or not at all. The random numbers of a step follow from seed, step and rank, and the order
of samples from the position, so a checkpoint holds two counters instead of generator and loader states. Gives up with
ConfigError when the folder belongs to another run, another config or another release.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from manifests import storage
from manifests.errors import ConfigError, IntegrityError, RunError
from manifests.release import refuse_within
from manifests.settings import differences
from training.config import SETTINGS_FILE, TrainSettings
from training.model.weights import load_fault
from training.record.log import LOG_FILE, cut_log
from training.record.run_files import (
    CHECKPOINT_FOLDER,
    MODEL_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    clear_run,
    list_checkpoints,
)

FORMAT = "dalip-checkpoint/1"
LOCK_FILE = ".lock"
# What zipfile raises for damaged bytes, found by changing every byte of a checkpoint in turn. Nothing else is damage:
# where memory ran out, the checkpoint must not be removed.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OverflowError, RuntimeError, ValueError)
_CONTENT = ("step", "state_dict", "optimiser", "scaler", "preprocess", "average", "seconds", "wait_seconds", "corrupt")
_FIXED = ("data.batch_size:",)  # not even --allow-changed may change it


@dataclass(frozen=True)
class RunState:
    """What a run's folder holds for a config: nothing, a checkpoint to go on from, or a finished run."""

    kind: Literal["new", "resume", "finished"]
    checkpoint: Path | None = None
    changed: tuple[str, ...] = ()
    damaged: tuple[Path, ...] = ()  # newer checkpoints that are not whole


def inspect_run(
    folder: Path, identity: dict[str, Any], *, allow_changed: bool = False, is_copy: bool = False
) -> RunState:
    """What `folder` holds for a run of this identity; reads only. The copy of a run in a store may lack its weights.

    A finished run whose weights are gone goes on from its last checkpoint, which makes them again.

    Raises: ConfigError when it holds another run's checkpoints or result; IntegrityError for damaged weights.
    """
    checkpoints = list_checkpoints(folder)
    finished = (folder / SUMMARY_FILE).exists()
    if not checkpoints and not finished:
        return RunState("new")
    stored = read_json(folder / RUN_FILE).get("identity")
    if not isinstance(stored, dict):
        raise _damaged(folder / RUN_FILE, "holds no identity")
    changed = tuple(differences(stored, identity))
    if changed and not (allow_changed and checkpoints and not finished):
        what = "a finished run" if finished else "checkpoints"
        raise ConfigError(
            f"{folder}: holds {what} of another config or release ({_first_few(changed)}); choose another --output, "
            "or --no-resume to train anew in its place"
            + ("" if finished or _fixed(changed) else ", or --allow-changed to go on from its checkpoint")
        )
    if finished and (is_copy or (folder / MODEL_FILE).exists()):
        if not is_copy:
            check_model(folder)
        return RunState("finished")
    if not checkpoints:
        raise IntegrityError(
            f"{folder}: finished, but {MODEL_FILE} and every checkpoint are gone; --no-resume trains anew"
        )
    if fixed := _fixed(changed):
        raise ConfigError(
            f"{folder}: a resume cannot change {'; '.join(fixed)}: steps are counted in batches, so the samples to "
            "come and the schedule would differ. Set it back, or choose another --output"
        )
    return RunState("resume", checkpoints[-1], changed)


def check_model(folder: Path) -> None:
    """See that the final weights are those that the run wrote; every byte is read.

    Raises: IntegrityError.
    """
    path, recorded = folder / MODEL_FILE, None
    if (folder / SUMMARY_FILE).is_file():
        recorded = read_summary(folder).get("model_sha256")
    # Runs of earlier versions recorded no sha256; there the CRC-32 of each tensor has to do.
    if not (is_whole(path) if recorded is None else storage.hash_file(str(path)).sha256 == recorded):
        raise IntegrityError(
            f"{path}: damaged or replaced, its bytes are not those that the run wrote; move it away, then run `dalip "
            "train` again: it makes the weights again from the last checkpoint"
        )


def skip_damaged(state: RunState) -> RunState:
    """The same state with the newest whole checkpoint; reads every byte of it, and of the damaged ones.

    Raises: IntegrityError when none is whole.
    """
    if state.checkpoint is None:
        return state
    checkpoints = list_checkpoints(state.checkpoint.parent.parent)
    for place, path in reversed(list(enumerate(checkpoints))):
        if is_whole(path):
            return replace(state, checkpoint=path, damaged=tuple(checkpoints[place + 1 :]))
    raise IntegrityError(
        f"{checkpoints[-1]}: damaged, as every checkpoint of the run ({len(checkpoints)}): it cannot go on; "
        "--no-resume trains anew in its place"
    )


def is_whole(path: Path) -> bool:
    """Whether every byte of a checkpoint is as it was written, by the CRC-32 that torch stores with each tensor.

    Reading and checking takes 0.2 s a GB (one core, from the page cache).

    Raises: RunError when the file cannot be read, which says nothing about its bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a damaged directory points to a place before the file's start
            return False
        raise RunError(f"{path}: cannot be read ({error.strerror or error}); run the same command to go on") from None
    except _DAMAGE:
        return False


def prepare_run(folder: Path, settings: TrainSettings, identity: dict[str, Any], state: RunState, step: int) -> None:
    """Write what a run has before its first step; on a resume, cut the log back to the checkpoint's `step`."""
    run = _digest(identity) if state.kind == "new" else run_id(folder)
    # First of all: it says that the folder is a run's. What a kill leaves of an older run is of another id.
    storage.publish_json(folder / RUN_FILE, {"identity": identity, "run": run})
    if state.kind == "new":
        clear_run(folder)
    storage.make_folder(str(folder / CHECKPOINT_FOLDER))
    for path in (*folder.iterdir(), *(folder / CHECKPOINT_FOLDER).iterdir()):
        if storage.is_private(path.name) and path.is_file():
            path.unlink()
    if state.kind != "new":
        for path in state.damaged:  # so that no reader of the folder takes them for the newest
            path.unlink()
        (folder / SUMMARY_FILE).unlink(missing_ok=True)  # of a run whose weights are gone
        cut_log(folder / LOG_FILE, step)
    storage.publish_json(folder / SETTINGS_FILE, settings.model_dump(mode="json"))


def run_id(folder: Path) -> str | None:
    """What the checkpoints of a run have in common; it stays when the config changes. None where there is no run."""
    try:
        record = read_json(folder / RUN_FILE)
    except IntegrityError:
        return None
    return record.get("run") or _digest(record.get("identity"))


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@contextmanager
def lock_folder(folder: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Keep other commands out of a folder that one writes to. It is created if it is not there.

    A process that was lost may hold its lock for a while: killed, until it is gone; on a disk of the network, until the
    server gives up on its machine.

    Raises: ConfigError when another one writes there after `wait_seconds`, or the place is not writable.
    """
    refuse_within(str(folder))
    storage.make_folder(str(folder))
    until = time.monotonic() + wait_seconds
    try:
        stream = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise ConfigError(
            f"{folder / LOCK_FILE}: cannot be opened ({error.strerror}): another user works here; choose another place"
        ) from None
    with stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() < until:
                    time.sleep(0.5)
                    continue
                raise ConfigError(
                    f"{folder}: another command is writing here; wait for it, or choose another place"
                ) from None
        yield


def save_checkpoint(folder: Path, step: int, content: dict[str, Any], keep: int) -> Path:
    """Publish a checkpoint, then remove all but the newest `keep`.

    Raises: RunError when it cannot be written; nothing of it is left.
    """
    path = folder / CHECKPOINT_FOLDER / f"step-{step:08d}.pt"
    _save(path, {"format": FORMAT, "run": run_id(folder), "step": step, **content})
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises: IntegrityError for a file that is none, and for the checkpoint of another run; FileNotFoundError.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # ranks of a machine share it
    except FileNotFoundError:
        raise
    except Exception as error:  # pickle, zip and torch raise their own kinds for a damaged file
        raise IntegrityError(
            f"{path}: cannot be read ({load_fault(error)}); move it away to resume from the one before"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise IntegrityError(f"{path}: not a checkpoint of this version ({FORMAT})")
    if missing := [name for name in _CONTENT if name not in content]:
        raise IntegrityError(f"{path}: has no {', '.join(missing)}; move it away to resume from the one before")
    run = run_id(path.parent.parent)
    if None not in (run, content.get("run")) and content["run"] != run:  # earlier versions wrote none
        raise IntegrityError(f"{path}: is of another run than {RUN_FILE} in this folder; move it away, then run again")
    return content


def save_model(folder: Path, state_dict: dict[str, Any], settings: TrainSettings, preprocess: dict[str, Any]) -> Path:
    """Publish the final weights, as `weights.read_state` reads them, and how pictures are prepared."""
    model_settings = settings.model.model_dump(mode="json")
    content = {"state_dict": state_dict, "model_settings": model_settings, "preprocess": preprocess}
    _save(folder / MODEL_FILE, {"format": FORMAT, **content})
    return folder / MODEL_FILE


def has_weights(folder: Path) -> bool:
    """True for the folder of a run that has saved something."""
    return (folder / MODEL_FILE).exists() or bool(list_checkpoints(folder))


def newest_weights(folder: Path) -> Path:
    """The file with the weights of a run: the final ones, else the newest checkpoint.

    Raises: ConfigError when there are none.
    """
    if not has_weights(folder):
        raise ConfigError(f"{folder}: no trained model here; run `dalip train` first")
    return folder / MODEL_FILE if (folder / MODEL_FILE).exists() else list_checkpoints(folder)[-1]


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Publish the summary, which marks a finished run."""
    storage.publish_json(folder / SUMMARY_FILE, summary)


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished run.

    Raises: IntegrityError when it is damaged.
    """
    summary = read_json(folder / SUMMARY_FILE)
    if "steps" not in summary:
        raise _damaged(folder / SUMMARY_FILE, "is no summary of a run")
    return summary


def read_architecture(folder: Path) -> dict[str, Any] | None:
    """The architecture that a run began with; None where its folder does not say."""
    if not (folder / RUN_FILE).is_file():
        return None
    stored: Any = read_json(folder / RUN_FILE)
    for name in ("identity", "model", "architecture"):
        stored = stored.get(name) if isinstance(stored, dict) else None
    return stored if isinstance(stored, dict) else None


def _save(path: Path, content: dict[str, Any]) -> None:
    temp = storage.temp_path(str(path))
    try:
        torch.save(content, temp)
        storage.publish(temp, str(path))
    except (OSError, RuntimeError) as error:  # torch's writer makes a full disk a RuntimeError
        Path(temp).unlink(missing_ok=True)
        free_gb = shutil.disk_usage(path.parent).free / 1e9
        raise RunError(
            f"{path}: cannot be written ({' '.join(str(error).split())[:200]}); {free_gb:.1f} GB are free there. Files "
            "written before are whole: make room, then run the same command to go on"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in the folder of a run.

    Raises: IntegrityError for a file that holds none.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise _damaged(path, f"cannot be read: {error}") from None
    return values


def _damaged(path: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{path}: {what}; the run's folder is damaged: move it away, or choose another --output")


def _fixed(changed: Sequence[str]) -> list[str]:
    return [text for text in changed if text.startswith(_FIXED)]


def _first_few(changed: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(changed) - limit} more" if len(changed) > limit else ""
    return "; ".join(changed[:limit]) + more
