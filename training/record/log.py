"""The record of a run as JSON lines, and one line for the person watching.

Writes `log.jsonl`: one JSON object a line, each with an `event`; whole lines only are ever read back. On a
terminal one line is kept up to date; elsewhere a line is printed per interval. A resume cuts off what was
logged after its checkpoint, so that the file reads as if nothing had happened.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from manifests.errors import IntegrityError
from training.record.tracking import Tracker, scalars_of

LOG_FILE = "log.jsonl"


class RunLog:
    """Appends events to `log.jsonl` and shows progress; a silent one (no path) for ranks that do not write."""

    def __init__(
        self,
        path: Path | None,
        line_every_seconds: float,
        stream: TextIO | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._trackers = trackers
        self._file = path.open("a", encoding="utf-8") if path is not None else None
        self._stream = stream or sys.stderr
        self._live = path is not None and self._stream.isatty()
        self._every = line_every_seconds
        self._last_line = 0.0
        self._shown = 0

    def event(self, event: str, **values: Any) -> None:
        """Append one line to the file."""
        if self._file is not None:
            self._file.write(json.dumps({"event": event, **values}) + "\n")
            self._file.flush()
        if self._trackers and (numbers := scalars_of(event, values)):
            for tracker in self._trackers:
                tracker.add(numbers, values["step"])

    def progress(self, line: str, *, always: bool = False) -> None:
        """Show where the run is: in place on a terminal, else at most once an interval."""
        if self._file is None:
            return
        if self._live:
            self._stream.write("\r" + line.ljust(self._shown))
            self._stream.flush()
            self._shown = len(line)
        elif always or time.monotonic() - self._last_line >= self._every:
            self._last_line = time.monotonic()
            self._stream.write(line + "\n")
            self._stream.flush()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self._file is not None:
            self._end_live_line()
            self._stream.write(line + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Close the file; the live line keeps its last state."""
        self._end_live_line()
        if self._file is not None:
            self._file.close()
            self._file = None
        for tracker in self._trackers:
            tracker.close()

    def _end_live_line(self) -> None:
        if self._live and self._shown:
            self._stream.write("\n")
            self._shown = 0


def read_log(path: Path, event: str | None = None) -> list[dict[str, Any]]:
    """The whole lines of a log, of one kind or all; a line that a crash cut short is left out.

    Raises: IntegrityError for a line that is no event.
    """
    events = _parse(path)
    for number, item in enumerate(events, 1):
        if item is None:
            raise _bad_line(path, number)
    return [item for item in events if item is not None and (event is None or item["event"] == event)]


def cut_log(path: Path, step: int) -> None:
    """Drop what was logged after `step`, a line cut short, and lines that a crash spoiled behind the last one kept.

    Raises: IntegrityError for a spoiled line among those kept.
    """
    from manifests.storage import publish_bytes

    events = _parse(path)
    kept = [number for number, item in enumerate(events) if item is not None and item.get("step", 0) <= step]
    if spoiled := [number for number, item in enumerate(events) if item is None and kept and number < kept[-1]]:
        raise _bad_line(path, spoiled[0] + 1)
    publish_bytes(str(path), "".join(json.dumps(events[number]) + "\n" for number in kept).encode("utf-8"))


def _parse(path: Path) -> list[dict[str, Any] | None]:
    """Each whole line as an event, or None where it is none."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_event_of(line) for line in lines]


def _event_of(line: bytes) -> dict[str, Any] | None:
    try:
        item = json.loads(line)
    except ValueError:
        return None
    return item if isinstance(item, dict) and "event" in item else None


def _bad_line(path: Path, number: int) -> IntegrityError:
    return IntegrityError(f"{path}: line {number} is no event of a run; mend it or take it out, then run again")


def format_duration(seconds: float) -> str:
    """1:02:03 or 4:05."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
