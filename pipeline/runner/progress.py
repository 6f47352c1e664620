"""Progress of a step: a live line on a terminal, one line an interval in a log.

It shows parts or rows done, rate, time left and the most frequent drop reasons.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from manifests.records import Funnel
from pipeline.runner.executing import Job

log = logging.getLogger("plantmix.progress")


class Progress:
    """Progress of one step; a context manager."""

    def __init__(self, title: str, unit: str, jobs: Sequence[Job], interval_seconds: float) -> None:
        self._title, self._unit = title, unit
        self._weights = {job.key: job.num_rows for job in jobs}
        self._total = sum(self._weights.values())
        self._num_done, self._reasons = 0, Funnel(0, 0)
        self._interval_seconds = interval_seconds
        self._started = self._told = time.monotonic()
        self._live: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(self._line(), console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def advance(self, job: Job, funnel: Funnel | None) -> None:
        """Count a committed part."""
        self._num_done += self._weights[job.key]
        if funnel is not None:
            self._reasons = self._reasons + funnel
        now = time.monotonic()
        if self._live is not None:
            self._live.update(self._line())
        elif now - self._told >= self._interval_seconds:
            self._told = now
            log.info("%s", self._line())

    def snapshot(self) -> dict[str, Any]:
        """The same figures for `plantmix status`."""
        rate = self._rate()
        return {
            "step": self._title,
            "done": self._num_done,
            "total": self._total,
            "unit": self._unit,
            "per_second": round(rate, 2),
            "seconds_left": round((self._total - self._num_done) / rate) if rate else None,
            "reasons": dict(self._reasons.reasons),
        }

    def _rate(self) -> float:
        return self._num_done / max(time.monotonic() - self._started, 1e-9)

    def _line(self) -> str:
        rate = self._rate()
        left = _duration((self._total - self._num_done) / rate) if rate else "?"
        text = f"{self._title}: {self._num_done:,} of {self._total:,} {self._unit}, {rate:,.0f}/s, {left} left"
        top = sorted(self._reasons.reasons.items(), key=lambda item: -item[1])[:4]
        return text + (f" ({', '.join(f'{num:,} {reason}' for reason, num in top)})" if top else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
