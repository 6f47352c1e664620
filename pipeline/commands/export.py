"""`plantmix export`: a release for other tools: arguments and code to paste, or the files they expect."""

from __future__ import annotations

import argparse

from manifests.errors import ConfigError
from pipeline.commands import RELEASE_HELP, Commands, add_command, parse_amounts
from pipeline.releases.export import TARGETS, describe
from pipeline.releases.layouts import LAYOUTS, write_layout
from pipeline.releases.opening import open_release


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `export` to the command line."""
    layouts = " and ".join(LAYOUTS)
    parser = add_command(
        commands,
        "export",
        "print what to paste so that another tool reads a release, or write the files it expects",
        "plantmix export data/demo --for open_clip\n"
        "         plantmix export data/my/releases/strata --for open_clip --ratio plant=1,general=3\n"
        "         plantmix export data/demo --for img2dataset --out data/demo-img2dataset",
        reads=f"the record of the release; for {layouts} its samples table too",
        writes=f"nothing; for {layouts} the folder --out",
    )
    parser.add_argument("release", metavar="RELEASE", help=RELEASE_HELP)
    parser.add_argument("--for", dest="target", required=True, choices=(*TARGETS, *LAYOUTS), help="the tool that reads")
    parser.add_argument(
        "--ratio",
        metavar="DOMAIN=SHARE,...",
        help="of a stratified release: the shares to draw (default: those it names as its target)",
    )
    parser.add_argument("--out", metavar="DIR", help=f"a new folder, for {layouts}")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    ratio = parse_amounts("--ratio", [args.ratio]) if args.ratio is not None else None
    if args.target in TARGETS:
        if args.out:
            raise ConfigError(f"--out: {args.target} needs no files; leave it out, or use --for {' or '.join(LAYOUTS)}")
        print(describe(open_release(args.release), args.target, ratio))
        return 0
    if not args.out or ratio is not None:
        raise ConfigError(f"--for {args.target} writes files of the whole split train: give --out DIR, and no --ratio")
    print("\n".join(write_layout(open_release(args.release), args.target, args.out)))
    return 0
