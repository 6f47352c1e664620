"""Progress of a step: one line, in place on a terminal or in a log, and the same figures for status.json.

It shows parts or rows done, rate, time left, the most frequent drop reasons and the hosts that fail most.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from manifests.contract.records import Funnel
from manifests.errors import PlantMixError
from manifests.services.printable import ProgressLine, is_terminal, pace
from pipeline.fetching.tally import Tally

log = logging.getLogger("plantmix.progress")

_FIRST_LINE_SECONDS = 2.0  # a line by then, whether anything is done or not
_LOOK_SECONDS = 0.5
_EARLY_LOOK_SECONDS = 0.2  # until the first line
_RATE_FROM_SECONDS = 1.0  # no rate is shown before
_LAST_LOOK_SECONDS = 5.0  # the end of a step waits so long for a look that has begun
_RATE_SECONDS = 30.0  # the rate is that of so many last seconds


class Progress:
    """Figures of one step. `report` takes them from running parts; without it they grow with each committed part."""

    def __init__(self, title: str, unit: str, total: int = 0) -> None:
        self._title, self._unit = title, unit
        self.begin(total)
        self._num_done = 0
        self.has_reported = False
        """Whether a running part has finished its first row."""
        self._reasons: Mapping[str, int] = {}
        self._worst_hosts: Mapping[str, int] = {}
        self._given: Mapping[str, Any] = {}

    def begin(self, total: int) -> None:
        """Set the planned total. Before that, no line is shown."""
        self._history: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self.total = total

    def advance(self, num_rows: int, funnel: Funnel | None) -> None:
        """Count a committed part; weights of pieces are rounded, so they may come to more than the total."""
        self._num_done = min(self._num_done + num_rows, self.total)
        if funnel is not None:
            self._reasons = (Funnel(0, 0, self._reasons) + funnel).reasons

    def report(self, tally: Tally) -> None:
        """Replace the figures by the counts of the running parts."""
        if tally.num_rows and not self.has_reported:
            self.has_reported = True
            self._history = deque([(time.monotonic(), tally.num_rows)])  # the start of the workers does not count
        self._num_done = max(self._num_done, min(tally.num_rows, self.total))
        self._reasons = {name: num for name, num in tally.outcomes.items() if name != "ok"}
        self._worst_hosts = tally.worst_hosts
        self._given = tally.given

    def snapshot(self) -> dict[str, Any]:
        """Return the figures for `plantmix status`."""
        rate = self._rate()
        return {
            "step": self._title,
            "done": self._num_done,
            "total": self.total,
            "unit": self._unit,
            "per_second": round(rate, 2),
            "seconds_left": round((self.total - self._num_done) / rate) if rate else None,
            "reasons": dict(self._reasons),
            "worst_hosts": dict(self._worst_hosts),
            "given": dict(self._given),
        }

    def line(self) -> str:
        """Rows done, rate and time left, then the most frequent reasons and the hosts that fail most."""
        rate = self._rate()
        text = f"{self._title}: {self._num_done:,} of {self.total:,} {self._unit}"
        text += pace(rate, (self.total - self._num_done) / rate if rate else None)
        if top := sorted(self._reasons.items(), key=lambda item: -item[1])[:4]:
            text += f", dropped: {', '.join(f'{num:,} {name}' for name, num in top)}"
        if hosts := list(self._worst_hosts.items())[:3]:
            text += f"; hosts that fail: {', '.join(f'{name} ({num:,})' for name, num in hosts)}"
        return text

    def _rate(self) -> float:
        now = time.monotonic()
        if now - self._history[-1][0] >= 1.0:
            self._history.append((now, self._num_done))
            while len(self._history) > 2 and now - self._history[1][0] > _RATE_SECONDS:
                self._history.popleft()
        since, before = self._history[0]
        return (self._num_done - before) / (now - since) if now - since >= _RATE_FROM_SECONDS else 0.0


class Watch:
    """A thread that looks at a step twice a second. It publishes the figures, and shows them once the step is planned.

    A log gets a line after two seconds, one when a running part has finished its first row, then one an interval.

    `look` updates the figures, `publish` writes them into status.json. Use it as a context manager.
    """

    def __init__(
        self,
        progress: Progress,
        interval_seconds: float,
        look: Callable[[], None],
        publish: Callable[[dict[str, Any]], None],
    ) -> None:
        self._progress, self._interval_seconds = progress, interval_seconds
        self._look, self._publish = look, publish
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")
        is_shown = is_terminal(sys.stderr) and log.isEnabledFor(logging.INFO)
        self._live = ProgressLine(sys.stderr, 0) if is_shown else None

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(_LAST_LOOK_SECONDS)  # a look may wait for a Ray that is gone
        if self._live is not None:
            self._live.end(is_wiped=True)

    def _run(self) -> None:
        next_line = early_until = time.monotonic() + min(_FIRST_LINE_SECONDS, self._interval_seconds)
        had_reported = False
        while not self._ended.wait(_LOOK_SECONDS if time.monotonic() > early_until else _EARLY_LOOK_SECONDS):
            try:
                self._look()
                self._publish(self._progress.snapshot())
            except (PlantMixError, OSError) as error:  # a lost gate or a full disk: the parts will say so
                log.debug("no figures: %s", error)
                continue
            if not self._progress.total:
                continue
            if self._live is not None:
                self._live.show(self._progress.line())
                continue
            if time.monotonic() >= next_line:
                next_line = time.monotonic() + self._interval_seconds
            elif had_reported or not self._progress.has_reported:
                continue
            had_reported = self._progress.has_reported
            log.info("%s", self._progress.line())
