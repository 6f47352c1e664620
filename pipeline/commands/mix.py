"""`plantmix mix`: another mixture from the pool alone, or a look at it before anything is written."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from manifests.errors import ConfigError
from pipeline.commands import CONFIG_HELP, Commands, add_command, add_json_option, print_json
from pipeline.config import BuildConfig, read_config


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `mix` to the command line."""
    parser = add_command(
        commands,
        "mix",
        "draw and pack another mixture from what is downloaded already",
        "plantmix mix configs/pipeline/demo.yaml --dry-run",
        reads="CONFIG, and tables and pool of its work folder; asks the web for nothing",
        writes="a new release, as select, mix and pack of a build do; with --dry-run nothing",
    )
    parser.add_argument("config", metavar="CONFIG", help=f"{CONFIG_HELP}, with the new mixture")
    parser.add_argument("--dry-run", action="store_true", help="only show counts and epochs of each domain")
    add_json_option(parser, ", of a dry run")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    if args.dry_run:
        config = read_config(args.config)
        if args.json:
            from pipeline.answers.mixtures import plan

            print_json({"name": config.name, "kind": config.pack.kind, **asdict(plan(config))})
        else:
            print("\n".join(_describe_plan(config)))
        return 0
    if args.json:
        raise ConfigError("mix: --json is for --dry-run; a release has its record in release.json")
    from pipeline.commands.build import build

    return build(args.config, "select", None, None)


def _describe_plan(config: BuildConfig) -> list[str]:
    from pipeline.answers.mixtures import plan
    from pipeline.commands.status import mixture_lines

    planned = plan(config)
    total, heldout = (sum(row[name] for row in planned.rows) for name in ("num_drawn", "num_heldout"))
    lines = [
        f"{config.name}, {config.pack.kind}: {total:,} training samples, {heldout:,} held out, "
        f"{planned.num_left_out:,} kept samples left out",
        "",
        *mixture_lines(planned.rows),
        "",
    ]
    if config.pack.kind == "stratified" and config.mix.by_size is None:
        lines.append(
            "stratified: every pool is packed whole, once; the target is what readers draw (`plantmix export`)"
        )
    return [
        *lines,
        f"{planned.pools_as_of}; if sources or caption rules changed since, run `plantmix build --to select` first",
        "nothing was written",
    ]
