"""One command in this process: to its end, or killed at its n-th write; or in a process of its own, by SIGKILL."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from building import run_here

from manifests.contract import records
from pipeline.cli import main

TESTS = Path(__file__).parents[1]


class KilledError(BaseException):
    """The process is gone from here on, as far as its files can tell."""


@dataclass(frozen=True)
class Ran:
    """How a command ended; no exit code when it was killed."""

    code: int | None
    out: str
    err: str


def run(argv: Sequence[str], kill_at: int = 0, clock_seconds: float = 0.0) -> Ran:
    """Run a command with the clock set forward or back; `kill_at` counts writes that reach the disk."""
    with clock(clock_seconds), dying(kill_at):
        try:
            done = run_here(*argv)
        except KilledError:
            return Ran(None, "", "")
        except Exception:  # what a user would see
            return Ran(1, "", traceback.format_exc())
    return Ran(done.returncode, done.stdout, done.stderr)


def run_and_kill(argv: Sequence[str], kill_at: int) -> Ran:
    """The same in a process of its own, which sends itself SIGKILL at its n-th write."""
    code = f"from walk.running import until_killed; until_killed({kill_at})"
    paths = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    return Ran(None if done.returncode == -signal.SIGKILL else done.returncode, done.stdout, done.stderr)


def until_killed(kill_at: int) -> None:
    """What the other process runs."""
    with _each_write(_counting(kill_at, lambda: os.kill(os.getpid(), signal.SIGKILL))):
        sys.exit(main(sys.argv[1:]))


@contextlib.contextmanager
def dying(kill_at: int) -> Iterator[None]:
    """From the n-th write on, every write of this thread raises: nothing that comes later reaches the disk."""

    def die() -> None:
        raise KilledError

    with _each_write(_counting(kill_at or sys.maxsize, die)):
        yield


def _counting(kill_at: int, die: Callable[[], None]) -> Callable[[], None]:
    count, thread = 0, threading.current_thread()

    def count_one() -> None:
        nonlocal count
        if threading.current_thread() is thread:  # the watcher writes status.json at times of its own
            count += 1
            if count >= kill_at:
                die()

    return count_one


@contextlib.contextmanager
def _each_write(before: Callable[[], None]) -> Iterator[None]:
    """Call `before` ahead of everything that makes a file durable or gives it its name.

    Nothing is made durable: no power fails here, and waiting for the disk takes longer than all else.
    """
    replace = Path.replace

    def counted_fsync(descriptor: int) -> None:
        before()

    def counted_replace(path: Path, target: Any) -> Path:
        before()
        return replace(path, target)

    with (
        mock.patch.object(os, "fsync", counted_fsync),
        mock.patch.object(Path, "replace", counted_replace),
    ):
        yield


@contextlib.contextmanager
def clock(seconds: float) -> Iterator[None]:
    """Another machine's clock: what the catalogue writes down, and time.time()."""
    if not seconds:
        yield
        return

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime.now(tz) + datetime.timedelta(seconds=seconds)

    own = types.SimpleNamespace(**{**vars(datetime), "datetime": Shifted})
    real = time.time

    def shifted() -> float:
        return real() + seconds

    def shifted_ns() -> int:
        return int(shifted() * 1e9)

    with (
        mock.patch.object(records, "datetime", own),
        mock.patch.object(time, "time", shifted),
        mock.patch.object(time, "time_ns", shifted_ns),
    ):
        yield
