"""The kind `dwca`, a Darwin Core Archive: records joined with their media rows, one candidate a picture.

Reads the zip as it came, or the folder it was unpacked to. The wanted columns of the core and the media file are
streamed into Parquet in a private folder. DuckDB joins them there and spills: memory does not grow with the archive,
disk does (by about the size of the wanted columns, compressed). Every media row ends as a row or with the filter that
dropped it; a record without media ends as `no_media`. Raises ConfigError for what is no archive, and for terms that it
does not have.

python-dwca-reader (0.17) is not used: it joins by a Python dict of all ids, and yields Python rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from manifests.contract.settings import ConfigPath, Settings
from manifests.errors import ConfigError
from manifests.names.sql import identifier
from pipeline.sources.biology.archive import META_FILE, Archive, DataFile, Term, read_archive
from pipeline.sources.files import reading
from pipeline.sources.kinds import FirstRows, Listing, Place, Reader
from pipeline.sources.rows import Batch, Scratch, make_batch, malformed_rows
from pipeline.sources.tables.delimited import RawBatch, read_delimited, read_header
from pipeline.sources.tables.joining import (
    Case,
    StagedTable,
    WhereTerms,
    json_object,
    judged_rows,
    lost_rows,
    staging,
    text,
    view_staged,
    where_cases,
)

_MEDIA_TYPES = (
    "http://rs.gbif.org/terms/1.0/Multimedia",
    "http://rs.tdwg.org/ac/terms/Multimedia",
    "http://eol.org/schema/media/Document",
    "http://rs.gbif.org/terms/1.0/Image",
)
_VERNACULAR_TYPE = "http://rs.gbif.org/terms/1.0/VernacularName"
_RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")
# Terms of the media row that may hold the same thing; the first one that is not empty counts. Audubon Core and EOL
# write accessURI where GBIF's extension writes identifier, and UsageTerms and Owner for licence and rights holder.
_URL = ("accessURI", "identifier")
_LICENCE = ("license", "UsageTerms", "WebStatement", "rights")
_RIGHTS_HOLDER = ("rightsHolder", "Owner")
_PAGE = ("references", "furtherInformationURL")
VERNACULAR_LANGUAGES = ("en", "eng", "english")  # of names in a file of their own; the first one there is counts
_DATASET_KEY = "datasetKey"  # of a record in what GBIF gives; kept, so that a release can count its data sets
_LISTED = "associatedMedia"  # of a record, in archives without a media file


class DwcaSettings(Settings):
    """A Darwin Core Archive, as GBIF gives it.

    Terms of the record go by their short name (basisOfRecord, countryCode), those of the media row with `media.` in
    front (media.title), and `licence` is the licence of the picture in any spelling.
    """

    path: ConfigPath
    """The zip as it came, or the folder it was unpacked to."""
    caption: list[str] = Field(default_factory=list)
    """Terms, joined with a space; without any, the text is made from the taxon."""
    where: WhereTerms = Field(default_factory=dict)
    """By term, the values of which a row must have one."""
    extra: list[str] = Field(default_factory=list)
    """Terms kept as json beside the sample."""


class DwcaReader(Reader[DwcaSettings]):
    """An archive, zipped or unpacked."""

    settings_type: ClassVar[type[DwcaSettings]] = DwcaSettings
    init_order = 1
    ids = ("gbifid", "occurrenceid")
    version = "2"  # keeps datasetKey

    @property
    def archive(self) -> str:
        """The zip or the folder that is read."""
        return self.path

    def check(self) -> None:
        """Check that the archive is one, describes media, and has the terms that the config names."""
        plan = self._plan()
        for data, terms, _ in plan.files:
            for location in data.locations:
                with reading(f"{self.where}: {plan.archive.path}: {location}", plan.archive.path):
                    _columns_of_terms(data, terms, _column_names(plan.archive, data, location))

    def digest(self, hash_file: Callable[[str], str]) -> list[str]:
        """Hash of the zip, or of the described files of the folder."""
        return [hash_file(path) for path in read_archive(self.archive, self.where).paths()]

    def rows(self, scratch: Scratch) -> Iterator[Batch]:
        """Every media row of the archive, filtered, and the rows that were dropped."""
        plan = self._plan()
        with staging(scratch) as (sql, folder):
            for data, terms, name in plan.files:
                with StagedTable(folder, name, ["id", *terms]) as staged:
                    yield from _stage(plan, data, terms, staged, self.where)
                view_staged(sql, staged)
            if plan.media.row_type == _LISTED:
                _unfold(sql)
            yield from _repeated(sql)
            yield from _joined(sql, plan)

    def first_rows(self, scratch: Scratch) -> FirstRows:
        """Addresses and licences of the first media rows, without a join."""
        plan = self._plan()
        read = _read_file(plan, plan.media, plan.media_terms, plan.media.locations[0], self.where)
        _, rows = next(read, (None, dict[str, Any]()))
        there = [[rows[term] for term in terms if term in rows] for terms in (_URL, _LICENCE)]
        return FirstRows.of_addresses(*(pc.coalesce(*values).to_pylist() if values else [] for values in there))

    def counts(self) -> dict[str, str]:
        """Return the pictures of each data set, as a form of GBIF takes them.

        No header, a key and a number in each line.

        Source: https://www.gbif.org/derived-dataset/about
        """
        about = (
            "it goes into the form at https://www.gbif.org/derived-dataset/register, which gives a release its own DOI"
        )
        return {"file": "gbif-derived-dataset.csv", "by": _DATASET_KEY, "about": about}

    @classmethod
    def guess(cls, listing: Listing) -> Place | None:
        """Return an archive, by its meta.xml."""
        if not any(name.lower().rpartition("/")[2] == META_FILE for name in listing.names):
            return None
        terms = {term for data in read_archive(listing.path, listing.path).extensions for term in data.fields}
        found = Place({"path": listing.path}, "Darwin Core Archive (sure: it has a meta.xml)", has_taxa=True)
        found.states_licence = bool(terms.intersection(_LICENCE))
        found.comments["path"] = "add `where: {kingdom: [Plantae], licence: [CC0-1.0, CC-BY]}` to take a part of it"
        return found

    def _plan(self) -> _Plan:
        archive = read_archive(self.archive, self.where)
        media = archive.extension(*_MEDIA_TYPES) or _listed_media(archive.core)
        if media is None:
            types = ", ".join(data.row_type for data in archive.extensions) or "none"
            raise ConfigError(
                f"{self.where}: {self.archive} holds no media file (its extensions: {types}), "
                f"and its records have no {_LISTED}"
            )
        plan = _Plan(archive, media, self.settings, self.where)
        if not any(name in media.fields for name in _URL):
            raise ConfigError(
                f"{self.where}: {media.locations[0]} has neither identifier nor accessURI, so it holds no addresses"
            )
        return plan


# ---- what is to be read


class _Plan:
    """An archive, and which of its terms a source needs."""

    def __init__(self, archive: Archive, media: DataFile, settings: DwcaSettings, where: str) -> None:
        self.archive, self.media, self.settings = archive, media, settings
        core = archive.core
        self.extra = [*settings.extra]
        if _DATASET_KEY in core.fields and _DATASET_KEY not in self.extra:
            self.extra.append(_DATASET_KEY)
        named = [name for name in (*settings.caption, *self.extra, *settings.where) if name != "licence"]
        self._check_terms(named, where)
        of_media = [name.removeprefix("media.") for name in named if name.startswith("media.")]
        of_record = [name for name in named if not name.startswith("media.")]
        terms = [*_URL, *_LICENCE, *_RIGHTS_HOLDER, *_PAGE, "creator", "type", "format", *of_media]
        self.media_terms = [name for name in dict.fromkeys(terms) if name in media.fields]
        terms = [*_RANKS, "species", "specificEpithet", "scientificName", "vernacularName", "references", "gbifID"]
        self.core_terms = [name for name in dict.fromkeys([*terms, *of_record]) if name in core.fields]
        self.files = [(core, self.core_terms, "core"), (media, self.media_terms, "media")]
        names = archive.extension(_VERNACULAR_TYPE)
        self.vernacular = names if names is not None and "vernacularName" in names.fields else None
        if self.vernacular is not None:
            terms = ["vernacularName", "language", "isPreferredName"]
            terms = [name for name in terms if name in self.vernacular.fields]
            self.files.append((self.vernacular, terms, "vernacular"))

    def _check_terms(self, named: list[str], where: str) -> None:
        there = [*self.archive.core.fields, *(f"media.{name}" for name in self.media.fields)]
        for name in named:
            if name not in there:
                near = difflib.get_close_matches(name, there, n=1, cutoff=0.4)
                hint = f" (did you mean '{near[0]}'?)" if near else ""
                raise ConfigError(
                    f"{where}: the archive has no term '{name}'{hint}; terms of the record are named as they are, "
                    "those of the media row with `media.` in front"
                )

    def column(self, name: str) -> str:
        """Return the SQL column of a term as the config names it."""
        return f"m.{identifier(name.removeprefix('media.'))}" if name.startswith("media.") else f"c.{identifier(name)}"

    def first(self, terms: tuple[str, ...]) -> str:
        """Return SQL for the first of some media terms that is not empty."""
        there = [f"m.{identifier(name)}" for name in terms if name in self.media_terms]
        return f"coalesce({', '.join(there)})" if there else "NULL"

    def core(self, name: str) -> str:
        """Return SQL for a term of the record, null where the archive has none."""
        return f"c.{identifier(name)}" if name in self.core_terms else "NULL"


def _listed_media(core: DataFile) -> DataFile | None:
    """Return the core as a media file: archives without one may list addresses in each record."""
    if _LISTED not in core.fields:
        return None
    return replace(core, row_type=_LISTED, fields={"identifier": core.fields[_LISTED]})


# ---- staging


def _stage(plan: _Plan, data: DataFile, terms: list[str], staged: StagedTable, where: str) -> Iterator[Batch]:
    """Write the wanted columns of one file to Parquet; rows that cannot be read come back as lost."""
    start = 0
    for location in data.locations:
        end = 0
        for raw, columns in _read_file(plan, data, terms, location, where):
            staged.write(raw.numbers + start, columns)
            if raw.malformed:
                numbered = [(start + number, line) for number, line in raw.malformed]
                yield make_batch({}, [], malformed_rows(numbered, location))
            end = raw.end
        start += end


def _read_file(
    plan: _Plan, data: DataFile, terms: list[str], location: str, where: str
) -> Iterator[tuple[RawBatch, dict[str, Any]]]:
    """Yield the rows of one file in batches, each with the columns of the terms, gaps filled with their defaults."""
    with reading(f"{where}: {plan.archive.path}: {location}", plan.archive.path):
        names = _column_names(plan.archive, data, location)
        places = _columns_of_terms(data, terms, names)
        columns = list(dict.fromkeys(name for name in places.values() if name))
        with plan.archive.open(location) as stream:
            for raw in read_delimited(stream, names, columns, data.dialect, data.header_lines):
                yield raw, _with_defaults(raw.rows, data, places)


def _column_names(archive: Archive, data: DataFile, location: str) -> list[str]:
    """Return a name for each column of a file, by its first row."""
    with archive.open(location) as stream:
        return [f"f{number}" for number in range(len(read_header(stream, data.dialect, data.header_lines)))]


def _columns_of_terms(data: DataFile, terms: list[str], names: list[str]) -> dict[str, str | None]:
    """Column of each term that is read; None for one that has only a default.

    Raises: ValueError when the description names a column that is not there.
    """
    places: dict[str, int | None] = {"id": data.id_index, **{name: data.fields[name].index for name in terms}}
    beyond = [name for name, index in places.items() if index is not None and index >= len(names)]
    if beyond:
        raise ValueError(f"{beyond[0]} should be column {places[beyond[0]]}, but rows have {len(names)} columns")
    return {name: names[index] if index is not None else None for name, index in places.items()}


def _with_defaults(rows: pa.Table, data: DataFile, places: dict[str, str | None]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, column in places.items():
        default = data.fields.get(name, Term(None, None)).default if name != "id" else None
        if column is None:
            columns[name] = pa.repeat(pa.scalar(default, pa.string()), rows.num_rows)
            continue
        trimmed = pc.utf8_trim_whitespace(rows[column])
        empty = pc.equal(pc.fill_null(trimmed, ""), "")
        columns[name] = pc.if_else(empty, pa.scalar(default, pa.string()), trimmed)
    return columns


# ---- joining


def _unfold(sql: Any) -> None:
    """Make one row of each address where a record lists several; the same address counts once."""
    sql.execute("ALTER VIEW media RENAME TO listed")
    marked = "regexp_replace(identifier, '[\\s|;,]+(https?://)', '\t\\1', 'g')"  # they separate only before an address
    urls = f"unnest(list_distinct(string_split({marked}, '\t')))"
    sql.execute(f"CREATE VIEW media AS SELECT n, id, {urls} AS identifier FROM listed WHERE identifier IS NOT NULL")


def _repeated(sql: Any) -> Iterator[Batch]:
    """Count records that repeat an id. The first record counts, and the media of the id belong to it."""
    sql.execute(
        "CREATE TABLE again AS SELECT id, min(n) AS first FROM core WHERE id IS NOT NULL "
        "GROUP BY id HAVING count(*) > 1"
    )
    sql.execute(
        "CREATE VIEW records AS SELECT * FROM core c WHERE id IS NOT NULL "
        "AND NOT EXISTS (SELECT 1 FROM again a WHERE a.id = c.id AND a.first < c.n)"
    )
    yield from lost_rows(
        sql,
        "SELECT n AS row_number, id AS record_key, NULL AS url, 'duplicate_record' AS reason, "
        "'row ' || (first + 1) AS value FROM core JOIN again USING (id) WHERE n > first",
    )


def _joined(sql: Any, plan: _Plan) -> Iterator[Batch]:
    vernacular = plan.core("vernacularName")
    join = ""
    if plan.vernacular is not None:
        _pick_vernacular(sql, plan)
        vernacular, join = f"coalesce({vernacular}, v.name)", "LEFT JOIN names v ON v.id = m.id"
    captions = ", ".join(plan.column(name) for name in plan.settings.caption)
    link = "'https://www.gbif.org/occurrence/' || " + plan.core("gbifID")
    licence, url = plan.first(_LICENCE), plan.first(_URL)
    columns = {
        "record_key": f"m.id || '/' || {url}",
        "group_id": "m.id",
        "url": url,
        "caption": f"concat_ws(' ', {captions})" if captions else "NULL",
        **{f"taxon_{rank}": plan.core(rank) for rank in _RANKS},
        "taxon_species": _species(plan),
        "taxon_scientific_name": plan.core("scientificName"),
        "taxon_vernacular_name": vernacular,
        "licence": licence,
        "licence_url": f"if(regexp_matches({licence}, '^https?://'), {licence}, NULL)",
        "rights_holder": plan.first(_RIGHTS_HOLDER),
        "creator": plan.first(("creator",)),
        "reference_url": f"coalesce({plan.first(_PAGE)}, {plan.core('references')}, {link})",
        "extra": json_object({name: plan.column(name) for name in plan.extra}),
    }
    yield from judged_rows(sql, columns, f"media m LEFT JOIN records c ON c.id = m.id {join}", "m.n", _cases(sql, plan))
    yield from lost_rows(
        sql,
        "SELECT n AS row_number, id AS record_key, NULL AS url, 'no_media' AS reason, NULL AS value "
        "FROM records ANTI JOIN (SELECT DISTINCT id FROM media) USING (id) "
        "UNION ALL SELECT n, NULL, NULL, 'missing_key', NULL FROM core WHERE id IS NULL",
    )


def _species(plan: _Plan) -> str:
    """GBIF's own term, else the epithet of a genus; ingest writes the binomial."""
    return f"coalesce({plan.core('species')}, if({plan.core('genus')} IS NULL, NULL, {plan.core('specificEpithet')}))"


