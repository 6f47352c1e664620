"""`dalip plot`: curves of one or several runs in one PNG, over samples seen.

Reads the `log.jsonl` of each run; writes the picture. Gives up with ConfigError on a folder without logged steps.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError
from manifests.storage import make_folder, publish_bytes
from training.record.log import LOG_FILE, read_log

_PANELS = (
    ("loss", "training loss"),
    ("first_order_loss", "loss of f"),
    ("second_order_loss", "loss of z"),
    ("validation", "validation loss"),
    ("grad_norm", "gradient norm"),
    ("lr", "learning rate"),
    ("logit_scale", "logit scale"),
    ("samples_per_second", "samples/s"),
    ("data_wait_share", "data wait (share of time)"),
)
METRICS = tuple(name for name, _ in _PANELS)
_SMOOTHED = ("loss", "first_order_loss", "second_order_loss", "grad_norm")
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_STYLES = ("-", "--", ":", "-.")

Curve = list[tuple[float, float]]


def plot_runs(folders: Sequence[str], out: str, metrics: Sequence[str] = ()) -> None:
    """Draw the runs into the same panels; `metrics` chooses the panels (default: all that a run has).

    Raises: ConfigError.
    """
    if unknown := sorted(set(metrics) - set(METRICS)):
        raise ConfigError(f"unknown metric '{unknown[0]}'; there are: {', '.join(METRICS)}")
    target = Path(out)
    if target.is_dir() or target.suffix.lower() != ".png":
        raise ConfigError(f"{out}: the plot is a PNG; give --out a file name that ends in .png")
    runs = dict(zip(_labels(folders), (read_curves(Path(folder)) for folder in folders), strict=True))
    panels = [
        (name, title)
        for name, title in _PANELS
        if (name in metrics or not metrics) and any(_curves_in(curves, name) for curves in runs.values())
    ]
    if not panels:
        raise ConfigError(f"none of the runs has logged {', '.join(metrics)}")
    picture = _draw(runs, panels)
    make_folder(str(target.parent))
    publish_bytes(str(target), picture)


def read_curves(folder: Path) -> dict[str, Curve]:
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
            f"{folder / LOG_FILE}: an event lacks what a plot needs ({type(error).__name__}: {error}): damaged"
        ) from None


def _curves_of(steps: Sequence[dict[str, Any]], validations: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    curves = {
        name: [(step["samples_seen"], step[name]) for step in steps if step.get(name) is not None] for name in METRICS
    }
    per_step = steps[-1]["samples_seen"] / steps[-1]["step"]
    for event in validations:
        for domain, value in event["losses"].items():
            curves.setdefault(f"validation/{domain}", []).append((event["step"] * per_step, value))
    return {name: curve for name, curve in curves.items() if curve}


def smooth(curve: Curve, window: int) -> Curve:
    """Each point the mean of up to `window` points ending there."""
    return [
        (x, sum(value for _, value in curve[max(0, i + 1 - window) : i + 1]) / min(window, i + 1))
        for i, (x, _) in enumerate(curve)
    ]


def _draw(runs: dict[str, dict[str, Curve]], panels: Sequence[tuple[str, str]]) -> bytes:
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    canvas = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.5), layout="constrained", dpi=110)
    axes = canvas.subplots(rows, columns, squeeze=False).flatten()
    for axis, (name, title) in zip(axes, panels, strict=False):
        for number, (label, curves) in enumerate(runs.items()):
            _draw_curves(axis, label, _COLOURS[number % len(_COLOURS)], name, _curves_in(curves, name))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("samples seen", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        if name == "validation" or (axis is axes[0] and len(runs) > 1):
            axis.legend(fontsize=7)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if len(runs) == 1:
        canvas.suptitle(next(iter(runs)), fontsize=11)
    stream = io.BytesIO()
    canvas.savefig(stream, format="png")
    return stream.getvalue()


def _draw_curves(axis: Any, label: str, colour: str, name: str, curves: dict[str, Curve]) -> None:
    for number, (part, curve) in enumerate(curves.items()):
        window = max(1, len(curve) // 25) if name in _SMOOTHED else 1
        if window > 1:
            axis.plot(*zip(*curve, strict=True), color=colour, alpha=0.25, linewidth=0.8)
        shown = label if part == name else f"{label}: {part.partition('/')[2]}"
        axis.plot(
            *zip(*smooth(curve, window), strict=True), color=colour, linewidth=1.4, label=shown,
            linestyle=_STYLES[number % len(_STYLES)], marker="." if len(curve) < 12 else None,
        )  # fmt: skip


def _curves_in(curves: dict[str, Curve], name: str) -> dict[str, Curve]:
    """The curves of a panel: of the metric, or of each of its domains."""
    return {part: curve for part, curve in curves.items() if part == name or part.startswith(f"{name}/")}


def _labels(folders: Sequence[str]) -> list[str]:
    """Names of the folders, as much of each path as tells them apart."""
    parts = [Path(folder).absolute().parts for folder in folders]
    for depth in range(1, max(len(part) for part in parts) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise ConfigError("a run is given twice; name each once")
