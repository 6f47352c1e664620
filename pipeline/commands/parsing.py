"""What the parsers of all commands share."""

from __future__ import annotations

import argparse

Commands = argparse._SubParsersAction  # argparse gives it no public name

RELEASE_HELP = "release folder, WORKDIR/releases/NAME, or a work folder for its newest release"


def add_command(
    commands: Commands[argparse.ArgumentParser], name: str, about: str, example: str
) -> argparse.ArgumentParser:
    """Add a command with its help text and an example."""
    return commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
