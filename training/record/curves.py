"""`dalip plot`: curves of runs over samples seen, as a picture.

Reads the `log.jsonl` of each run; writes one file. Gives up with ConfigError on a folder without logged steps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manifests.drawing.panels import Panel, draw_png, require_picture
from manifests.drawing.theme import SERIES
from manifests.errors import ConfigError
from manifests.stores import storage
from training.record.log import LOG_FILE, read_log

_PANELS = (
    ("loss", "training loss"),
    ("first_order_loss", "loss of f"),
    ("second_order_loss", "loss of z"),
    ("validation", "validation loss"),
    ("same_label_share", "pairs of one label (share)"),
    ("grad_norm", "gradient norm"),
    ("lr", "learning rate"),
    ("logit_scale", "logit scale"),
    ("samples_per_second", "samples/s"),
    ("data_wait_share", "data wait (share of time)"),
)
METRICS = tuple(name for name, _ in _PANELS)
_SMOOTHED = ("loss", "first_order_loss", "second_order_loss", "grad_norm")
_STYLES = ("-", "--", ":", "-.")
_MOST_POINTS = 600  # of a drawn curve; more cannot be seen

Curve = list[tuple[float, float]]
Curves = dict[str, Curve]


def plot_runs(folders: Sequence[str], out: str, metrics: Sequence[str] = ()) -> None:
    """Draw the runs into the same panels; `metrics` chooses the panels (default: all that a run has).

    Raises: ConfigError.
    """
    if unknown := sorted(set(metrics) - set(METRICS)):
        raise ConfigError(f"unknown metric '{unknown[0]}'; there are: {', '.join(METRICS)}")
    require_picture("--out", out)
    runs = dict(zip(_labels(folders), (read_curves(Path(folder)) for folder in folders), strict=True))
    panels = _panels(runs, metrics)
    if not panels:
        raise ConfigError(f"none of the runs has logged {', '.join(metrics)}")
    storage.write_file(out, draw_png(panels, ", ".join(runs)))


def read_curves(folder: Path) -> Curves:
    """Curves of a run by metric (`validation/DOMAIN` for validation losses), as (samples seen, value).

    Raises: ConfigError for a folder without logged steps.
    """
    steps = read_log(folder / LOG_FILE, "step")
    if not steps:
        raise ConfigError(
            f"{folder}: not the folder of a run, or no step is logged yet (no {LOG_FILE} with steps in it)"
        )
    try:
        return _curves_of(steps, read_log(folder / LOG_FILE, "validation"))
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{folder / LOG_FILE}: damaged; an event lacks what a plot needs ({type(error).__name__}: {error})"
        ) from None


def _curves_of(steps: Sequence[dict[str, Any]], validations: Sequence[dict[str, Any]]) -> Curves:
    curves = {
        name: [(step["samples_seen"], step[name]) for step in steps if step.get(name) is not None] for name in METRICS
    }
    per_step = steps[-1]["samples_seen"] / steps[-1]["step"]
    for event in validations:
        for domain, value in event["losses"].items():
            curves.setdefault(f"validation/{domain}", []).append((event["step"] * per_step, value))
    return {name: curve for name, curve in curves.items() if curve}


def smooth(curve: Curve, window: int) -> Curve:
    """Each value becomes the mean of the last `window` values up to it."""
    return [
        (x, sum(value for _, value in curve[max(0, i + 1 - window) : i + 1]) / min(window, i + 1))
        for i, (x, _) in enumerate(curve)
    ]


def _panels(runs: dict[str, Curves], metrics: Sequence[str]) -> list[Panel]:
    panels: list[Panel] = []
    for name, title in _PANELS:
        if (metrics and name not in metrics) or not any(_curves_in(curves, name) for curves in runs.values()):
            continue
        has_legend = name == "validation" or (not panels and len(runs) > 1)
        panels.append(Panel(title, functools.partial(_draw, runs, name, has_legend)))
    return panels


def _draw(runs: dict[str, Curves], name: str, has_legend: bool, axis: Any) -> None:
    for number, (label, curves) in enumerate(runs.items()):
        _draw_curves(axis, label if len(runs) > 1 else "", SERIES[number % len(SERIES)], name, _curves_in(curves, name))
    axis.set_xlabel("samples seen")
    axis.ticklabel_format(style="sci", scilimits=(-3, 5))
    axis.yaxis.get_offset_text().set(x=1, horizontalalignment="right")  # on the left it would move the title
    if has_legend:
        axis.legend(loc="best")


def _draw_curves(axis: Any, label: str, colour: str, name: str, curves: Curves) -> None:
    for number, (part, curve) in enumerate(curves.items()):
        window = max(1, len(curve) // 25) if name in _SMOOTHED else 1
        if window > 1:
            axis.plot(*zip(*_thinned(curve), strict=True), color=colour, alpha=0.3, linewidth=0.8)
        shown = ": ".join(word for word in (label, part.partition("/")[2]) if word)
        axis.plot(
            *zip(*_thinned(smooth(curve, window)), strict=True), color=colour, linewidth=1.6, label=shown,
            linestyle=_STYLES[number % len(_STYLES)], marker="." if len(curve) < 12 else None,
        )  # fmt: skip


def _thinned(curve: Curve) -> Curve:
    """Every n-th point, and the last."""
    every = -(-len(curve) // _MOST_POINTS)
    return curve if every == 1 else [*curve[:-1:every], curve[-1]]


def _curves_in(curves: Curves, name: str) -> Curves:
    """Return the curves of a panel: of the metric, or of each of its domains."""
    return {part: curve for part, curve in curves.items() if part == name or part.startswith(f"{name}/")}


def _labels(folders: Sequence[str]) -> list[str]:
    """Return a label for each folder: as much of its path as tells all apart."""
    parts = [Path(folder).absolute().parts for folder in folders]
    for depth in range(1, max(len(part) for part in parts) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise ConfigError("a run is given twice; name each once")
