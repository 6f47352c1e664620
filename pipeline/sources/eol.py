"""The media manifest of the Encyclopedia of Life, and the names of its pages from a taxon table beside it.

Reads the manifest's files with their own column names, and optionally the Dynamic Hierarchy's taxon.tab; both are
joined on disk by page. The key of a picture is its address, because EOL's content ids are not stable.
Raises ConfigError when a file or column is missing.
Source: https://opendata.eol.org (image list), https://zenodo.org (EOL Dynamic Hierarchy)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from manifests.errors import ConfigError
from manifests.tables import TAXON_RANKS
from pipeline.sources import table
from pipeline.sources.joining import json_object, judged_rows, stage_table, staging, where_cases
from pipeline.sources.lineage import make_lineages
from pipeline.sources.rows import Batch, Scratch
from pipeline.sources.settings import EolSettings, NestedTable, Origin, TableFormat, given

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


def check_source(source: Origin) -> None:
    """Check that the manifest and the taxon table are there with their columns.

    Raises: ConfigError.
    """
    settings = given(source.eol)
    for inner in _tables(source).values():
        table.check_source(inner)
    ranks = [name for name in settings.where if name != "licence"]
    unknown = [name for name in ranks if name not in TAXON_RANKS]
    if unknown:
        raise ConfigError(f"{source.where}: `where` knows licence and {', '.join(TAXON_RANKS)}, not '{unknown[0]}'")
    if ranks and settings.taxa is None:
        raise ConfigError(
            f"{source.where}: `where` on {ranks[0]} needs `taxa`: the manifest names pages by number alone"
        )


def digest_inputs(source: Origin, hash_file: Callable[[str], str]) -> list[str]:
    """Hashes of the manifest's files and of the taxon table."""
    return [digest for inner in _tables(source).values() for digest in table.digest_inputs(inner, hash_file)]


def read_rows(source: Origin, scratch: Scratch) -> Iterator[Batch]:
    """Every row of the manifest, filtered."""
    tables = _tables(source)
    with staging(scratch) as (sql, folder):
        yield from stage_table(sql, folder, "manifest", tables["manifest"], _MANIFEST)
        if "taxa" in tables:
            yield from stage_table(sql, folder, "taxa", tables["taxa"])
            _make_pages(sql, _CANONICAL in table.mapped_columns(tables["taxa"]))
        yield from _judged(sql, given(source.eol))


def first_media(source: Origin) -> dict[str, list[str | None]]:
    """Addresses and licences of the first rows of the manifest, without a join: `url` and `licence`."""
    column = "EOL Full-Size Copy URL" if given(source.eol).address == "copy" else "Medium Source URL"
    for raw in table.read_batches(_tables(source)["manifest"]):
        return {"url": raw.rows[column].to_pylist(), "licence": raw.rows["License Name"].to_pylist()}
    return {"url": [], "licence": []}


def _make_pages(sql: Any, canonical: bool) -> None:
    """Ranks and name of each page; of several taxa that point to one page the first counts."""
    name = f'coalesce(nullif("{_CANONICAL}", \'\'), "scientificName")' if canonical else '"scientificName"'
    sql.execute(
        'CREATE VIEW tree AS SELECT "taxonID" AS id, nullif("parentNameUsageID", \'\') AS parent, '
        f'"taxonRank" AS rank, {name} AS name FROM taxa'
    )
    make_lineages(sql, "tree")
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
        taxon = {f"taxon_{rank}": f't."{rank}"' for rank in TAXON_RANKS} | {"taxon_scientific_name": "t.name"}
    cases = where_cases(sql, settings.where, lambda rank: f't."{rank}"', "m.licence", "manifest m")
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


def _tables(source: Origin) -> dict[str, NestedTable]:
    settings = given(source.eol)
    found = {"manifest": NestedTable.of(source, settings.path, list(_MANIFEST))}
    if settings.taxa is not None:
        form: TableFormat = "tsv" if ".tab" in settings.taxa else "auto"
        known = NestedTable.of(source, settings.taxa, _TAXA, form)
        (file,) = table.list_files(known)
        more = [_CANONICAL] if _CANONICAL in table.read_columns(file, known) else []
        found["taxa"] = NestedTable.of(source, settings.taxa, [*_TAXA, *more], form)
    return found