def _cases(sql: Any, plan: _Plan) -> list[Case]:
    kind, form = plan.first(("type",)), plan.first(("format",))  # without a kind a row counts by its format
    is_picture = (
        f"if({kind} IS NULL, coalesce(lower({form}), 'image') LIKE 'image%', "
        f"lower(regexp_extract({kind}, '[^/#]*$')) = 'stillimage')"
    )
    return [
        Case("c.id IS NULL", "no_record", "m.id"),
        Case(f"NOT {is_picture}", "where_media_type", f"coalesce({kind}, {form})"),
        *where_cases(sql, plan.settings.where, plan.column, (plan.first(_LICENCE), "NULL"), "media m"),
    ]


def _pick_vernacular(sql: Any, plan: _Plan) -> None:
    """Choose one name a record: the first wanted language, of its names a preferred one, of those the first."""
    assert plan.vernacular is not None
    has = plan.vernacular.fields
    languages = ", ".join(map(text, VERNACULAR_LANGUAGES))
    preference = f"list_position([{languages}], lower(language))" if "language" in has else "1"
    preferred = (
        "lower(coalesce(\"isPreferredName\", '')) NOT IN ('true', '1', 'yes')" if "isPreferredName" in has else "true"
    )
    sql.execute(
        f'CREATE TABLE names AS SELECT id, arg_min("vernacularName", ({preference}, {preferred}, n)) AS name '
        f'FROM vernacular WHERE {preference} IS NOT NULL AND "vernacularName" IS NOT NULL GROUP BY id'
    )
