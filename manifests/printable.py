"""Text from outside, made safe to print: no character of it can steer a terminal or hide what stands there."""

from __future__ import annotations

import io
import re
from typing import Any

from manifests.masking import hide_secrets

# C0 and C1 controls, line and paragraph separators, and the marks that turn the direction of writing
_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    r"""The text with every steering character written as \u001b and the like; those in `keep` stay.

    Within a JSON document the result means the same value.
    """
    return _STEERING.sub(lambda match: match[0] if match[0] in keep else f"\\u{ord(match[0]):04x}", text)


def shown(text: str) -> str:
    """A text for the screen or a log: lines and tabs stay, nothing steers, and no URL in it holds a secret."""
    return printable(hide_secrets(text), keep="\n\t")


class PrintableStream(io.TextIOBase):
    """A text stream that writes what `shown` leaves of a text."""

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
        """As of the stream below."""
        return bool(not self._stream.closed and self._stream.isatty())

    def fileno(self) -> int:
        """As of the stream below."""
        return int(self._stream.fileno())
