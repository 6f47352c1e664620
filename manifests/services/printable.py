"""Safe printing: text from outside cannot steer the terminal. Also the line that shows progress."""

from __future__ import annotations

import io
import os
import re
import shutil
import time
from typing import Any, TextIO

from manifests.masking import hide_secrets

# C0 and C1 controls, line and paragraph separators, and the marks that turn the direction of writing
_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    r"""Return the text with every steering character written as \u001b and the like; those in `keep` stay.

    Within a JSON document the result means the same value.
    """
    return _STEERING.sub(lambda match: match[0] if match[0] in keep else f"\\u{ord(match[0]):04x}", text)


def shown(text: str) -> str:
    """Return a text for the screen or a log: no control characters but line breaks and tabs, and no secrets of URLs."""
    return printable(hide_secrets(text), keep="\n\t")


class PrintableStream(io.TextIOBase):
    """A text stream that passes every text through `shown`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    @property
    def buffer(self) -> Any:
        """The bytes below, for output that is no text."""
        return self._stream.buffer

    def write(self, text: str) -> int:
        """Write the text, made printable."""
        self._stream.write(shown(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream below."""
        if not self._stream.closed:  # as it is when the interpreter ends
            self._stream.flush()

    def isatty(self) -> bool:
        """Return whether the stream below is a terminal."""
        return bool(not self._stream.closed and self._stream.isatty())

    def fileno(self) -> int:
        """Return the number of the file below."""
        return int(self._stream.fileno())


# ---- a line of progress

WIPE = "\r\x1b[K"
"""Empties the line that a terminal is at. Whoever prints beside a line of progress writes this first."""


def is_terminal(stream: TextIO) -> bool:
    """Return whether a line of this stream can be overwritten."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class ProgressLine:
    """A line of progress: overwritten on a terminal, else printed every `every_seconds`, counted from `last`."""

    def __init__(self, stream: TextIO, every_seconds: float, last: float = float("-inf")) -> None:
        self._stream, self._every, self._last = stream, every_seconds, last
        self._is_live, self._stands = is_terminal(stream), False

    def show(self, line: str, *, always: bool = False) -> None:
        """Show a line; with `always` also before the interval is over."""
        if self._is_live:
            width = shutil.get_terminal_size().columns - 1  # a line that goes on below cannot be wiped
            print(WIPE + printable(line)[:width], end="", file=self._stream, flush=True)
            self._stands = True
        elif always or time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            print(line, file=self._stream, flush=True)

    def end(self, is_wiped: bool = False) -> None:
        """End the line. What is printed next stands below it or, with `is_wiped`, in its place."""
        if self._stands:
            print(WIPE if is_wiped else "\n", end="", file=self._stream, flush=True)
            self._stands = False


def pace(per_second: float, seconds_left: float | None) -> str:
    """Rate and time left, to append to a line of progress; empty while they are not known."""
    if seconds_left is None:
        return ""
    return f", {per_second:,.{0 if per_second >= 10 else 1}f}/s, about {duration(seconds_left)} left"


def duration(seconds: float) -> str:
    """Return a duration in words: seconds, minutes, hours or days, with the next smaller unit."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02d} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
