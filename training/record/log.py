"""The log of a run: JSON lines in a file, and a line of progress for the person watching.

Writes `log.jsonl`, one JSON object a line, each with an `event`. Only whole lines are read back. On a terminal one line
is kept up to date; elsewhere a line is printed per interval. A resume cuts off what was logged after its checkpoint, so
that the file reads as if the run had not been interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from manifests.errors import IntegrityError
from manifests.services.printable import ProgressLine
from manifests.services.untrusted import json_object
from manifests.stores.storage import publish_bytes
from training.record.tracking import Tracker, scalars_of

LOG_FILE = "log.jsonl"


class RunLog:
    """Appends events to `log.jsonl` and shows progress. Ranks other than 0 give no path; then it does nothing."""

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
        self._line = ProgressLine(self._stream, line_every_seconds)

    def event(self, event: str, **values: Any) -> None:
        """Append one line to the file."""
        if self._file is not None:
            self._file.write(json.dumps({"event": event, **values}) + "\n")
            self._file.flush()
        if self._trackers and (numbers := scalars_of(event, values)):
            for tracker in self._trackers:
                tracker.add(numbers, values["step"])

    def progress(self, line: str, *, always: bool = False) -> None:
        """Show the progress: in place on a terminal, else at most once an interval."""
        if self._file is not None:
            self._line.show(line, always=always)

    def print_line(self, line: str) -> None:
        """Print a line that stays."""
        if self._file is not None:
            self._line.end()
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Close the file; the live line keeps its last state."""
        self._line.end()
        if self._file is not None:
            self._file.close()
            self._file = None
        for tracker in self._trackers:
            tracker.close()


def read_log(path: Path, event: str = "") -> list[dict[str, Any]]:
    """Return the events of a log, of one kind or all; a line that a crash cut short is left out.

    Raises: IntegrityError for a line that is no event.
    """
    events = _parse(path)
    for number, item in enumerate(events, 1):
        if item is None:
            raise _bad_line(path, number)
    return [item for item in events if item is not None and event in ("", item["event"])]


def cut_log(path: Path, step: int) -> str | None:
    """Drop events after `step`, a line cut short, and lines that a crash damaged after the last event kept.

    Returns a line about a log that does not begin with the start of its run.

    Raises: IntegrityError for a damaged line before that event.
    """
    events = _parse(path)
    kept = [number for number, item in enumerate(events) if item is not None and item.get("step", 0) <= step]
    if damaged := [number for number, item in enumerate(events) if item is None and kept and number < kept[-1]]:
        raise _bad_line(path, damaged[0] + 1)
    publish_bytes(str(path), "".join(json.dumps(events[number]) + "\n" for number in kept).encode("utf-8"))
    first = (events[kept[0]] if kept else None) or {}
    if first.get("event") == "start":
        return None
    begins = f"it begins at step {first['step']:,}" if "step" in first else "nothing is left of it"
    return f"{path}: its first lines are lost, {begins}: curves and the first loss are of what came later"


def _parse(path: Path) -> list[dict[str, Any] | None]:
    """Each whole line as an event; None for a line that is no event."""
    items = map(json_object, path.read_bytes().split(b"\n")[:-1] if path.exists() else ())
    return [item if "event" in item else None for item in items]


def _bad_line(path: Path, number: int) -> IntegrityError:
    return IntegrityError(f"{path}: line {number} is no event of a run; repair or remove it, then run again")
