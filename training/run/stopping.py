"""Being asked to stop: a scheduler's signal or Ctrl-C becomes an event that the loop looks at between steps.

The signal handlers of before are put back.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from manifests.errors import RunError
from manifests.services.scheduling import STOP_SIGNALS, handling


class StoppedError(RunError):
    """A signal asked the run to stop, and it has saved a checkpoint. A command with several runs stops too."""


@contextmanager
def stop_event() -> Iterator[threading.Event]:
    """Set an event on SIGTERM, SIGUSR1 or Ctrl-C; a second Ctrl-C interrupts at once."""
    stop = threading.Event()

    def handle(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    with handling(handle, signal.SIGINT, *STOP_SIGNALS):
        yield stop
