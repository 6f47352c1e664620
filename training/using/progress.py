"""A line of progress: kept up to date on a terminal, else one each half minute."""

from __future__ import annotations

import time
from typing import TextIO

from training.record.log import LiveLine

_EVERY_SECONDS = 30.0


class Progress:
    """How many of some things are done, how fast, and how long the rest will take."""

    def __init__(self, what: str, total: int, done_before: int, stream: TextIO | None = None) -> None:
        self.what, self.total, self._done, self._before = what, total, done_before, done_before
        self._started = time.monotonic()
        self._live = LiveLine(_EVERY_SECONDS, stream, printed_at=self._started)
        if done_before:
            print(f"{what}: {done_before:,} of {total:,} were done before", file=self._live.stream, flush=True)

    def add(self, num: int) -> None:
        """So many more are done."""
        self._done += num
        self._live.show(self._line())

    def close(self) -> None:
        """The live line keeps its last state."""
        self._live.end()

    def _line(self) -> str:
        rate = (self._done - self._before) / max(time.monotonic() - self._started, 1e-9)
        left = (self.total - self._done) / rate if rate else 0.0
        return f"{self.what}: {self._done:,} of {self.total:,}, {rate:,.1f} a second, {left / 60:,.0f} min left"
