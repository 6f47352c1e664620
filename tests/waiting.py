"""Wait for an event and not for a time, with a deadline that a machine under load keeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_until(happens: Callable[[], object], process: Any = None, every_seconds: float = 0.01) -> None:
    """Until `happens()` is true, for 10 minutes at most. The process, where one is given, must not end before."""
    until = time.monotonic() + 600
    while not happens():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended before: {process.said() if hasattr(process, 'said') else process.args}")
        assert time.monotonic() < until
        time.sleep(every_seconds)
