"""The kind `eol`: the Encyclopedia of Life's media manifest, with names of its pages from a taxon table beside it.

Reads the manifest's files with their own column names, and optionally the Dynamic Hierarchy's taxon.tab; both are
joined on disk by page. The key of a picture is its address, because EOL's content ids are not stable.
Raises ConfigError when a file or column is missing.
Source: https://opendata.eol.org (image list), https://zenodo.org (EOL Dynamic Hierarchy)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from pydantic import Field

from manifests.contract.settings import ConfigPath, Settings
from manifests.contract.tables import TAXON_RANKS
from manifests.errors import ConfigError
from manifests.names.sql import identifier
from pipeline.sources.kinds import FirstRows, Listing, Place, Reader
from pipeline.sources.rows import Batch, Scratch
from pipeline.sources.table import TableFormat, TableReader, first_columns
from pipeline.sources.tables.joining import (
    WhereTerms,
    json_object,
    judged_rows,
    make_lineages,
    stage_table,
    staging,
    where_cases,
)

# Column of the manifest: its name in SQL here.
_MANIFEST = {
    "EOL content ID": "content",
    "EOL page ID": "page",
    "Medium Source URL": "source_url",
    "EOL Full-Size Copy URL": "copy_url",
    "License Name": "licence",
    "Copyright Owner": "owner",
}
_TAXA = ("taxonID", "eolID", "parentNameUsageID", "taxonRank", "scientificName")
_CANONICAL = "canonicalName"  # in newer releases: the name without its authors, which stands for the rank


class EolSettings(Settings):
    """The media manifest of the Encyclopedia of Life."""

    path: ConfigPath
    """The csv files of the manifest: one, a folder, or a glob."""
    address: Literal["copy", "source"] = "copy"
    """EOL's full-size copy, or where the picture came from."""
    taxa: ConfigPath | None = None
    """taxon.tab of EOL's Dynamic Hierarchy, for the names of the pages."""
    where: WhereTerms = Field(default_factory=dict)
    """By name (licence, and kingdom to species with `taxa`), the values of which a row must have one."""


class EolReader(Reader[EolSettings]):
    """EOL's manifest, with or without the names of its pages."""

    settings_type = EolSettings
    takes_folders = False
    init_order = 5

    def extra_names(self) -> list[str]:
        """Return the names of the columns that are kept beside each picture."""
        return ["eol_page_id", "source_url"]

    def check(self) -> None:
        """Check that the manifest and the taxon table are there with their columns."""
        for table in self._tables().values():
            table.check()
        ranks = [name for name in self.settings.where if name != "licence"]
        unknown = [name for name in ranks if name not in TAXON_RANKS]
        if unknown:
            raise ConfigError(f"{self.where}: `where` knows licence and {', '.join(TAXON_RANKS)}, not '{unknown[0]}'")
        if ranks and self.settings.taxa is None:
            raise ConfigError(
                f"{self.where}: `where` on {ranks[0]} needs `taxa`: the manifest names pages by number alone"
            )

    def digest(self, hash_file: Callable[[str], str]) -> list[str]:
        """Hashes of the manifest's files and of the taxon table."""
        return [sha256 for table in self._tables().values() for sha256 in table.digest(hash_file)]

    def rows(self, scratch: Scratch) -> Iterator[Batch]:
        """Every row of the manifest, filtered."""
        tables = self._tables()
        with staging(scratch) as (sql, folder):
            yield from stage_table(sql, folder, "manifest", tables["manifest"], _MANIFEST)
            if "taxa" in tables:
                yield from stage_table(sql, folder, "taxa", tables["taxa"])
                _make_pages(sql, _CANONICAL in tables["taxa"].columns)
            yield from _judged(sql, self.settings)

    def first_rows(self, scratch: Scratch) -> FirstRows:
        """Addresses and licences of the first rows of the manifest, without a join."""
        column = "EOL Full-Size Copy URL" if self.settings.address == "copy" else "Medium Source URL"
        return FirstRows.of_addresses(*self._tables()["manifest"].first_values(column, "License Name"))

    @classmethod
    def guess(cls, listing: Listing) -> Place | None:
        """Return the manifest, by its first column."""
        if next(iter(_MANIFEST)) not in (first_columns(listing) or ()):
            return None
        return Place({"path": listing.path}, "EOL's media manifest (sure: its columns)")

    def _tables(self) -> dict[str, TableReader]:
        taxa = self.settings.taxa
        tables = {"manifest": TableReader.of(self.where, self.path, list(_MANIFEST))}
        if taxa is not None:
            form: TableFormat = "tsv" if ".tab" in taxa else "auto"
            table = TableReader.of(self.where, taxa, _TAXA, form)
            (file,) = table.files()
            more = [_CANONICAL] if _CANONICAL in table.columns_of(file) else []
            tables["taxa"] = TableReader.of(self.where, taxa, [*_TAXA, *more], form)
        return tables


def _make_pages(sql: Any, canonical: bool) -> None:
    """Ranks and name of each page; of several taxa that point to one page the first counts."""
    name = f"coalesce(nullif({identifier(_CANONICAL)}, ''), \"scientificName\")" if canonical else '"scientificName"'
    sql.execute(
        'CREATE VIEW tree AS SELECT "taxonID" AS id, nullif("parentNameUsageID", \'\') AS parent, '
        f'"taxonRank" AS rank, {name} AS name FROM taxa'
    )
    make_lineages(sql)
    sql.execute(
        'CREATE TABLE pages AS SELECT l.* REPLACE (t."scientificName" AS name), t."eolID" AS page '
        'FROM lineages l JOIN taxa t ON t."taxonID" = l.id '
        'WHERE t."eolID" <> \'\' QUALIFY row_number() OVER (PARTITION BY t."eolID" ORDER BY t.n) = 1'
    )


def _judged(sql: Any, settings: EolSettings) -> Iterator[Batch]:
    taxon = {}
    origin = "manifest m"
    if settings.taxa is not None:
        origin += " LEFT JOIN pages t ON t.page = m.page"
        taxon = {f"taxon_{rank}": f"t.{identifier(rank)}" for rank in TAXON_RANKS} | {"taxon_scientific_name": "t.name"}
    cases = where_cases(sql, settings.where, lambda rank: f"t.{identifier(rank)}", ("m.licence", "NULL"), "manifest m")
    url = "m.copy_url" if settings.address == "copy" else "coalesce(nullif(m.source_url, ''), m.copy_url)"
    columns = {
        "record_key": "coalesce(nullif(m.copy_url, ''), m.source_url)",
        "url": url,
        **taxon,
        "licence": "m.licence",
        "rights_holder": "m.owner",
        "reference_url": "'https://eol.org/media/' || m.content",
        "extra": json_object({"eol_page_id": "m.page", "source_url": "m.source_url"}),
    }
    yield from judged_rows(sql, columns, origin, "m.n", cases)
