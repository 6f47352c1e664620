"""Ctrl-C, SIGTERM and SIGUSR1: the first asks the build to store what it has and leave, the second leaves at once.

A step whose parts cannot be asked is left at the first signal. Its parts in flight are done again by the next build.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from manifests.services.scheduling import STOP_SIGNALS

_LONGEST_SECONDS = 9.0  # after the first signal; then what is not stored by then is lost


class StopRequests:
    """Requests to stop this build."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._step_can_finish = False
        self._handlers: dict[int, Callable[[int, Any], None]] = {}

    def asked(self) -> bool:
        """Return true once the step that runs shall store what it has and end."""
        return self._asked.is_set()

    def wait(self, seconds: float) -> None:
        """Do nothing for so long, or until somebody asks to stop."""
        self._asked.wait(seconds)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals of this process, in its main thread."""
        self._handlers = dict.fromkeys((signal.SIGINT, *STOP_SIGNALS), self._stop) | {signal.SIGALRM: self._leave}
        before = {number: signal.getsignal(number) for number in self._handlers}
        self.take_back_signals()
        try:
            yield
        finally:
            self._handlers = {}
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def take_back_signals(self) -> None:
        """Handle the signals again where a library has taken them: Ray takes SIGTERM when it starts."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def finishing_first(self) -> Iterator[None]:
        """Delay stopping until the context ends, so that a step can store what it has."""
        self._step_can_finish = True
        try:
            yield
        finally:
            self._step_can_finish = False

    def _stop(self, number: int, frame: Any) -> None:
        if self._asked.is_set() or not self._step_can_finish:
            self._leave(number, frame)
        self._asked.set()
        signal.setitimer(signal.ITIMER_REAL, _LONGEST_SECONDS)

    def _leave(self, _number: int, _frame: Any) -> None:
        raise KeyboardInterrupt
