"""The report of the learning benchmark: its runs' files in, learning.md and learning.png out.

Hits are 1 or 0 for each trial of a task. Intervals are of 95 %, by drawing seeds and trials anew; a difference is
paired: equal seeds, equal trials.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

TASKS = (
    ("special_val@1", "varieties, zero-shot, top 1", "special"),
    ("special_val@5", "varieties, zero-shot, top 5", "special"),
    ("special_val text to image@1", "variety finds a photo", "special"),
    ("cartons_val@1", "cartons, zero-shot, top 1", "general"),
    ("emoji_val@5", "third vendor's emoji, image to text, top 5", "general"),
    ("general_val@5", "held-out pictures, image to text, top 5", "general"),
)
GENERAL = tuple(task for task, _, group in TASKS if group == "general")
ROUNDS = 2000
Hits = dict[str, dict[str, np.ndarray]]  # kind (f, z, both) -> task -> (seeds, trials)
Three = tuple[float, float, float]  # value and its interval


def report(work: Path, out: Path) -> None:
    final, screening = _results(work / "final"), _results(work / "screening")
    hits = {name: _stack(results) for name, results in final.items()}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    loads = [result["load"] for results in (*final.values(), *screening.values()) for result in results]
    seconds = [result["seconds"] for results in final.values() for result in results]
    lines = [
        "# Learning: plain CLIP, released, dalip", "",
        f"{time.strftime('%Y-%m-%d')}, commit {commit.stdout.strip()}, {platform.machine()}, "
        f"{os.cpu_count()} cores shared with other work (load {min(loads):.1f} to {max(loads):.1f}), one thread a run, "
        f"{np.median(seconds):.0f} s a run. Commands: see tests/benchmarks/bench_learning.py.", "",
        *_about(work, final), "",
        "## The three presets", "", *_preset_table(final, hits, _chance(work)), "",
        "## Open questions: each changed alone in `dalip`", "", *_question_table(final, hits), "",
        "## What chose the preset", "", *_screening_table(screening), "",
        "## Before the first step", "", *_start_table(json.loads((work / "start.json").read_text())), "",
    ]  # fmt: skip
    _plot(hits, _chance(work), out.with_suffix(".png"))
    out.write_text("\n".join(lines))
    print("\n".join(lines))


def _results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """By setting, in the order of seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        found.setdefault(result["setting"], []).append(result)
    return {name: sorted(results, key=lambda result: result["seed"]) for name, results in found.items()}


def _stack(results: list[dict[str, Any]]) -> Hits:
    kinds = results[0]["hits"]
    return {kind: {task: np.array([r["hits"][kind][task] for r in results]) for task in kinds[kind]} for kind in kinds}


def _about(work: Path, final: dict[str, list[dict[str, Any]]]) -> list[str]:
    from bench_learning import BATCH, LAYERS, LR, REDUCED_WIDTH, WIDTH
    from learning_pictures import VIEW_PX

    counts: dict[str, int] = {}
    for row in json.loads((work / "rows.json").read_text()):
        counts[row["split"]] = counts.get(row["split"], 0) + 1
    steps = final["clip"][0]["steps"]
    num_varieties = len(set(_labels(work, "special_val")))
    return [
        f"Training pictures: {counts['special_train']:,} photos of fruit and vegetables, "
        f"{counts['cartons_train']:,} of cartons, {counts['general_train']:,} drawings, small photos and emoji of two "
        f"vendors; half of every batch is special. ViT of {VIEW_PX} px, 36 patches, width {WIDTH}, {LAYERS[0]} layers; "
        f"text tower of {LAYERS[1]}, reduced width {REDUCED_WIDTH} of heads 32 wide. {steps} steps of {BATCH}, lr "
        f"{LR:g}, the same batches for every setting of a seed. Judged on {counts['special_val']} photos of "
        f"{num_varieties} varieties from other shops, {counts['cartons_val']} cartons, {counts['emoji_val']:,} emoji, "
        f"{counts['general_val']} held-out pictures. A small run says what learns faster at this size, not what is "
        "better after 13 M samples. Intervals are of 95 %, over seeds and pictures.",
    ]


