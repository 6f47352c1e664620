"""Text from outside that is printed: nothing of it steers a terminal."""

from __future__ import annotations

import io
import json

import pytest

from manifests.services.printable import PrintableStream, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Rosa canina L., Ångström, 薔薇", "Rosa canina L., Ångström, 薔薇"),
        ("\x1b[2Jgone", "\\u001b[2Jgone"),
        ("\x9b31mred", "\\u009b31mred"),
        ("\x1b]0;title\x07", "\\u001b]0;title\\u0007"),
        ("two\nlines\r\ttab", "two\\u000alines\\u000d\\u0009tab"),
        ("gnp.\u202eexe", "gnp.\\u202eexe"),
        ("a\u2028b\u2029c\x85d", "a\\u2028b\\u2029c\\u0085d"),
        ("lone \ud800", "lone \\ud800"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_text(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_json_means_the_same_afterwards() -> None:
    value = {"text": "a\x9bb\u2028c\u202e", "line": "two\nlines"}
    assert json.loads(printable(json.dumps(value, ensure_ascii=False, indent=1), keep="\n")) == value


def test_a_stream_keeps_lines_and_shows_the_rest() -> None:
    below = io.StringIO()
    print("one\ttwo\x1b[1m", file=PrintableStream(below))
    assert below.getvalue() == "one\ttwo\\u001b[1m\n"
