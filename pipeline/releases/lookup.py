"""What the entries of a takedown name: samples of a release, and rows of every build in its work folder.

Reads samples.parquet, and the candidates, facts and decisions that the catalogue still finds. Writes nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests import storage, tables
from manifests.catalog import Catalog
from manifests.errors import ConfigError, IntegrityError
from manifests.names.equal import names_like
from manifests.release import Release
from manifests.remote.folder import bring_missing
from manifests.takedowns import KINDS, Entry, Picture, find_copies, find_named
from pipeline.releases.opening import open_sql, view_samples
from pipeline.runner.work import files_in
from pipeline.store.files import Files

MAX_SHOWN = 20
MAX_LIKE = 10
_VERSIONS_OF_SELECT = (
    "SELECT fingerprint FROM stages WHERE stage = 'select' AND json_extract_string(notes, '$.content') = ?"
)
_IMAGE = (
    "image_id", "stored_sha256", "phash", "phash_mirrored", "middle_hash", "pixels_sha256", "pixel_std",
)  # fmt: skip
_COLUMNS = "sample_id, copy, image_id, stored_sha256, url, domain, source, split, shard, key"


@dataclass(frozen=True)
class Known:
    """What entries name in the catalogue and in the releases of its work folder.

    Rows have by and key of the entry, sample_id, and what is known of the image: `_IMAGE`.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    stand_ins: Sequence[str] = ()  # sample ids that a build kept as the better copy of one of them
    in_releases: Sequence[Mapping[str, Any]] = ()
    owners: Mapping[str, int] = field(default_factory=dict)  # every owner, and in how many rows of candidates

    @property
    def sample_ids(self) -> set[str]:
        """The samples that are named in the catalogue."""
        return {row["sample_id"] for row in self.rows}

    @property
    def entries(self) -> list[Entry]:
        """Entries for the rows, for the same bytes, and for the images that were kept in their place."""
        rows = [*self.rows, *self.in_releases]
        values = {*self.stand_ins, *(row[name] for row in rows for name in ("sample_id", "stored_sha256"))}
        return [Entry("id", value) for value in sorted(value for value in values if value)]

    def pictures(self, reason: str) -> list[Picture]:
        """The images of the rows, by what their copies are known by."""
        facts = {row["image_id"]: row for row in (*self.in_releases, *self.rows) if row["phash"] is not None}
        return [Picture.of_fact(fact, reason) for _, fact in sorted(facts.items())]


@dataclass(frozen=True)
class Found:
    """Samples of a release that go: one row a sample, repeats included."""

    rows: Sequence[Mapping[str, Any]]
    # stored_sha256 -> the entry that took it down earlier; images that are asked for now are not here
    before: Mapping[str, Entry]
    owners: Mapping[str, int] = field(default_factory=dict)  # as in `Known`, of this release

    @property
    def asked(self) -> list[Mapping[str, Any]]:
        """Rows of the images that are asked for now."""
        return [row for row in self.rows if row["stored_sha256"] not in self.before]


