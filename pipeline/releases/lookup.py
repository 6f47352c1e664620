"""What the entries of a takedown name: samples of a release, and rows of every build in its work folder.

Reads samples.parquet, and the candidates, facts and decisions that the catalogue still finds. Writes nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests import storage, tables
from manifests.catalog import Catalog
from manifests.errors import ConfigError, IntegrityError
from manifests.release import Release
from manifests.remote.folder import bring_missing
from manifests.takedowns import KINDS, Entry, find_named, taken_down_since
from pipeline.releases.opening import open_sql, view_samples, work_folder_of
from pipeline.runner.work import files_in
from pipeline.store.files import Files

MAX_SHOWN = 20
_VERSIONS_OF_SELECT = (
    "SELECT fingerprint FROM stages WHERE stage = 'select' AND json_extract_string(notes, '$.content') = ?"
)
_COLUMNS = "sample_id, copy, image_id, stored_sha256, url, domain, source, split, shard, key"


@dataclass(frozen=True)
class Known:
    """Rows of the catalogue that entries name: by and key of the entry, sample_id, image_id, stored_sha256."""

    rows: Sequence[Mapping[str, Any]] = ()
    stand_ins: Sequence[str] = ()  # sample ids that the last build kept as the better copy of one of them

    @property
    def sample_ids(self) -> set[str]:
        """The samples that are named."""
        return {row["sample_id"] for row in self.rows}

    @property
    def entries(self) -> list[Entry]:
        """Entries for the rows, for the same bytes, and for the images that were kept in their place."""
        values = {*self.sample_ids, *self.stand_ins, *(row["stored_sha256"] for row in self.rows)}
        return [Entry("id", value) for value in sorted(value for value in values if value)]


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


def look_up(catalog: Catalog, release: Release, entries: Sequence[Entry]) -> Known:
    """What entries name in the catalogue; of rows whose fetch failed so far only address, owner and id are known.

    Stand-ins are those of the build that made the release, and of the last build.

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
    return Known(rows, [row[0] for row in stand_ins])


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
    release: Release, entries: Sequence[Entry], standing: Sequence[Entry] = (), in_catalogue: Known | None = None
) -> Found:
    """Every sample that entries name, and whatever else has the same bytes.

    `standing` was taken down before, and goes too. `in_catalogue` is what the catalogue knows of the entries; this
    release need not hold it.

    Raises: ConfigError naming the entries that name nothing.
    """
    with open_sql() as sql:
        view_samples(sql, release)
        sql.execute(_AS_CATALOGUE)
        named = _named_rows(sql, [*entries, *(in_catalogue.entries if in_catalogue else ())])
        earlier = _named_rows(sql, standing)
        met = {(row["by"], row["key"]) for row in [*named, *(in_catalogue.rows if in_catalogue else ())]}
        unmet = [entry for entry in entries if entry.key not in met]
        if unmet:
            raise ConfigError(_not_found(release, unmet, len(entries), in_catalogue is not None))
        asked = {row["stored_sha256"] for row in named}
        before: dict[str, Entry] = {}
        for row in sorted(earlier, key=lambda row: (KINDS.index(row["by"]), row["key"])):
            if row["stored_sha256"] not in asked:
                before.setdefault(row["stored_sha256"], Entry(row["by"], row["value"], row["reason"]))
        sql.register("gone", pa.table({"stored_sha256": pa.array(sorted({*asked, *before}), pa.string())}))
        rows = sql.sql(f"SELECT {_COLUMNS} FROM samples SEMI JOIN gone USING (stored_sha256) ORDER BY ALL")
        return Found(rows.to_arrow_table().to_pylist(), before)


def require_none_taken_down(release: Release) -> Release:
    """The same release.

    Raises: ConfigError when it holds images that the takedown list of its work folder names.
    """
    if (workdir := work_folder_of(release)) and (said := taken_down_since(release, workdir)):
        raise ConfigError(said)
    return release


# samples.parquet in the form of the two tables that entries are compared with
_AS_CATALOGUE = """
    CREATE VIEW candidates AS FROM samples WHERE copy = 0;
    CREATE VIEW facts AS SELECT *, NULL::VARCHAR AS final_url FROM samples WHERE copy = 0
"""


def _named_rows(sql: Any, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The rows of candidates and facts that entries name: by, key, value and reason of the entry, and the image."""
    sql.execute("DROP TABLE IF EXISTS named")
    find_named(sql, list({entry.key: entry for entry in entries}.values()))
    rows = sql.sql(
        "SELECT DISTINCT n.*, image_id, stored_sha256 FROM named n LEFT JOIN facts USING (sample_id) ORDER BY ALL"
    )
    return list(rows.to_arrow_table().to_pylist())


def _not_found(release: Release, unmet: Sequence[Entry], num_given: int, with_catalogue: bool) -> str:
    named = ", ".join(f"{entry.by} {entry.value!r}" for entry in unmet[:MAX_SHOWN])
    more = f" and {len(unmet) - MAX_SHOWN:,} more" if len(unmet) > MAX_SHOWN else ""
    where = "in this release nor in the catalogue" if with_catalogue else "in this release"
    return (
        f"{release.path}: {len(unmet):,} of the {num_given:,} given are not {where}: {named}{more}; nothing was "
        "written. Give addresses, owners (rights holder or creator) and ids (of a sample, or the sha256 of an image) "
        "as attribution.parquet and samples.parquet have them, and leave out what is not there"
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
