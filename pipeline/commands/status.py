"""`plantmix status`: the last snapshot of a build as a person reads it. Opens no catalogue, writes nothing."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from manifests.contract.reader import read_status
from manifests.services.printable import pace
from pipeline.answers.tables import aligned, joined_counts, print_lines
from pipeline.commands import WORKDIR_HELP, Commands, add_command, add_json_option, print_json
from pipeline.fetching.tally import describe_given
from pipeline.flow import FLOW

MOST_HOSTS = 5


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `status` to the command line."""
    parser = add_command(
        commands,
        "status",
        "show how far a build is: rows in, rows kept, and why rows were dropped",
        "plantmix status data/demo",
        reads="status.json of the work folder, so it works while a build runs; of takedowns catalogue and releases",
        writes="nothing",
    )
    parser.add_argument("dir", metavar="DIR", help=WORKDIR_HELP)
    add_json_option(parser)
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    status = read_status(args.dir)
    if args.json:
        print_json(status)
    else:
        from pipeline.releases.takedown import describe_what_lies  # and all that SQL needs

        print_lines([*describe_status(status), *describe_what_lies(args.dir)])
    return 0


def describe_status(status: dict[str, Any]) -> list[str]:
    """Return the lines of a status snapshot; every stage adds up: in = kept + dropped."""
    stages = status["stages"]
    rows = [(stage.name, *_stage_cells(stage.name, stages.get(stage.name))) for stage in FLOW]
    lines = [f"{status['name']}, as of {status['updated_at'][:19].replace('T', ' ')} UTC", ""]
    lines += aligned(("stage", ">in", ">kept", ">dropped", "reasons"), rows)
    if status["mix"]:
        lines += ["", *mixture_lines(status["mix"])]
    lines += _evaluation_lines((stages.get("dedup") or {}).get("notes") or {})
    notes = (stages.get("select") or {}).get("notes") or {}
    lines += [*_conflict_lines(notes), *_elsewhere_lines(notes), *balance_lines(notes)]
    sealed = [(name, stages[name]) for name, *_ in rows if stages.get(name, {}).get("sealed")]
    for (before, done), (name, stage) in itertools.pairwise(sealed):
        if done["kept"] != stage["in"]:
            lines += ["", f"{name} and what follows are older than {before}: `plantmix build` brings them up to date"]
            break
    return [*lines, "", *_running_lines(status)]


def mixture_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table of what is drawn of each domain, and of its sources where they have weights."""
    cells = []
    for row in rows:
        cells.append((*_pool_cells(row["domain"], row), f"{row['num_epochs']:.2f}", row["num_heldout"]))
        for source in row.get("sources", ()):
            epochs = source["num_drawn"] / max(source["num_available"], 1)
            cells.append((*_pool_cells(f"  {source['source']}", source), f"{epochs:.2f}", ""))
    return aligned(("domain", ">target", ">realised", ">pool", ">drawn", ">epochs", ">held out"), cells)


def _pool_cells(name: str, row: Mapping[str, Any]) -> tuple[Any, ...]:
    shares = (f"{row[share]:.4f}" for share in ("target_share", "realised_share"))
    return (name, *shares, row["num_available"], row["num_drawn"])


def _stage_cells(name: str, stage: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """In, kept, dropped and reasons of a stage, or how far it is."""
    if stage is None:
        return ("not yet", "", "", "")
    if not stage["sealed"]:
        return ("unfinished", "", "", f"{stage['num_parts']:,} parts committed")
    notes = stage["notes"]
    if name == "score" and notes.get("off"):
        reasons = "off"
    elif name == "dedup":
        reasons = f"measured: {notes['num_hash_pairs']:,} pairs of hashes within {notes['radius']}"
        named = [f"{phash} ({num:,} images)" for phash, num in list(notes.get("placeholders", {}).items())[:3]]
        reasons += f"; placeholders: {', '.join(named)}" if named else ""
    else:
        reasons = joined_counts(stage["reasons"].items())
    return (stage["in"], stage["kept"], stage["in"] - stage["kept"], reasons)


def _evaluation_lines(notes: Mapping[str, Any]) -> list[str]:
    """One line an evaluation set: how much of it was matched, and what leaked."""
    head = ("evaluation set", ">images", ">unreadable", ">radius", ">leaks", "matched by")
    names = ("name", "num_images", "num_unreadable", "radius", "num_leaks")
    rows = [
        (*(row[name] for name in names), ", ".join(f"{num:,} {how}" for how, num in row["leaks"].items()))
        for row in notes.get("evaluation", [])
    ]
    return ["", *aligned(head, rows)] if rows else []


def _conflict_lines(notes: Mapping[str, Any]) -> list[str]:
    """Return how many images stay though a copy contradicts them."""
    conflicts = notes.get("conflicts") or {}
    says = {"licence": "states another licence", "label": "is labelled otherwise"}
    lines = [f"{num:,} images stay of which a copy {says[about]}" for about, num in conflicts.items()]
    return ["", *lines, "  `plantmix query DIR 'FROM conflicts'` lists them"] if lines else []


def _elsewhere_lines(notes: Mapping[str, Any]) -> list[str]:
    """Say how many images of a domain are kept as the copy that another domain has."""
    lines = [
        f"{num:,} images of {domain} are kept as their copies in {other}"
        for domain, others in (notes.get("kept_elsewhere") or {}).items()
        for other, num in others.items()
    ]
    return ["", *lines, "  give the source that shall keep them a higher `priority`"] if lines else []


def balance_lines(notes: Mapping[str, Any]) -> list[str]:
    """Describe each cap of select: how many keys it cut, and the head and tail of the keys before and after."""
    lines: list[str] = []
    for cap in notes.get("balance", []):
        before, after = cap["num_before"], cap["num_after"]
        where = f" in {', '.join(cap['domains'])}" if cap["domains"] else ""
        lines += ["", f"balance: {cap['cap']} of one {cap['by']}{where}: "]
        if not cap["num_keys_over"]:
            lines[-1] += f"none of {cap['num_keys']:,} keys has more"
            continue
        lines[-1] += (
            f"{cap['num_keys_over']:,} of {cap['num_keys']:,} keys cut, {before:,} -> {after:,} samples; these keys' "
            f"share {cap['num_head_before'] / max(before, 1):.1%} -> {cap['num_head_after'] / max(after, 1):.1%}"
        )
        rows = cap["head"] + ([["...", None, None]] if cap["tail"] else []) + cap["tail"]
        lines += [f"  {key:<40.40}" + ("" if num is None else f"{num:>12,} -> {left:>10,}") for key, num, left in rows]
    return lines


def _running_lines(status: dict[str, Any]) -> list[str]:
    """Describe the parts that run and how far they are, as of the last second."""
    running = status.get("running")
    if not running:
        return ["nothing is running"]
    if not _is_alive(status.get("pid")):
        return [f"interrupted in {running['step']}; run the same command to go on"]
    if not running["total"]:
        return [f"running: {running['step']}, looking what is to be done"]
    lines = [
        f"running: {running['step']}, {running['done']:,} of {running['total']:,} {running['unit']}"
        + pace(running["per_second"], running["seconds_left"])
    ]
    if counts := running.get("reasons"):
        lines.append(f"  dropped so far: {joined_counts(counts.items())}")
    if hosts := running.get("worst_hosts"):
        lines.append(f"  hosts that fail most: {', '.join(f'{host} ({num:,})' for host, num in hosts.items())}")
    host_figures = list(running.get("given", {}).items())[:MOST_HOSTS]
    lines += [f"  {host}: {describe_given(values)}" for host, values in host_figures]
    return lines


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True
