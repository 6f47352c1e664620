"""Text from outside as Markdown that shows it as it is."""

from __future__ import annotations

import re

from manifests.services.printable import printable

_PLAIN = re.compile(r"[^\W\d_][\w.,:;()'/&@-]*(?: [\w.,:;()'/&@-]+)*")  # most names: nothing in them has to change


def plain_markdown(text: object) -> str:
    """Return a text that Markdown shows as it is.

    On one line, and with nothing that starts a heading, a list, a link or HTML.

    Source: CommonMark 0.31, sections 2.4, 4 and 6.
    """
    text = str(text)
    if _PLAIN.fullmatch(text):
        return text
    line = printable(" ".join(text.split()))
    line = re.sub(r"([\\`*\[\]<])", r"\\\1", line)
    return re.sub(r"\A(\d*)(?=[#>+~=.)-])", r"\1\\", line)


def markdown_cell(text: object) -> str:
    """Return a text as a cell of a Markdown table."""
    return plain_markdown(text).replace("|", "\\|")
