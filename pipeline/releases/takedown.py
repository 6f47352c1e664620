"""Take images down: a new version of a release without them, and a list that keeps them out of later builds.

Reads a release and, in a work folder, its other releases and what the catalogue knows. The images go on the work
folder's takedown list, which select honours in every later build. Then a new version is written beside each release
that holds them. It leaves out what was taken down before as well, whatever version is given. Earlier versions, runs,
indexes and the pool stay: to delete them is the owner's decision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import pyarrow as pa

from manifests.contract.catalog import Catalog
from manifests.contract.catalog_file import TAKEDOWNS_FILE
from manifests.contract.reader import open_reader
from manifests.contract.release import RECORD_FILE, Release
from manifests.contract.takedowns import (
    Entry,
    Takedowns,
    add_entries,
    images_taken_down,
    read_list,
    standing_list,
    taken_down_since,
)
from manifests.errors import ConfigError, IntegrityError, PlantMixError, words_of
from manifests.stores import storage
from pipeline.releases.lookup import Found, Known, describe_like, find_in_release, images_of, look_up
from pipeline.releases.made_from import list_made_from
from pipeline.releases.opening import work_folder_of
from pipeline.releases.versions import num_held_by, releases_beside, write_version


@dataclass(frozen=True)
class Cut:
    """A release that held what was asked for, and its version without; or why there is none."""

    release: Release
    found: Found
    new: Release | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class TakenDown:
    """The findings and the writings of a takedown."""

    cut: Cut  # of the given release
    others: Sequence[Cut]  # other releases of the work folder
    known: Known  # in the catalogue; nothing outside a work folder
    list_path: str | None  # the takedown list; None outside a work folder
    holders: Sequence[tuple[str, int]]  # releases that still hold the images, and how many of them
    made_from: Sequence[tuple[str, str]]  # runs and vectors below the work folder that hold them, and how


def take_down(release: Release, entries: Sequence[Entry], say: Callable[[list[str]], None]) -> TakenDown:
    """Take down what the entries name, in all releases of the work folder. The same request gives the same bytes.

    `say` gets names that are like those of the entries, before anything is written.

    Raises: ConfigError when an entry names nothing, or when nothing would be left of the release; IntegrityError when a
        shard of it is not as recorded.
    """
    workdir = work_folder_of(release)
    list_path = storage.join(workdir, TAKEDOWNS_FILE) if workdir else None
    with Catalog.open(workdir) if workdir else nullcontext() as catalog:  # held, so that no build runs meanwhile
        beside, damaged = _sound(release)
        others = _newest_of_others(release, beside) if workdir else []
        known = look_up(catalog, release, beside if workdir else [], entries)
        standing = standing_list(workdir, catalog.ask) if workdir and catalog else Takedowns([], [])
        cuts = [
            Cut(one, find_in_release(one, known, [*standing.entries, *_left_out(one, beside)], standing.pictures))
            for one in (*others, release)
        ]
        say(describe_like(entries, known.owners))
        rows = [*(row for cut in cuts for row in images_of(cut.found.asked)), *known.rows]
        made_from = []
        if workdir:
            # The list comes first: after a kill the images stay out of later builds, and the same command goes on.
            reason = entries[0].reason
            images = [Entry("id", image, reason) for image in sorted({row["image_id"] or "" for row in rows} - {""})]
            add_entries(workdir, [*entries, *images], known.pictures(reason))
            holding = [other for other in beside if _holders([other], rows)]
            made_from = list_made_from(str(release.workdir), holding, sorted({row["sample_id"] for row in rows}))
        cut_others = [_write(cut, entries, catalog) for cut in cuts[:-1] if cut.found.asked]
        cut = _write(cuts[-1], entries, catalog) if cuts[-1].found.asked else cuts[-1]
        if isinstance(cut.error, ConfigError) and list_path:
            raise ConfigError(f"{cut.error}; later builds leave them out all the same: {list_path}")
        if cut.error:
            raise cut.error
        held = _holders([*beside, *(cut.new for cut in (*cut_others, cut) if cut.new)], rows)
    return TakenDown(cut, [*cut_others, *(damaged if workdir else ())], known, list_path, held, made_from)


def _sound(release: Release) -> tuple[list[Release], list[Cut]]:
    """Return the releases beside a release, itself included; and those of which nobody can say what they hold."""
    sound, damaged = [], []
    for other in releases_beside(release):
        try:
            other.sound_samples()
            sound.append(other)
        except (IntegrityError, OSError) as error:
            if other.name == release.name:
                raise
            damaged.append(Cut(other, Found((), {}), error=error))
    return sound, damaged


def _left_out(release: Release, beside: Sequence[Release]) -> list[Entry]:
    """Return the entries that versions of a release left out."""
    return [
        Entry("id", image["image_id"], entry["reason"])
        for version in beside
        if version.origin == release.origin
        for entry in version.record.get("takedowns", [])
        for image in entry["images"]
    ]


def _newest_of_others(release: Release, beside: Sequence[Release]) -> list[Release]:
    """Return the version of each other release that the most takedowns made."""
    newest: dict[str, Release] = {}
    for other in sorted(beside, key=lambda other: len(other.record.get("takedowns", []))):
        newest[other.origin] = other
    return [other for origin, other in sorted(newest.items()) if origin != release.origin]


def _write(cut: Cut, entries: Sequence[Entry], catalog: Catalog | None) -> Cut:
    """Write the version without what was found."""
    try:
        new = write_version(cut.release, cut.found.rows, _takedowns(cut.release, cut.found, entries))
    except (ConfigError, IntegrityError) as error:
        return replace(cut, error=error)
    if catalog is not None:
        sha256 = storage.hash_file(storage.join(new.path, RECORD_FILE)).sha256
        shards = [{"split": split, **shard} for split in new.splits for shard in new.record["splits"][split]["shards"]]
        catalog.record_release(new.name, f"releases/{new.name}", new.fingerprint, sha256, shards)
    return replace(cut, new=new)


def require_none_taken_down(release: Release) -> Release:
    """Return the same release.

    Raises: ConfigError when it holds images that the takedown list of its work folder names, or copies of them, and
        when that list is lost.
    """
    if (workdir := work_folder_of(release)) and (warning := taken_down_since(release, workdir)):
        raise ConfigError(warning)
    return release


def describe_what_lies(workdir: str) -> list[str]:
    """Return lines that say where pictures that were taken down still lie in a work folder; none without a list."""
    pictures = read_list(workdir).pictures
    if not pictures:
        return []
    lines = []
    try:
        with open_reader(workdir) as sql:
            sql.register("listed", pa.table({"image_id": [picture.image_id for picture in pictures]}))
            held = "FROM fetched SEMI JOIN listed USING (image_id) WHERE pool_file IS NOT NULL"
            ((num,),) = sql.sql(f"SELECT count(DISTINCT image_id) {held}").fetchall()
        lines += [f"  pool: {num:,} pictures; `plantmix takedown {workdir} --purge` takes them out"] if num else []
        for release in releases_beside(Release.open(workdir)):
            if num := images_taken_down(release, workdir).num_rows:
                lines.append(f"  {release.path}: {num:,} pictures; delete it where it was given to others")
    except (PlantMixError, OSError, duckdb.Error) as error:
        lines.append(f"  not known of all: {words_of(error)}")
    return [f"of {len(pictures):,} pictures that were taken down, there still lie in", *lines] if lines else []


def _holders(releases: Sequence[Release], rows: Sequence[Any]) -> list[tuple[str, int]]:
    stored = sorted({row["stored_sha256"] for row in rows if row["stored_sha256"]})
    held = [(other.path, num_held_by(other, stored)) for other in releases]
    return [(path, num) for path, num in held if num]


def _takedowns(release: Release, in_release: Found, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the takedowns of a record: by reason what was taken down before, then what is asked for now."""
    earlier: dict[str, list[Any]] = {}
    for row in in_release.rows:
        if row["stored_sha256"] in in_release.before:
            earlier.setdefault(in_release.before[row["stored_sha256"]].reason, []).append(row)
    groups: list[tuple[str, Sequence[Entry], Sequence[Any]]] = [
        (reason, sorted({in_release.before[row["stored_sha256"]] for row in rows}), rows)
        for reason, rows in sorted(earlier.items())
    ]
    if in_release.asked:
        groups.append((entries[0].reason, entries, in_release.asked))
    return [
        {
            "from": release.record["version"],
            "fingerprint": release.fingerprint,
            "reason": reason,
            "asked_for": [{"by": entry.by, "value": entry.value} for entry in asked_for],
            "num_images": len(images_of(rows)),
            "num_samples": len(rows),
            "images": [
                {name: row[name] for name in ("sample_id", "image_id", "domain", "url")} for row in images_of(rows)
            ],
        }
        for reason, asked_for, rows in groups
    ]
