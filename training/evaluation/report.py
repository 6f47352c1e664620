"""The result of an evaluation for a reader: lines of text, and plots.

Takes what `training.evaluation.evaluate` measured. The plot has a panel for each task: each figure is a dot with its
95 % interval, models and features side by side, and a dotted line shows what guessing reaches.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from manifests.drawing.panels import Panel, draw_png, require_picture
from manifests.drawing.theme import INK, SERIES, SOFT, WARN
from manifests.errors import ConfigError
from manifests.stores import storage
from training.evaluation.metrics import Figure
from training.evaluation.outside_sets import OVERALL
from training.record.run_files import EVAL_FOLDER

_INTERVALS = "intervals are of 95 %; those of a classification draw classes anew, and pictures within them"
_ROW_INCHES = 0.16
_LEGEND_CHARS = 46  # that fit beside each other under a panel

_Mark = tuple[str, str, Figure, str]  # what was measured, with which features, the figure, and a note


def report_lines(result: dict[str, Any]) -> list[str]:
    """Return the result as text: a line for each figure, with its chance."""
    lines = [f"weights: {result['weights']} ({result['model']})", *(f"note: {note}" for note in result["notes"])]
    lines.append(_INTERVALS)
    if "split" in result:
        lines.append(f"{result['num_samples']:,} samples of split '{result['split']}' of {result['release']}")
        lines += [_line(*figure) for figure in _held_out(result)]
        for task in result["zero_shot"]:
            lines += _notes(task, f"zero-shot over {task['field']}")
        for domain, figure in result["validation_loss"].items():
            lines.append(
                f"validation loss {domain:<13}  {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]  "
                f"chance {figure['chance']:.3f}{_left_out(figure)}"
            )
    for item in result["sets"]:
        of = f", {item['num_classes']} classes" if item["kind"] == "classification" else ""
        lines.append(f"{item['name']}: {item['num_samples']:,} pictures{of}")
        lines += [_line(*figure) for figure in _of_set(item)]
        lines += _notes(item, item["name"])
    for group, figures in result["groups"].items():
        for kind, figure in figures.items():
            lines.append(_line(f"mean of {group}", kind, figure, f"{figure['sets']} sets, zero-shot top1"))
    return lines


def _left_out(figure: Figure) -> str:
    left = figure.get("left_out", 0)
    return f"  ({left:,} of {figure['trials'] + left:,} pairs left out: they fill no batch)" if left else ""


def figures_of(result: dict[str, Any]) -> Iterator[_Mark]:
    """Every share of a result."""
    if "split" in result:
        yield from _held_out(result)
    for item in result["sets"]:
        for label, kind, figure, note in _of_set(item):
            yield f"{item['name']}: {label}", kind, figure, note


def plot_result(result: dict[str, Any]) -> bytes:
    """Return the result as one PNG: a panel for each task."""
    return draw_png(result_panels({str(result["model"]): result}), f"{result['model']}, weights: {result['weights']}")


def plot_results(files: Sequence[str], out: str) -> list[str]:
    """Draw the JSON files of evaluations into the same panels, models side by side, as a picture.

    Returns a table of the means of groups, a line a model; none where there are no groups.

    Raises: ConfigError for a file that is no result.
    """
    require_picture("--out", out)
    evaluations = []
    for file in files:
        try:
            result = json.loads(Path(file).read_text(encoding="utf-8"))
            evaluations.append((_run_of(Path(file)), Path(file).stem, result))
            _panels_of(result)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{file}: not a result of `dalip eval`; give the JSON files that it wrote") from None
    names = [run for run, _, _ in evaluations]
    results = {run if names.count(run) == 1 else f"{run}/{stem}": result for run, stem, result in evaluations}
    if len(results) < len(evaluations):
        raise ConfigError("a result is given twice; name each once")
    storage.write_file(out, draw_png(result_panels(results), "Evaluation: " + ", ".join(results)))
    return _group_table(results)


def _group_table(results: Mapping[str, dict[str, Any]]) -> list[str]:
    """Zero-shot accuracy of each model in each group, by all its features."""
    groups = list(dict.fromkeys(group for result in results.values() for group in result["groups"] if group != OVERALL))
    lines = [["", *groups]] if groups else []
    for model, result in results.items() if groups else ():
        figures = [
            list(result["groups"][group].values())[-1] if group in result["groups"] else None for group in groups
        ]
        lines.append([model, *(f"{f['value']:.1%} [{f['low']:.1%}, {f['high']:.1%}]" if f else "-" for f in figures)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _run_of(file: Path) -> str:
    """Return the folder of the run that was measured: its results lie in RUN/eval/."""
    folder = file.absolute().parent
    return folder.parent.name if folder.name == EVAL_FOLDER else folder.name


def result_panels(results: Mapping[str, dict[str, Any]]) -> list[Panel]:
    """Return a panel for each task, with all models in it that were measured on it."""
    tasks: dict[str, dict[str, list[_Mark]]] = {}
    for model, result in results.items():
        for title, marks in _panels_of(result).items():
            tasks.setdefault(title, {})[model] = marks
    return [marks_panel(title, by_model) for title, by_model in tasks.items()]


def _panels_of(result: dict[str, Any]) -> dict[str, list[_Mark]]:
    panels: dict[str, list[_Mark]] = {}
    if "split" in result:
        for task in result["zero_shot"]:
            panels[_title(task)] = list(_classification(task["figures"], task["few_shot"], ""))
        panels[f"retrieval, split {result['split']}"] = list(_retrieval(result["retrieval"]))
        panels["validation loss"] = [(domain, "", figure, "") for domain, figure in result["validation_loss"].items()]
    for item in result["sets"]:
        panels[item["name"]] = list(_of_set(item))
    panels["means over sets, zero-shot top1"] = [
        (group, kind, figure, "") for group, figures in result["groups"].items() for kind, figure in figures.items()
    ]
    return {title: marks for title, marks in panels.items() if marks}


def marks_panel(title: str, by_model: Mapping[str, list[_Mark]]) -> Panel:
    """Return a row for each thing that was measured, in it a dot with its interval for each model."""
    labels = list(dict.fromkeys(label for marks in by_model.values() for label, *_ in marks))
    names = {
        (model, kind): ", ".join(word for word in (model if len(by_model) > 1 else "", kind) if word) or model
        for model, marks in by_model.items()
        for _, kind, *_ in marks
    }
    num_columns = max(1, min(4, int(_LEGEND_CHARS / (max(map(len, names.values())) + 5))))
    num_rows = -(-(len(names) + 1) // num_columns)
    height = 0.95 + len(labels) * (_ROW_INCHES * len(names) + 0.12) + 0.2 * num_rows
    left = 0.3 + 0.072 * max(len(label) for label in labels)
    draw = functools.partial(_draw, by_model, labels, names, num_columns, num_rows)
    return Panel(title, draw, "", 4.6, height, left)


def _draw(
    by_model: Mapping[str, list[_Mark]],
    labels: Sequence[str],
    names: Mapping[tuple[str, str], str],
    num_columns: int,
    num_rows: int,
    axis: Any,
) -> None:
    """Dots with their intervals, a row for each figure; the tick is chance. `names` are those of model and features."""
    series, step = list(names), 0.8 / len(names)
    is_share = all(
        figure["value"] <= 1 and figure["chance"] <= 1 for marks in by_model.values() for _, _, figure, _ in marks
    )
    for model, marks in by_model.items():
        for label, kind, figure, _ in marks:
            at, row = series.index((model, kind)), labels.index(label)
            y = row - 0.4 + (at + 0.5) * step
            colour = SERIES[at % len(SERIES)]
            axis.hlines(y, figure["low"], figure["high"], color=colour, linewidth=2.2, alpha=0.6)
            axis.plot(figure["value"], y, "o", color=colour, markersize=4.5, clip_on=False)
            shown = f"{figure['value']:.1%}" if is_share else f"{figure['value']:.3f}"
            axis.text(1.01, y, shown, color=SOFT, fontsize=7, va="center", transform=axis.get_yaxis_transform())
            axis.vlines(figure["chance"], row - 0.42, row + 0.42, color=WARN, linewidth=1.2, linestyle=":")
    for at, name in enumerate(names.values()):
        axis.plot([], [], "o", color=SERIES[at % len(SERIES)], label=name)
    axis.plot([], [], ":", color=WARN, label="chance")
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4 + 0.001, -0.6)
    axis.tick_params(axis="y", length=0, colors=INK)
    axis.grid(axis="y", visible=False)
    if is_share:
        axis.set_xlim(0, 1)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    box, legend = axis.get_position(), 0.2 * num_rows  # inches
    up = axis.figure.get_figheight() * box.height
    axis.set_position([box.x0, box.y0 + legend / axis.figure.get_figheight(), box.width * 0.88,
                       box.height * (1 - legend / up)])  # fmt: skip
    axis.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.26 / (up - legend)),
                ncols=num_columns, handlelength=1.2, columnspacing=1.0, borderaxespad=0)  # fmt: skip


def _held_out(result: dict[str, Any]) -> Iterator[_Mark]:
    for task in result["zero_shot"]:
        yield from _classification(task["figures"], task["few_shot"], _title(task))
    yield from _retrieval(result["retrieval"])


def _title(task: dict[str, Any]) -> str:
    group = f"within {task['within']}" if "within" in task else ""
    return ", ".join(filter(None, (task["field"], task["domain"], group, f"{task['num_classes']} classes")))


def _of_set(item: dict[str, Any]) -> Iterator[_Mark]:
    if item["kind"] == "retrieval":
        yield from _retrieval(item["retrieval"])
    else:
        yield from _classification(item["zero_shot"], item["few_shot"], "")


def _classification(
    zero_shot: dict[str, dict[str, Figure]], few_shot: dict[str, dict[str, Figure]], where: str
) -> Iterator[_Mark]:
    for kind, figures in zero_shot.items():
        for name, figure in figures.items():
            common = f"most common {figure['most_common_class']:.1%}" if "most_common_class" in figure else ""
            note = ", ".join(part for part in (where, common) if part)
            yield f"zero-shot {name.replace('_', ' ')}", kind, figure, note
    for kind, figures in few_shot.items():
        for shots, figure in figures.items():
            note = f"{figure['num_classes']} classes, {figure['seeds']} draws, spread {figure['seed_std']:.1%}"
            yield f"{shots}-shot", kind, figure, note


def _retrieval(figures: dict[str, dict[str, Figure]]) -> Iterator[_Mark]:
    for kind, values in figures.items():
        for name, figure in values.items():
            yield name.replace("_", " "), kind, figure, ""


def _notes(item: dict[str, Any], where: str) -> list[str]:
    """Return notes on the figures: classes that no model can tell apart, and figures left out."""
    notes = [f"note: {where}: {note}" for note in item.get("notes", ())]
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
