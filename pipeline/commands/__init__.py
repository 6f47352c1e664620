"""The commands of plantmix, one a file: parse, check, call, print. This file holds what their parsers share."""

from __future__ import annotations

import argparse
import json
from typing import Any

Commands = argparse._SubParsersAction  # argparse gives it no public name

CONFIG_HELP = "YAML file of the run, as `plantmix init` writes one"
RELEASE_HELP = "release folder, WORKDIR/releases/NAME, or a work folder for its newest release"
WORKDIR_HELP = "work folder of a build"


def add_json_option(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Add `--json`, which every command that only reads has."""
    parser.add_argument("--json", action="store_true", help=f"print the same as JSON{more}")


def print_json(value: Any) -> None:
    """Print an answer as JSON: one value, indented, text as it is, times and paths as text."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def add_command(
    commands: Commands[argparse.ArgumentParser], name: str, about: str, example: str, *, reads: str, writes: str
) -> argparse.ArgumentParser:
    """Add a command whose help says what it does, what it reads and writes, and shows an example."""
    return commands.add_parser(
        name,
        help=about.replace("%", "%%"),
        description=f"{about[0].upper()}{about[1:]}.\n\nreads:  {reads}\nwrites: {writes}",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
