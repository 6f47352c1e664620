"""Draw panels with matplotlib: all of them as one PNG, or each as an SVG in the colours of its page.

A panel says how to draw on axes; where its axes lie is fixed, so that the same panel gives the same bytes anywhere.
Writes nothing. Gives up with ConfigError. matplotlib is imported inside the functions.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.contract.release import require_output
from manifests.drawing.theme import INK, LINE, NAMES, PAPER, SOFT, WARN
from manifests.errors import ConfigError
from manifests.services.packages import require

_LEFT, _RIGHT, _BOTTOM, _TOP = 0.62, 0.12, 0.5, 0.34  # inches around the axes
MADE_BY = "PlantMix"  # in a picture, so that the next one may replace it
_HEADING_LINE = 0.24  # inches
_COLUMNS = 3
_SETTINGS: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "plantmix", "text.parse_math": False, "font.size": 9.0,
    "axes.titlesize": 10.0, "axes.titlelocation": "left", "axes.edgecolor": SOFT, "axes.labelcolor": SOFT,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": LINE, "grid.linewidth": 0.8, "text.color": INK, "xtick.color": SOFT, "ytick.color": SOFT,
    "axes.facecolor": "none", "figure.facecolor": PAPER, "legend.facecolor": PAPER,
    "legend.edgecolor": "none", "legend.framealpha": 0.8, "legend.fontsize": 8.0,
    "axes.unicode_minus": False,
}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One drawing: `draw` gets the axes, `alt` says in words what they show on a page. Sizes are in inches."""

    title: str
    draw: Callable[[Any], None]
    alt: str = ""
    width: float = 4.4
    height: float = 3.1
    left: float = _LEFT


def require_picture(option: str, out: str) -> None:
    """Raise ConfigError when the name of a file is none of a picture, or something else lies there."""
    if Path(out).is_dir() or Path(out).suffix.lower() != ".png":
        raise ConfigError(f"{option} {out}: the name must end in .png, as of a picture")
    require_output(out, lambda content: content.startswith(b"\x89PNG") and MADE_BY.encode() in content[:400])


def draw_png(panels: Sequence[Panel], heading: str = "", cautions: Sequence[str] = ()) -> bytes:
    """All panels in one picture, up to three beside each other, under a heading and the cautions.

    Raises: ConfigError without matplotlib.
    """
    from textwrap import wrap

    rows = [panels[at : at + _COLUMNS] for at in range(0, len(panels), _COLUMNS)]
    width = max(sum(panel.width for panel in row) for row in rows)
    lines = [(line, INK, 12) for line in wrap(heading, int(width * 10))]
    lines += [(line, WARN, 9) for text in cautions for line in wrap(text, int(width * 13))]
    height = sum(max(panel.height for panel in row) for row in rows) + _HEADING_LINE * len(lines)

    def paint(figure: Any) -> None:
        for at, (line, colour, size) in enumerate(lines):
            baseline = 1 - (at + 0.8) * _HEADING_LINE / height
            figure.text(0.12 / width, baseline, line, color=colour, fontsize=size, weight="bold")
        top = height - _HEADING_LINE * len(lines)
        for row in rows:
            left = 0.0
            for panel in row:
                _add(figure, panel, left, top - panel.height, width, height)
                left += panel.width
            top -= max(panel.height for panel in row)

    return _save(width, height, paint, "png")


def draw_svg(panel: Panel) -> str:
    """One panel as an `<svg>` element for a page that has `theme_css`.

    Raises: ConfigError without matplotlib.
    """
    content = _save(
        panel.width, panel.height, lambda figure: _add(figure, panel, 0, 0, panel.width, panel.height), "svg"
    )
    text = re.sub(r"<[^>]*>", _short_numbers, content.decode()[content.index(b"<svg") :])
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # these would be twice on a page of several panels
    for colour, name in NAMES.items():
        text = text.replace(colour, f"var(--{name}, {colour})")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(panel.alt)}" ', 1)


def _add(figure: Any, panel: Panel, left: float, bottom: float, width: float, height: float) -> None:
    """Put a panel's axes into a figure of this size, its own corner at (left, bottom)."""
    across = panel.width - panel.left - _RIGHT
    up = panel.height - _BOTTOM - _TOP
    rectangle = ((left + panel.left) / width, (bottom + _BOTTOM) / height, across / width, up / height)
    axis = figure.add_axes(rectangle)
    axis.set_title(panel.title)
    panel.draw(axis)


def _save(width: float, height: float, paint: Callable[[Any], None], kind: str) -> bytes:
    require("a plot", "matplotlib")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    stream = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": MADE_BY}
    with rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure = Figure(figsize=(width, height), dpi=110)
        paint(figure)
        figure.savefig(stream, format=kind, metadata=metadata, facecolor=PAPER if kind == "png" else "none")
    return stream.getvalue()


def _short_numbers(tag: re.Match[str]) -> str:
    """Return a tag with its numbers to 2 decimals.

    A hundredth of a point is not seen, and the last digits differ by machine.

    Links within the SVG are left alone.
    """
    return re.sub(r"(?<![\w.#])-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag[0])
