"""`plantmix verify`: a release against its record. Writes nothing."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from pipeline.commands import RELEASE_HELP, Commands, add_command, add_json_option, print_json
from pipeline.releases.checks import check_release
from pipeline.releases.opening import open_release


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `verify` to the command line."""
    parser = add_command(
        commands,
        "verify",
        "check that a release is whole and that its files agree with its record",
        "plantmix verify data/demo --deep",
        reads="every file of the release but the shards; with --deep those too, and the catalogue of its work folder",
        writes="nothing",
    )
    parser.add_argument("release", metavar="RELEASE", help=RELEASE_HELP)
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also hash every shard, decode every image, and compare pHashes and texts with record and catalogue",
    )
    add_json_option(parser)
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    release = open_release(args.release)
    checked = check_release(release, args.deep)
    if args.json:
        print_json({"release": release.name, "path": release.path, "deep": args.deep, **asdict(checked)})
        return 0
    if not args.deep:
        num_others = checked.num_files - checked.num_shards
        print(f"{release.name}: {checked.num_files:,} files have the recorded sizes; counts add up")
        print(
            f"sha256 as recorded: {num_others:,} files, all but the {checked.num_shards:,} shards (--deep reads them)"
        )
        return 0
    print(f"{release.name}: {checked.num_files:,} files, sizes and sha256 as recorded; counts add up")
    print(f"{checked.num_images:,} images decode; pHash, sha256 and text of each equal the record")
    if checked.why_not_compared is None:
        print("pHash, image, licence and text of each equal the catalogue")
    else:
        print(f"not compared with a catalogue: {checked.why_not_compared}")
    return 0
