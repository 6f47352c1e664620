"""`plantmix preview`: what the caption rules of a configuration would do, before anything is built. Writes nothing."""

from __future__ import annotations

import argparse

from manifests.errors import ConfigError
from pipeline.answers.previews import preview
from pipeline.answers.tables import print_lines
from pipeline.commands import CONFIG_HELP, Commands, add_command, add_json_option, print_json
from pipeline.config import read_config
from pipeline.judging.captions.preview import describe_preview


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `preview` to the command line."""
    parser = add_command(
        commands,
        "preview",
        "show what each caption rule would drop, on a sample, with examples",
        "plantmix preview configs/pipeline/demo.yaml --num 5000",
        reads="CONFIG, tables of captions, candidates of its work folder; before a build the sources, but no picture",
        writes="nothing",
    )
    parser.add_argument("config", metavar="CONFIG", help=CONFIG_HELP)
    parser.add_argument("--num", type=int, default=2000, metavar="N", help="rows to look at (default: 2000)")
    add_json_option(parser)
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    if args.num < 1:
        raise ConfigError(f"--num {args.num}: give at least 1")
    report = preview(read_config(args.config), args.num)
    if args.json:
        print_json(report)
        return 0
    print(f"{report['name']}: {report['num_rows']:,} rows drawn from {report['origin']}; nothing is written\n")
    print_lines([*report["joins"], ""] if report["joins"] else [])
    print_lines(describe_preview(report))
    return 0
