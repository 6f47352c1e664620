"""Cores and stop signals that a scheduler such as Slurm gives to a program."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # SIGUSR1 as in `sbatch --signal=USR1@300`


def num_cores() -> int:
    """Cores this process may run on: of a machine that jobs share, those of its own job."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def interrupt(*_: Any) -> None:
    """Handle a signal as Python handles Ctrl-C."""
    raise KeyboardInterrupt


@contextmanager
def handling(handler: Any, *signals: int) -> Iterator[None]:
    """Handle signals so within this, and as before after it. Only the main thread can: others change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
