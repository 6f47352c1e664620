"""Being asked to stop: SIGTERM of a scheduler and Ctrl-C as an event that the loop looks at between steps.

Processes that get no signal of their own (those that Ray starts) look for a file that whoever got one has written in
the run's folder. The handlers that were there before are put back. Writes that file only.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manifests.errors import RunError

_LOOK_SECONDS = 1.0


class StoppedError(RunError):
    """A signal asked the run to stop, and it has, with a checkpoint: whoever starts several stops as well."""


@contextmanager
def stop_signal(asked: Path | None = None) -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets, or in their place the file `asked`; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if asked is not None:
        over = threading.Event()
        watch = threading.Thread(target=_watch, args=(asked, stop, over), daemon=True)
        watch.start()
        try:
            yield stop
        finally:
            over.set()
            watch.join()
        return
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def passed_on(asked: Path) -> Iterator[None]:
    """SIGTERM or Ctrl-C becomes the file `asked`, for processes elsewhere; a second Ctrl-C interrupts at once."""

    def on_signal(number: int, _: Any) -> None:
        if asked.exists() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.parent.mkdir(parents=True, exist_ok=True)
        asked.touch()

    asked.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        asked.unlink(missing_ok=True)


def _watch(asked: Path, stop: threading.Event, over: threading.Event) -> None:
    while not over.wait(_LOOK_SECONDS):
        if asked.exists():
            stop.set()
            return
