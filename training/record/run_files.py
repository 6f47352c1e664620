"""Tell which files of a folder belong to a run. A training replaces or removes only these, on a disk and in a store.

They are known by their exact names, and only beside the `run.json` that `dalip train` writes first. Without it no file
belongs to a run, and a training that would write over one is refused. Figures in `eval` belong to `dalip eval`: a
training leaves them, and they say which weights they are of.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from manifests.contract.release import refuse_within
from manifests.errors import ConfigError, IntegrityError
from manifests.services.untrusted import json_object
from manifests.stores import storage
from manifests.stores.storage import read_if_there
from training.config import SETTINGS_FILE
from training.record.log import LOG_FILE
from training.record.tracking import TENSORBOARD_FOLDER, WANDB_FOLDER

RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"
MODEL_FILE = "model.pt"
CHECKPOINT_FOLDER = "checkpoints"
POINTER_FILE = "LATEST"  # of the checkpoints of a run in a store
EVAL_FOLDER = "eval"  # figures of `dalip eval`
_FILES = (SETTINGS_FILE, RUN_FILE, LOG_FILE, MODEL_FILE, SUMMARY_FILE)
_FOLDERS = (CHECKPOINT_FOLDER, TENSORBOARD_FOLDER, WANDB_FOLDER)
_CHECKPOINT = re.compile(r"step-(\d+)\.pt")
_BY_NAME = re.compile(
    rf"{CHECKPOINT_FOLDER}/({_CHECKPOINT.pattern}|{POINTER_FILE})|not-finite-step-\d+-rank-\d+\.json"
    rf"|{TENSORBOARD_FOLDER}/events\.out\.tfevents\.[^/]+"
)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    there = (folder / CHECKPOINT_FOLDER).glob("step-*.pt")
    return sorted((path for path in there if _CHECKPOINT.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(path.stem.removeprefix("step-"))


def is_run(path: str) -> bool:
    """Return whether a training began here: whether there is a `run.json` that `dalip train` wrote."""
    record = json_object(read_if_there(storage.join(path, RUN_FILE)))
    return isinstance(record.get("identity"), dict) and "releases" in record["identity"]


def is_evaluation(content: bytes | None) -> bool:
    """Return whether these are figures of `dalip eval`."""
    return {"weights", "model", "preset", "sets", "groups"} <= json_object(content).keys()


def require_own(table: Path, plot: Path, is_own: Callable[[bytes], bool], command: str) -> None:
    """See that a table of figures and its plot replace only those of an earlier call of the command.

    Raises: ConfigError.
    """
    there = [path for path in (table, plot) if path.exists()]
    if there and not (table.is_file() and is_own(table.read_bytes())):
        raise ConfigError(f"{there[0]}: is there, and `{command}` did not write it; choose another --out")


def require_place(path: str) -> None:
    """See that a training may write here.

    Raises: ConfigError inside a release, or where it would replace files that no training wrote; IntegrityError for
        a `run.json` that no training wrote.
    """
    refuse_within(path)
    if is_run(path):
        return
    names = _names_in(path)
    if RUN_FILE in names:
        raise IntegrityError(
            f"{storage.join(path, RUN_FILE)}: is damaged, or not the record of a training; move the folder away, or "
            "choose another --output"
        )
    of_a_run = (name for name in names if name in _FILES or name.partition("/")[0] in _FOLDERS)
    if strange := [name for name in of_a_run if not storage.is_private(name)]:
        raise ConfigError(
            f"{path}: holds {', '.join(strange[:3])}{' and more' if strange[3:] else ''}, but no {RUN_FILE} of a "
            "training: it is not the folder of a run, and a run would write over these files; choose another --output, "
            "or move them away"
        )


def refuse_within_run(target: str) -> None:
    """Refuse to export into the folder of a run, which would take the files for its own.

    Raises: ConfigError.
    """
    for folder in (target, str(Path(target).parent)):
        if is_run(folder):
            raise ConfigError(f"{target}: lies in the folder of a run ({folder}); choose a place outside of it")


def files_of_run(path: str) -> list[str]:
    """Return the files that a training wrote into a folder, except `run.json`.

    First the two that vouch for the others.
    """
    names = [name for name in _names_in(path) if name in _FILES or _BY_NAME.fullmatch(name)]
    first = (f"{CHECKPOINT_FOLDER}/{POINTER_FILE}", SUMMARY_FILE)
    return sorted((name for name in names if name != RUN_FILE), key=lambda name: (name not in first, name))


def clear_run(folder: Path) -> None:
    """Remove the files of a run, except `run.json`, and the folders that are then empty."""
    for name in files_of_run(str(folder)):
        (folder / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        with suppress(OSError):  # not there, or something else lies in it
            (folder / name).rmdir()


def _names_in(path: str) -> list[str]:
    """Return the files of a place, and what lies in the folders that a run uses."""
    fs, inner = storage.filesystem(path)
    fs.invalidate_cache()
    names = []
    for folder in ("", *(f"{name}/" for name in _FOLDERS)):
        try:
            entries = fs.ls(f"{inner}/{folder}".rstrip("/"), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except Exception as error:
            storage.check_passing(path, error)
            raise
        for entry in entries:
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            if (folder or entry["type"] == "file") and name:
                names.append(folder + name)
    return names
