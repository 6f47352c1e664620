"""The kind `inaturalist`, iNaturalist's open data: photos, observations, taxa and observers, joined to one row a photo.

Reads the four tab-separated tables (.csv.gz, .csv or .tsv) of a folder; wanted columns are staged and joined on disk.
A photo of several observations counts once, for the first. Raises ConfigError when a table or column is missing.
Source: https://github.com/inaturalist/inaturalist-open-data
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from manifests.contract.settings import ConfigPath, Settings
from manifests.contract.tables import TAXON_RANKS
from manifests.errors import ConfigError
from manifests.names.sql import identifier
from manifests.stores import storage
from pipeline.sources.kinds import FirstRows, Listing, Place, Reader
from pipeline.sources.rows import Batch, Scratch
from pipeline.sources.table import TableFormat, TableReader
from pipeline.sources.tables.joining import (
    Case,
    WhereTerms,
    json_object,
    judged_rows,
    make_lineages,
    stage_table,
    staging,
    text,
    where_cases,
)

_TABLES = {
    "photos": ("photo_id", "photo_uuid", "observation_uuid", "observer_id", "extension", "license"),
    "observations": ("observation_uuid", "taxon_id", "quality_grade"),
    "taxa": ("taxon_id", "ancestry", "rank", "name"),
    "observers": ("observer_id", "login", "name"),
}
_LETTERS = {"observations": "o", "photos": "p"}  # in SQL; `where` and `extra` may name any column of these two
_ENDINGS = (".csv.gz", ".csv", ".tsv", ".tsv.gz", ".csv.zst", ".parquet")
_GRADES = ["research"]
_ADDRESS = "https://inaturalist-open-data.s3.amazonaws.com/photos/"


class InaturalistSettings(Settings):
    """The open data of iNaturalist: a folder with photos, observations, taxa and observers."""

    path: ConfigPath
    """The folder of its four tables."""
    size: Literal["original", "large", "medium", "small", "thumb", "square"] = "medium"
    """Longest side at most: large 1024 px, medium 500, small 240, thumb 100."""
    where: WhereTerms = Field(default_factory=dict)
    """By name (licence, kingdom to species, any column of the tables), the values of which a row must have one. A
    quality_grade that is not named is research."""
    extra: list[str] = Field(default_factory=list)
    """Columns kept as json beside the sample."""


class InaturalistReader(Reader[InaturalistSettings]):
    """The four tables of iNaturalist, joined."""

    settings_type = InaturalistSettings
    init_order = 2

    def check(self) -> None:
        """Check that the four tables are there with their columns and those that the config names."""
        for table in self._tables().values():
            table.check()
        columns = self._columns()
        for name in (*self.settings.where, *self.settings.extra):
            if name not in columns:
                raise ConfigError(
                    f"{self.where}: iNaturalist's tables have no '{name}'; they have {', '.join(columns)}"
                )

    def digest(self, hash_file: Callable[[str], str]) -> list[str]:
        """Hashes of the four tables."""
        return [sha256 for table in self._tables().values() for sha256 in table.digest(hash_file)]

    def rows(self, scratch: Scratch) -> Iterator[Batch]:
        """Every row of photos, filtered."""
        with staging(scratch) as (sql, folder):
            for name, table in self._tables().items():
                yield from stage_table(sql, folder, name, table)
            sql.execute(
                "CREATE VIEW tree AS SELECT taxon_id AS id, nullif(regexp_extract(ancestry, '[^/]*$'), '') AS parent, "
                "rank, name FROM taxa"
            )
            make_lineages(sql)
            yield from _joined(sql, self.settings, self._columns())

    def first_rows(self, scratch: Scratch) -> FirstRows:
        """Addresses and licences of the first photos, without a join."""
        photos, extensions, licences = self._table("photos").first_values("photo_id", "extension", "license")
        named = zip(photos, extensions, strict=True)
        urls = [f"{_ADDRESS}{photo}/{self.settings.size}.{extension}" for photo, extension in named]
        return FirstRows.of_addresses(urls, licences)

    @classmethod
    def guess(cls, listing: Listing) -> Place | None:
        """Return the folder of the four tables."""
        names = [name.lower() for name in listing.names] if listing.form == "folder" else []
        if not all(any(name.startswith(f"{table}.") for name in names) for table in _TABLES):
            return None
        words = "iNaturalist's open data (sure: photos, observations, taxa and observers are there)"
        found = Place({"path": listing.path}, words, has_taxa=True)
        found.comments["path"] = "add `where: {kingdom: [Plantae]}` to take a part of it; research grade alone is taken"
        return found

    def _columns(self) -> dict[str, str]:
        """Names that `where` and `extra` may use, and their SQL."""
        columns = {"licence": "p.license"} | {rank: f"t.{identifier(rank)}" for rank in TAXON_RANKS}
        for name, letter in _LETTERS.items():
            for column in _columns_of(self._table(name)):
                columns.setdefault(column, f"{letter}.{identifier(column)}")
        return columns

    def _tables(self) -> dict[str, TableReader]:
        """Return the four tables with the columns that are read.

        Those of the join, and those that the config asks for.
        """
        asked = {*self.settings.where, *self.settings.extra} - {"licence", *TAXON_RANKS}
        tables = {name: self._table(name) for name in _TABLES}
        for name in _LETTERS if asked else ():
            more = [column for column in _columns_of(tables[name]) if column in asked]
            tables[name] = self._table(name, more)
        return tables

    def _table(self, name: str, more: Sequence[str] = ()) -> TableReader:
        """One of the tables, with `more` columns than the join needs."""
        ending = next((end for end in _ENDINGS if storage.exists(storage.join(self.path, f"{name}{end}"))), None)
        if ending is None:
            raise ConfigError(f"{self.where}: {self.path} has no {name}.csv.gz; give the folder of the four tables")
        form: TableFormat = "parquet" if ending == ".parquet" else "tsv"
        columns = list(dict.fromkeys([*_TABLES[name], *more]))
        return TableReader.of(self.where, storage.join(self.path, name + ending), columns, form)


def _joined(sql: Any, settings: InaturalistSettings, columns: Mapping[str, str]) -> Iterator[Batch]:
    origin = (
        "photos p LEFT JOIN observations o ON o.observation_uuid = p.observation_uuid "
        "LEFT JOIN lineages t ON t.id = o.taxon_id LEFT JOIN observers w ON w.observer_id = p.observer_id"
    )
    cases = [Case("o.observation_uuid IS NULL", "no_record", "p.observation_uuid")]
    where = {"quality_grade": _GRADES, **settings.where}
    cases += where_cases(sql, where, columns.__getitem__, ("p.license", "NULL"), "photos p")
    observer = "coalesce(nullif(w.name, ''), w.login)"
    mapped = {
        "record_key": "p.photo_id",
        "group_id": "p.observation_uuid",
        "url": f"{text(_ADDRESS)} || p.photo_id || '/{settings.size}.' || p.extension",
        **{f"taxon_{rank}": f"t.{identifier(rank)}" for rank in TAXON_RANKS},
        "taxon_scientific_name": "t.name",
        "licence": "p.license",
        "rights_holder": observer,
        "creator": observer,
        "reference_url": "'https://www.inaturalist.org/observations/' || p.observation_uuid",
        "extra": json_object({name: columns[name] for name in settings.extra}),
    }
    yield from judged_rows(sql, mapped, origin, "p.n", cases)


def _columns_of(table: TableReader) -> list[str]:
    return table.columns_of(table.path)
