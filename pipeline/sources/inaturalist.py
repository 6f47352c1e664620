"""iNaturalist's open data: photos, observations, taxa and observers as they are published, joined to one row a photo.

Reads the four tab-separated tables (.csv.gz, .csv or .tsv) of a folder; wanted columns are staged and joined on disk.
A photo of several observations counts once, for the first. Gives up with ConfigError when a table or column is missing.
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
    StagedTable,
    judged_rows,
    licence_case,
    staging,
    text,
    view_staged,
    where_case,
)
from pipeline.sources.lineage import make_lineages
from pipeline.sources.rows import Batch, Lost, Scratch, make_batch
from pipeline.sources.settings import ColumnMap, InaturalistSettings, NestedTable, Origin

_TABLES = {
    "photos": ("photo_id", "photo_uuid", "observation_uuid", "observer_id", "extension", "license"),
    "observations": ("observation_uuid", "taxon_id", "quality_grade"),
    "taxa": ("taxon_id", "ancestry", "rank", "name"),
    "observers": ("observer_id", "login", "name"),
}
_ENDINGS = (".csv.gz", ".csv", ".tsv", ".tsv.gz", ".csv.zst", ".parquet")
_ADDRESS = "https://inaturalist-open-data.s3.amazonaws.com/photos/"


def check_source(source: Origin) -> None:
    """See that the four tables are there with their columns and those that the config names.

    Raises: ConfigError.
    """
    for inner in _tables(source).values():
        table.check_source(inner)
    for name in (*_settings(source).where, *_settings(source).extra):
        if name not in _known(source):
            raise ConfigError(
                f"{source.where}: iNaturalist's tables have no '{name}'; they have {', '.join(_known(source))}"
            )


def digest_inputs(source: Origin, hash_file: Callable[[str], str]) -> list[str]:
    """Hashes of the four tables."""
    return [digest for inner in _tables(source).values() for digest in table.digest_inputs(inner, hash_file)]


def read_rows(source: Origin, scratch: Scratch) -> Iterator[Batch]:
    """Every row of photos, filtered."""
    with staging(scratch) as (sql, folder):
        for name, inner in _tables(source).items():
            with StagedTable(folder, name, table.mapped_columns(inner)) as staged:
                yield from _stage(inner, staged, name)
            view_staged(sql, staged)
        sql.execute(
            "CREATE VIEW tree AS SELECT taxon_id AS id, nullif(regexp_extract(ancestry, '[^/]*$'), '') AS parent, "
            "rank, name FROM taxa"
        )
        make_lineages(sql, "tree")
        yield from _joined(sql, source)


def _stage(inner: Origin, staged: StagedTable, name: str) -> Iterator[Batch]:
    for raw in table.read_batches(inner):
        staged.write(raw.numbers, {column: raw.rows[column] for column in raw.rows.column_names})
        if raw.malformed:
            yield make_batch({}, [], [Lost(at, "malformed_row", f"{name}: {line}") for at, line in raw.malformed])


def _joined(sql: Any, source: Origin) -> Iterator[Batch]:
    settings = _settings(source)
    origin = (
        "photos p LEFT JOIN observations o ON o.observation_uuid = p.observation_uuid "
        "LEFT JOIN lineages t ON t.id = o.taxon_id LEFT JOIN observers w ON w.observer_id = p.observer_id"
    )
    known = _known(source)
    cases = [Case("o.observation_uuid IS NULL", "no_record", "p.observation_uuid")]
    if settings.quality_grade:
        cases.append(where_case("quality_grade", "o.quality_grade", settings.quality_grade))
    for name, allowed in settings.where.items():
        if name == "licence":
            cases.append(licence_case(sql, "p.license", "photos p", allowed))
        else:
            cases.append(where_case(name, known[name], allowed))
    extra = ", ".join(f"{text(name)}, {known[name]}" for name in sorted(settings.extra))
    who = "coalesce(nullif(w.name, ''), w.login)"
    columns = {
        "record_key": "p.photo_id",
        "url": f"{text(_ADDRESS)} || p.photo_id || '/{settings.size}.' || p.extension",
        **{f"taxon_{rank}": f't."{rank}"' for rank in TAXON_RANKS},
        "taxon_scientific_name": "t.name",
        "licence": "p.license",
        "rights_holder": who,
        "creator": who,
        "reference_url": "'https://www.inaturalist.org/observations/' || p.observation_uuid",
        "extra": f"json_object({extra})" if extra else "NULL",
    }
    yield from judged_rows(sql, columns, origin, "p.n", cases)


def _known(source: Origin) -> dict[str, str]:
    """Names that `where` and `extra` may use, and their SQL."""
    found = {"licence": "p.license"}
    for rank in TAXON_RANKS:
        found[rank] = f't."{rank}"'
    for name, letter in (("observations", "o"), ("photos", "p")):
        (file,) = table.list_files(_tables(source, bare=True)[name])
        for column in table.read_columns(file, _tables(source, bare=True)[name]):
            found.setdefault(column, f'{letter}."{column}"')
    return found


def _tables(source: Origin, bare: bool = False) -> dict[str, NestedTable]:
    """The four tables, as the table reader takes them, with the columns that are read."""
    settings = _settings(source)
    fs, inner = storage.filesystem(settings.path)
    found: dict[str, NestedTable] = {}
    for name, columns in _TABLES.items():
        path = next(
            (
                storage.join(settings.path, name + end)
                for end in _ENDINGS
                if fs.exists(f"{inner.rstrip('/')}/{name}{end}")
            ),
            None,
        )
        if path is None:
            raise ConfigError(
                f"{source.where}: {settings.path} has no {name}.csv.gz; give the folder of the four tables"
            )
        found[name] = NestedTable(
            name=source.name,
            said_as=source.where,
            table=path,
            format="parquet" if path.endswith(".parquet") else "tsv",
            columns=ColumnMap(url=columns[0], caption=[], extra=list(columns[1:])),
        )
    if not bare and (asked := [name for name in (*settings.where, *settings.extra) if name != "licence"]):
        for name in ("observations", "photos"):
            there = table.read_columns(str(found[name].table), found[name])
            more = [column for column in asked if column in there and column not in TAXON_RANKS]
            extra = list(dict.fromkeys([*_TABLES[name][1:], *more]))
            columns_ = ColumnMap(
                url=_TABLES[name][0], caption=[], extra=[each for each in extra if each != _TABLES[name][0]]
            )
            found[name] = found[name].model_copy(update={"columns": columns_})
    return found


def _settings(source: Origin) -> InaturalistSettings:
    assert source.inaturalist is not None
    return source.inaturalist
