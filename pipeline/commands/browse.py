"""`plantmix browse`: a local page to search, filter and look at every image, kept or dropped."""

from __future__ import annotations

import argparse

from manifests.errors import ConfigError
from pipeline.commands import Commands, add_command
from pipeline.commands.explain import describe_life


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `browse` to the command line."""
    parser = add_command(
        commands,
        "browse",
        "look at every image, kept or dropped, in a web browser on this machine",
        "plantmix browse data/demo",
        reads="catalogue, tables, pool and releases, also while a build runs",
        writes="nothing there; an index, kept in ~/.cache/plantmix/browse (XDG_CACHE_HOME)",
    )
    parser.add_argument("dir", metavar="DIR", help="work folder of a build, or a release folder")
    parser.add_argument(
        "--evaluation",
        action="append",
        default=[],
        metavar="SET=PLACE",
        help="also show pictures of this evaluation set, which lies at PLACE (path of its config); may be repeated",
    )
    parser.add_argument(
        "--search",
        metavar="VECTORS",
        help="also search by words and by likeness with a trained model: vectors of `dalip embed` of a release of DIR",
    )
    parser.add_argument(
        "--model", metavar="RUN|FOLDER", help="of --search; default: where the model was when the vectors were made"
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="port on 127.0.0.1 (default: a free one)")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    from pipeline.browse.server import serve  # an extra of its own, and slow to import

    if args.model and not args.search:
        raise ConfigError("--model is for --search VECTORS; give both")
    return serve(args.dir, args.port, describe_life, args.evaluation, args.search, args.model)
