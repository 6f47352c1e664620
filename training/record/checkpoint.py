"""The files of a run that hold weights, how they are written and checked, and the lock on its folder.

Every file is published whole or not at all. The random numbers of a step follow from seed, step and rank, and the order
of samples from the position, so a checkpoint holds two counters instead of generator and loader states. Gives up with
IntegrityError on a file that is not what the run wrote.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

from manifests.contract.release import refuse_within
from manifests.errors import ConfigError, IntegrityError, RunError, words_of
from manifests.services.untrusted import read_object
from manifests.stores import storage
from training.config import TrainSettings
from training.model.presets import ModelSettings
from training.model.weights import check_same_forward, load_fault
from training.record.run_files import (
    CHECKPOINT_FOLDER,
    MODEL_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    is_run,
    list_checkpoints,
)

_MOVE_AWAY = "the run's folder is damaged: move it away, or choose another --output"
FORMAT = "dalip-checkpoint/1"
LOCK_FILE = ".lock"
# What zipfile raises for damaged bytes, found by changing every byte of a checkpoint in turn. Nothing else is damage:
# where memory ran out, the checkpoint must not be removed.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OverflowError, RuntimeError, ValueError)
_locks: set[TextIO] = set()  # open files of `lock_folder`
_CONTENT = ("step", "state_dict", "optimiser", "scaler", "preprocess", "seconds", "wait_seconds", "corrupt")


def check_model(folder: Path) -> None:
    """See that the final weights are those that the run wrote; every byte is read.

    Raises: IntegrityError.
    """
    path, recorded = folder / MODEL_FILE, read_summary(folder).get("model_sha256")
    # Runs of earlier versions recorded no sha256; there the CRC-32 of each tensor has to do.
    if not (is_whole(path) if recorded is None else storage.hash_file(str(path)).sha256 == recorded):
        raise IntegrityError(
            f"{path}: damaged or replaced, its bytes are not those that the run wrote; move it away, then run `dalip "
            "train` again: it makes the weights again from the last checkpoint"
        )


def is_whole(path: Path) -> bool:
    """Return whether every byte of a checkpoint is as it was written, by the CRC-32 that torch stores with each tensor.

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


def run_id(folder: Path) -> str | None:
    """Return the id that the checkpoints of a run share; it stays when the config changes.

    None where there is no run.
    """
    try:
        record = read_json(folder / RUN_FILE)
    except IntegrityError:
        return None
    return record.get("run") or digest_of(record.get("identity"))


def digest_of(identity: Any) -> str:
    """Return the id of a run that begins with this identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@contextmanager
def lock_folder(folder: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Keep other commands out of a folder that one writes to. It is created if it is not there.

    The lock ends with this process, though loader processes that it forked live some seconds longer. On a disk of the
    network it may stay until the server gives up on a lost machine.

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
        _locks.add(stream)
        try:
            yield
        finally:
            _locks.discard(stream)


def _leave_locks() -> None:
    """Close the lock files of the parent in a fork: a fork holds its parent's locks until then."""
    while _locks:
        _locks.pop().close()


os.register_at_fork(after_in_child=_leave_locks)


def save_checkpoint(folder: Path, step: int, content: dict[str, Any], keep: int) -> None:
    """Publish a checkpoint, then remove all but the newest `keep`.

    Raises: RunError when it cannot be written; nothing of it is left.
    """
    path = folder / CHECKPOINT_FOLDER / f"step-{step:08d}.pt"
    _save(path, {"format": FORMAT, "run": run_id(folder), "step": step, **content})
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()


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


def save_model(
    folder: Path, state_dict: dict[str, Any], settings: TrainSettings, preprocess: dict[str, Any], architecture: Any
) -> Path:
    """Publish the final weights, as `weights.read_state` reads them, with their architecture and preprocessing."""
    content = {
        "state_dict": state_dict,
        "model_settings": settings.model.model_dump(mode="json"),
        "architecture": architecture,
        "preprocess": preprocess,
    }
    _save(folder / MODEL_FILE, {"format": FORMAT, **content})
    return folder / MODEL_FILE


def has_weights(folder: Path) -> bool:
    """Return true for the folder of a run that has saved something."""
    return (folder / MODEL_FILE).exists() or bool(list_checkpoints(folder))


def newest_weights(folder: Path) -> Path:
    """Return the file with the weights of a run: the final ones, else the newest checkpoint.

    Only the summary says which bytes the final weights have. Without it they are not used.

    Raises: ConfigError when there are none.
    """
    checkpoints = list_checkpoints(folder)
    if _has_final(folder):
        return folder / MODEL_FILE
    if not checkpoints:
        why = f" (no {SUMMARY_FILE} says which bytes its {MODEL_FILE} has)" if has_weights(folder) else ""
        raise ConfigError(f"{folder}: no trained model here{why}; run `dalip train` first")
    return checkpoints[-1]


def _has_final(folder: Path) -> bool:
    return (folder / SUMMARY_FILE).exists() and (folder / MODEL_FILE).exists()


def begin_with(model: ModelSettings, *, may_be_text_alone: bool = False) -> ModelSettings:
    """Return the settings with the file that `model.pretrained` names; of a run, that of its final weights.

    Raises: ConfigError for a run that is not finished, and for weights of a run in another architecture;
        IntegrityError for other bytes than it wrote.
    """
    source = model.pretrained
    if source is None:
        return model
    path = Path(source)
    folder = path if is_run(source) else path.parent if path.name == MODEL_FILE else path.parent.parent
    is_of_run = path in (folder, folder / MODEL_FILE, *list_checkpoints(folder)) and is_run(str(folder))
    if is_of_run and (architecture := read_architecture(folder)) is not None:
        check_same_forward(architecture, model.architecture, source, text_alone=may_be_text_alone)
    if not is_run(source):
        return model
    if not _has_final(folder):
        raise ConfigError(
            f"model.pretrained {source}: this run is not finished; run it to its end, or name one of its checkpoints"
        )
    check_model(folder)
    return model.model_copy(update={"pretrained": str(folder / MODEL_FILE)})


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the summary of a finished run.

    Raises: IntegrityError when it is damaged.
    """
    summary = read_json(folder / SUMMARY_FILE)
    if "steps" not in summary:
        raise damaged(folder / SUMMARY_FILE, "is no summary of a run")
    return summary


def read_architecture(folder: Path) -> dict[str, Any] | None:
    """Return the architecture that a run began with; None where its folder does not say."""
    record = read_json(folder / RUN_FILE) if (folder / RUN_FILE).is_file() else {}
    stored = ((record.get("identity") or {}).get("model") or {}).get("architecture")
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
            f"{path}: cannot be written ({words_of(error)}); {free_gb:.1f} GB are free there. Files "
            "written before are whole: make room, then run the same command to go on"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object in the folder of a run.

    Raises: IntegrityError for a file that holds none.
    """
    return read_object(path, _MOVE_AWAY)


def damaged(path: Path, what: str) -> IntegrityError:
    """Return a file of a run that is not what the run wrote."""
    return IntegrityError(f"{path}: {what}; {_MOVE_AWAY}")
