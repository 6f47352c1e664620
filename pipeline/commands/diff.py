"""`plantmix diff`: what changed between two releases."""

from __future__ import annotations

import argparse
import json

from pipeline.commands.parsing import RELEASE_HELP, Commands, add_command
from pipeline.releases.diff import compare, describe
from pipeline.releases.opening import open_release


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `diff` to the command line."""
    parser = add_command(
        commands,
        "diff",
        "what changed between two releases: samples, texts, domains, shards, recipe",
        "plantmix diff data/demo/releases/plantmix-demo-1a2b3c4d5e6f data/demo",
    )
    parser.add_argument("before", metavar="A", help=RELEASE_HELP)
    parser.add_argument("after", metavar="B", help="another release")
    parser.add_argument("--json", action="store_true", help="the same as json")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    found = compare(open_release(args.before), open_release(args.after))
    print(json.dumps(found, indent=1, ensure_ascii=False) if args.json else "\n".join(describe(found)))
    return 0
