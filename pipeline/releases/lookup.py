"""Samples of a release and rows of every build in its work folder that the entries of a takedown name.

Reads samples.parquet, and the candidates, facts and decisions that the catalogue still finds. Writes nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.contract import tables
from manifests.contract.catalog import Catalog
from manifests.contract.release import Release
from manifests.contract.takedowns import (
    KINDS,
    Entry,
    Picture,
    each_once,
    find_copies,
    find_named,
    owners_in,
    with_rows_of_secrets,
)
from manifests.errors import ConfigError, IntegrityError
from manifests.names.equal import names_like
from manifests.names.sql import identifier
from manifests.stores import storage
from manifests.stores.folder import bring_missing
from pipeline.engine.work import files_in
from pipeline.releases.opening import open_sql, view_samples
from pipeline.store.files import Files

MAX_SHOWN = 20
MAX_LIKE = 10
_VERSIONS_OF_SELECT = (
    "SELECT fingerprint FROM stages WHERE stage = 'select' AND json_extract_string(notes, '$.content') = ?"
)
_IMAGE = (
    "image_id", "stored_sha256", "phash", "phash_mirrored", "middle_hash", "middle_mirrored", "pixels_sha256",
    "pixel_std", "pool_file", "offset", "length",
)  # fmt: skip
_COLUMNS = "sample_id, copy, image_id, stored_sha256, url, domain, source, split, shard, key"


@dataclass(frozen=True)
class Known:
    """The images that entries name in releases and in the catalogue of their work folder.

    Rows have by and key of the entry, sample_id, and what is known of the image: `_IMAGE`.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    stand_ins: Sequence[str] = ()  # sample ids that a build kept as the better copy of one of them
    owners: Mapping[str, int] = field(default_factory=dict)  # where an entry names one: all, and images of each

    @property
    def sample_ids(self) -> set[str]:
        """The samples that are named."""
        return {row["sample_id"] for row in self.rows}

    @property
    def entries(self) -> list[Entry]:
        """Entries for the rows, for the same bytes, and for the images that were kept in their place."""
        values = {*self.sample_ids, *self.stand_ins, *(row["stored_sha256"] for row in self.rows)}
        return [Entry("id", value) for value in sorted(value for value in values if value)]

    def pictures(self, reason: str) -> list[Picture]:
        """Return the images of the rows, by what their copies are known by."""
        facts = [row for row in self.rows if row["phash"] is not None]
        return each_once(Picture.of_fact(fact, reason, filter(None, [fact["asked_url"]])) for fact in facts)


@dataclass(frozen=True)
class Found:
    """Samples of a release that go: one row a sample, repeats included."""

    rows: Sequence[Mapping[str, Any]]
    # stored_sha256 -> the entry that took it down earlier; images that are asked for now are not here
    before: Mapping[str, Entry]

    @property
    def asked(self) -> list[Mapping[str, Any]]:
        """Rows of the images that are asked for now."""
        return [row for row in self.rows if row["stored_sha256"] not in self.before]


