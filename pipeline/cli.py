"""The `plantmix` command line. Exits 0 when all went well, 1 when a run failed, 2 for bad usage or config."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from manifests.errors import PlantMixError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn every deliberate error into one readable line."""
    args = build_parser().parse_args(argv)
    from pipeline.logs import set_up_logging

    set_up_logging(verbose=args.verbose)
    try:
        return int(args.func(args))
    except PlantMixError as error:
        print(f"plantmix: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("plantmix: stopped; what is committed stays, run the same command to go on", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; a test holds it against a frozen list."""
    parser = argparse.ArgumentParser(
        prog="plantmix",
        description="Build mixed image-text datasets for training: URLs in, sealed webdataset releases out.",
        epilog="first steps: plantmix build configs/pipeline/demo.yaml, then plantmix status data/demo",
    )
    parser.add_argument("--verbose", action="store_true", help="time and place on every log line")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_build(commands)
    _add_estimate(commands)
    _add_status(commands)
    _add_explain(commands)
    _add_query(commands)
    _add_retry(commands)
    _add_verify(commands)
    from pipeline.preview import add_parser as add_preview
    from pipeline.remix import add_parser as add_mix

    add_preview(commands)
    add_mix(commands)
    from pipeline.releases.cli import add_parsers as add_release_commands

    add_release_commands(commands)
    from pipeline.planning.cli import add_parser as add_plan

    add_plan(commands)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, about: str, example: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_build(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "build",
        "run every stage to a sealed release; run again after any interruption, it continues",
        "plantmix build configs/pipeline/demo.yaml --to select",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the run")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="start here; earlier stages must be done already")
    parser.add_argument("--to", dest="last", metavar="STAGE", help="stop after this stage")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="a running Ray cluster, over run.ray_address")
    parser.set_defaults(func=_build)


def _build(args: argparse.Namespace) -> int:
    from pipeline.build import build

    return build(args.config, args.first, args.last, args.ray_address)


def _add_estimate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "estimate",
        "what a build would fetch: rows, hosts, bytes, hours at the polite rate, disk; asks no host unless told",
        "plantmix estimate configs/pipeline/plantmix-13m.yaml --head 200",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the run")
    parser.add_argument(
        "--head", type=int, default=0, metavar="N", help="ask N of the addresses for their size, politely (none)"
    )
    parser.add_argument("--json", action="store_true", help="the same as json, with every host")
    parser.set_defaults(func=_estimate)


def _estimate(args: argparse.Namespace) -> int:
    from pipeline.estimate import print_estimate

    return print_estimate(args.config, args.head, args.json)


def _add_status(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "status",
        "stages, counts and drop reasons; works while a build runs",
        "plantmix status data/demo",
    )
    parser.add_argument("dir", metavar="DIR", help="work folder of a build")
    parser.add_argument("--json", action="store_true", help="the same as json")
    parser.set_defaults(func=_status)


def _status(args: argparse.Namespace) -> int:
    from pipeline.status import print_status

    return print_status(args.dir, args.json)


def _add_explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "explain",
        "the life of one image, from its source row to its shard or the reason it has none",
        "plantmix explain data/demo http://127.0.0.1:8731/tuxpaint/plants/flowers/rose.png",
    )
    parser.add_argument("dir", metavar="DIR", help="work folder of a build")
    parser.add_argument("what", metavar="ID-or-URL-or-SHARD/KEY", help="sample id, URL, or shard and key")
    parser.add_argument("--json", action="store_true", help="the same as json")
    parser.set_defaults(func=_explain)


def _explain(args: argparse.Namespace) -> int:
    from pipeline.explain import print_life

    return print_life(args.dir, args.what, args.json)


def _add_query(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "query",
        "read-only SQL over the catalogue's views",
        'plantmix query data/demo "SELECT reason, count(*) FROM decisions GROUP BY ALL"\n'
        'views:   plantmix query data/demo "SELECT * FROM views"',
    )
    parser.add_argument("dir", metavar="DIR", help="work folder of a build")
    parser.add_argument("sql", metavar="SQL", help="one SELECT statement")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="how to print (table)")
    parser.set_defaults(func=_query)


def _query(args: argparse.Namespace) -> int:
    from pipeline.query import print_query

    return print_query(args.dir, args.sql, args.format)


def _add_retry(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "retry",
        "fetch again only what failed for a passing reason, as the last build was configured",
        "plantmix retry data/demo --outcome read_timeout --outcome http_5xx\n"
        "then:    plantmix build configs/pipeline/demo.yaml",
    )
    parser.add_argument("dir", metavar="DIR", help="work folder of a build")
    parser.add_argument(
        "--outcome", action="append", metavar="NAME", help="only rows that ended so; may be given again (all passing)"
    )
    parser.set_defaults(func=_retry)


def _retry(args: argparse.Namespace) -> int:
    from pipeline.retry import retry

    return retry(args.dir, args.outcome)


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "verify",
        "check sizes, counts and side files of a release against its record, with --deep every byte and pixel",
        "plantmix verify data/demo --deep",
    )
    parser.add_argument("release", metavar="RELEASE", help="release folder, or a work folder for its newest release")
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also hash every shard, decode every image, compare pHashes and texts with the record and the catalogue",
    )
    parser.set_defaults(func=_verify)


def _verify(args: argparse.Namespace) -> int:
    from pipeline.verify import verify_release

    return verify_release(args.release, args.deep)


if __name__ == "__main__":
    sys.exit(main())
