"""Being asked to stop: SIGTERM of a scheduler or Ctrl-C becomes an event that the loop looks at between steps.

Processes that Ray starts get no signal of their own. They look for a stop file, which the command that got the signal
writes into the run's folder. The signal handlers of before are put back. Writes that file only.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manifests.errors import RunError

_LOOK_SECONDS = 1.0


class StoppedError(RunError):
    """A signal asked the run to stop, and it has saved a checkpoint. A command with several runs stops too."""


@contextmanager
def stop_event(stop_file: Path | None = None) -> Iterator[threading.Event]:
    """An event that is set by SIGTERM or Ctrl-C or, if one is given, by the stop file instead."""
    stop = threading.Event()
    if stop_file is None:
        with _on_signals(stop.set, stop.is_set):
            yield stop
        return
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(stop_file, stop, over), daemon=True)
    watch.start()
    try:
        yield stop
    finally:
        over.set()
        watch.join()


@contextmanager
def signals_to_file(stop_file: Path) -> Iterator[None]:
    """Within it SIGTERM or Ctrl-C writes the stop file, for processes elsewhere."""

    def ask() -> None:
        stop_file.parent.mkdir(parents=True, exist_ok=True)
        stop_file.touch()

    stop_file.unlink(missing_ok=True)
    with _on_signals(ask, stop_file.exists):
        try:
            yield
        finally:
            stop_file.unlink(missing_ok=True)


@contextmanager
def _on_signals(ask: Callable[[], None], is_asked: Callable[[], bool]) -> Iterator[None]:
    """Call `ask` at SIGTERM or Ctrl-C; a second Ctrl-C interrupts at once."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return

    def handle(number: int, _: Any) -> None:
        if is_asked() and number == signal.SIGINT:
            raise KeyboardInterrupt
        ask()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(stop_file: Path, stop: threading.Event, over: threading.Event) -> None:
    while not over.wait(_LOOK_SECONDS):
        if stop_file.exists():
            stop.set()
            return
