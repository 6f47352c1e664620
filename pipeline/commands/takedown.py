"""`plantmix takedown`: a new version of a release without some images, which later builds leave out as well."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from manifests.contract.catalog import Catalog
from manifests.contract.release import Release
from manifests.contract.takedowns import KINDS, Entry
from manifests.errors import ConfigError
from pipeline.answers.lives import unquoted
from pipeline.answers.tables import print_lines
from pipeline.commands import RELEASE_HELP, Commands, add_command
from pipeline.releases.lookup import images_of
from pipeline.releases.mending import purge
from pipeline.releases.opening import open_release, work_folder_of
from pipeline.releases.takedown import TakenDown, take_down


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `takedown` to the command line."""
    parser = add_command(
        commands,
        "takedown",
        "write new versions of all releases of a work folder without some images, and keep them out of later builds",
        'plantmix takedown data/demo --owner "A. Photographer" --reason "asked by the owner, 2026-03-01"\n'
        "exit code: 0 every release is cut, 1 one of the others is not, 2 nothing was written",
        reads="the release; in its work folder the catalogue, the other releases, and records of runs and indexes",
        writes="a new version beside each release that holds them, and takedowns.jsonl; --purge: the pool",
    )
    parser.add_argument("release", metavar="RELEASE", help=RELEASE_HELP)
    for option, metavar, about in (
        ("--url", "URL", "images of this address, or of this page (reference_url)"),
        ("--owner", "NAME", "images of this rights holder or creator"),
        ("--id", "ID", "a sample id, or the sha256 of an image"),
    ):
        parser.add_argument(option, metavar=metavar, action="append", default=[], help=f"{about}; may be given again")
    parser.add_argument("--reason", default="", help="why; the record of the new version says it")
    parser.add_argument(
        "--purge",
        action="store_true",
        help="take all pictures of the list and their copies out of the pool",
    )
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    reason = args.reason.strip() or "not stated"
    named = {by: getattr(args, by) for by in KINDS}
    named["id"] = [unquoted(value) for value in args.id]  # as csv quotes them
    entries = [Entry(by, value, reason) for by in KINDS for value in named[by]]
    if not (entries or args.purge) or not all(entry.value.strip() for entry in entries):
        raise ConfigError("takedown: say what to take down, with --url, --owner or --id; an empty value names nothing")
    release = open_release(args.release)
    others = [_take_down(release, entries, reason, is_purged=args.purge)] if entries else []
    if args.purge:
        if (workdir := work_folder_of(release)) is None:
            raise ConfigError(f"{release.path}: lies in no work folder, so there is no pool; nothing was taken out")
        with Catalog.open(workdir) as catalog:
            print_lines(purge(catalog))
    return 1 if any(others) else 0


def _take_down(release: Release, entries: list[Entry], reason: str, *, is_purged: bool) -> bool:
    """Take down, and say what was done; returns whether one of the other releases is not cut."""
    done = take_down(release, entries, print_lines)
    print_lines(_describe(release, reason, done, is_purged=is_purged))
    return any(cut.error for cut in done.others)


def _describe(release: Release, reason: str, done: TakenDown, *, is_purged: bool) -> Iterator[str]:
    """Describe a takedown, in lines; the last one names the release without the images."""
    found, new = done.cut.found, done.cut.new
    images = images_of(found.asked)
    ids = {row["sample_id"] for row in images}
    yield f"release that was cut: {release.path}"
    yield f"taken down: {len(images):,} images ({len(found.asked):,} samples); reason: {reason}"
    if stand_ins := ids.intersection(done.known.stand_ins) - done.known.sample_ids:
        yield f"of these, kept in place of a near copy that was asked for: {len(stand_ins):,} images"
    if new is not None and found.before:
        num_before = len(images_of(found.rows)) - len(images)
        yield f"left out as well, since they were taken down before: {num_before:,} images"
    if elsewhere := done.known.sample_ids - ids:
        yield f"not in this release, but in the catalogue or another release: {len(elsewhere):,} samples"
    for cut in done.others:
        held = f"held {len(images_of(cut.found.asked)):,} of the images" if cut.found.asked else "cannot be read"
        yield f"{cut.release.path}: {held}, " + (f"new version: {cut.new.path}" if cut.new else f"NOT cut: {cut.error}")
    if done.list_path is not None:
        yield f"later builds leave them and their near copies out: {done.list_path}"
        if not is_purged:
            yield f"the pool still holds their bytes; `plantmix takedown {release.path} --purge` takes them out"
    if done.holders:
        yield "still held by these releases; delete them where they were given to others:"
    for path, num_held in done.holders:
        yield f"  {path}: {num_held:,} of the images"
    if done.made_from:
        yield "made from them and left as they are; train or index again without them, then delete these:"
    for path, how in done.made_from:
        yield f"  {path}: {how}"
    if new is None:
        yield "no new version: this release holds nothing of what was asked for"
    yield f"release: {(new or release).path}"
