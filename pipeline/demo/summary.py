"""The lines a person reads at the end of the demo: what came in, what was dropped and why, what was learned.

Pure: what the work folder's status.json, the release, the training run's summary.json and the evaluation's
JSON say goes in, lines of text come out. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from manifests.release import SPLIT_FOLDERS, Release

_REASONS_SHOWN = 4


def funnel_lines(stages: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> list[str]:
    """A line a stage: rows in, rows kept, and the reasons of the others, most frequent first."""
    lines = [f"{'stage':8} {'in':>7} {'kept':>7}   dropped, and why"]
    for name in order:
        stage = stages.get(name)
        if stage is None or stage["in"] is None:
            continue
        reasons = sorted(stage["reasons"].items(), key=lambda item: (-item[1], item[0]))
        texts = [f"{num:,} {reason.replace('_', ' ')}" for reason, num in reasons[:_REASONS_SHOWN]]
        if others := reasons[_REASONS_SHOWN:]:
            texts.append(f"{sum(num for _, num in others):,} for {len(others)} other reasons")
        lines.append(f"{name:8} {stage['in']:>7,} {stage['kept']:>7,}   {', '.join(texts)}".rstrip())
    return lines


def mix_lines(mix: Iterable[Mapping[str, Any]]) -> list[str]:
    """The ratio as it came out beside the one asked for, a line a domain."""
    return _under(
        "mixture",
        [
            f"{row['domain']} {row['realised_share']:.1%} (asked for {row['target_share']:.1%}): "
            f"{row['num_drawn']:,} drawn from {row['num_available']:,}, {row['num_heldout']:,} held out"
            for row in mix
        ],
    )


def shard_lines(release: Release) -> list[str]:
    """How many shards each split has, and where."""
    lines = []
    for split in release.splits:
        num_shards = len(release.shards(split))
        plural = "" if num_shards == 1 else "s"
        folder = Path(release.path) / SPLIT_FOLDERS[split]
        lines.append(f"{split}: {release.num_samples(split):,} samples in {num_shards} tar{plural}, {shown(folder)}")
    return _under("shards", lines)


def training_lines(run: Mapping[str, Any], folder: Path) -> list[str]:
    """Loss at the start and at the end of a finished run, and where its model lies."""
    return _under(
        "training",
        [
            f"loss {run['first_loss']:.2f} -> {run['final_loss']:.2f} in {run['steps']:,} steps "
            f"({run['epochs']:.0f} epochs, {run['seconds']:.0f} s); guessing has {run['chance_loss']:.2f}",
            f"model in {shown(folder)}",
        ],
    )


def evaluation_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """Zero-shot accuracy and retrieval on the held-out split, each beside chance."""
    lines = []
    for task in evaluation["zero_shot"]:
        figure = _best_features(task["figures"])["top1"]
        what = task["field"].removeprefix("extra.").removeprefix("taxon_")
        where = f" of {task['domain']}s" if task["domain"] else ""
        lines.append(f"zero-shot accuracy, {task['num_classes']} classes ({what}{where}): {_beside_chance(figure)}")
    figures = _best_features(evaluation["retrieval"]) if evaluation["retrieval"] else {}
    for direction in ("image_to_text", "text_to_image"):
        depths = sorted(int(name.rpartition("_r")[2]) for name in figures if name.startswith(direction))
        lines += [
            f"{direction.replace('_', ' ')}, right one among the first {depth}: "
            f"{_beside_chance(figures[f'{direction}_r{depth}'])}"
            for depth in depths
        ]
    return _under("held out", lines)


def shown(path: Path) -> str:
    """A path relative to the current folder where it lies below it."""
    absolute, here = path.resolve(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def _best_features(by_kind: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Figures of first and second order together where the model has both, else of what there is."""
    return by_kind["both"] if "both" in by_kind else by_kind["f"]


def _beside_chance(figure: Mapping[str, Any]) -> str:
    return (
        f"{figure['value']:.1%} (chance {figure['chance']:.1%}; 95 % interval {figure['low']:.1%} to "
        f"{figure['high']:.1%}, {figure['trials']} trials)"
    )


def _under(head: str, lines: Sequence[str]) -> list[str]:
    return [f"{head if place == 0 else '':10} {line}" for place, line in enumerate(lines)]
