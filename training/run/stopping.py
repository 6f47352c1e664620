"""Being asked to stop: SIGTERM of a scheduler or Ctrl-C becomes an event that the loop looks at between steps.

The signal handlers of before are put back.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from manifests.errors import RunError


class StoppedError(RunError):
    """A signal asked the run to stop, and it has saved a checkpoint. A command with several runs stops too."""


@contextmanager
def stop_event() -> Iterator[threading.Event]:
    """An event that is set by SIGTERM or Ctrl-C; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return

    def handle(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
