"""`plantmix takedown`: a new version of a release without some images, which later builds leave out as well."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from manifests import storage
from manifests.catalog import Catalog
from manifests.errors import ConfigError
from manifests.release import RECORD_FILE, Release
from manifests.takedowns import LIST_FILE, add_entries, read_list
from pipeline.commands.parsing import RELEASE_HELP, Commands, add_command
from pipeline.releases.lookup import Known, look_up
from pipeline.releases.opening import open_release, work_folder_of
from pipeline.releases.takedown import Cut, Wanted, find_rows, images_of, still_held, take_down


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `takedown` to the command line."""
    parser = add_command(
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
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:

    given = [*args.url, *args.owner, *args.id]
    if not given or not all(value.strip() for value in given):
        raise ConfigError("takedown: say what to take down, with --url, --owner or --id; an empty one names nothing")
    release = open_release(args.release)
    wanted = Wanted(args.url, args.owner, args.id, args.reason.strip() or "not stated")
    workdir = work_folder_of(release)
    if workdir is None:
        cut = find_rows(release, wanted)
        made: Release | None = take_down(release, wanted, cut)
        print("\n".join(_taken_down(release, wanted, cut, Known(), made, None)))
        return 0

    with Catalog.open(workdir) as catalog:  # held, so that no build runs meanwhile
        known = look_up(catalog, wanted.entries)
        cut = find_rows(release, wanted, read_list(workdir), known)
        # first the list: killed in between, the images stay out of later builds, and the same command goes on
        add_entries(workdir, [*wanted.entries, *wanted.entries_of([*images_of(cut.asked), *known.rows])])
        try:
            made = take_down(release, wanted, cut) if cut.asked else None
        except ConfigError as error:
            listed = storage.join(workdir, LIST_FILE)
            raise ConfigError(f"{error}; later builds leave them out all the same: {listed}") from None
        if made is not None:
            shards = [
                {"split": split, **shard} for split in made.splits for shard in made.record["splits"][split]["shards"]
            ]
            sealed = storage.hash_file(storage.join(made.path, RECORD_FILE)).sha256
            catalog.record_release(made.name, f"releases/{made.name}", made.fingerprint, sealed, shards)
    print("\n".join(_taken_down(release, wanted, cut, known, made, workdir)))
    return 0


def _taken_down(
    release: Release, wanted: Wanted, cut: Cut, known: Known, made: Release | None, workdir: str | None
) -> Iterator[str]:
    """What a takedown did, as lines; the last one names the release without the images."""

    images = images_of(cut.asked)
    yield f"taken down: {len(images):,} images ({len(cut.asked):,} samples); reason: {wanted.reason}"
    stand_ins = {row["sample_id"] for row in images}.intersection(known.stand_ins) - known.sample_ids
    if stand_ins:
        yield f"of these, kept in place of a near copy that was asked for: {len(stand_ins):,} images"
    if made is not None and cut.before:
        num_before = len(images_of(cut.rows)) - len(images)
        yield f"left out as well, since they were taken down before: {num_before:,} images"
    if workdir is not None:
        elsewhere = known.sample_ids - {row["sample_id"] for row in images}
        if elsewhere:
            yield f"in the catalogue only, not in this release: {len(elsewhere):,} samples"
        yield f"later builds leave them and their near copies out: {storage.join(workdir, LIST_FILE)}"
        yield "the pool still holds their bytes"
    stored = {row["stored_sha256"] for row in [*cut.asked, *known.rows] if row["stored_sha256"]}
    holders = still_held(release, stored)
    if holders:
        yield "still held by these releases; delete them where they were given to others, or take them down there too:"
    for other, num in holders:
        yield f"  {other.path}: {num:,} of the images"
    if made is None:
        yield "no new version: nothing of what was asked for is in this release"
    yield f"release: {(made or release).path}"
