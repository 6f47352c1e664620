"""`plantmix takedown`: a new version of a release without some images, which later builds leave out as well."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from manifests.errors import ConfigError
from manifests.release import LATEST_FILE, Release
from manifests.takedowns import KINDS, Entry
from pipeline.answers.lives import unquoted
from pipeline.answers.tables import print_lines
from pipeline.commands import RELEASE_HELP, Commands, add_command
from pipeline.releases.lookup import images_of
from pipeline.releases.opening import open_release
from pipeline.releases.takedown import TakenDown, take_down


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `takedown` to the command line."""
    parser = add_command(
        commands,
        "takedown",
        "write a new version of a release without some images, and keep them out of later builds",
        'plantmix takedown data/demo --owner "A. Photographer" --reason "asked by the owner, 2026-03-01"',
        reads="the release, and in its work folder the catalogue",
        writes="a new version beside the release, and takedowns.jsonl in the work folder; deletes nothing",
    )
    parser.add_argument("release", metavar="RELEASE", help=RELEASE_HELP)
    for option, metavar, about in (
        ("--url", "URL", "images of this address, or of this page (reference_url)"),
        ("--owner", "NAME", "images of this rights holder or creator"),
        ("--id", "ID", "a sample id, or the sha256 of an image"),
    ):
        parser.add_argument(option, metavar=metavar, action="append", default=[], help=f"{about}; may be given again")
    parser.add_argument("--reason", default="", help="why; the record of the new version says it")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    reason = args.reason.strip() or "not stated"
    named = {by: getattr(args, by) for by in KINDS}
    named["id"] = [unquoted(value) for value in args.id]  # as csv quotes them
    entries = [Entry(by, value, reason) for by in KINDS for value in named[by]]
    if not entries or not all(entry.value.strip() for entry in entries):
        raise ConfigError("takedown: say what to take down, with --url, --owner or --id; an empty value names nothing")
    require_one_name(args.release)
    release = open_release(args.release)
    print_lines(_describe(release, reason, take_down(release, entries)))
    return 0


def require_one_name(path: str) -> None:
    """See that a work folder holds releases of one name, so that its newest release is the one that is meant.

    Raises: ConfigError naming the others, and how to name one.
    """
    folder = Path(path) / "releases"
    names = sorted(file.name.removesuffix(f".{LATEST_FILE}") for file in folder.glob(f"*.{LATEST_FILE}"))
    if len(names) > 1:
        newest = (folder / LATEST_FILE).read_text(encoding="utf-8").strip() if (folder / LATEST_FILE).is_file() else ""
        raise ConfigError(
            f"{path}: holds releases of {len(names)} names ({', '.join(names)}; the newest is {newest}); say which: "
            f"{folder / names[0]}. The images are kept out of later builds of all of them"
        )


def _describe(release: Release, reason: str, done: TakenDown) -> Iterator[str]:
    """What a takedown did, as lines; the last one names the release without the images."""
    images = images_of(done.in_release.asked)
    ids = {row["sample_id"] for row in images}
    yield f"release that was cut: {release.path}"
    yield f"taken down: {len(images):,} images ({len(done.in_release.asked):,} samples); reason: {reason}"
    if stand_ins := ids.intersection(done.in_catalogue.stand_ins) - done.in_catalogue.sample_ids:
        yield f"of these, kept in place of a near copy that was asked for: {len(stand_ins):,} images"
    if done.new is not None and done.in_release.before:
        num_before = len(images_of(done.in_release.rows)) - len(images)
        yield f"left out as well, since they were taken down before: {num_before:,} images"
    if elsewhere := done.in_catalogue.sample_ids - ids:
        yield f"in the catalogue only, not in this release: {len(elsewhere):,} samples"
    if done.list_path is not None:
        yield f"later builds leave them and their near copies out: {done.list_path}"
        yield "the pool still holds their bytes"
    if done.holders:
        yield "still held by these releases; delete them where they were given to others, or take them down there too:"
    for path, num in done.holders:
        yield f"  {path}: {num:,} of the images"
    if done.new is None:
        yield "no new version: this release holds nothing of what was asked for"
    yield f"release: {(done.new or release).path}"
