"""`plantmix plan`: design proxy runs, fit a mixing law, choose a ratio.

Gives the planner's steps what the full install has: tables of any kind (tables.py), stores, and plots.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from manifests.stores.storage import write_file
from pipeline.commands import Commands, add_command
from pipeline.commands.plan.tables import read_runs
from pipeline.planning.steps import Access, add_steps


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `plan` with its sub-commands to the command line."""
    plan = add_command(
        commands,
        "plan",
        "plan a mixture: design proxy runs, fit a mixing law, choose a ratio",
        "plantmix plan design --domains plant,general --budget 8 --out runs.csv",
        reads="tables of proxy runs, or the runs that `dalip proxies` recorded in a work folder",
        writes="the files named with --out and --plot",
    )
    steps = plan.add_subparsers(dest="plan_command", required=True, metavar="COMMAND")
    add_steps(steps, add_command, Access(read_runs, _write, _plotter), "plantmix plan")


def _write(path: str, content: bytes, is_own: Callable[[bytes], bool]) -> None:
    from manifests.contract.release import require_output  # not for --help

    require_output(path, is_own)
    write_file(path, content)


def _plotter(path: str) -> Callable[[dict[str, Any]], None]:
    from manifests.drawing.panels import draw_png, require_picture
    from pipeline.sidefiles.mixture_panels import cautions_of, panels_of

    require_picture("--plot", path)

    def draw(mixture: dict[str, Any]) -> None:
        title = "Chosen: " + ", ".join(f"{share:.1%} {domain}" for domain, share in mixture["ratio"].items())
        write_file(path, draw_png(panels_of(mixture), title, cautions_of(mixture)))

    return draw
