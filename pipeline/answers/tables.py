"""Tables as aligned text, as answers are printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from manifests.services.printable import printable


def aligned(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a table, its head first.

    A name may begin with > for a column that stands to the right, or with < for one to the left, as all others do.
    Whole numbers get thousands separators.
    """
    names = [name[1:] if name[:1] in ("<", ">") else name for name in head]
    cells = [names, *([f"{value:,}" if isinstance(value, int) else str(value) for value in row] for row in rows)]
    widths = [max(len(text) for text in column) for column in zip(*cells, strict=True)]
    marks = [">" if name.startswith(">") else "<" for name in head]
    return [
        "  ".join(f"{text:{mark}{width}}" for text, mark, width in zip(row, marks, widths, strict=True)).rstrip()
        for row in cells
    ]


def print_lines(lines: Iterable[str]) -> None:
    """Print lines, each on one line whatever the data in it holds."""
    for line in lines:
        print(printable(line))


def joined_counts(counts: Iterable[tuple[str, int]]) -> str:
    """Names and their counts on one line, the largest count first."""
    return ", ".join(f"{num:,} {name}" for name, num in sorted(counts, key=lambda item: (-item[1], item[0])))
