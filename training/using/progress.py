"""A line of progress: kept up to date on a terminal, else one each half minute."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_EVERY_SECONDS = 30.0


class Progress:
    """How many of some things are done, how fast, and how long the rest will take."""

    def __init__(self, what: str, total: int, done_before: int, stream: TextIO | None = None) -> None:
        self.what, self.total, self._done, self._before = what, total, done_before, done_before
        self._stream = stream or sys.stderr
        self._live, self._started, self._last, self._shown = self._stream.isatty(), time.monotonic(), 0.0, 0
        if done_before:
            print(f"{what}: {done_before:,} of {total:,} were done before", file=self._stream, flush=True)

    def add(self, num: int) -> None:
        """So many more are done."""
        self._done += num
        now = time.monotonic()
        if self._live or now - max(self._last, self._started) >= _EVERY_SECONDS:
            self._last = now
            line = self._line(now)
            end = "" if self._live else "\n"
            print(("\r" if self._live else "") + line.ljust(self._shown), end=end, file=self._stream, flush=True)
            self._shown = len(line) if self._live else 0

    def close(self) -> None:
        """The live line keeps its last state."""
        if self._shown:
            print(file=self._stream, flush=True)

    def _line(self, now: float) -> str:
        rate = (self._done - self._before) / max(now - self._started, 1e-9)
        left = (self.total - self._done) / rate if rate else 0.0
        return f"{self.what}: {self._done:,} of {self.total:,}, {rate:,.1f} a second, {left / 60:,.0f} min left"
