"""Publish a release: to the Hugging Face Hub (hf:OWNER/NAME), or to any folder or object store that fsspec knows.

Every byte of the release is checked first. The release itself stays as it is; croissant.json and CITATION.cff are
written beside it, at the target alone. A stopped publish goes on where it was: what is there with its recorded size or
hash is not sent again. release.json goes last, so a target without it is not whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from manifests.contract import tables
from manifests.contract.reader import create_table_view, open_reader, paths_of_current
from manifests.contract.release import (
    CITATION_FILE,
    CROISSANT_FILE,
    RECORD_FILE,
    WHEN_DAMAGED,
    Release,
    read_record,
    refuse_within,
)
from manifests.errors import ConfigError, RunError
from manifests.publishing import hub
from manifests.stores import storage
from manifests.stores.faults import ask
from manifests.stores.folder import bring_missing, place_of
from pipeline.judging.vocabulary.licences import REDISTRIBUTABLE, UNKNOWN
from pipeline.releases.checks import check_release
from pipeline.releases.opening import open_sql, samples_path, work_folder_of
from pipeline.sidefiles.citation import write_citation
from pipeline.sidefiles.croissant import write_croissant
from pipeline.store.sql import view_parquet

_NUM_COPIES = 8  # files that are copied at the same time
_READ_WHOLE_SINCE = 12  # version of `caption`; before it, one word of a text was enough for a licence


@dataclass(frozen=True)
class LicenceCount:
    """Images of one licence from one source, and whether anyone may pass them on."""

    licence: str
    source: str
    num_images: int
    may_be_public: bool


@dataclass(frozen=True)
class Conflict:
    """Images whose licence lets everyone pass them on, while a copy of them states one that does not."""

    licence: str
    other_licence: str
    matched: str
    num_images: int

    def __str__(self) -> str:
        return f"{self.num_images:,} images: {self.licence}, but {self.other_licence} by the {self.matched}"


@dataclass(frozen=True)
class Plan:
    """A plan to publish: the files, the target, and who could see them."""

    release: Release
    target: str
    public: bool
    licences: tuple[LicenceCount, ...]
    conflicts: tuple[Conflict, ...]
    more: dict[str, bytes]  # files beside the release, by name

    @property
    def on_hub(self) -> bool:
        """Return whether the target is the Hugging Face Hub."""
        return self.target.startswith(hub.SCHEME)

    @property
    def num_files(self) -> int:
        """Files at the target, release.json among them."""
        return len(self.release.record["files"]) + 1 + len(self.more)

    @property
    def num_bytes(self) -> int:
        """Bytes of the release's files and of those beside it, without release.json."""
        packed = sum(int(entry["num_bytes"]) for entry in self.release.record["files"].values())
        return packed + sum(len(content) for content in self.more.values())

    @property
    def not_public(self) -> tuple[LicenceCount, ...]:
        """Licences that keep the release private."""
        return tuple(row for row in self.licences if not row.may_be_public)


