"""`plantmix diff`: what changed between two releases, or between what came in and a release. Writes nothing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from pipeline.answers.tables import aligned, print_lines
from pipeline.commands import RELEASE_HELP, Commands, add_command, add_json_option, print_json
from pipeline.releases.diff import compare, compare_incoming
from pipeline.releases.opening import open_release

MAX_SHOWN_CHARS = 80


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `diff` to the command line."""
    parser = add_command(
        commands,
        "diff",
        "show what changed between two releases, or what became of the source rows of one",
        "plantmix diff data/demo/releases/plantmix-demo-1a2b3c4d5e6f data/demo",
        reads="record and samples table of both releases, no shard; of one, the work folder too",
        writes="nothing",
    )
    parser.add_argument("before", metavar="A", help=RELEASE_HELP)
    parser.add_argument(
        "after",
        metavar="B",
        nargs="?",
        help="another release, named in the same ways; without it A is compared with its source rows",
    )
    add_json_option(parser)
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    release = open_release(args.before)
    comparison = compare(release, open_release(args.after)) if args.after else compare_incoming(release)
    if args.json:
        print_json(comparison)
    else:
        print_lines(describe(comparison) if args.after else describe_incoming(comparison))
    return 0


def describe_incoming(comparison: Mapping[str, Any]) -> list[str]:
    """Describe what became of the source rows, in lines that a person reads."""
    rows = []
    for row in comparison["incoming"]:
        became = (row["reason"] or "kept", row["stage"] or "")
        rows.append((row["source"], row["domain"] or "", *became, row["images"], row["other_text"]))
    num, kept = (sum(row[4] for row in rows if not only or row[2] == only) for only in ("", "kept"))
    head = ("source", "domain", "became", "by", ">images", ">other text")
    return [f"{num:,} came in -> {kept:,} in {comparison['release']}", "", *aligned(head, rows)]


def describe(comparison: Mapping[str, Any]) -> list[str]:
    """Return a comparison as lines that a person reads."""
    head = ("split", "domain", ">before", ">after", ">added", ">removed", ">other text", ">other image", ">samples")
    names = ("split", "domain", "before", "after", "added", "removed", "text", "image")
    rows = [(*(row[name] for name in names), f"{row['more_samples']:+,}") for row in comparison["domains"]]
    lines = [f"{comparison['before']} -> {comparison['after']}", "", *aligned(head, rows)]
    lines.append("(counts of distinct images; the last column counts repeats too)")
    if comparison["texts"]:
        named = ", ".join(f"{row['name']} of {row['images']:,} images" for row in comparison["texts"])
        lines.append(f"other joined texts: {named}")
    if comparison["fields"]:
        named = ", ".join(f"{row['name']} of {row['images']:,} images" for row in comparison["fields"])
        lines.append(f"other fields: {named}")
    if comparison["moved_between_splits"]:
        lines.append(f"{comparison['moved_between_splits']:,} images are in another split than before")
    shards = comparison["shards"]
    lines += [
        "",
        f"shards: {shards['before']:,} -> {shards['after']:,}, {shards['shared']:,} with the same content "
        f"({shards['shared_bytes']:,} of {shards['bytes']:,} bytes)",
        *(
            f"taken down: {entry['num_images']:,} images, reason: {entry['reason']}"
            for entry in comparison["takedowns"]
        ),
        *(f"recipe: {describe_change(change)}" for change in comparison["recipe"]),
    ]
    return lines if comparison["recipe"] else [*lines, "recipe: the same"]


def describe_change(change: Mapping[str, Any]) -> str:
    """One changed setting: of a list what came and what went, of a section that it was added or removed."""
    key, before, after = change["setting"], change["before"], change["after"]
    if isinstance(before, list) and isinstance(after, list):
        gone = [f"-{_short(value)}" for value in before if value not in after]
        come = [f"+{_short(value)}" for value in after if value not in before]
        return f"{key}: {' '.join([*gone, *come]) or 'in another order'}"
    for section, other, word in ((after, before, "added"), (before, after, "removed")):
        if isinstance(section, dict) and other is None:
            return f"{key}: {word}, with {', '.join(section)}"
    return f"{key}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."
