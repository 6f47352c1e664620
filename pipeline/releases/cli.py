"""Command lines over sealed releases: takedown and what else is done with them. Parses, calls, prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from manifests import storage
from manifests.catalog import CATALOG_FILE
from manifests.errors import ConfigError, IntegrityError
from manifests.release import RECORD_FILE, Release

Commands = argparse._SubParsersAction  # argparse gives it no public name

RELEASE_HELP = "release folder, WORKDIR/releases/NAME, or a work folder for its newest release"


def add_parsers(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands to the command line."""
    _add_takedown(commands)


def open_release(path: str) -> Release:
    """Open a release that a user named.

    Raises: ConfigError when there is none, or with what is wrong with it.
    """
    try:
        return Release.open(path)
    except IntegrityError as error:
        raise ConfigError(str(error)) from None


def work_folder_of(release: Release) -> str | None:
    """The work folder that a release lies in, if it does."""
    parent = Path(release.path).absolute().parent
    if storage.is_remote(release.path) or parent.name != "releases" or not (parent.parent / CATALOG_FILE).is_file():
        return None
    return str(parent.parent)


def _command(
    commands: Commands[argparse.ArgumentParser], name: str, about: str, example: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_takedown(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "takedown",
        "a new version of a release without some images, which later builds leave out as well",
        'plantmix takedown data/demo --owner "A. Photographer" --reason "asked by the owner, 2026-03-01"',
    )
    parser.add_argument("release", metavar="RELEASE", help=RELEASE_HELP)
    for option, metavar, about in (
        ("--url", "URL", "images of this address, or of this page (reference_url)"),
        ("--owner", "NAME", "images of this rights holder or creator"),
        ("--id", "ID", "a sample id, or the sha256 of an image"),
    ):
        parser.add_argument(option, metavar=metavar, action="append", default=[], help=f"{about}; may be given again")
    parser.add_argument("--reason", default="not stated", help="why; stands in the record of the new version")
    parser.set_defaults(func=_takedown)


def _takedown(args: argparse.Namespace) -> int:
    from pipeline.releases.takedown import Wanted, find_rows, take_down
    from pipeline.releases.takedown_list import LIST_FILE, add_entries, read_list

    if not (args.url or args.owner or args.id):
        raise ConfigError("takedown: say what to take down, with --url, --owner or --id")
    release = open_release(args.release)
    wanted = Wanted(args.url, args.owner, args.id, args.reason.strip() or "not stated")
    workdir = work_folder_of(release)
    if workdir is None:
        made = take_down(release, wanted)
    else:
        from manifests.catalog import Catalog

        with Catalog.open(workdir) as catalog:  # held, so that no build runs meanwhile
            read_list(workdir)
            images = find_rows(release, wanted).images
            made = take_down(release, wanted)
            add_entries(workdir, [*wanted.entries, *wanted.entries_of(images)])
            shards = [
                {"split": split, **shard} for split in made.splits for shard in made.record["splits"][split]["shards"]
            ]
            sealed = storage.hash_file(storage.join(made.path, RECORD_FILE)).sha256
            catalog.record_release(made.name, f"releases/{made.name}", made.fingerprint, sealed, shards)
    entry = made.record["takedowns"][-1]
    print(f"taken down: {entry['num_images']:,} images ({entry['num_samples']:,} samples); reason: {entry['reason']}")
    if workdir is not None:
        print(f"later builds leave them and their near copies out: {storage.join(workdir, LIST_FILE)}")
        print("the pool still holds their bytes")
    print(f"the earlier version still holds them; delete it where it was given to others: {release.path}")
    print(f"release: {made.path}")
    return 0