def _labels(work: Path, split: str) -> list[str]:
    return [row["label"] for row in json.loads((work / "rows.json").read_text()) if row["split"] == split]


# ---- statistics


def mean_interval(values: np.ndarray, rng: np.random.Generator) -> Three:
    """Mean of (seeds, trials) and its 95 % interval, seeds and trials both drawn anew."""
    seeds, trials = values.shape
    means = [
        values[np.ix_(rng.integers(0, seeds, seeds), rng.integers(0, trials, trials))].mean() for _ in range(ROUNDS)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def group_interval(tasks: list[np.ndarray], rng: np.random.Generator) -> Three:
    """Mean over tasks of each task's mean: the seeds drawn anew once for all tasks, the trials for each."""
    seeds = len(tasks[0])
    means = []
    for _ in range(ROUNDS):
        drawn = rng.integers(0, seeds, seeds)
        means.append(np.mean([v[np.ix_(drawn, rng.integers(0, v.shape[1], v.shape[1]))].mean() for v in tasks]))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean([v.mean() for v in tasks])), float(low), float(high)


def paired(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The difference of every trial of the seeds that both have: seeds run from the same first one."""
    seeds = min(len(ours), len(theirs))
    return ours[:seeds].astype(float) - theirs[:seeds]


def _cell(three: Three, sign: str = "") -> str:
    value, low, high = (100 * number for number in three)
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def _chance(work: Path) -> dict[str, float]:
    """What guessing reaches in each task."""
    chances = {}
    for task, _, _ in TASKS:
        split, _, k = task.partition("@")
        num_classes = len(set(_labels(work, split.removesuffix(" text to image"))))
        chances[task] = 1 / num_classes if "text to image" in task else min(1.0, int(k) / num_classes)
    return chances


# ---- tables


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def _preset_table(final: dict[str, Any], hits: dict[str, Hits], chance: dict[str, float]) -> list[str]:
    rng = np.random.default_rng(0)
    head = ["setting, features at test", "seeds", *(f"{about}, %" for _, about, _ in TASKS), "general group, %"]
    rows, differences = [], []
    for name in ("clip", "released", "dalip"):
        for kind, tasks in hits[name].items():
            cells = [_cell(mean_interval(tasks[task], rng)) for task, _, _ in TASKS]
            general = _cell(group_interval([tasks[task] for task in GENERAL], rng))
            rows.append([f"{name}, {kind}", str(len(final[name])), *cells, general])
            if name != "clip":
                apart = {task: paired(tasks[task], hits["clip"]["f"][task]) for task, _, _ in TASKS}
                cells = [_cell(mean_interval(apart[task], rng), "+") for task, _, _ in TASKS]
                general = _cell(group_interval([apart[task] for task in GENERAL], rng), "+")
                differences.append(
                    [f"{name}, {kind}", *cells, general, _cell(group_interval([*apart.values()], rng), "+")]
                )
    guess = [f"{100 * chance[task]:.1f}" for task, _, _ in TASKS]
    rows.append(["chance", "", *guess, f"{100 * np.mean([chance[task] for task in GENERAL]):.1f}"])
    about = [about for _, about, _ in TASKS]
    return [
        *_table(head, rows), "",
        "General group: the mean of the last three tasks. Paired difference to plain CLIP, in points:", "",
        *_table(["setting", *about, "general group", "mean of the six"], differences),
    ]  # fmt: skip


def _question_table(final: dict[str, Any], hits: dict[str, Hits]) -> list[str]:
    from bench_learning import settings_list

    rng = np.random.default_rng(1)
    rows = []
    base = hits["dalip"]
    for kind in ("z", "both"):
        apart = [paired(base[kind][task], base["f"][task]) for task, _, _ in TASKS]
        cells = [_cell(mean_interval(values, rng), "+") for values in apart]
        whole = _cell(group_interval(apart, rng), "+")
        rows.append([f"{kind} in place of f", "features at test", str(len(apart[0])), kind, *cells, whole])
    for setting in settings_list("final"):
        if not setting.question or setting.name not in hits:
            continue
        for kind, tasks in hits[setting.name].items():
            apart = [paired(tasks[task], base[kind][task]) for task, _, _ in TASKS]
            cells = [_cell(mean_interval(values, rng), "+") for values in apart]
            whole = _cell(group_interval(apart, rng), "+")
            rows.append([setting.name, setting.question, str(len(apart[0])), kind, *cells, whole])
    head = ["changed", "question", "seeds", "at test", *(about for _, about, _ in TASKS), "mean of the six"]
    return ["Paired difference to `dalip` of the same seeds, in points.", "", *_table(head, rows)]


def _screening_table(screening: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Every candidate against the base, over the tasks that screening judges on."""
    from bench_learning import settings_list

    rng = np.random.default_rng(3)
    hits = {s.name: _stack(screening[s.name]) for s in settings_list("screening") if s.name in screening}
    base = hits["no dropout"]
    asked = [task for task, _, _ in TASKS if task in base["f"]]
    rows = []
    for name, of in hits.items():
        cells = [_cell(group_interval([of[kind][t] for t in asked], rng)) if kind in of else "" for kind in base]
        for kind in base if name != "no dropout" else ():
            apart = [paired(of[kind][t], base[kind][t]) for t in asked] if kind in of else []
            cells.append(_cell(group_interval(apart, rng), "+") if apart else "")
        rows.append([name, str(len(screening[name])), *cells, *[""] * (2 * len(base) - len(cells))])
    head = ["setting", "seeds", *base, *(f"{kind}, less the base's" for kind in base)]
    return [
        "Other seeds than above, and other pictures: every tenth training picture is kept back from these runs and "
        "judged on. Base: `no dropout`, which is `dalip` with the sum of losses; `similarities` is the sum of "
        f"similarities. Mean of {len(asked)} tasks (those above without the third vendor's emoji), %; f, z or both at "
        "test.", "",
        *_table(head, rows),
    ]  # fmt: skip


def _start_table(start: dict[str, dict[str, float]]) -> list[str]:
    columns = {
        "image f": "image_features", "image z": "image_second_order", "text f": "text_features",
        "text z": "text_second_order", "loss of f": "loss f", "loss of z": "loss z", "gradient of f": "pull f",
        "gradient of z": "pull z", "random image anchor": "anchor, image", "random text anchor": "anchor, text",
    }  # fmt: skip
    rows = []
    for name, found in start.items():
        cells = [f"{found[key]:.4f}" if "anchor" in key else f"{found[key]:.2f}" for key in columns.values()]
        rows.append([name, *cells])
    return [
        "One batch of 64, no dropout: mean cosine between different samples (1: all alike), losses (chance 4.16), "
        "length of the gradient on the towers, and by how much the statistics change, relative to their length, when "
        "the anchor is drawn at random.", "",
        *_table(["branches", *columns], rows),
    ]  # fmt: skip


def _plot(hits: dict[str, Hits], chance: dict[str, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(2)
    shown = [("clip", "f"), ("released", "f"), ("released", "z"), ("released", "both"),
             ("dalip", "f"), ("dalip", "z"), ("dalip", "both")]  # fmt: skip
    colours = ["#666666", "#c77d11", "#dba14f", "#f0cf9d", "#1b6e3c", "#55a374", "#a9d3b8"]
    figure, axes = plt.subplots(1, len(TASKS), figsize=(15, 4), constrained_layout=True)
    for axis, (task, about, _) in zip(axes, TASKS, strict=True):
        for place, ((name, kind), colour) in enumerate(zip(shown, colours, strict=True)):
            value, low, high = mean_interval(hits[name][kind][task], rng)
            axis.bar(place, 100 * value, color=colour, label=f"{name}, {kind}")
            axis.errorbar(place, 100 * value, [[100 * (value - low)], [100 * (high - value)]], color="black", capsize=3)
        axis.axhline(100 * chance[task], color="black", linewidth=1, linestyle=":", label="chance")
        axis.set_title(about.replace(", ", ",\n", 1), fontsize=9)
        axis.set_xticks([])
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("% right, 95 % interval")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(shown) + 1, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
