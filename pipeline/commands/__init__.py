"""The commands of plantmix, one a file: parse, check, call, print. This file holds what their parsers share."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from typing import Any

from manifests.errors import ConfigError

Commands = argparse._SubParsersAction  # argparse gives it no public name

CONFIG_HELP = "YAML file of the run, as `plantmix init` writes one"
RELEASE_HELP = "release folder, WORKDIR/releases/NAME, or a work folder for its newest release"
WORKDIR_HELP = "work folder of a build"
_SCALES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}


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


def parse_amounts(option: str, parts: Iterable[str] | None) -> dict[str, float]:
    """`name=number` pairs, comma-separated and repeatable; numbers may be 10000000, 1e7, 10M or 10_000_000.

    Raises: ConfigError for anything else, and for a name given twice.
    """
    amounts: dict[str, float] = {}
    for item in split_items(parts):
        name, equals, value = item.rpartition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(f"{option}: '{item}' is not NAME=NUMBER")
        if name in amounts:
            raise ConfigError(f"{option}: {name} is given twice")
        amounts[name] = parse_number(option, value)
    return amounts


def parse_number(option: str, text: str) -> float:
    """A number; k, M and G (or B) stand for 1e3, 1e6 and 1e9.

    Raises: ConfigError when it is no finite number.
    """
    trimmed = text.strip().replace("_", "")
    scale = _SCALES.get(trimmed[-1:])
    try:
        value = float(trimmed) if scale is None else float(trimmed[:-1]) * scale
    except ValueError:
        raise ConfigError(f"{option}: '{text}' is not a number") from None
    if not math.isfinite(value):
        raise ConfigError(f"{option}: '{text}' is not a finite number")
    return value


def split_items(parts: Iterable[str] | None) -> list[str]:
    """What stands between commas, in all parts of an option that may be given again."""
    return [item.strip() for part in parts or () for item in part.split(",") if item.strip()]
