"""A run whose `output_dir` lies in an object store: it works in a folder of this machine and is copied to the store.

    RUN/checkpoints/LATEST   which checkpoints there are, newest last, with sizes and sha256: written after them
    RUN/...                  the files that `training.record.checkpoint` names; summary.json last, as on a disk

Each file is one upload, which a store shows whole or not at all. Checkpoints are uploaded in the background. An upload
is tried three times. Where it fails, the training goes on, with a line; it ends when three in a row failed, with the
checkpoints on this machine. Gives up with RunError then, and where another training writes to the same place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from manifests import storage
from manifests.errors import ConfigError, IntegrityError, RetryableError, RunError
from training.config import SETTINGS_FILE
from training.data.shard_cache import local_folder, locked
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

MAX_FAILED_UPLOADS = 3  # in a row; one more checkpoint interval of a store's outage each
_RETRY_SECONDS = (2.0, 8.0)  # beside what the client library tries by itself
_SMALL = (SETTINGS_FILE, RUN_FILE, LOG_FILE)


def run_folder(output_dir: str, cache_dir: str | None = None, *, reading: bool = False) -> Path:
    """The folder on this machine in which a run works: its own, or that of its copy. Readers have another copy."""
    if not storage.is_remote(output_dir):
        return Path(output_dir)
    address = output_dir.rstrip("/")
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    return local_folder(cache_dir) / ("read" if reading else "runs") / digest / address.rpartition("/")[2]


def take_up_run(output_dir: str, cache_dir: str | None) -> Path:
    """The folder of a run for a training on this machine, brought up to date.

    Raises: RetryableError when the store does not answer.
    """
    if storage.is_remote(output_dir):
        RemoteRun(output_dir, cache_dir).take_up()
    return run_folder(output_dir, cache_dir)


def fetch_run(run: str, cache_dir: str | None = None, *, must_exist: bool = True) -> Path:
    """The folder of a run for who only reads it: itself, or a copy on this machine that is brought up to date.

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
    """The copy of a run on this machine, and what is known of the run in the store."""

    def __init__(self, address: str, cache_dir: str | None = None, *, reading: bool = False) -> None:
        self.address, self._reading = address.rstrip("/"), reading
        try:
            storage.filesystem(self.address)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"output_dir {address}: {error}") from None
        self.folder = run_folder(address, cache_dir, reading=reading)
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
            there, here = self._read_pointer() or self._without_pointer(), self._own_pointer()
            if there is None:
                if here is not None:  # the run was removed from the store
                    self._clear()
                return
            if here is None or here["run"] != there["run"] or self._own_step() < _step(there):
                self._clear()
                (self.folder / CHECKPOINT_FOLDER).mkdir(parents=True, exist_ok=True)
                self._take_newest(there)
            elif here != there:
                self._write_own(there)
            if self._reading or self.is_finished():
                self._take_rest()
            elif not (self.folder / MODEL_FILE).exists():  # of a finished run they are gone there too: made again
                (self.folder / SUMMARY_FILE).unlink(missing_ok=True)

    def is_finished(self) -> bool:
        """Whether the store holds the end of the run: its summary, and the weights that it speaks of."""
        return self._has(SUMMARY_FILE) and self._has(MODEL_FILE)

    def _clear(self) -> None:
        """Empty the copy."""
        run_files.clear_run(self.folder)
        (self.folder / RUN_FILE).unlink(missing_ok=True)

    def _without_pointer(self) -> dict[str, Any] | None:
        """What the pointer would say, for the newest whole checkpoint of a run that lost it; None without checkpoints.

        Raises: IntegrityError when none is whole.
        """
        if not run_files.is_run(self.address):
            return None
        own = [name for name in run_files.files_of_run(self.address) if name.startswith(f"{CHECKPOINT_FOLDER}/step-")]
        for name in sorted(own, key=lambda name: step_of(Path(name)), reverse=True):
            path = self._get(name)
            if checkpoint.is_whole(path):
                written = storage.hash_file(str(path))
                entry = {"name": path.name, "num_bytes": written.num_bytes, "sha256": written.sha256}
                pointer = {"run": uuid.uuid4().hex, "checkpoints": [entry]}
                if not self._reading:
                    self._point_to(pointer)
                _say(f"{self.address}: its {POINTER_FILE} is gone; {name} is the newest whole checkpoint")
                return pointer
        if own:
            raise IntegrityError(
                f"{self.address}: its {POINTER_FILE} is gone, and none of its {len(own)} checkpoints is whole; "
                "--no-resume trains anew"
            )
        return None

    def take_checkpoint(self, path: Path) -> Path:
        """The checkpoint of this name on this machine; one that another machine has chosen is fetched."""
        own = self.folder / CHECKPOINT_FOLDER / path.name
        with locked(self.folder.parent / "lock"):
            if not own.exists():
                self._get(f"{CHECKPOINT_FOLDER}/{path.name}")
        return own

    def _take_newest(self, there: dict[str, Any]) -> None:
        """The files to go on with: the newest checkpoint that is whole, and those beside it."""
        for name in _SMALL:
            self._get(name)
        for entry in reversed(there["checkpoints"]):
            path = self._get(f"{CHECKPOINT_FOLDER}/{entry['name']}")
            if storage.hash_file(str(path)).sha256 == entry["sha256"]:
                self._write_own(there)
                return
            path.unlink()
            _say(f"{self.address}/{CHECKPOINT_FOLDER}/{entry['name']}: damaged; the one before is taken")
        raise IntegrityError(
            f"{self.address}: none of its {len(there['checkpoints'])} checkpoints is whole; --no-resume trains anew"
        )

    def _take_rest(self) -> None:
        """What a finished run has more, for a reader also its weights, and the figures of its evaluations."""
        fs, inner = storage.filesystem(self.address)
        fs.invalidate_cache()
        for path in fs.find(inner):
            name = path[len(inner) + 1 :]
            wanted = name.startswith(f"{EVAL_FOLDER}/") or name in (*_SMALL, SUMMARY_FILE)
            if wanted or (self._reading and name == MODEL_FILE and not (self.folder / name).exists()):
                self._get(name)

    def _get(self, name: str) -> Path:
        """One file of the run, whole."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = storage.temp_path(str(path))
        fs, inner = storage.filesystem(f"{self.address}/{name}")
        try:
            self._patiently(f"{self.address}/{name}", lambda: fs.get_file(inner, temp))
            storage.publish(temp, str(path))
        except FileNotFoundError:
            raise IntegrityError(
                f"{self.address}/{name}: is gone, though the run's {POINTER_FILE} needs it; --no-resume trains anew"
            ) from None
        finally:
            Path(temp).unlink(missing_ok=True)
        return path

    def _has(self, name: str) -> bool:
        fs, inner = storage.filesystem(f"{self.address}/{name}")
        fs.invalidate_cache()
        return bool(self._patiently(self.address, lambda: fs.exists(inner)))

    def _read_pointer(self) -> dict[str, Any] | None:
        fs, inner = storage.filesystem(f"{self.address}/{CHECKPOINT_FOLDER}/{POINTER_FILE}")
        try:
            return _parse(self._patiently(self.address, lambda: fs.cat_file(inner)), self.address)
        except FileNotFoundError:
            return None

    # -- to the store

    def begin(self, *, anew: bool) -> None:
        """Write the settings of a run that begins or goes on, to see that the store is there. `anew` removes one first.

        Raises: ConfigError where it is not; RetryableError when it does not answer.
        """
        try:
            if anew:
                self._remove()
            for name in (RUN_FILE, SETTINGS_FILE):  # the first says that the place is a run's
                self._put(self.folder / name)
        except FileNotFoundError as error:
            raise ConfigError(f"{self.address}: there is no such place: {error}; make the bucket first") from None

    def _remove(self) -> None:
        """Remove a run that is in the store; the pointer first."""
        fs, inner = storage.filesystem(self.address)
        for name in self._patiently(self.address, lambda: run_files.files_of_run(self.address)):
            self._patiently(self.address, partial(fs.rm_file, f"{inner}/{name}"))

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
        if self.is_finished():
            return
        with contextlib.suppress(RunError):
            self._settle()
        try:
            self.push(keep)
            self._put(self.folder / MODEL_FILE)
            self._put(self.folder / SUMMARY_FILE)
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
        newest, known = list_checkpoints(self.folder)[-1], self._own_pointer()
        for path in self._beside():
            self._put(path)
        before = known["checkpoints"] if known else []
        if before and before[-1]["name"] == newest.name:
            return
        if self._read_pointer() != known:
            raise RunError(
                f"{self.address}: another training has written here meanwhile; end one of them, or choose another "
                "--output"
            )
        written = storage.hash_file(str(newest))
        self._put(newest)
        entry = {"name": newest.name, "num_bytes": written.num_bytes, "sha256": written.sha256}
        entries = [*(old for old in before if old["name"] < newest.name), entry]
        pointer = {"run": known["run"] if known else uuid.uuid4().hex, "checkpoints": entries[-keep:]}
        self._point_to(pointer)
        self._write_own(pointer)
        fs, inner = storage.filesystem(f"{self.address}/{CHECKPOINT_FOLDER}")
        for old in entries[:-keep]:
            with contextlib.suppress(FileNotFoundError):
                self._patiently(self.address, partial(fs.rm_file, f"{inner}/{old['name']}"))

    def _point_to(self, pointer: dict[str, Any]) -> None:
        fs, inner = storage.filesystem(f"{self.address}/{CHECKPOINT_FOLDER}/{POINTER_FILE}")
        content = json.dumps(pointer, indent=2).encode()
        self._patiently(self.address, lambda: fs.pipe_file(inner, content))

    def _beside(self) -> list[Path]:
        """What a reader wants beside the checkpoints."""
        found = [self.folder / name for name in _SMALL]
        found += [*self.folder.glob("not-finite-*.json"), *self.folder.glob(f"{TENSORBOARD_FOLDER}/**/*")]
        return [path for path in found if path.is_file()]

    def _put(self, path: Path) -> None:
        target = f"{self.address}/{path.relative_to(self.folder)}"
        self._patiently(target, lambda: storage.put(str(path), target))

    def _patiently(self, path: str, work: Callable[[], Any]) -> Any:
        """Work with the store, tried three times.

        Raises: FileNotFoundError; RetryableError when it does not answer.
        """
        waits = iter(_RETRY_SECONDS)
        while True:
            try:
                return work()
            except Exception as error:
                if isinstance(error, FileNotFoundError) or not storage.is_storage_error(error):
                    raise
                if (wait_seconds := next(waits, None)) is None:
                    text = " ".join(str(error).split())
                    raise RetryableError(
                        f"{path}: the store does not answer ({type(error).__name__}: {text:.200})"
                    ) from None
            time.sleep(wait_seconds)

    # -- on this machine

    def _own_pointer(self) -> dict[str, Any] | None:
        path = self.folder / CHECKPOINT_FOLDER / POINTER_FILE
        return _parse(path.read_bytes(), str(path)) if path.exists() else None

    def _write_own(self, pointer: dict[str, Any]) -> None:
        storage.publish_json(self.folder / CHECKPOINT_FOLDER / POINTER_FILE, pointer)

    def _own_step(self) -> int:
        found = list_checkpoints(self.folder)
        return step_of(found[-1]) if found else -1


def newest_step(output_dir: str) -> int:
    """The step that a run would go on from; 0 where it has no checkpoint.

    Raises: RetryableError when a store does not answer.
    """
    if storage.is_remote(output_dir):
        there = RemoteRun(output_dir)._read_pointer()
        return _step(there) if there else 0
    found = list_checkpoints(Path(output_dir))
    return step_of(found[-1]) if found else 0


def begun_at(output_dir: str) -> str | int | None:
    """Something that changes when a training begins or goes on in a run's place; None where there is no run.

    Raises: RetryableError when a store does not answer.
    """
    if storage.is_remote(output_dir):
        there = RemoteRun(output_dir)._read_pointer()
        return there["run"] if there else None
    path = Path(output_dir) / RUN_FILE
    return path.stat().st_mtime_ns if path.exists() else None


def _step(pointer: dict[str, Any]) -> int:
    return step_of(Path(pointer["checkpoints"][-1]["name"]))


def _parse(content: bytes, where: str) -> dict[str, Any]:
    """Raises: IntegrityError for anything but a pointer."""
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