def images_of(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One row an image, by sample id."""
    return sorted((row for row in rows if row["copy"] == 0), key=lambda row: str(row["sample_id"]))


def look_up(catalog: Catalog, release: Release, others: Sequence[Release], entries: Sequence[Entry]) -> Known:
    """What entries name in the catalogue, in a release and in others.

    Of rows whose fetch failed so far only address, owner and id are known. Stand-ins are those of the build that made
    the release, and of the last build.

    Raises: ConfigError when the decisions of the build that made the release are not there.
    """
    with open_sql(catalog.workdir) as sql:
        _view(sql, catalog, "candidates", catalog.find_files("candidates"), tables.CANDIDATES)
        _view(sql, catalog, "facts", catalog.find_files("facts"), tables.FACTS)
        rows = _named_rows(sql, entries)
        sql.read_parquet(list(_decided(catalog, release).paths), union_by_name=True).create_view("decisions")
        stand_ins = sql.execute(
            "SELECT DISTINCT other_sample_id FROM decisions SEMI JOIN named USING (sample_id) "
            "WHERE reason IN ('exact_duplicate', 'near_duplicate') ORDER BY 1"
        ).fetchall()
        owners = _count_owners(sql, entries)
    in_releases = [row for other in (release, *others) for row in named_in(other, entries)]
    return Known(rows, [row[0] for row in stand_ins], in_releases, owners)


def named_in(release: Release, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The rows of a release that entries name, as in `Known`."""
    with open_sql() as sql:
        _view_as_catalogue(sql, release)
        return _named_rows(sql, entries)


def decisions_of(catalog: Catalog, content: str) -> Files:
    """The table of decisions with this content; no files when it is not there any more."""
    for (version,) in catalog.ask(_VERSIONS_OF_SELECT, content):
        if files := files_in(catalog.workdir, catalog.parts_of(version), "decisions"):
            return files
    return Files()


def _decided(catalog: Catalog, release: Release) -> Files:
    """The decisions that the release was made by, and those of the last build."""
    identities = catalog.ask("SELECT identity FROM stages WHERE fingerprint = ?", release.origin)
    own = decisions_of(catalog, json.loads(identities[0][0])["decisions"][0]) if identities else Files()
    last = files_in(catalog.workdir, catalog.parts_of(catalog.find_current("select") or ""), "decisions")
    decided = own if own.paths == last.paths else own + last
    with contextlib.suppress(IntegrityError):
        bring_missing(decided.paths)
    if not (own or (last and not identities)) or not all(Path(path).is_file() for path in decided.paths):
        raise ConfigError(
            f"{release.path}: {catalog.workdir} does not hold the decisions that it was made by, so near copies of "
            f"what is named cannot be found; nothing was written. `plantmix verify {catalog.workdir}` says what is "
            "damaged, and `plantmix build` with its configuration decides again"
        )
    return decided


def find_in_release(
    release: Release,
    entries: Sequence[Entry],
    standing: Sequence[Entry] = (),
    known: Known | None = None,
    pictures: Sequence[Picture] = (),
) -> Found:
    """Every sample that entries name, whatever else has the same bytes, and copies of what is `known` of them.

    `standing` and `pictures` were taken down before, and go too. With `known` this release need not hold what the
    entries name.

    Raises: ConfigError naming the entries that name nothing.
    """
    of_known = known or Known()
    with open_sql() as sql:
        _view_as_catalogue(sql, release)
        named = _named_rows(sql, [*entries, *of_known.entries])
        earlier = _named_rows(sql, standing)
        met = {(row["by"], row["key"]) for row in [*named, *of_known.rows, *of_known.in_releases]}
        owners = of_known.owners or _count_owners(sql, entries)
        if unmet := [entry for entry in entries if entry.key not in met]:
            raise ConfigError(_not_found(release, unmet, len(entries), known is not None, owners))
        asked = {row["stored_sha256"] for row in named} | set(_copies_in(release, of_known.pictures("asked")))
        before: dict[str, Entry] = {}
        for row in sorted(earlier, key=lambda row: (KINDS.index(row["by"]), row["key"])):
            before.setdefault(row["stored_sha256"], Entry(row["by"], row["value"], row["reason"]))
        for stored, picture in _copies_in(release, pictures).items():
            before.setdefault(stored, Entry("id", picture.image_id, picture.reason))
        before = {stored: entry for stored, entry in before.items() if stored not in asked}
        sql.register("gone", pa.table({"stored_sha256": pa.array(sorted({*asked, *before}), pa.string())}))
        rows = sql.sql(f"SELECT {_COLUMNS} FROM samples SEMI JOIN gone USING (stored_sha256) ORDER BY ALL")
        return Found(rows.to_arrow_table().to_pylist(), before, owners)


def _copies_in(release: Release, pictures: Sequence[Picture]) -> dict[str, Picture]:
    """stored_sha256 of the images of a release that are copies of pictures -> the picture."""
    copies: dict[str, Picture] = {}
    columns = ("stored_sha256", "image_id", "phash", "middle_hash")
    for rows in release.iter_samples(columns) if pictures else ():
        found = find_copies(pictures, rows)
        for place in (found >= 0).nonzero()[0].tolist():
            copies.setdefault(rows["stored_sha256"][place].as_py(), pictures[found[place]])
    return copies


def _view_as_catalogue(sql: Any, release: Release) -> None:
    """`samples`, and as views the two tables that entries are compared with."""
    view_samples(sql, release)
    sql.execute("CREATE VIEW candidates AS FROM samples WHERE copy = 0")
    sql.execute("CREATE VIEW facts AS SELECT *, NULL::VARCHAR AS final_url FROM samples WHERE copy = 0")


def _named_rows(sql: Any, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The rows of candidates and facts that entries name: by, key, value and reason of the entry, and the image."""
    sql.execute("DROP TABLE IF EXISTS named")
    find_named(sql, list({entry.key: entry for entry in entries}.values()))
    there = {row[0] for row in sql.execute("DESCRIBE facts").fetchall()}
    image = ", ".join(name if name in there else f"NULL AS {name}" for name in _IMAGE)
    rows = sql.sql(f"SELECT DISTINCT n.*, {image} FROM named n LEFT JOIN facts USING (sample_id) ORDER BY ALL")
    return list(rows.to_arrow_table().to_pylist())


def _count_owners(sql: Any, entries: Sequence[Entry]) -> dict[str, int]:
    """In how many candidates each owner is named, where an entry names one."""
    if not any(entry.by == "owner" for entry in entries):
        return {}
    query = "SELECT name, count(DISTINCT sample_id) FROM (SELECT sample_id, unnest([rights_holder, creator]) AS name "
    return dict(sql.execute(f"{query} FROM candidates) WHERE name <> '' GROUP BY ALL").fetchall())


def describe_like(entries: Sequence[Entry], owners: Mapping[str, int]) -> list[str]:
    """Names that are like an owner of the entries and not equal to it, with the images that have them, as lines."""
    lines = []
    for entry in entries:
        if entry.by == "owner" and (like := list(names_like(entry.value, owners).items())):
            lines.append(
                f"not taken down, names like {entry.value!r}; where one is the same owner, give it as --owner:"
            )
            lines += [f"  {name}: {num:,} images" for name, num in like[:MAX_LIKE]]
            lines += [f"  and {len(like) - MAX_LIKE:,} more names"] if len(like) > MAX_LIKE else []
    return lines


def _not_found(
    release: Release, unmet: Sequence[Entry], num_given: int, is_known: bool, owners: Mapping[str, int]
) -> str:
    named = ", ".join(f"{entry.by} {entry.value!r}" for entry in unmet[:MAX_SHOWN])
    more = f" and {len(unmet) - MAX_SHOWN:,} more" if len(unmet) > MAX_SHOWN else ""
    where = "in this release nor in the catalogue" if is_known else "in this release"
    return "\n".join(
        [
            f"{release.path}: {len(unmet):,} of the {num_given:,} given are not {where}: {named}{more}; nothing was "
            "written. Give addresses, owners (rights holder or creator) and ids (of a sample, or the sha256 of an "
            "image) as attribution.parquet and samples.parquet have them, and leave out what is not there",
            *describe_like(unmet, owners),
        ]
    )


def _view(sql: Any, catalog: Catalog, name: str, paths: Sequence[str], schema: Any) -> None:
    """A view over the files that are still there; older builds may have fewer columns."""
    places = [storage.join(catalog.workdir, path) for path in paths]
    for path in places:
        with contextlib.suppress(IntegrityError):
            bring_missing([path])
    there = [path for path in places if Path(path).is_file()]
    if there:
        sql.read_parquet(there, union_by_name=True).create_view(name)
    else:
        sql.register(name, schema.empty_table())
