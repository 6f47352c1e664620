"""`plantmix status`: the last snapshot of a build as a person reads it. Opens no catalogue, writes nothing."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from manifests.reader import read_status
from pipeline.commands.parsing import Commands, add_command
from pipeline.flow import FLOW


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `status` to the command line."""
    parser = add_command(
        commands,
        "status",
        "stages, counts and drop reasons; works while a build runs",
        "plantmix status data/demo",
    )
    parser.add_argument("dir", metavar="DIR", help="work folder of a build")
    parser.add_argument("--json", action="store_true", help="the same as json")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    return print_status(args.dir, args.json)


def print_status(workdir: str, as_json: bool) -> int:
    """Print stages, counts, drop reasons, the mixture and what runs now; returns the exit code."""
    status = read_status(workdir)
    if as_json:
        print(json.dumps(status, indent=1, sort_keys=True))
        return 0
    for line in describe_status(status):
        print(line)
    return 0


def describe_status(status: dict[str, Any]) -> list[str]:
    """The lines of a status snapshot; every stage adds up: in = kept + dropped."""
    lines = [f"{status['name']}, as of {status['updated_at'][:19].replace('T', ' ')} UTC", ""]
    lines.append(f"{'stage':<9}{'in':>14}{'kept':>14}{'dropped':>14}  reasons")
    for stage in FLOW:
        lines.extend(_stage_lines(stage.name, status["stages"].get(stage.name)))
    if status["mix"]:
        lines += ["", *mixture_lines(status["mix"])]
    lines += evaluation_lines((status["stages"].get("dedup") or {}).get("notes") or {})
    lines += balance_lines((status["stages"].get("select") or {}).get("notes") or {})
    lines += ["", _running_line(status)]
    return lines


def mixture_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of what is drawn of each domain, and of its sources where they have weights."""
    lines = [f"{'domain':<16}{'target':>8}{'realised':>10}{'pool':>14}{'drawn':>14}{'epochs':>9}{'held out':>11}"]
    for row in rows:
        lines.append(
            f"{row['domain']:<16}{row['target_share']:>8.4f}{row['realised_share']:>10.4f}{row['num_available']:>14,}"
            f"{row['num_drawn']:>14,}{row['num_epochs']:>9.2f}{row['num_heldout']:>11,}"
        )
        lines += [
            f"  {source['source']:<14}{source['target_share']:>8.4f}{source['realised_share']:>10.4f}"
            f"{source['num_available']:>14,}{source['num_drawn']:>14,}"
            f"{source['num_drawn'] / max(source['num_available'], 1):>9.2f}"
            for source in row.get("sources", ())
        ]
    return lines


def _stage_lines(name: str, stage: dict[str, Any] | None) -> list[str]:
    if stage is None:
        return [f"{name:<9}{'not yet':>14}"]
    if not stage["sealed"]:
        return [f"{name:<9}{'unfinished':>14}  {stage['num_parts']:,} parts committed"]
    dropped = stage["in"] - stage["kept"]
    ordered = sorted(stage["reasons"].items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{num:,} {reason}" for reason, num in ordered)
    if name == "score" and stage["notes"].get("off"):
        reasons = "off"
    if name == "dedup":
        reasons = f"measured: {stage['notes']['num_hash_pairs']:,} pairs of hashes within {stage['notes']['radius']}"
        named = list(stage["notes"].get("placeholders", {}).items())[:3]
        if named:
            reasons += "; placeholders: " + ", ".join(f"{phash} ({num:,} images)" for phash, num in named)
    return [f"{name:<9}{stage['in']:>14,}{stage['kept']:>14,}{dropped:>14,}  {reasons}"]


def evaluation_lines(notes: dict[str, Any]) -> list[str]:
    """One line an evaluation set: how much of it was matched, and what leaked."""
    sets = notes.get("evaluation", [])
    lines = ["", f"{'evaluation set':<24}{'images':>10}{'unreadable':>12}{'radius':>8}{'leaks':>10}  matched by"]
    for said in sets:
        ways = ", ".join(f"{num:,} {matched}" for matched, num in said["leaks"].items())
        lines.append(
            f"{said['name']:<24}{said['num_images']:>10,}{said['num_unreadable']:>12,}{said['radius']:>8}"
            f"{said['num_leaks']:>10,}  {ways}"
        )
    return lines if sets else []


def balance_lines(notes: dict[str, Any]) -> list[str]:
    """What each cap of select did: how many keys it cut, and the head and tail of the keys before and after."""
    lines: list[str] = []
    for cap in notes.get("balance", []):
        before, after = cap["num_before"], cap["num_after"]
        where = f" in {', '.join(cap['domains'])}" if cap["domains"] else ""
        if not cap["num_keys_over"]:
            said = f"none of {cap['num_keys']:,} keys has more"
            lines += ["", f"balance: {cap['cap']} of one {cap['by']}{where}: {said}"]
            continue
        lines += [
            "",
            f"balance: {cap['cap']} of one {cap['by']}{where}: {cap['num_keys_over']:,} of {cap['num_keys']:,} keys "
            f"cut, {before:,} -> {after:,} samples; these keys' share {cap['num_head_before'] / max(before, 1):.1%} -> "
            f"{cap['num_head_after'] / max(after, 1):.1%}",
        ]
        rows = cap["head"] + ([["...", None, None]] if cap["tail"] else []) + cap["tail"]
        lines += [f"  {key:<40.40}" + ("" if num is None else f"{num:>12,} -> {left:>10,}") for key, num, left in rows]
    return lines


def _running_line(status: dict[str, Any]) -> str:
    running = status.get("running")
    if not running:
        return "nothing is running"
    if not _is_alive(status.get("pid")):
        return f"interrupted in {running['step']}; run the same command to go on"
    left = running["seconds_left"]
    return (
        f"running: {running['step']}, {running['done']:,} of {running['total']:,} {running['unit']}, "
        f"{running['per_second']:,.0f}/s" + (f", about {left:,} s left" if left is not None else "")
    )


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True
