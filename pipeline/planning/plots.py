"""Draw a choice as a PNG: the laws over the share of two domains, or a bar for each of more domains.

Takes a law and a choice, gives the bytes of the picture. matplotlib is imported only here, inside the function.
Gives up with ConfigError when matplotlib is missing.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.choose import Choice
from pipeline.planning.laws import Law

_BLUE, _ORANGE, _DARK = "#2b6cb0", "#dd6b20", "#2d3748"
_LINE_COLOURS = (_BLUE, _ORANGE, "#2f855a", "#6b46c1", "#b7791f", "#c53030", "#4a5568")


def draw_choice(law: Law, choice: Choice) -> bytes:
    """The picture as PNG bytes.

    Raises: ConfigError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install matplotlib, or leave --plot out") from None
    figure = Figure(figsize=(7.5, 5.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw = _draw_two if len(law.domains) == 2 else _draw_bars
    draw(axes, law, choice)
    axes.legend(frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _draw_two(axes: Any, law: Law, choice: Choice) -> None:
    share = np.linspace(0.0, 1.0, 201)
    mixtures = np.stack([share, 1.0 - share], axis=1)
    for c, (name, (value, low, high)) in enumerate(law.predict(mixtures).items()):
        colour = _LINE_COLOURS[c % len(_LINE_COLOURS)]
        axes.fill_between(share, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(share, value, color=colour, label=f"loss of {name}")
        axes.plot(law.runs.shares[:, 0], law.runs.loss_values[:, c], "o", color=colour, markersize=4)
    axes.axvspan(*choice.interval[0], color=_ORANGE, alpha=0.2, label="optimum, 90 %")
    axes.axvline(choice.shares[0], color=_ORANGE)
    axes.set_xlabel(f"share of {law.domains[0]} (rest: {law.domains[1]})")
    axes.set_ylabel("loss, nats")
    axes.set_title("Laws, runs (dots) and the chosen share")
    axes.grid(alpha=0.25)


def _draw_bars(axes: Any, law: Law, choice: Choice) -> None:
    at = np.arange(len(law.domains))[::-1]
    axes.barh(at, choice.shares, color=_BLUE, alpha=0.35, label="chosen")
    axes.hlines(at + 0.18, *choice.interval.T, color=_ORANGE, linewidth=4, label="optimum, 90 %")
    axes.hlines(at - 0.18, *choice.near_optimal.T, color=_DARK, linewidth=4, label="near-optimal")
    for k, y in enumerate(at):
        axes.plot(law.runs.shares[:, k], np.full(law.runs.num_runs, y - 0.38), "|", color="black", markersize=5)
    axes.set_yticks(at, law.domains)
    axes.set_xlabel("share (ticks below: tried)")
    axes.set_xlim(0.0, 1.0)
    axes.set_title("The chosen ratio")