def plan_publishing(release: Release, target: str, *, public: bool, authors: Sequence[str]) -> Plan:
    """Plan a publication; sends nothing and asks nobody. Checks all of the release but its shards.

    Raises: ConfigError for a target that cannot be, for a release that is not whole, and for `public` where a licence
        does not allow it.
    """
    on_hub = target.startswith(hub.SCHEME)
    address: str | None
    if on_hub:
        repository = hub.repository_of(target)
        address, owner = hub.page_of(repository, "dataset"), repository.partition("/")[0]
        if storage.is_remote(release.path):
            raise ConfigError(f"{release.path}: to publish on the Hub, copy the release to a local disk first")
    else:
        _check_folder(release, target, public)
        address, owner = None, f"the makers of {release.record['name']}"
    check_release(release, deep=False)
    if public and release.record["recipe"]["caption"]["version"] < _READ_WHOLE_SINCE:
        raise ConfigError(
            f"{release.name}: may not be public, since licences were not yet read as a whole when it was built; build "
            "it again, which downloads nothing"
        )
    licences = count_licences(release)
    fs, inner = storage.filesystem(samples_path(release))
    schema = ask(samples_path(release), lambda: pq.read_schema(inner, filesystem=fs))
    facts: dict[str, Any] = {
        "address": address,
        "authors": authors or [owner],
        "date": datetime.now(UTC).date().isoformat(),
    }
    names = list(dict.fromkeys(row.licence for row in licences))
    more = {
        CROISSANT_FILE: write_croissant(release.record, schema, names, **facts),
        CITATION_FILE: write_citation(release.record, **facts),
    }
    plan = Plan(release, target, public, licences, conflicts_of(release, needed=public), more)
    if public and (plan.not_public or plan.conflicts):
        lines = [f"  {row.num_images:,} images: {row.licence}, from {row.source}" for row in plan.not_public]
        listed = "\n".join([*lines, *(f"  {row}" for row in plan.conflicts)])
        raise ConfigError(
            f"{release.name}: may not be public, because not everyone may pass on\n{listed}\nPublish it without "
            "--public, or build it without them: select.licences in the build config"
        )
    return plan


def count_licences(release: Release) -> tuple[LicenceCount, ...]:
    """Images of a release by licence and source, most images first."""
    with open_sql() as sql:
        view_parquet(sql, "attribution", [storage.join(release.path, "attribution.parquet")])
        rows = sql.sql(
            f"SELECT coalesce(licence_id, '{UNKNOWN}') AS licence, source, count(*) AS num FROM attribution "
            "GROUP BY ALL ORDER BY num DESC, licence, source"
        ).fetchall()
    return tuple(LicenceCount(licence, source, num, REDISTRIBUTABLE.allows(licence)) for licence, source, num in rows)


def conflicts_of(release: Release, *, needed: bool) -> tuple[Conflict, ...]:
    """Images of a release that everyone may pass on by their own licence, and not by that of a copy.

    The last build of the work folder and its newest release may have seen copies that this one has not.

    Raises: what `open_reader` raises, where these are `needed`.
    """
    rows = [(*row, len(ids)) for row, ids in _conflicts_in(release)]
    workdir = work_folder_of(release)
    newest = Release.open(place_of(workdir)) if workdir else release
    with open_sql() as sql:
        view_parquet(sql, "own", [samples_path(release)], "copy = 0")
        if newest.fingerprint != release.fingerprint:
            view_parquet(sql, "newest", [samples_path(newest)], "copy = 0")
            here = {sample_id for (sample_id,) in sql.sql("SELECT sample_id FROM own").fetchall()}
            rows += [(*row, len(here.intersection(ids))) for row, ids in _conflicts_in(newest)]
            rows += sql.execute(
                f"SELECT coalesce(o.licence_id, '{UNKNOWN}'), coalesce(n.licence_id, '{UNKNOWN}'), ?, count(*) "
                "FROM own o JOIN newest n USING (image_id) GROUP BY ALL ORDER BY ALL",
                [f"same picture in {newest.name}"],
            ).fetchall()
        try:
            rows += _dropped_since(sql, workdir) if workdir else []
        except RunError:
            if needed:
                raise
    return tuple(
        Conflict(*row)
        for row in dict.fromkeys(rows)
        if row[3] and REDISTRIBUTABLE.allows(row[0]) and not REDISTRIBUTABLE.allows(row[1])
    )


def _dropped_since(sql: Any, workdir: str) -> list[tuple[str, str, str, int]]:
    """Images of `own` that the last build left out, since a copy states a licence that is not allowed."""
    with open_reader(workdir, per_sample=False) as catalogue:
        decisions = paths_of_current(catalogue, workdir)["select", "decisions"]
    bring_missing(decisions)
    create_table_view(sql, "decisions", decisions, tables.DECISIONS)
    rows = sql.execute(
        f"SELECT coalesce(licence_id, '{UNKNOWN}'), regexp_extract(d.value, ', (.*) there$', 1), "
        "replace(d.threshold, 'one licence for the ', '') || ' in the last build', count(*) "
        "FROM own JOIN decisions d USING (sample_id) WHERE d.reason = 'conflicting_licence' GROUP BY ALL ORDER BY ALL"
    )
    return list(rows.fetchall())


