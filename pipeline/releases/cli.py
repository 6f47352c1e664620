"""Command lines over sealed releases: takedown and what else is done with them. Parses, calls, prints."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from manifests import storage
from manifests.catalog import CATALOG_FILE
from manifests.errors import ConfigError, IntegrityError
from manifests.release import RECORD_FILE, Release

if TYPE_CHECKING:  # what commands need is imported where they run
    from pipeline.releases.lookup import Known
    from pipeline.releases.takedown import Cut, Wanted

PRINTED = ("open_clip", "webdataset", "wids", "hf_datasets", "ray", "dalip")
WRITTEN = ("img2dataset", "datacomp")
Commands = argparse._SubParsersAction  # argparse gives it no public name

RELEASE_HELP = "release folder, WORKDIR/releases/NAME, or a work folder for its newest release"


def add_parsers(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands to the command line."""
    _add_export(commands)
    _add_takedown(commands)
    _add_diff(commands)
    _add_report(commands)


def open_release(path: str) -> Release:
    """Open a release that a user named.

    Raises: ConfigError when there is none, or with what is wrong with it.
    """
    try:
        release = Release.open(path)
    except IntegrityError as error:
        raise ConfigError(str(error)) from None
    lacking = [name for name in ("counts", "recipe") if not isinstance(release.record.get(name), dict)]
    if lacking:
        raise ConfigError(f"{release.path}/{RECORD_FILE}: not a whole record, without {' and '.join(lacking)}")
    return release


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
    from pipeline.releases.lookup import Known, look_up
    from pipeline.releases.takedown import Wanted, find_rows, images_of, take_down
    from pipeline.releases.takedown_list import LIST_FILE, add_entries, read_list

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
    from manifests.catalog import Catalog

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
    from pipeline.releases.takedown import images_of, still_held
    from pipeline.releases.takedown_list import LIST_FILE

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


def _add_export(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "export",
        "arguments and code to paste for other tools, and the layouts they expect",
        "plantmix export data/demo --for open_clip\n"
        "         plantmix export data/my/releases/strata --for open_clip --ratio plant=1,general=3\n"
        "         plantmix export data/demo --for img2dataset --out data/demo-img2dataset",
    )
    parser.add_argument("release", metavar="RELEASE", help=RELEASE_HELP)
    parser.add_argument("--for", dest="target", required=True, choices=(*PRINTED, *WRITTEN), help="the tool that reads")
    parser.add_argument(
        "--ratio", metavar="DOMAIN=SHARE,...", help="of a stratified release: shares to draw (its own target)"
    )
    parser.add_argument("--out", metavar="DIR", help="new folder for img2dataset's or DataComp's layout")
    parser.set_defaults(func=_export)


def _export(args: argparse.Namespace) -> int:
    ratio = _read_ratio(args.ratio)
    if args.target in PRINTED:
        if args.out:
            raise ConfigError(f"--out: {args.target} needs no files; leave it out, or use --for {' or '.join(WRITTEN)}")
        from pipeline.releases.export import describe

        print(describe(open_release(args.release), args.target, ratio))
        return 0
    if not args.out or ratio is not None:
        raise ConfigError(f"--for {args.target} writes files of the whole split train: give --out DIR, and no --ratio")
    from pipeline.releases.layouts import write_layout

    print("\n".join(write_layout(open_release(args.release), args.target, args.out)))
    return 0


def _read_ratio(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    try:
        pairs = [part.split("=") for part in text.split(",")]
        shares = [(domain.strip(), float(share)) for domain, share in pairs]
    except ValueError:
        raise ConfigError(f"--ratio {text}: write DOMAIN=SHARE, with commas between, as plant=10,general=3") from None
    ratio = dict(shares)
    if len(ratio) < len(shares):
        twice = [domain for domain in ratio if [name for name, _ in shares].count(domain) > 1]
        raise ConfigError(f"--ratio {text}: more than one share for {', '.join(twice)}; give each domain one")
    return ratio


def _add_diff(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "diff",
        "what changed between two releases: samples, texts, domains, shards, recipe",
        "plantmix diff data/demo/releases/plantmix-demo-1a2b3c4d5e6f data/demo",
    )
    parser.add_argument("before", metavar="A", help=RELEASE_HELP)
    parser.add_argument("after", metavar="B", help="another release")
    parser.add_argument("--json", action="store_true", help="the same as json")
    parser.set_defaults(func=_diff)


def _diff(args: argparse.Namespace) -> int:
    from pipeline.releases.diff import compare, describe

    found = compare(open_release(args.before), open_release(args.after))
    print(json.dumps(found, indent=1, ensure_ascii=False) if args.json else "\n".join(describe(found)))
    return 0


def _add_report(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "report",
        "one self-contained HTML page: what came in, what was dropped, mixture, samples, licences, duplicates",
        "plantmix report data/demo --out demo.html",
    )
    parser.add_argument("release", metavar="RELEASE", help=RELEASE_HELP)
    parser.add_argument("--out", metavar="FILE", help="where to write it (NAME-VERSION.html in the current folder)")
    parser.set_defaults(func=_report)


def _report(args: argparse.Namespace) -> int:
    from pipeline.report.build import report_of

    release = open_release(args.release)
    out = args.out or f"{release.name}.html"
    page = report_of(release, work_folder_of(release))
    storage.publish_bytes(out, page.encode())
    print(f"report: {out}")
    return 0
