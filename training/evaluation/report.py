"""The result of an evaluation for a reader: lines of text, and one plot.

Takes what `training.evaluation.evaluate` measured; writes nothing. In the plot each figure is a bar with its 95 %
interval, and a red mark shows what guessing reaches.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from training.evaluation.metrics import Figure

_INTERVALS = "intervals are of 95 %; those of a classification draw classes anew, and pictures within them"
_COLOURS = {"f": "#4477aa", "z": "#ccbb44", "both": "#228833"}


def report_lines(result: dict[str, Any]) -> list[str]:
    """The result as text: a line for each figure, with its chance."""
    lines = [f"weights: {result['weights']} ({result['model']})", *(f"note: {note}" for note in result["notes"])]
    lines.append(_INTERVALS)
    if "split" in result:
        lines.append(f"{result['num_samples']:,} samples of split '{result['split']}' of {result['release']}")
        lines += [_line(label, kind, figure, note) for label, kind, figure, note in _held_out(result)]
        for task in result["zero_shot"]:
            lines += _notes(task, f"zero-shot over {task['field']}")
        for domain, figure in result["validation_loss"].items():
            lines.append(
                f"validation loss {domain:<13}  {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]  "
                f"chance {figure['chance']:.3f}"
            )
    for item in result["sets"]:
        of = f", {item['num_classes']} classes" if item["kind"] == "classification" else ""
        lines.append(f"{item['name']}: {item['num_samples']:,} pictures{of}")
        lines += [_line(label, kind, figure, note) for label, kind, figure, note in _of_set(item)]
        lines += _notes(item, item["name"])
    for group, figures in result["groups"].items():
        for kind, figure in figures.items():
            lines.append(_line(f"mean of {group}", kind, figure, f"{figure['sets']} sets, zero-shot top1"))
    return lines


def plot_result(result: dict[str, Any]) -> bytes:
    """All shares of the result as bars, in one PNG: a panel for the split, for each set, and for the means."""
    from matplotlib.figure import Figure as Canvas

    panels: list[tuple[str, list[tuple[str, str, Figure]]]] = []
    if "split" in result:
        bars = [(label, kind, figure) for label, kind, figure, _ in _held_out(result)]
        panels.append((f"split {result['split']} of {result['release']}", bars))
    panels += [
        (item["name"], [(label, kind, figure) for label, kind, figure, _ in _of_set(item)]) for item in result["sets"]
    ]
    if result["groups"]:
        means = [(f"mean of {group}", kind, f) for group, figures in result["groups"].items()
                 for kind, f in figures.items()]  # fmt: skip
        panels.append(("means over sets, zero-shot top1", means))
    panels = [(title, bars) for title, bars in panels if bars]
    heights = [len(bars) + 1.5 for _, bars in panels] or [1]
    canvas = Canvas(figsize=(9, 0.26 * sum(heights) + 0.9), layout="constrained", dpi=110)
    axes = canvas.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, bars) in zip(axes, panels, strict=False):
        _draw(axis, title, bars)
    stream = io.BytesIO()
    canvas.savefig(stream, format="png")
    return stream.getvalue()


def _draw(axis: Any, title: str, bars: list[tuple[str, str, Figure]]) -> None:
    for place, (_, kind, figure) in enumerate(bars):
        value = figure["value"]
        errors = [[max(0.0, value - figure["low"])], [max(0.0, figure["high"] - value)]]
        axis.barh(place, value, color=_COLOURS[kind], height=0.75)
        axis.errorbar(value, place, xerr=errors, color="black", capsize=2, linewidth=1)
        axis.plot([figure["chance"]] * 2, [place - 0.42, place + 0.42], color="#ee6677", linewidth=2)
        axis.text(1.01, place, f"{value:.1%}", va="center", fontsize=8, transform=axis.get_yaxis_transform())
    axis.set_yticks(range(len(bars)), [f"{label}  {kind}" for label, kind, _ in bars], fontsize=8)
    axis.set_ylim(len(bars) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    axis.set_title(f"{title}  (red: chance)", fontsize=9, loc="left")


def _held_out(result: dict[str, Any]) -> Iterator[tuple[str, str, Figure, str]]:
    for task in result["zero_shot"]:
        where = f"{task['field']}" + (f", {task['domain']}" if task["domain"] else "")
        yield from _classification(task["figures"], task["few_shot"], f"{where}, {task['num_classes']} classes")
    yield from _retrieval(result["retrieval"])


def _of_set(item: dict[str, Any]) -> Iterator[tuple[str, str, Figure, str]]:
    if item["kind"] == "retrieval":
        yield from _retrieval(item["retrieval"])
    else:
        yield from _classification(item["zero_shot"], item["few_shot"], "")


def _classification(
    zero_shot: dict[str, dict[str, Figure]], few_shot: dict[str, dict[str, Figure]], where: str
) -> Iterator[tuple[str, str, Figure, str]]:
    for kind, figures in zero_shot.items():
        for name, figure in figures.items():
            common = f"most common {figure['most_common_class']:.1%}" if "most_common_class" in figure else ""
            note = ", ".join(part for part in (where, common) if part)
            yield f"zero-shot {name.replace('_', ' ')}", kind, figure, note
    for kind, figures in few_shot.items():
        for shots, figure in figures.items():
            note = f"{figure['num_classes']} classes, {figure['seeds']} draws, spread {figure['seed_std']:.1%}"
            yield f"{shots}-shot", kind, figure, note


def _retrieval(figures: dict[str, dict[str, Figure]]) -> Iterator[tuple[str, str, Figure, str]]:
    for kind, values in figures.items():
        for name, figure in values.items():
            yield name.replace("_", " "), kind, figure, ""


def _notes(item: dict[str, Any], where: str) -> list[str]:
    """What a reader of the figures has to know: classes that no model can tell apart, and figures left out."""
    notes = []
    if shared := item.get("shared_names"):
        first = ", ".join(f"'{name}' ({len(numbers)} classes)" for name, numbers in list(shared.items())[:3])
        more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
        notes.append(f"note: {where}: classes share a name: {first}{more}; a picture of one counts by its share")
    notes += [
        f"note: {where}: no {shots}-shot figure, no two classes have more than {shots} picture{'s' * (shots > 1)}"
        for shots in item.get("few_shot_left_out", ())
    ]
    return notes


def _line(label: str, kind: str, figure: Figure, note: str) -> str:
    share = f"{figure['value']:6.1%} [{figure['low']:.1%}, {figure['high']:.1%}]  chance {figure['chance']:.1%}"
    return f"{label:<24} {kind:<4}  {share}" + (f"  ({note})" if note else "")
