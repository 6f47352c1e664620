"""Draw a choice: the laws over the shares with their runs, the chosen shares, the trade-off.

Takes the values of mixture.json, so that the planner's plots and the report of a release are the same drawing. Gives
panels, which `manifests.drawing` turns into a PNG or SVGs. Two domains are drawn over one share, three in a
triangle, more as rows.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from manifests.drawing.panels import Panel
from manifests.drawing.theme import INK, LINE, PAPER, SERIES, SOFT
from pipeline.planning.arrays import Array
from pipeline.planning.search import shares_grid

Values = Mapping[str, Any]

_CHOSEN = SERIES[3]  # the losses of two or three domains have the first colours, as the domains have in the report
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])  # of the triangle, one a domain
_FILL = "YlGnBu_r"  # dark where the loss is low
_MAX_NAME = 16
_NAMED_MARKS = 5  # along the trade-off
_ROW_INCHES = 0.3


def panels_of(mixture: Values) -> list[Panel]:
    """Return the panels of a mixture file; those that an older file lacks the values for are left out."""
    domains = _domains(mixture)
    drawn = mixture.get("drawn")
    panels = []
    if drawn and drawn.get("grid") and len(domains) in (2, 3):
        draw = _draw_curve if len(domains) == 2 else _draw_triangle
        shape = {} if len(domains) == 2 else {"height": 3.6, "left": 0.2}
        for at, name in enumerate(drawn["losses"]):
            painted = functools.partial(draw, mixture, name, SERIES[at % len(SERIES)])
            panels.append(Panel(f"loss of {_cut(name)}", painted, _loss_in_words(mixture, name), **shape))
    elif drawn:
        panels.append(_rows("losses: runs and prediction", list(drawn["losses"]), mixture, _draw_losses))
    if mixture.get("trade_off"):
        one, two = mixture["trade_off"]["between"]
        words = f"The losses of {one} and {two} that one mixture can have together, and the chosen one."
        panels.append(Panel("trade-off", functools.partial(_draw_trade_off, mixture), words))
    if mixture.get("interval"):
        panels.append(_rows("chosen shares", domains, mixture, _draw_shares))
    if mixture.get("gains"):
        panels.append(_gain_panel(mixture))
    return panels


def _domains(mixture: Values) -> list[str]:
    """Return the domains in the order of the drawn shares; a file sorts the names in its mappings."""
    return list((mixture.get("drawn") or {}).get("domains") or mixture["ratio"])


def cautions_of(mixture: Values) -> list[str]:
    """Return the cautions at the top of the plots: each warning once, the gravest first."""
    return sorted(dict.fromkeys(mixture.get("warnings") or ()), key=lambda line: not line.startswith("DO NOT TRUST"))


def _rows(title: str, names: Sequence[str], mixture: Values, draw: Any) -> Panel:
    height = max(1.6, 1.0 + _ROW_INCHES * len(names))
    if draw is _draw_shares:
        chosen = [mixture["ratio"][name] for name in names]
        shares = ", ".join(f"{name} {share:.1%}" for name, share in zip(names, chosen, strict=True))
        words = f"The chosen shares with their 90 % intervals: {shares}."
    else:
        words = "For each loss the runs and what is predicted for the chosen shares: " + ", ".join(
            f"{name} {values['loss']:.3f}" for name, values in mixture["predicted"].items()
        )
    left = 0.35 + 0.075 * max(len(_cut(name)) for name in names)
    return Panel(title, functools.partial(draw, mixture), words, height=height, left=left)


def _loss_in_words(mixture: Values, name: str) -> str:
    at = mixture["predicted"].get(name)
    if at is None:
        return f"The fitted loss of {name} over the shares, and the runs."
    return (
        f"The fitted loss of {name} over the shares, and the runs; at the chosen shares {at['loss']:.3f}, "
        f"90 % interval {at['low']:.3f} to {at['high']:.3f}."
    )


def _draw_curve(mixture: Values, name: str, colour: str, axis: Any) -> None:
    """Two domains: the band lies behind the curve, and the runs before both."""
    domains, drawn = _domains(mixture), mixture["drawn"]
    share = np.array(drawn["grid"])[:, 0]
    curve = drawn["losses"][name]
    low, high = mixture["interval"][domains[0]]
    axis.axvspan(low, high, color=_CHOSEN, alpha=0.16, linewidth=0, zorder=0, label="optimum, 90 %")
    axis.fill_between(share, curve["low"], curve["high"], color=colour, alpha=0.22, linewidth=0, zorder=1)
    axis.plot(share, curve["loss"], color=colour, linewidth=1.8, zorder=2, label="law, 90 %")
    axis.axvline(mixture["ratio"][domains[0]], color=_CHOSEN, linewidth=1.5, zorder=2, label="chosen")
    runs = _numbers(drawn["runs"]["losses"][name])
    tried = np.array(drawn["runs"]["shares"])[:, 0]
    axis.plot(tried, runs, "o", color=INK, markersize=3.5, markeredgecolor=PAPER, markeredgewidth=0.6, zorder=3,
              label="runs")  # fmt: skip
    shown = np.concatenate([curve["loss"], runs[np.isfinite(runs)]])
    room = 0.12 * (np.ptp(shown) or 1.0)  # a band that opens wide where nothing was tried must not flatten the curve
    axis.set_ylim(shown.min() - room, shown.max() + room)
    axis.set_xlim(0, 1)
    axis.set_xlabel(f"share of {_cut(domains[0])}, the rest is {_cut(domains[1])}")
    axis.legend(loc="best", handlelength=1.4)


def _draw_triangle(mixture: Values, name: str, colour: str, axis: Any) -> None:
    """Three domains: the loss as a surface over the triangle, the runs as dots, the interval as an outline."""
    domains, drawn = _domains(mixture), mixture["drawn"]
    grid = np.array(drawn["grid"])
    x, y = (grid @ _CORNERS).T
    surface = axis.tricontourf(x, y, drawn["losses"][name]["loss"], levels=8, cmap=_FILL)
    bar = axis.figure.colorbar(surface, ax=axis, shrink=0.7, pad=0.04)
    bar.outline.set_visible(False)
    low, high = np.array([mixture["interval"][domain] for domain in domains]).T
    fine = shares_grid(3, 60)
    beyond = np.maximum(low - fine, fine - high).max(axis=1)  # above 0 outside the intervals
    if beyond.min() < 0:
        axis.tricontour(*(fine @ _CORNERS).T, beyond, levels=[0.0], colors="white", linewidths=1.4)
    tried = np.array(drawn["runs"]["shares"]) @ _CORNERS
    axis.plot(*tried.T, "o", color="black", markersize=3.2, markeredgecolor="white", markeredgewidth=0.6)
    chosen = np.array([mixture["ratio"][domain] for domain in domains]) @ _CORNERS
    axis.plot(*chosen, "*", color="#ffb000", markersize=13, markeredgecolor="black", markeredgewidth=0.8)
    for domain, (corner_x, corner_y), across in zip(domains, _CORNERS, ("left", "right", "center"), strict=True):
        beside, up = (0.02, "bottom") if across == "center" else (-0.03, "top")
        axis.text(corner_x, corner_y + beside, _cut(domain), ha=across, va=up)
    axis.text(0.5, -0.12, "star: chosen, white line: optimum, 90 %, dots: runs", ha="center", va="top", fontsize=7.5)
    axis.set_axis_off()
    axis.set_aspect("equal")
    axis.set_xlim(-0.03, 1.03)
    axis.set_ylim(-0.18, 0.93)


def _draw_trade_off(mixture: Values, axis: Any) -> None:
    """Draw the frontier, shares of the first domain at some of its points, the runs behind it, the chosen point."""
    one, two = mixture["trade_off"]["between"]
    points = mixture["trade_off"]["points"]
    first = _domains(mixture)[0]
    places = np.array([[point["losses"][name]["loss"] for name in (one, two)] for point in points])
    drawn = mixture.get("drawn")
    if drawn:
        runs = np.column_stack([_numbers(drawn["runs"]["losses"][name]) for name in (one, two)])
        axis.plot(*runs.T, "o", color=SOFT, markersize=2.5, alpha=0.6, label="runs", zorder=1)
    axis.plot(*places.T, "-o", color=SERIES[2], markersize=3, linewidth=1.8, label="best that can be had", zorder=2)
    steps = np.linalg.norm(np.diff(places / (np.ptp(places, axis=0) + 1e-12), axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])  # as the eye follows it, not by the number of points
    for at in {int(np.abs(along - wanted).argmin()) for wanted in np.linspace(0, along[-1], _NAMED_MARKS)}:
        axis.annotate(f"{points[at]['ratio'][first]:.0%} {_cut(first)}" if first in points[at]["ratio"] else "",
                      places[at], xytext=(5, 4), textcoords="offset points", fontsize=7.5, color=SOFT)  # fmt: skip
    if one in mixture["predicted"] and two in mixture["predicted"]:
        chosen = [mixture["predicted"][name]["loss"] for name in (one, two)]
        axis.plot(*chosen, "*", color=_CHOSEN, markersize=12, markeredgecolor=INK, markeredgewidth=0.7, label="chosen",
                  zorder=3)  # fmt: skip
        places = np.concatenate([places, [chosen]])
    low, high = places.min(axis=0), places.max(axis=0)
    room = np.where(high > low, high - low, 1.0) * 0.15  # runs far from the frontier do not squeeze it
    axis.set_xlim(low[0] - room[0], high[0] + 2 * room[0])
    axis.set_ylim(low[1] - room[1], high[1] + room[1])
    axis.set_xlabel(f"predicted loss of {_cut(one)}")
    axis.set_ylabel(f"predicted loss of {_cut(two)}")
    axis.legend(loc="upper right")


def _draw_shares(mixture: Values, axis: Any) -> None:
    """Draw a row for each domain: the shares tried, the interval of the optimum, the chosen share."""
    domains = _domains(mixture)
    at = np.arange(len(domains))[::-1]
    if drawn := mixture.get("drawn"):
        tried = np.array(drawn["runs"]["shares"])
        for k, y in enumerate(at):
            axis.plot(tried[:, k], np.full(len(tried), y - 0.3), "|", color=SOFT, markersize=5, alpha=0.7)
    low, high = np.array([mixture["interval"][domain] for domain in domains]).T
    axis.hlines(at, low, high, color=_CHOSEN, alpha=0.45, linewidth=7)
    chosen = [mixture["ratio"][domain] for domain in domains]
    axis.plot(chosen, at, "o", color=INK, markersize=5)
    for y, share in zip(at, chosen, strict=True):
        axis.annotate(f"{share:.1%}", (share, y), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=7.5)
    _name_rows(axis, domains, at)
    axis.set_xlim(0, 1)
    axis.set_xlabel("share; ticks were tried, the bar is the optimum, 90 %")


def _draw_losses(mixture: Values, axis: Any) -> None:
    """Draw a row for each loss: the results of the runs, and the prediction for the chosen shares."""
    runs = mixture["drawn"]["runs"]["losses"]
    at = np.arange(len(runs))[::-1]
    for y, (name, values) in zip(at, runs.items(), strict=True):
        axis.plot(_numbers(values), np.full(len(values), y), "|", color=SOFT, markersize=8, alpha=0.7)
        if predicted := mixture["predicted"].get(name):
            axis.hlines(y, predicted["low"], predicted["high"], color=_CHOSEN, alpha=0.5, linewidth=7)
            axis.plot(predicted["loss"], y, "o", color=INK, markersize=5)
    _name_rows(axis, list(runs), at)
    axis.set_xlabel("loss, nats; ticks are runs, the dot is predicted, 90 %")


def _gain_panel(mixture: Values) -> Panel:
    gains = mixture["gains"]
    words = "; ".join(
        "over the {} {:.3f}, 90 % interval {:.3f} to {:.3f}".format(each["over"], each["nats"], *each["interval"])
        for each in gains
    )
    height = max(1.6, 1.0 + _ROW_INCHES * len(gains))
    return Panel(
        "gain of the choice", functools.partial(_draw_gains, gains), f"Gain in nats: {words}.", height=height, left=1.55
    )


def _draw_gains(gains: Sequence[Values], axis: Any) -> None:
    """Draw a row for each rival: the gain over it with its interval, and a line at none."""
    at = np.arange(len(gains))[::-1]
    for y, each in zip(at, gains, strict=True):
        axis.hlines(y, *each["interval"], color=_CHOSEN, alpha=0.45, linewidth=7)
        axis.plot(each["nats"], y, "o", color=INK, markersize=5)
    axis.axvline(0.0, color=SOFT, linewidth=1.0, zorder=1)
    _name_rows(axis, [each["over"] for each in gains], at)
    axis.set_xlabel("nats saved; the bar is the 90 % interval")


def _name_rows(axis: Any, names: Sequence[str], at: Any) -> None:
    axis.set_yticks(at, [_cut(name) for name in names])
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0, colors=INK)
    axis.hlines(at, 0, 1, color=LINE, linewidth=0.6, zorder=0, transform=axis.get_yaxis_transform())


def _numbers(values: Sequence[float | None]) -> Array:
    """Losses as an array, nan where a run has none."""
    return np.array([np.nan if value is None else value for value in values])


def _cut(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"