def images_of(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One row an image, by sample id."""
    return sorted((row for row in rows if row["copy"] == 0), key=lambda row: str(row["sample_id"]))


def look_up(catalog: Catalog | None, release: Release, others: Sequence[Release], entries: Sequence[Entry]) -> Known:
    """Find the images that entries name in a release, in others, and in the catalogue.

    Of rows whose fetch failed so far only address, owner and id are known. Stand-ins are those of the build that made
    the release, and of the last build.

    Raises: ConfigError when the decisions of the build that made the release are not there; and naming the entries that
        name nothing.
    """
    rows, stand_ins, owners = list[dict[str, Any]](), list[str](), Counter[str]()
    if catalog is not None:
        entries = with_rows_of_secrets(entries, _there(catalog, catalog.find_files("secrets")))
    for other in (release, *others):
        with open_sql() as sql:
            _view_as_catalogue(sql, other)
            rows += _named_rows(sql, entries)
            owners |= _count_owners(sql, entries)
    if catalog is not None:
        with open_sql(catalog.workdir) as sql:
            _view(sql, catalog, "candidates", catalog.find_files("candidates"), tables.CANDIDATES)
            _view(sql, catalog, "facts", catalog.find_files("facts"), tables.FACTS)
            # last: facts know more of an image than a release does
            rows += _named_rows(sql, entries)
            owners |= _count_owners(sql, entries)
            sql.read_parquet(list(_decided(catalog, release).paths), union_by_name=True).create_view("decisions")
            query = "SELECT DISTINCT other_sample_id FROM decisions SEMI JOIN named USING (sample_id) WHERE reason IN "
            stand_ins = [row[0] for row in sql.execute(f"{query} ('exact_duplicate', 'near_duplicate')").fetchall()]
    met = {(row["by"], row["key"]) for row in rows}
    if unmet := [entry for entry in entries if entry.key not in met]:
        raise ConfigError(_not_found(release, unmet, len(entries), catalog is not None, owners))
    return Known(rows, sorted(stand_ins), owners)


def decisions_of(catalog: Catalog, content: str) -> Files:
    """Return the table of decisions with this content; no files when it is not there any more."""
    for (version,) in catalog.ask(_VERSIONS_OF_SELECT, content):
        if files := files_in(catalog.workdir, catalog.parts_of(version), "decisions"):
            return files
    return Files()


def _decided(catalog: Catalog, release: Release) -> Files:
    """Return the decisions that the release was made by, and those of the last build."""
    identities = catalog.ask("SELECT identity FROM stages WHERE fingerprint = ?", release.origin)
    at_build = decisions_of(catalog, json.loads(identities[0][0])["decisions"][0]) if identities else Files()
    last = files_in(catalog.workdir, catalog.parts_of(catalog.find_current("select") or ""), "decisions")
    decided = at_build if at_build.paths == last.paths else at_build + last
    with contextlib.suppress(IntegrityError):
        bring_missing(decided.paths)
    if not (at_build or (last and not identities)) or not all(Path(path).is_file() for path in decided.paths):
        raise ConfigError(
            f"{release.path}: {catalog.workdir} does not hold the decisions that it was made by, so near copies of "
            f"what is named cannot be found; nothing was written. `plantmix verify {catalog.workdir}` says what is "
            "damaged, and `plantmix build` with its configuration decides again"
        )
    return decided


def find_in_release(
    release: Release, known: Known, standing: Sequence[Entry] = (), pictures: Sequence[Picture] = ()
) -> Found:
    """Every sample of what is `known` of the entries, whatever else has the same bytes, and copies.

    `standing` and `pictures` were taken down before, and go too.
    """
    with open_sql() as sql:
        _view_as_catalogue(sql, release)
        asked = {row["stored_sha256"] for row in _named_rows(sql, known.entries)}
        asked.update(_copies_in(release, known.pictures("asked")))
        before: dict[str, Entry] = {}
        for row in sorted(_named_rows(sql, standing), key=lambda row: (KINDS.index(row["by"]), row["key"])):
            before.setdefault(row["stored_sha256"], Entry(row["by"], row["value"], row["reason"]))
        for stored, picture in _copies_in(release, pictures).items():
            before.setdefault(stored, Entry("id", picture.image_id, picture.reason))
        before = {stored: entry for stored, entry in before.items() if stored not in asked}
        sql.register("gone", pa.table({"stored_sha256": pa.array(sorted({*asked, *before}), pa.string())}))
        rows = sql.sql(f"SELECT {_COLUMNS} FROM samples SEMI JOIN gone USING (stored_sha256) ORDER BY ALL")
        return Found(rows.to_arrow_table().to_pylist(), before)


def _copies_in(release: Release, pictures: Sequence[Picture]) -> dict[str, Picture]:
    """stored_sha256 of the images of a release that are copies of pictures -> the picture."""
    copies: dict[str, Picture] = {}
    columns = ("stored_sha256", "image_id", "phash", "middle_hash")
    for rows in release.iter_samples(columns) if pictures else ():
        found = find_copies(pictures, rows)
        for row in (found >= 0).nonzero()[0].tolist():
            copies.setdefault(rows["stored_sha256"][row].as_py(), pictures[found[row]])
    return copies


def _view_as_catalogue(sql: Any, release: Release) -> None:
    """Create `samples`, and views of the two tables that entries are compared with."""
    view_samples(sql, release)
    sql.execute("CREATE VIEW candidates AS FROM samples WHERE copy = 0")
    sql.execute("CREATE VIEW facts AS FROM samples WHERE copy = 0")


def _named_rows(sql: Any, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the rows of candidates and facts that entries name.

    By, key, value and reason of the entry, and the image.
    """
    find_named(sql, list({entry.key: entry for entry in entries}.values()))
    there = {row[0] for row in sql.execute("DESCRIBE facts").fetchall()}
    image = ", ".join(identifier(name) if name in there else f"NULL AS {identifier(name)}" for name in _IMAGE)
    with_locator = "locator" in {row[0] for row in sql.execute("DESCRIBE candidates").fetchall()}
    asked = "if(locator IS NULL, url, NULL)" if with_locator else "NULL"  # a release does not say what was downloaded
    rows = sql.sql(
        f"SELECT DISTINCT n.*, {image}, c.asked_url FROM named n LEFT JOIN facts USING (sample_id) "
        f"LEFT JOIN (SELECT sample_id, {asked} AS asked_url FROM candidates) c USING (sample_id) ORDER BY ALL"
    )
    return list(rows.to_arrow_table().to_pylist())


def _count_owners(sql: Any, entries: Sequence[Entry]) -> Counter[str]:
    """In how many candidates each owner is named, where an entry names one."""
    if not any(entry.by == "owner" for entry in entries):
        return Counter()
    query = f"SELECT name, count(DISTINCT sample_id) FROM ({owners_in(sql)}) WHERE name <> '' GROUP BY ALL"
    return Counter(dict(sql.execute(query).fetchall()))


def describe_like(entries: Sequence[Entry], owners: Mapping[str, int]) -> list[str]:
    """Names that are like an owner of the entries and not equal to it, with the images that have them, as lines."""
    lines = []
    for name in (entry.value for entry in entries if entry.by == "owner"):
        like = [f"  {other}: {num:,} images" for other, num in names_like(name, owners).items()]
        more = [f"  and {len(like) - MAX_LIKE:,} more names"] if len(like) > MAX_LIKE else []
        head = f"not taken down, names like {name!r}; where one is the same owner, give it as --owner:"
        lines += [head, *like[:MAX_LIKE], *more] if like else []
    return lines


def _not_found(
    release: Release, unmet: Sequence[Entry], num_given: int, with_catalogue: bool, owners: Mapping[str, int]
) -> str:
    named = ", ".join(f"{entry.by} {entry.value!r}" for entry in unmet[:MAX_SHOWN])
    more = f" and {len(unmet) - MAX_SHOWN:,} more" if len(unmet) > MAX_SHOWN else ""
    where = "in this release nor in the catalogue" if with_catalogue else "in this release"
    text = (
        f"{release.path}: {len(unmet):,} of the {num_given:,} given are not {where}: {named}{more}; nothing was "
        "written. Give addresses, owners (rights holder or creator) and ids (of a sample, or the sha256 of an image) "
        "as attribution.parquet and samples.parquet have them, and leave out what is not there"
    )
    return "\n".join([text, *describe_like(unmet, owners)])


def _view(sql: Any, catalog: Catalog, name: str, paths: Sequence[str], schema: Any) -> None:
    """Create a view over the files that are still there. Older builds may have fewer columns."""
    if there := _there(catalog, paths):
        sql.read_parquet(there, union_by_name=True).create_view(name)
    else:
        sql.register(name, schema.empty_table())


def _there(catalog: Catalog, paths: Sequence[str]) -> list[str]:
    """Return the files of a catalogue that are still there."""
    places = [storage.join(catalog.workdir, path) for path in paths]
    for path in places:
        with contextlib.suppress(IntegrityError):
            bring_missing([path])
    return [path for path in places if Path(path).is_file()]
