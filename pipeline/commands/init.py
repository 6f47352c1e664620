"""`plantmix init`: look at what a user has, and write a config for it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from manifests.errors import ConfigError
from manifests.stores import storage
from pipeline.answers.first_config import describe_places, parse_domains, write_first_config
from pipeline.answers.tables import print_lines
from pipeline.commands import Commands, add_command


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `init` to the command line."""
    parser = add_command(
        commands,
        "init",
        "look at tables, archives, shards and folders, and write a commented config for them",
        "plantmix init --domain plant=observations.zip --domain general=web/*.parquet,pictures/ --out my.yaml",
        reads="names, heads and first rows of the places; asks no host",
        writes="the file of --out; refuses to replace one",
    )
    parser.add_argument(
        "--domain",
        action="append",
        required=True,
        metavar="DOMAIN=PLACE[,PLACE...]",
        help="a domain and where its pictures or their addresses are; repeatable",
    )
    parser.add_argument(
        "--evaluation",
        action="append",
        default=[],
        metavar="PLACE",
        help="pictures that must not be trained on, such as a test set; repeatable",
    )
    parser.add_argument(
        "--captions",
        action="append",
        default=[],
        metavar="TABLE",
        help="texts for the pictures of the places, keyed by id or address; repeatable; not needed for tables "
        "beside tars",
    )
    parser.add_argument("--out", default="my.yaml", metavar="FILE", help="the config to write (default: my.yaml)")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    out = Path(args.out)
    if out.exists():
        raise ConfigError(f"--out {out}: there already; name another file, or remove that one")
    name = re.sub(r"[^a-z0-9_-]+", "-", out.stem.lower()).strip("-_") or "my"
    domains = parse_domains(args.domain)
    text = write_first_config(name, domains, args.evaluation, str(out.parent), args.captions)
    storage.write_file(str(out), text.encode())
    print_lines([*describe_places(text), f"config: {out}"])
    return 0
