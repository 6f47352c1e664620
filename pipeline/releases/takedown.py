"""Take images down: a new version of a release without them, and a list that keeps them out of later builds.

Reads a release and, in a work folder, what the catalogue knows. The images go on the work folder's
takedown list, which select honours in every later build. Then the new version is written beside the given one. It
leaves out what was taken down before as well, whatever version is given. Earlier versions and the pool stay: to delete
them is the owner's decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from manifests import storage
from manifests.catalog import Catalog
from manifests.catalog_file import TAKEDOWNS_FILE
from manifests.errors import ConfigError
from manifests.release import RECORD_FILE, Release
from manifests.takedowns import Entry, add_entries, standing_entries
from pipeline.releases.lookup import Found, Known, find_in_release, images_of, look_up
from pipeline.releases.opening import work_folder_of
from pipeline.releases.versions import num_held_by, releases_beside, versions_of, write_version


@dataclass(frozen=True)
class TakenDown:
    """What a takedown found and wrote."""

    in_release: Found
    in_catalogue: Known  # in the catalogue; nothing outside a work folder
    new: Release | None  # the new version; None when the release holds nothing of what was asked for
    list_path: str | None  # the takedown list; None outside a work folder
    holders: Sequence[tuple[str, int]]  # releases that still hold the images, and how many of them


def take_down(release: Release, entries: Sequence[Entry]) -> TakenDown:
    """Take down what the entries name. The same request gives the same bytes.

    Raises: ConfigError when an entry names nothing, or when nothing would be left; IntegrityError when a shard is not
        as recorded.
    """
    left_out = [
        Entry("id", image["image_id"], entry["reason"])
        for version in versions_of(release)
        for entry in version.record.get("takedowns", [])
        for image in entry["images"]
    ]
    workdir = work_folder_of(release)
    if workdir is None:
        in_release = find_in_release(release, entries, left_out)
        made = write_version(release, in_release.rows, _takedowns(release, in_release, entries))
        return TakenDown(in_release, Known(), made, None, _holders(release, in_release.asked))
    list_path = storage.join(workdir, TAKEDOWNS_FILE)
    with Catalog.open(workdir) as catalog:  # held, so that no build runs meanwhile
        in_catalogue = look_up(catalog, release, entries)
        earlier = [*standing_entries(workdir, catalog.ask), *left_out]
        in_release = find_in_release(release, entries, earlier, in_catalogue)
        # The list comes first: after a kill the images stay out of later builds, and the same command goes on.
        rows = [*images_of(in_release.asked), *in_catalogue.rows]
        images = dict.fromkeys(row["image_id"] for row in rows if row["image_id"])
        add_entries(workdir, [*entries, *(Entry("id", image, entries[0].reason) for image in images)])
        new: Release | None = None
        if in_release.asked:
            try:
                new = write_version(release, in_release.rows, _takedowns(release, in_release, entries))
            except ConfigError as error:
                raise ConfigError(f"{error}; later builds leave them out all the same: {list_path}") from None
            _record(catalog, new)
    return TakenDown(in_release, in_catalogue, new, list_path, _holders(release, rows))


def _holders(release: Release, rows: Sequence[Any]) -> list[tuple[str, int]]:
    stored = sorted({row["stored_sha256"] for row in rows if row["stored_sha256"]})
    held = [(other.path, num_held_by(other, stored)) for other in releases_beside(release)]
    return [(path, num) for path, num in held if num]


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
