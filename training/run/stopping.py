"""Being asked to stop: SIGTERM of a scheduler or Ctrl-C becomes an event that the loop looks at between steps.

Processes that Ray starts get no signal of their own. They look for a stop file, which the command that got the signal
writes into the run's folder, on a disk or in an object store. The signal handlers of before are put back. Writes that
file only.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from manifests.errors import RetryableError, RunError
from manifests.stores.storage import is_remote, read_if_there, remove_if_there, write_file

_LOOK_SECONDS, _LOOK_REMOTE_SECONDS = 1.0, 5.0


class StoppedError(RunError):
    """A signal asked the run to stop, and it has saved a checkpoint. A command with several runs stops too."""


@contextmanager
def stop_event(stop_file: str | None = None) -> Iterator[threading.Event]:
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
def signals_to_file(stop_file: str, is_idle: Callable[[], bool]) -> Iterator[None]:
    """Within it SIGTERM or Ctrl-C writes the stop file, for processes elsewhere.

    Raises: KeyboardInterrupt at a signal where `is_idle`: no process runs that could see the file.
    """
    remove_if_there(stop_file)

    def ask() -> None:
        write_file(stop_file, b"")
        if is_idle():
            raise KeyboardInterrupt

    with _on_signals(ask, lambda: _is_there(stop_file)):
        try:
            yield
        finally:
            remove_if_there(stop_file)


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


def _watch(stop_file: str, stop: threading.Event, over: threading.Event) -> None:
    while not over.wait(_LOOK_REMOTE_SECONDS if is_remote(stop_file) else _LOOK_SECONDS):
        if _is_there(stop_file):
            stop.set()
            return


def _is_there(path: str) -> bool:
    """False also where a store does not answer; it is asked again."""
    with suppress(OSError, RetryableError):
        return read_if_there(path) is not None
    return False
