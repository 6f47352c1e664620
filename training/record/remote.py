"""The copy on this machine of a run that lies in an object store.

    RUN/checkpoints/LATEST   which checkpoints there are, newest last, with sizes and sha256: written after them
    RUN/...                  the files that `training.record.run_folder` names; summary.json last, as on a disk

Each file is one upload, which a store shows whole or not at all. Checkpoints are uploaded in the background. An upload
is tried three times. Where it fails, the training goes on, with a line; it ends when three in a row failed, with the
checkpoints on this machine. Gives up with RunError then, and where another training writes to the same place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from manifests.errors import ConfigError, IntegrityError, RetryableError, RunError, words_of
from manifests.stores import faults, storage
from manifests.stores.cache import local_folder, locked
from training.config import SETTINGS_FILE
from training.record import checkpoint, run_files
from training.record.log import LOG_FILE
from training.record.run_files import (
    CHECKPOINT_FOLDER,
    EVAL_FOLDER,
    MODEL_FILE,
    POINTER_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    list_checkpoints,
    step_of,
)  # fmt: skip
from training.record.tracking import TENSORBOARD_FOLDER

T = TypeVar("T")

MAX_FAILED_UPLOADS = 3  # in a row; one more checkpoint interval of a store's outage each
_SMALL = (SETTINGS_FILE, RUN_FILE, LOG_FILE)
_POINTER = f"{CHECKPOINT_FOLDER}/{POINTER_FILE}"


def fetch_run(run: str, cache_dir: str | None = None, *, must_exist: bool = True) -> Path:
    """Return the folder of a run for who only reads it: itself, or a copy on this machine that is brought up to date.

    Raises: ConfigError where there is no run and there has to be; RetryableError when the store does not answer.
    """
    if not storage.is_remote(run):
        return Path(run)
    copy = RemoteRun(run, cache_dir, reading=True)
    copy.take_up()
    if must_exist and not (copy.folder / SETTINGS_FILE).is_file():
        raise ConfigError(f"{run}: no run here (no {SETTINGS_FILE}); `dalip train` with this output_dir makes one")
    return copy.folder


class RemoteRun:
    """The copy of a run on this machine, and what is known of the run in the store. Readers have their own copy."""

    def __init__(self, address: str, cache_dir: str | None = None, *, reading: bool = False) -> None:
        self.address, self._reading = address.rstrip("/"), reading
        digest = hashlib.sha256(self.address.encode()).hexdigest()[:16]
        below = local_folder(cache_dir) / ("read" if reading else "runs") / digest
        self.folder = below / self.address.rpartition("/")[2]
        self._failed = 0
        self._pending: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "upload")

    # -- from the store

    def take_up(self) -> None:
        """Bring this machine's copy up to the store's; a newer checkpoint of the same run that is only here stays.

        Raises: RetryableError when the store does not answer; IntegrityError when no checkpoint there is whole.
        """
        storage.make_folder(str(self.folder))
        with locked(self.folder.parent / "lock"):  # processes of a machine share the copy
            there, here = self._pointer() or self._lost_pointer(), self._own_pointer()
            if there is None:
                if here is not None:  # the run was removed from the store
                    self._clear()
                return
            last, newest = next(reversed(list_checkpoints(self.folder)), None), there["checkpoints"][-1]
            is_damaged = last is not None and last.name == newest["name"] and _entry(last)["sha256"] != newest["sha256"]
            is_other = here is None or here["run"] != there["run"]
            if is_other or last is None or step_of(last) < _step(there) or is_damaged:
                self._clear()
                self._take_newest(there)
            elif here != there:
                self._write_own(there)
            if self._reading or self.is_finished():
                self._take_rest()
            elif not (self.folder / MODEL_FILE).exists():  # of a finished run they are gone there too: made again
                (self.folder / SUMMARY_FILE).unlink(missing_ok=True)

    def is_finished(self) -> bool:
        """Return whether the store holds the end of the run: its summary, and the weights that it speaks of."""
        storage.filesystem(self.address)[0].invalidate_cache()
        return all(self._ask(name, storage.exists) for name in (SUMMARY_FILE, MODEL_FILE))

    def take_checkpoint(self, path: Path) -> Path:
        """Return the checkpoint of this name on this machine; one that another machine has chosen is fetched."""
        local = self.folder / CHECKPOINT_FOLDER / path.name
        with locked(self.folder.parent / "lock"):
            if not local.exists():
                self._get(f"{CHECKPOINT_FOLDER}/{path.name}")
        return local

    def _clear(self) -> None:
        """Empty the copy."""
        run_files.clear_run(self.folder)
        (self.folder / RUN_FILE).unlink(missing_ok=True)

    def _lost_pointer(self) -> dict[str, Any] | None:
        """In place of a pointer that is gone: all checkpoints of the run, of unknown sha256; None without any."""
        names = run_files.files_of_run(self.address) if run_files.is_run(self.address) else []
        steps = sorted((Path(name) for name in names if name.startswith(f"{CHECKPOINT_FOLDER}/step-")), key=step_of)
        entries = [{"name": path.name, "sha256": None} for path in steps]
        return {"run": uuid.uuid4().hex, "checkpoints": entries} if entries else None

    def _take_newest(self, there: dict[str, Any]) -> None:
        """Download the newest checkpoint that is whole, and the files beside it."""
        for name in _SMALL:
            self._get(name)
        for entry in reversed(there["checkpoints"]):
            name = f"{CHECKPOINT_FOLDER}/{entry['name']}"
            path = self._get(name)
            copied = _entry(path)
            if copied["sha256"] == entry["sha256"]:
                self._write_own(there)
                return
            if entry["sha256"] is None and checkpoint.is_whole(path):
                _say(f"{self.address}: its {POINTER_FILE} is gone; {name} is the newest whole checkpoint")
                self._point_to(there | {"checkpoints": [copied]})
                return
            path.unlink()
            _say(f"{self.address}/{name}: damaged; the one before is taken")
        raise IntegrityError(
            f"{self.address}: none of its {len(there['checkpoints'])} checkpoints is whole; --no-resume trains anew"
        )

    def _take_rest(self) -> None:
        """Take what a finished run has more: for a reader also its weights, and the figures of its evaluations."""
        for name in storage.sizes_below(self.address):
            is_needed = name.startswith(f"{EVAL_FOLDER}/") or name in (*_SMALL, SUMMARY_FILE)
            if is_needed or (self._reading and name == MODEL_FILE and not (self.folder / name).exists()):
                self._get(name)

    def _get(self, name: str) -> Path:
        """One file of the run, whole."""
        path = self.folder / name
        try:
            self._ask(name, lambda address: storage.download(address, str(path)))
        except FileNotFoundError:
            raise IntegrityError(
                f"{self.address}/{name}: is gone, though the run's {POINTER_FILE} needs it; --no-resume trains anew"
            ) from None
        return path

    def _pointer(self) -> dict[str, Any] | None:
        content = storage.read_if_there(f"{self.address}/{_POINTER}")
        return None if content is None else _parse(content, self.address)

    # -- to the store

    def begin(self, *, anew: bool) -> None:
        """Write the settings of a run that begins or goes on, to see that the store is there. `anew` removes one first.

        Raises: ConfigError where it is not; RetryableError when it does not answer.
        """
        try:
            if anew:
                for name in self._ask("", run_files.files_of_run):
                    self._ask(name, storage.remove)
            for name in (RUN_FILE, SETTINGS_FILE):  # the first says that the place is a run's
                self._put(name)
        except FileNotFoundError as error:
            raise ConfigError(f"{self.address}: there is no such place: {error}; make the bucket first") from None

    def save(self, keep: int) -> None:
        """Upload the newest checkpoint in the background, once the upload before has ended.

        Raises: RunError when uploads failed three times in a row.
        """
        self._settle()
        self._pending = self._thread.submit(self.push, keep)

    def finish(self, keep: int) -> None:
        """Upload all that a finished run has, its summary last, unless it is there.

        Raises: RunError when the store does not take it.
        """
        if self.is_finished() and self._pointer() == self._own_pointer():
            return
        with contextlib.suppress(RunError):
            self._settle()
        try:
            self.push(keep)
            self._put(MODEL_FILE)
            self._put(SUMMARY_FILE)
        except RetryableError as error:
            raise RunError(
                f"the run is finished, but {error}. It lies in {self.folder}: run the same command on this machine to "
                "upload it"
            ) from None

    def close(self, keep: int) -> None:
        """Wait for the upload that is under way; where it failed, try once more. For a run that ends before its end."""
        try:
            self._settle()
            if list_checkpoints(self.folder):
                self.push(keep)
        except (RetryableError, RunError) as error:
            _say(f"not uploaded: {error}")
        self._thread.shutdown()

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
            self._failed = 0
        except RetryableError as error:
            self._failed += 1
            if self._failed >= MAX_FAILED_UPLOADS:
                raise RunError(
                    f"{self._failed} uploads in a row failed, the last: {error}. The checkpoints lie in {self.folder}: "
                    "run the same command on this machine when the store answers again"
                ) from None
            _say(f"{error}; training goes on ({self._failed} of {MAX_FAILED_UPLOADS} in a row)")

    def push(self, keep: int) -> None:
        """Log, settings and the newest checkpoint, then the pointer; then remove all but the newest `keep`."""
        newest, pointer = list_checkpoints(self.folder)[-1], self._own_pointer()
        if self._pointer() != pointer:
            raise RunError(
                f"{self.address}: another training has written here meanwhile; end one of them, or choose another "
                "--output"
            )
        beside = [*_SMALL, "not-finite-*.json", f"{TENSORBOARD_FOLDER}/**/*"]
        for path in (path for pattern in beside for path in self.folder.glob(pattern) if path.is_file()):
            self._put(str(path.relative_to(self.folder)))
        before = pointer["checkpoints"] if pointer else []
        if before and before[-1]["name"] == newest.name:
            return
        entry = _entry(newest)
        self._put(f"{CHECKPOINT_FOLDER}/{newest.name}")
        entries = [*(old for old in before if old["name"] < newest.name), entry]
        self._point_to({"run": pointer["run"] if pointer else uuid.uuid4().hex, "checkpoints": entries[-keep:]})
        for old in entries[:-keep]:
            self._ask(f"{CHECKPOINT_FOLDER}/{old['name']}", storage.remove_if_there)

    def _point_to(self, pointer: dict[str, Any]) -> None:
        """Write the pointer; the store has none of a reader's."""
        if not self._reading:
            content = json.dumps(pointer, indent=2).encode()
            self._ask(_POINTER, partial(storage.publish_bytes, content=content))
        self._write_own(pointer)

    def _put(self, name: str) -> None:
        self._ask(name, partial(storage.upload, str(self.folder / name)))

    def _ask(self, name: str, question: Callable[[str], T]) -> T:
        """Ask the store about a file of the run; `question` gets its address.

        Raises: FileNotFoundError; RetryableError when the store does not answer.
        """
        path = f"{self.address}/{name}".rstrip("/")

        def problem(error: Exception) -> RetryableError:
            return RetryableError(f"{path}: the store does not answer ({words_of(error)})")

        return faults.patiently(partial(question, path), problem)

    # -- on this machine

    def _own_pointer(self) -> dict[str, Any] | None:
        path = self.folder / _POINTER
        return _parse(path.read_bytes(), str(path)) if path.exists() else None

    def _write_own(self, pointer: dict[str, Any]) -> None:
        storage.publish_json(self.folder / _POINTER, pointer)


def _entry(path: Path) -> dict[str, Any]:
    """Return the entry of a checkpoint in the pointer."""
    written = storage.hash_file(str(path))
    return {"name": path.name, "num_bytes": written.num_bytes, "sha256": written.sha256}


def _step(pointer: dict[str, Any]) -> int:
    return step_of(Path(pointer["checkpoints"][-1]["name"]))


def _parse(content: bytes, where: str) -> dict[str, Any]:
    """Raise IntegrityError for anything but a pointer."""
    try:
        pointer: dict[str, Any] = json.loads(content)
        if not isinstance(pointer["run"], str) or not pointer["checkpoints"]:
            raise ValueError("no checkpoint in it")
        _step(pointer)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise IntegrityError(f"{where}: its {POINTER_FILE} cannot be read ({error}); --no-resume trains anew") from None
    return pointer


def _say(line: str) -> None:
    print(f"dalip: {line}", file=sys.stderr, flush=True)
