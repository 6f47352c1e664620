"""Wait for an event and not for a time, with a deadline that a machine under load keeps.

Nothing else below tests/ sleeps: tests/architecture/test_waiting.py looks. What a test needs of time that goes by is
here, under the name of its reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE_SECONDS = 600


def wait_until(happens: Callable[[], object], process: Any = None, every_seconds: float = 0.01) -> None:
    """Until `happens()` is true, for 10 minutes at most. The process, where one is given, must not end before."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not happens():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended before: {process.said() if hasattr(process, 'said') else process.args}")
        assert time.monotonic() < until
        time.sleep(every_seconds)


def be_slow(seconds: float) -> None:
    """What a slow server, disk or part does. A test may need that it takes so long at least, never that it takes no
    longer."""
    time.sleep(seconds)


def hang() -> None:
    """As long as any test: whoever hangs is killed, or left behind in a thread that nobody waits for."""
    time.sleep(6 * PATIENCE_SECONDS)


def look_again(every_seconds: float = 0.01) -> None:
    """Between two looks of a loop that does more than look; the loop says when it ends."""
    time.sleep(every_seconds)


def let_pass(seconds: float) -> None:
    """Time in which what must not happen could happen, or until a moment that a test draws. On a slow machine less
    happens in it, so a test that holds on a quick one holds there."""
    time.sleep(seconds)
