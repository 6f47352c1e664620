"""iNaturalist's open data: photos, observations, taxa and observers as they are published, joined to one row a photo.

Reads the four tab-separated tables (.csv.gz, .csv or .tsv) of a folder; wanted columns are staged and joined on disk.
A photo of several observations counts once, for the first. Raises ConfigError when a table or column is missing.
Source: https://github.com/inaturalist/inaturalist-open-data
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from manifests import storage
from manifests.errors import ConfigError
from manifests.tables import TAXON_RANKS
from pipeline.sources import table
from pipeline.sources.joining import (
    Case,
    json_object,
    judged_rows,
    stage_table,
    staging,
    text,
    where_case,
    where_cases,
)
from pipeline.sources.lineage import make_lineages
from pipeline.sources.rows import Batch, Scratch
from pipeline.sources.settings import NestedTable, Origin, TableFormat, given

_TABLES = {
    "photos": ("photo_id", "photo_uuid", "observation_uuid", "observer_id", "extension", "license"),
    "observations": ("observation_uuid", "taxon_id", "quality_grade"),
    "taxa": ("taxon_id", "ancestry", "rank", "name"),
    "observers": ("observer_id", "login", "name"),
}
_LETTERS = {"observations": "o", "photos": "p"}  # in SQL; `where` and `extra` may name any column of these two
_ENDINGS = (".csv.gz", ".csv", ".tsv", ".tsv.gz", ".csv.zst", ".parquet")
_ADDRESS = "https://inaturalist-open-data.s3.amazonaws.com/photos/"


def check_source(source: Origin) -> None:
    """Check that the four tables are there with their columns and those that the config names.

    Raises: ConfigError.
    """
    for inner in _tables(source).values():
        table.check_source(inner)
    known = _known(source)
    for name in (*given(source.inaturalist).where, *given(source.inaturalist).extra):
        if name not in known:
            raise ConfigError(f"{source.where}: iNaturalist's tables have no '{name}'; they have {', '.join(known)}")


def digest_inputs(source: Origin, hash_file: Callable[[str], str]) -> list[str]:
    """Hashes of the four tables."""
    return [digest for inner in _tables(source).values() for digest in table.digest_inputs(inner, hash_file)]


def read_rows(source: Origin, scratch: Scratch) -> Iterator[Batch]:
    """Every row of photos, filtered."""
    with staging(scratch) as (sql, folder):
        for name, inner in _tables(source).items():
            yield from stage_table(sql, folder, name, inner)
        sql.execute(
            "CREATE VIEW tree AS SELECT taxon_id AS id, nullif(regexp_extract(ancestry, '[^/]*$'), '') AS parent, "
            "rank, name FROM taxa"
        )
        make_lineages(sql, "tree")
        yield from _joined(sql, source)


def first_photos(source: Origin) -> dict[str, list[str | None]]:
    """Addresses and licences of the first photos, without a join: `url` and `licence`."""
    size = given(source.inaturalist).size
    for raw in table.read_batches(_table(source, "photos")):
        photos = zip(raw.rows["photo_id"].to_pylist(), raw.rows["extension"].to_pylist(), strict=True)
        urls: list[str | None] = [f"{_ADDRESS}{photo}/{size}.{extension}" for photo, extension in photos]
        return {"url": urls, "licence": raw.rows["license"].to_pylist()}
    return {"url": [], "licence": []}


def _joined(sql: Any, source: Origin) -> Iterator[Batch]:
    settings = given(source.inaturalist)
    origin = (
        "photos p LEFT JOIN observations o ON o.observation_uuid = p.observation_uuid "
        "LEFT JOIN lineages t ON t.id = o.taxon_id LEFT JOIN observers w ON w.observer_id = p.observer_id"
    )
    known = _known(source)
    cases = [Case("o.observation_uuid IS NULL", "no_record", "p.observation_uuid")]
    if settings.quality_grade:
        cases.append(where_case("quality_grade", "o.quality_grade", settings.quality_grade))
    cases += where_cases(sql, settings.where, known.__getitem__, "p.license", "photos p")
    observer = "coalesce(nullif(w.name, ''), w.login)"
    columns = {
        "record_key": "p.photo_id",
        "group_id": "p.observation_uuid",
        "url": f"{text(_ADDRESS)} || p.photo_id || '/{settings.size}.' || p.extension",
        **{f"taxon_{rank}": f't."{rank}"' for rank in TAXON_RANKS},
        "taxon_scientific_name": "t.name",
        "licence": "p.license",
        "rights_holder": observer,
        "creator": observer,
        "reference_url": "'https://www.inaturalist.org/observations/' || p.observation_uuid",
        "extra": json_object({name: known[name] for name in settings.extra}),
    }
    yield from judged_rows(sql, columns, origin, "p.n", cases)


def _known(source: Origin) -> dict[str, str]:
    """Names that `where` and `extra` may use, and their SQL."""
    found = {"licence": "p.license"} | {rank: f't."{rank}"' for rank in TAXON_RANKS}
    for name, letter in _LETTERS.items():
        for column in _columns_of(_table(source, name)):
            found.setdefault(column, f'{letter}."{column}"')
    return found


def _tables(source: Origin) -> dict[str, NestedTable]:
    """The four tables with the columns that are read: those of the join, and those that the config asks for."""
    settings = given(source.inaturalist)
    asked = {*settings.where, *settings.extra} - {"licence", *TAXON_RANKS}
    found = {name: _table(source, name) for name in _TABLES}
    for name in _LETTERS if asked else ():
        more = [column for column in _columns_of(found[name]) if column in asked]
        found[name] = _table(source, name, more)
    return found


def _table(source: Origin, name: str, more: list[str] | None = None) -> NestedTable:
    """One of the tables as the table reader takes it, with `more` columns than the join needs."""
    folder = given(source.inaturalist).path
    fs, inner = storage.filesystem(folder)
    ending = next((end for end in _ENDINGS if fs.exists(f"{inner.rstrip('/')}/{name}{end}")), None)
    if ending is None:
        raise ConfigError(f"{source.where}: {folder} has no {name}.csv.gz; give the folder of the four tables")
    form: TableFormat = "parquet" if ending == ".parquet" else "tsv"
    columns = list(dict.fromkeys([*_TABLES[name], *(more or [])]))
    return NestedTable.of(source, storage.join(folder, name + ending), columns, form)


def _columns_of(inner: NestedTable) -> list[str]:
    return table.read_columns(str(inner.table), inner)
