"""Tables and plot of what `bench_metadata.py` found: one dict for each size and step, the JSON lines that it prints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np


def exponents(found: list[dict[str, Any]], figure: str, least: float) -> dict[str, float]:
    """Slope of the logarithms over all sizes, by step; steps whose largest figure is below `least` tell nothing."""
    slopes = {}
    for step in dict.fromkeys(row["step"] for row in found):
        points = [(row["rows"], row[figure]) for row in found if row["step"] == step]
        if len({rows for rows, _ in points}) > 1 and max(value for _, value in points) >= least:
            rows, values = np.log(np.array(points).clip(1e-3)).T
            slopes[step] = float(np.polyfit(rows, values, 1)[0])
    return slopes


def report(found: list[dict[str, Any]]) -> str:
    """Tables in Markdown: CPU seconds, seconds, peak memory, and requests where all have them, by step and size."""
    sizes = sorted({row["rows"] for row in found})
    lines = []
    for title, figure, digits, least in (
        ("CPU seconds", "cpu_seconds", 1, 1.0),
        ("seconds", "seconds", 1, 1.0),
        ("peak GiB", "peak_gib", 2, 0.5),
        ("requests", "requests", 0, 10.0),
    ):
        if any(figure not in row for row in found):
            continue
        slopes = exponents(found, figure, least)
        lines += ["", f"| {title} | {' | '.join(f'{size / 1e6:g} M' for size in sizes)} | grows as |"]
        lines.append(f"|---|{'---:|' * (len(sizes) + 1)}")
        for step in dict.fromkeys(row["step"] for row in found):
            given = {row["rows"]: row[figure] for row in found if row["step"] == step}
            if max(given.values()) < {0: 0.5, 1: 0.05}.get(digits, 0.0):
                continue
            cells = [f"{given[size]:.{digits}f}" if size in given else "" for size in sizes]
            slope = slopes.get(step, math.nan)
            name = f"{step} (replaced)" if any(row["replaced"] for row in found if row["step"] == step) else step
            lines.append(f"| {name} | {' | '.join(cells)} | {'' if math.isnan(slope) else f'n^{slope:.2f}'} |")
    return "\n".join(lines)


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """CPU seconds, seconds and peak memory of the steps that take most, over the number of candidates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    largest = max(row["rows"] for row in found)
    last = [row for row in found if row["rows"] == largest and not row["replaced"] and row["step"] != "all"]
    steps = [row["step"] for row in sorted(last, key=lambda row: -row["cpu_seconds"])][:10]
    sizes = sorted({row["rows"] / 1e6 for row in found})
    slopes = exponents(found, "cpu_seconds", 1.0)
    labels = {"cpu_seconds": "CPU seconds", "seconds": "seconds", "peak_gib": "peak memory, GiB"}
    figure, axes = plt.subplots(1, len(labels), figsize=(14, 4.6), layout="constrained")
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        for number, step in enumerate(steps):
            points = sorted((row["rows"] / 1e6, row[name]) for row in found if row["step"] == step)
            colour, grows = f"C{number - 1}" if number else "black", slopes.get(step)  # first: all but replaced
            text = step + (f": n^{grows:.2f}" if grows is not None else "")
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=text)
        axis.set(xscale="log", xlabel="million candidates", ylabel=label)
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes], minor=False)
        axis.grid(alpha=0.3)
        if name == "peak_gib":
            axis.set_ylim(bottom=0)
        else:
            axis.set_yscale("log")
        axis.xaxis.minorticks_off()
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", fontsize=8, title="CPU s grow as", title_fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