def _conflicts_in(release: Release) -> list[tuple[tuple[str, str, str], list[str]]]:
    """Both licences, how the copies match, and the sample ids of the contradictions that a record names."""
    rows = (release.record.get("duplicates") or {}).get("conflicts", ())
    return [
        ((row["value"], row["other_value"], row["matched"]), row["sample_ids"])
        for row in rows
        if row["about"] == "licence"
    ]


def publish(plan: Plan) -> list[str]:
    """Check the shards too, then send the release; returns lines that say what is there.

    Raises: ConfigError when the release is not whole, or the target refuses; RunError when the target or the way to it
        fails.
    """
    wrong = list(plan.release.wrong_hashes())
    if wrong:
        raise ConfigError(
            f"{plan.release.path}: {len(wrong):,} files are not as they were sealed, first: {wrong[0]}. Nothing was "
            f"sent. {WHEN_DAMAGED}"
        )
    if plan.on_hub:
        repository = hub.repository_of(plan.target)
        return hub.upload_folder(
            plan.release.path, repository, "dataset", public=plan.public, marker=RECORD_FILE, more=plan.more
        )
    return _copy(plan.release, plan.target, plan.more)


def _copy(release: Release, folder: str, more: dict[str, bytes]) -> list[str]:
    storage.make_folder(folder)
    there = storage.sizes_below(folder)
    files = release.record["files"]
    if RECORD_FILE in there and read_record(folder)["fingerprint"] != release.fingerprint:
        raise ConfigError(f"{folder}: holds another release; give a place of its own")
    others = [name for name in there if not (name in files or name in (RECORD_FILE, *more) or storage.is_private(name))]
    if others:
        raise ConfigError(
            f"{folder}: holds {len(others):,} files of something else, first: {others[0]}; give a place of its own"
        )
    storage.sweep(folder)  # what a killed publish left
    absent = [name for name, entry in files.items() if there.get(name) != entry["num_bytes"]]
    for parent in sorted({name.rpartition("/")[0] for name in absent}):
        storage.make_folder(storage.join(folder, parent) if parent else folder)

    def copy(name: str) -> None:
        storage.copy(storage.join(release.path, name), storage.join(folder, name))

    with ThreadPoolExecutor(_NUM_COPIES) as pool:
        list(pool.map(copy, absent))
    for name, content in more.items():
        storage.publish_bytes(storage.join(folder, name), content)
    wrong = list(Release(folder, release.record).wrong_hashes())
    if wrong:
        raise RunError(
            f"{folder}: {len(wrong):,} files are not what was sent, first: {wrong[0]}. Remove them and run the same "
            "command again"
        )
    if RECORD_FILE not in there:
        copy(RECORD_FILE)
    return [f"published: {folder}, {len(absent):,} files copied, {len(files) - len(absent):,} were there; all checked"]


def _check_folder(release: Release, target: str, public: bool) -> None:
    """Raise ConfigError for a place that no file system serves, or among sealed releases, and for `public`."""
    if public:
        raise ConfigError(f"--public: {target} is public or not by its own rules; the option is for hf:OWNER/NAME")
    storage.filesystem(target)
    parent, beside = (path.rstrip("/").rpartition("/")[0] for path in (_absolute(target), _absolute(release.path)))
    if parent == beside:
        raise ConfigError(f"{target}: lies among the releases of {beside}; choose a place outside of it")
    refuse_within(parent)


def _absolute(path: str) -> str:
    return path if storage.is_remote(path) else str(Path(path).resolve())
