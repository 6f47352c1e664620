"""Draw a choice: the trade-off between two losses, and the mixtures around the optimum. PNG, or one HTML page.

Reads a law and a `Chosen`; writes one file. matplotlib is imported only here, inside the functions.
Gives up with ConfigError when matplotlib is missing or the file cannot be written.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manifests import storage
from manifests.errors import ConfigError
from pipeline.planning.choose import Chosen, Wish
from pipeline.planning.descent import Array
from pipeline.planning.laws import Law

_BLUE, _ORANGE, _GREY, _RED = "#2b6cb0", "#dd6b20", "#718096", "#c53030"
_LINE_COLOURS = (_BLUE, _ORANGE, "#2f855a", "#6b46c1", "#b7791f", "#c53030", "#4a5568")


_LOSS_HEAD = (
    "loss", "predicted", "90 % interval", "form", "held-out error", "the plain mean's", "the exponential law's",
    "own runs covered",
)  # fmt: skip


def write_plot(law: Law, wish: Wish, chosen: Chosen, path: str | Path) -> None:
    """Write `path`: a picture for .png, a self-contained page for .html.

    Raises: ConfigError without matplotlib, or for a place that cannot be written.
    """
    picture = draw_choice(law, wish, chosen)
    page = Path(path).suffix.lower() == ".html"
    content = choice_page(law, wish, chosen, picture).encode() if page else picture
    storage.make_parent(str(path))
    try:
        storage.publish_bytes(str(path), content)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None


def draw_choice(law: Law, wish: Wish, chosen: Chosen) -> bytes:
    """Two panels as PNG bytes: the trade-off curve, and the mixtures (curve, ternary or bars by their number).

    Raises: ConfigError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install matplotlib, or leave --plot out") from None
    figure = Figure(figsize=(12.0, 5.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_trade_off(left, chosen)
    if len(law.domains) == 2:
        _draw_two(right, law, chosen)
    elif len(law.domains) == 3:
        _draw_ternary(right, figure, law, wish, chosen)
    else:
        _draw_bars(right, law, chosen)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _draw_trade_off(axes: Any, chosen: Chosen) -> None:
    if chosen.curve_losses is None:
        axes.text(0.5, 0.5, "one loss only: nothing to trade", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    first, second = chosen.curve_losses
    x, x_low, x_high = chosen.curve[first]
    y, y_low, y_high = chosen.curve[second]
    axes.errorbar(
        x, y, xerr=[x - x_low, x_high - x], yerr=[y - y_low, y_high - y],
        fmt="none", ecolor=_GREY, elinewidth=0.7, alpha=0.5, label="90 % interval",
    )  # fmt: skip
    axes.plot(x, y, "-o", color=_BLUE, markersize=3.5, label="best attainable")
    if second in chosen.allowed:
        axes.axhline(chosen.allowed[second], color=_RED, linestyle="--", linewidth=1, label=f"{second} allowed")
    at = (chosen.losses[first][0], chosen.losses[second][0])
    axes.plot(*at, "*", color=_ORANGE, markersize=16, markeredgecolor="black", label="chosen")
    limit = [chosen.allowed[second]] if second in chosen.allowed else []
    axes.set_xlim(*_frame(np.r_[x, at[0]], x_low, x_high))
    axes.set_ylim(*_frame(np.r_[y, at[1], limit], y_low, y_high))
    axes.set_xlabel(f"loss of {first}, nats")
    axes.set_ylabel(f"loss of {second}, nats")
    axes.set_title("What one loss costs the other")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _frame(value: Array, low: Array, high: Array) -> tuple[float, float]:
    """Ends of an axis: all values, and of their intervals as much as half of the values' range to either side.

    Far from the tried mixtures an interval may be ten times as long as the whole curve; it runs out of the frame.
    """
    room = 0.5 * float(np.ptp(value)) + 1e-3
    least = min(float(value.min()), max(float(low.min()), float(value.min()) - room))
    most = max(float(value.max()), min(float(high.max()), float(value.max()) + room))
    margin = 0.04 * (most - least) or 1e-3
    return least - margin, most + margin


def _draw_two(axes: Any, law: Law, chosen: Chosen) -> None:
    share = np.linspace(0.0, 1.0, 201)
    mixtures = np.stack([share, 1.0 - share], axis=1)
    tried = law.runs.shares[:, 0]
    for c, (name, (value, low, high)) in enumerate(law.predict(mixtures).items()):
        colour = _LINE_COLOURS[c % len(_LINE_COLOURS)]
        axes.fill_between(share, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(share, value, color=colour, label=f"loss of {name}")
        axes.plot(tried, law.runs.loss_values[:, c], "o", color=colour, markersize=4)
    axes.axvspan(*chosen.interval[0], color=_ORANGE, alpha=0.2, label="optimum, 90 %")
    axes.axvline(chosen.shares[0], color=_ORANGE)
    axes.set_xlabel(f"share of {law.domains[0]} (rest: {law.domains[1]})")
    axes.set_ylabel("loss, nats")
    axes.set_title("Laws, runs (dots) and the chosen share")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _flat(shares_QK: Array) -> tuple[Array, Array]:
    """Corner 0 bottom left, corner 1 bottom right, corner 2 on top."""
    return shares_QK[:, 1] + 0.5 * shares_QK[:, 2], np.sqrt(0.75) * shares_QK[:, 2]


def _draw_ternary(axes: Any, figure: Any, law: Law, wish: Wish, chosen: Chosen) -> None:
    steps = 60
    first, second = np.meshgrid(np.arange(steps + 1), np.arange(steps + 1), indexing="ij")
    inside = first + second <= steps
    grid = np.stack([first[inside], second[inside], steps - first[inside] - second[inside]], axis=1) / steps
    predicted = law.predict(grid)
    objective = np.sum([weight * predicted[name][0] for name, weight in wish.weights.items()], axis=0)
    top = np.quantile(objective, 0.9)  # one bad corner would swallow the whole colour scale
    x, y = _flat(grid)
    levels = np.linspace(float(objective.min()), float(top), 18)
    filled = axes.tricontourf(x, y, objective, levels=levels, cmap="viridis_r", extend="max")
    figure.colorbar(filled, ax=axes, shrink=0.7, label="objective, nats", format="%.3g", ticks=levels[::4])
    for name, most in chosen.allowed.items():
        axes.tricontour(x, y, predicted[name][0], levels=[most], colors=_RED, linestyles="--", linewidths=1.2)
        axes.plot([], [], "--", color=_RED, linewidth=1.2, label=f"{name} at its limit")
    axes.plot(*_flat(chosen.optima), "x", color=_RED, markersize=3.5, alpha=0.7, label="optima of drawn laws")
    axes.plot(*_flat(chosen.region_points), ".", color="white", markersize=3, alpha=0.8, label="near-optimal")
    axes.plot(*_flat(law.runs.shares), "o", color="black", markersize=3.5, label="tried")
    axes.plot(*_flat(chosen.shares[None]), "*", color=_ORANGE, markersize=16, markeredgecolor="black", label="chosen")
    height = float(np.sqrt(0.75))
    axes.plot([0, 1, 0.5, 0], [0, 0, height, 0], color="black", linewidth=1)
    places = ((0.0, -0.03, "left", "top"), (1.0, -0.03, "right", "top"), (0.5, height + 0.02, "center", "bottom"))
    for domain, (px, py, ha, va) in zip(law.domains, places, strict=True):
        axes.text(px, py, f"all {domain}", ha=ha, va=va)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.legend(frameon=True, loc="upper left", fontsize=8, facecolor="#a0aec0", bbox_to_anchor=(-0.08, 1.0))


def _draw_bars(axes: Any, law: Law, chosen: Chosen) -> None:
    at = np.arange(len(law.domains))[::-1]
    axes.barh(at, chosen.shares, color=_BLUE, alpha=0.35, label="chosen")
    axes.hlines(at + 0.18, *chosen.interval.T, color=_ORANGE, linewidth=4, label="optimum, 90 %")
    axes.hlines(at - 0.18, *chosen.region.T, color="#2d3748", linewidth=4, label="near-optimal")
    for k, y in enumerate(at):
        axes.plot(law.runs.shares[:, k], np.full(law.runs.num_runs, y - 0.38), "|", color="black", markersize=5)
    axes.set_yticks(at, law.domains)
    axes.set_xlabel("share (ticks below: tried)")
    axes.set_xlim(0.0, 1.0)
    axes.set_title("The chosen ratio")
    axes.legend(frameon=False)


def choice_page(law: Law, wish: Wish, chosen: Chosen, picture: bytes) -> str:
    """One HTML page with the picture inside it; nothing is loaded from anywhere."""
    ratio = [
        (
            domain,
            f"{chosen.shares[k]:.4f}",
            f"{chosen.interval[k, 0]:.4f} to {chosen.interval[k, 1]:.4f}",
            f"{chosen.region[k, 0]:.4f} to {chosen.region[k, 1]:.4f}",
            f"{chosen.epochs[k]:.2f}" if np.isfinite(chosen.epochs[k]) else "-",
        )
        for k, domain in enumerate(law.domains)
    ]
    losses = [
        (
            column.loss,
            f"{chosen.losses[column.loss][0]:.4f}",
            "{1:.4f} to {2:.4f}".format(*chosen.losses[column.loss]),
            column.form,
            f"{column.errors[column.form]:.4f}",
            f"{column.errors['mean']:.4f}",
            f"{column.errors['exponential']:.4f}",
            f"{column.coverage:.2f}",
        )
        for column in law.columns
    ]
    near = f"within {wish.near_optimal_nats:g} nats of the best"
    encoded = base64.b64encode(picture).decode()
    notes = [f"<li>binds: {html.escape(line)}</li>" for line in chosen.binding]
    notes += [f'<li class="w">{html.escape(line)}</li>' for line in (*chosen.warnings, *law.warnings)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Chosen mixture</title><style>'
        "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#1a202c}"
        "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;text-align:right;"
        "border-bottom:1px solid #cbd5e0}td{white-space:nowrap}td:first-child,th:first-child{text-align:left}"
        "img{max-width:100%}.w{color:#9b2c2c}</style></head><body><h1>Chosen mixture</h1>"
        f"<p>Minimised: {html.escape(_wish_text(wish))}. Law on {law.runs.num_runs} runs of "
        f"{html.escape(law.runs.source)}. Objective foretold: {chosen.objective:.4f} "
        f"({chosen.objective_interval[0]:.4f} to {chosen.objective_interval[1]:.4f}).</p>"
        + _table(("domain", "share", "90 % interval", near, "epochs"), ratio)
        + f'<img alt="trade-off and mixtures" src="data:image/png;base64,{encoded}">'
        + _table(_LOSS_HEAD, losses)
        + f"<ul>{''.join(notes)}</ul></body></html>\n"
    )


def _wish_text(wish: Wish) -> str:
    text = " + ".join(f"{weight:g} × loss of {name}" for name, weight in wish.weights.items())
    for constraint in wish.constraints:
        limit = f"{constraint.limit * 100:g} % above its best" if constraint.relative else f"{constraint.limit:g}"
        text += f", loss of {constraint.loss} at most {limit}"
    return text


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"
