"""Take images down: a new version of a release without them, and a list that keeps them out of later builds.

Reads a release and, in a work folder, its other releases and what the catalogue knows. The images go on the work
folder's takedown list, which select honours in every later build. Then a new version is written beside each release
that holds them. It leaves out what was taken down before as well, whatever version is given. Earlier versions, runs,
indexes and the pool stay: to delete them is the owner's decision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from manifests import storage
from manifests.catalog import Catalog
from manifests.catalog_file import TAKEDOWNS_FILE
from manifests.errors import ConfigError, IntegrityError
from manifests.release import RECORD_FILE, Release
from manifests.takedowns import Entry, add_entries, read_pictures, standing_entries, taken_down_since
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
    why_not: str = ""


@dataclass(frozen=True)
class TakenDown:
    """What a takedown found and wrote."""

    cut: Cut  # of the given release
    others: Sequence[Cut]  # other releases of the work folder
    known: Known  # in the catalogue; nothing outside a work folder
    list_path: str | None  # the takedown list; None outside a work folder
    holders: Sequence[tuple[str, int]]  # releases that still hold the images, and how many of them
    made_from: Sequence[tuple[str, str]]  # runs and indexes below the work folder that hold them, and how


def take_down(release: Release, entries: Sequence[Entry], say: Callable[[list[str]], None]) -> TakenDown:
    """Take down what the entries name, in all releases of the work folder. The same request gives the same bytes.

    `say` gets names that are like those of the entries, before anything is written.

    Raises: ConfigError when an entry names nothing, or when nothing would be left of the release; IntegrityError when a
        shard of it is not as recorded.
    """
    workdir = work_folder_of(release)
    beside, damaged = _sound(release)
    if workdir is None:
        in_release = find_in_release(release, entries, _left_out(release, beside))
        say(describe_like(entries, in_release.owners))
        made = write_version(release, in_release.rows, _takedowns(release, in_release, entries))
        cut = Cut(release, in_release, made)
        return TakenDown(cut, (), Known(), None, _holders(beside, in_release.asked), ())
    list_path = storage.join(workdir, TAKEDOWNS_FILE)
    with Catalog.open(workdir) as catalog:  # held, so that no build runs meanwhile
        others = [other for other in beside if other.name != release.name]
        known = look_up(catalog, release, others, entries)
        standing, pictures = standing_entries(workdir, catalog.ask), read_pictures(workdir)

        def find(one: Release) -> Found:
            return find_in_release(one, entries, [*standing, *_left_out(one, beside)], known, pictures)

        cuts = [Cut(release, find(release))]
        cuts += [cut for other in _newest_of_others(release, others) if (cut := Cut(other, find(other))).found.asked]
        say(describe_like(entries, known.owners))
        # The list comes first: after a kill the images stay out of later builds, and the same command goes on.
        rows = [*(row for cut in cuts for row in images_of(cut.found.asked)), *known.rows, *known.in_releases]
        images = dict.fromkeys(row["image_id"] for row in rows if row["image_id"])
        reason = entries[0].reason
        add_entries(workdir, [*entries, *(Entry("id", image, reason) for image in images)], known.pictures(reason))
        paths = {path for path, _ in _holders(beside, rows)}
        holding, ids = [each for each in beside if each.path in paths], sorted({row["sample_id"] for row in rows})
        made_from = list_made_from(str(release.workdir), holding, ids)
        cuts = [_write(cut, entries, catalog, list_path, is_given=cut is cuts[0]) for cut in cuts]
    held = _holders(_sound(release)[0], rows)
    return TakenDown(cuts[0], [*cuts[1:], *damaged], known, list_path, held, made_from)


def _sound(release: Release) -> tuple[list[Release], list[Cut]]:
    """The releases beside a release, itself included; and those of which nobody can say what they hold."""
    sound, damaged = [], []
    for other in releases_beside(release):
        try:
            other.sound_samples()
            sound.append(other)
        except (IntegrityError, OSError) as error:
            if other.name == release.name:
                raise
            damaged.append(Cut(other, Found((), {}), why_not=str(error)))
    return sound, damaged


def _left_out(release: Release, beside: Sequence[Release]) -> list[Entry]:
    """What versions of a release left out."""
    return [
        Entry("id", image["image_id"], entry["reason"])
        for version in beside
        if version.origin == release.origin
        for entry in version.record.get("takedowns", [])
        for image in entry["images"]
    ]


def _newest_of_others(release: Release, others: Sequence[Release]) -> list[Release]:
    """Of each other release the version that the most takedowns made."""
    newest: dict[str, Release] = {}
    for other in sorted(others, key=lambda other: len(other.record.get("takedowns", []))):
        newest[other.origin] = other
    return [other for origin, other in sorted(newest.items()) if origin != release.origin]


def _write(cut: Cut, entries: Sequence[Entry], catalog: Catalog, list_path: str, *, is_given: bool) -> Cut:
    """Write the version without what was found. What ails another release than the given one stops nothing."""
    if not cut.found.asked:
        return cut
    try:
        new = write_version(cut.release, cut.found.rows, _takedowns(cut.release, cut.found, entries))
    except (ConfigError, IntegrityError) as error:
        if not is_given:
            return replace(cut, why_not=str(error))
        if isinstance(error, IntegrityError):
            raise
        raise ConfigError(f"{error}; later builds leave them out all the same: {list_path}") from None
    _record(catalog, new)
    return replace(cut, new=new)


def _holders(releases: Sequence[Release], rows: Sequence[Any]) -> list[tuple[str, int]]:
    stored = sorted({row["stored_sha256"] for row in rows if row["stored_sha256"]})
    held = [(other.path, num_held_by(other, stored)) for other in releases]
    return [(path, num) for path, num in held if num]


def require_none_taken_down(release: Release) -> Release:
    """The same release.

    Raises: ConfigError when it holds images that the takedown list of its work folder names, or copies of them, and
        when that list is lost.
    """
    if (workdir := work_folder_of(release)) and (said := taken_down_since(release, workdir)):
        raise ConfigError(said)
    return release


def _record(catalog: Catalog, new: Release) -> None:
    sha256 = storage.hash_file(storage.join(new.path, RECORD_FILE)).sha256
    shards = [{"split": split, **shard} for split in new.splits for shard in new.record["splits"][split]["shards"]]
    catalog.record_release(new.name, f"releases/{new.name}", new.fingerprint, sha256, shards)


def _takedowns(release: Release, in_release: Found, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """What the record says: by reason what was taken down before, then what is asked for now."""
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
