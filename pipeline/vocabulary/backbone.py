"""Names resolved against a taxonomic backbone that the user supplies: synonyms to accepted names, ranks, vernaculars.

Reads a GBIF backbone or Catalogue of Life archive (Darwin Core, a zip or an unpacked folder) through DuckDB, out of
core, and scientific names; writes one row a name with its provenance: as given, matched how, accepted as. Downloads
nothing. A name that fits several accepted taxa is left as it was given and called ambiguous; holes in the backbone's
ranks stay holes. Gives up with ConfigError when the archive has no taxon table or lacks its columns.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from manifests.errors import ConfigError
from manifests.settings import Settings
from manifests.tables import NAMES, TAXON_RANKS
from pipeline.vocabulary.names import parse_name

_MARKS = r"(×|\b(?:f\. ?sp|x|subsp|ssp|var|f|subvar|subf|convar|nothosubsp|nothovar|nothof)\b\.?)"
_TERMS = ("taxonID", "parentNameUsageID", "acceptedNameUsageID", "canonicalName", "scientificName",
          "scientificNameAuthorship", "taxonRank", "taxonomicStatus", *TAXON_RANKS)  # fmt: skip


class BackboneSettings(Settings):
    """A taxonomic backbone that names are resolved against, supplied by the user; nothing is downloaded."""

    path: str = Field(description="GBIF backbone or Catalogue of Life archive: a Darwin Core zip, or its folder")
    languages: tuple[str, ...] = Field(
        ("en", "eng"), min_length=1, description="of vernacular names, as the archive writes them; most wanted first"
    )

    def identity(self) -> dict[str, Any]:
        """What a resolved name depends on beside the archive's content: no path."""
        return {"languages": list(self.languages)}


def check_backbone(settings: BackboneSettings | None) -> None:
    """Make sure that the backbone can be read, before any work.

    Raises: ConfigError when it is not there, holds no taxon table, or that lacks its columns.
    """
    if settings is None:
        return
    backbone = Path(backbone_files(settings)[0])
    taxa, _ = _list_tables(Path(settings.path).expanduser())
    assert taxa is not None
    with contextlib.ExitStack() as stack:
        if taxa.is_file():
            stream: Any = stack.enter_context(taxa.open("rb"))
        else:
            archive = stack.enter_context(zipfile.ZipFile(backbone))
            stream = stack.enter_context(archive.open(taxa.as_posix()))
        header = stream.readline(1 << 16).decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
    _check_terms(taxa.name, {_term(column): column for column in header})


def backbone_files(settings: BackboneSettings) -> list[str]:
    """The files whose content is the backbone: the zip itself, or the tables in the folder.

    Raises: ConfigError when it is not there or holds no taxon table.
    """
    backbone = Path(settings.path).expanduser()
    if not backbone.exists():
        raise ConfigError(f"caption.backbone.path: {backbone} is not there; download a backbone archive and name it")
    taxa, vernaculars = _list_tables(backbone)
    if taxa is None:
        raise ConfigError(f"{backbone}: holds no Taxon.tsv; give a GBIF backbone or Catalogue of Life archive")
    return [str(backbone)] if backbone.is_file() else [str(path) for path in (taxa, vernaculars) if path]


def names_to_resolve(candidates: pa.Table) -> pa.Table:
    """Columns `name` and `kingdom` of each row: the scientific name, or else genus and species; null without both."""
    given, genus, species, kingdom = (
        _without_blanks(candidates[f"taxon_{column}"]) for column in ("scientific_name", "genus", "species", "kingdom")
    )
    whole = pc.if_else(pc.match_substring(pc.fill_null(species, ""), " "), species, pa.scalar(None, pa.string()))
    name = pc.coalesce(given, whole, pc.binary_join_element_wise(genus, species, " "), genus)
    return pa.table({"name": name, "kingdom": kingdom})


def _without_blanks(column: pa.ChunkedArray) -> pa.Array:
    text = pc.utf8_trim_whitespace(column.combine_chunks())
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def resolve_names(names: pa.Table, settings: BackboneSettings, scratch: str, memory_gb: float = 2.0) -> pa.Table:
    """Look up distinct names (columns `name` and `kingdom`, which may be null) in a backbone; schema NAMES.

    `scratch` is a folder for unpacked tables and for what does not fit into `memory_gb`.

    Raises: ConfigError when the archive cannot be read.
    """
    backbone_files(settings)
    with tempfile.TemporaryDirectory(dir=scratch) as folder, duckdb.connect() as connection:
        taxa, vernaculars = _find_tables(Path(settings.path).expanduser(), Path(folder))
        connection.execute("SET temp_directory = ?", [folder])
        connection.execute("SET memory_limit = ?", [f"{max(256, int(memory_gb * 1000))}MB"])
        _read_taxa(connection, taxa)
        _read_vernaculars(connection, vernaculars, settings.languages)
        connection.register("wanted_names", _with_keys(names))
        _match(connection)
        _climb(connection)
        found: pa.Table = connection.sql(_RESULT).to_arrow_table()
        return found.cast(NAMES)


def apply_names(candidates: pa.Table, resolved: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(candidates with the accepted name and ranks of their taxon, provenance row for row).

    Unresolved rows are untouched. Ranks that the backbone leaves empty keep what the source gave, except genus and
    species, which follow the accepted name. A vernacular name that the source gave is kept. The provenance columns are
    taxon_given, taxon_matched and taxon_id of CAPTIONS.
    """
    wanted = names_to_resolve(candidates)
    needed = resolved.filter(pc.is_in(resolved["name"], pc.unique(wanted["name"])))
    by_name = {(row["name"], row["kingdom_given"]): row for row in needed.to_pylist()}
    pairs = zip(wanted["name"].to_pylist(), wanted["kingdom"].to_pylist(), strict=True)
    matches = [by_name.get(pair) for pair in pairs]
    provenance = pa.table(
        {
            "taxon_given": wanted["name"],
            "taxon_matched": pa.array([row and row["matched_how"] for row in matches], pa.string()),
            "taxon_id": pa.array([row and row["accepted_id"] for row in matches], pa.string()),
        }
    )
    rows = [row if row and row["accepted_name"] else None for row in matches]
    found = pa.array([row is not None for row in rows], pa.bool_())
    for rank in TAXON_RANKS:
        column = f"taxon_{rank}"
        fresh = pa.array([row[rank] if row else None for row in rows], pa.string())
        if rank not in {"genus", "species"}:
            fresh = pc.coalesce(fresh, candidates[column].combine_chunks())
        candidates = _put(candidates, column, pc.if_else(found, fresh, candidates[column].combine_chunks()))
    accepted = pa.array([row["accepted_name"] if row else None for row in rows], pa.string())
    vernacular = pa.array([row["vernacular"] if row else None for row in rows], pa.string())
    names = candidates["taxon_scientific_name"].combine_chunks()
    candidates = _put(candidates, "taxon_scientific_name", pc.if_else(found, accepted, names))
    given = _without_blanks(candidates["taxon_vernacular_name"])
    return _put(candidates, "taxon_vernacular_name", pc.coalesce(given, vernacular)), provenance


def _put(table: pa.Table, column: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(column), table.schema.field(column), values)


def name_key(name: str) -> str:
    """What names are matched by: the canonical name, lower case, without hybrid signs and rank marks."""
    return " ".join(re.sub(_MARKS, " ", name.lower()).split())


def _with_keys(names: pa.Table) -> pa.Table:
    given = (
        names.select(["name", "kingdom"]).filter(names["name"].is_valid()).group_by(["name", "kingdom"]).aggregate([])
    )
    keys: list[tuple[str | None, str | None]] = []
    for name in given["name"].to_pylist():
        parsed = parse_name(name)
        virus = parsed.formula if parsed.rank == "virus" else ""
        usable = virus or (parsed.genus and not parsed.formula and not parsed.uncertain)
        full = virus or " ".join(part for part in (parsed.genus, parsed.species, parsed.infraspecific) if part)
        named = usable and not (parsed.qualifier and not parsed.species)
        keys.append(
            (name_key(full) if named else None, name_key(parsed.binomial) if named and parsed.infraspecific else None)
        )
    return pa.table(
        {
            "name": given["name"],
            "kingdom": given["kingdom"],
            "full_key": pa.array([full for full, _ in keys], pa.string()),
            "species_key": pa.array([species for _, species in keys], pa.string()),
        }
    )


def _list_tables(backbone: Path) -> tuple[Path | None, Path | None]:
    """The taxon and the vernacular table of a folder or zip; of a zip their names inside it."""
    if backbone.is_dir():
        members = sorted(file for file in backbone.rglob("*") if file.is_file())
    elif zipfile.is_zipfile(backbone):
        with zipfile.ZipFile(backbone) as archive:
            members = [Path(member) for member in archive.namelist()]
    else:
        raise ConfigError(f"{backbone}: neither a folder nor a zip; give a Darwin Core archive of a backbone")
    found: dict[str, Path] = {}
    for member in members:
        if member.suffix.lower() in {".tsv", ".txt"}:
            found.setdefault(member.stem.lower(), member)
    return found.get("taxon"), found.get("vernacularname")


def _find_tables(backbone: Path, folder: Path) -> tuple[Path, Path | None]:
    """Paths of the taxon table and of the vernacular table, unpacked into `folder` when the archive is a zip."""
    taxa, vernaculars = _list_tables(backbone)
    assert taxa is not None, "backbone_files has seen it"
    if backbone.is_dir():
        return taxa, vernaculars
    with zipfile.ZipFile(backbone) as archive:
        unpacked = [Path(archive.extract(str(member), folder)) if member else None for member in (taxa, vernaculars)]
    assert unpacked[0] is not None
    return unpacked[0], unpacked[1]


def _open_tsv(connection: duckdb.DuckDBPyConnection, file: Path, name: str) -> dict[str, str]:
    """Make the view `name` over a tab-separated file; its columns by their Darwin Core term."""
    connection.read_csv(
        str(file), sep="\t", header=True, all_varchar=True, quotechar="", escapechar="", strict_mode=False
    ).create_view(name)
    columns = [row[0] for row in connection.execute(f"DESCRIBE {name}").fetchall()]
    return {_term(column): column for column in columns}


def _term(column: str) -> str:
    """The Darwin Core term of a column that may carry a prefix or a whole address."""
    return column.rsplit(":", 1)[-1].rsplit("/", 1)[-1]


def _check_terms(file: str, held: dict[str, str]) -> None:
    missing = [term for term in ("taxonID", "scientificName", "taxonomicStatus") if term not in held]
    if missing:
        raise ConfigError(
            f"{file}: lacks the columns {', '.join(missing)}; give a GBIF backbone or Catalogue of Life archive "
            "as it was downloaded"
        )


def _read_taxa(connection: duckdb.DuckDBPyConnection, file: Path) -> None:
    held = _open_tsv(connection, file, "taxon_file")
    _check_terms(file.name, held)
    columns = ", ".join(
        f"""nullif("{held[term]}", '') AS "{term}\"""" if term in held else f"""NULL::VARCHAR AS "{term}\""""
        for term in _TERMS
    )
    connection.execute(f"CREATE TEMP VIEW raw_taxon AS SELECT {columns} FROM taxon_file")
    # Without canonicalName (Catalogue of Life) the authors are cut off the end of scientificName.
    connection.execute(
        """CREATE TEMP TABLE taxon AS
        SELECT *, trim(regexp_replace(regexp_replace(lower(canonical), ?, ' ', 'g'), '\\s+', ' ', 'g')) AS key
        FROM (SELECT *, coalesce("canonicalName",
                CASE WHEN ends_with("scientificName", "scientificNameAuthorship")
                     THEN trim(left("scientificName", -length("scientificNameAuthorship")))
                     ELSE "scientificName" END) AS canonical
              FROM raw_taxon)""",
        [_MARKS],
    )


def _read_vernaculars(connection: duckdb.DuckDBPyConnection, file: Path | None, languages: tuple[str, ...]) -> None:
    connection.execute("CREATE TEMP TABLE vernacular (id VARCHAR, name VARCHAR)")
    if file is None:
        return
    held = _open_tsv(connection, file, "vernacular_file")
    if not {"taxonID", "vernacularName", "language"} <= held.keys():
        return
    # One name a taxon: the language most wanted, then the name most sources agree on, then the alphabet.
    connection.execute(
        f"""INSERT INTO vernacular
        SELECT id, first(name ORDER BY place, votes DESC, name)
        FROM (SELECT "{held["taxonID"]}" AS id, trim("{held["vernacularName"]}") AS name,
                     min(list_position(?, lower("{held["language"]}"))) AS place, count(*) AS votes
              FROM vernacular_file WHERE list_contains(?, lower("{held["language"]}")) GROUP BY ALL)
        WHERE name <> '' GROUP BY id""",
        [list(languages), list(languages)],
    )


def _match(connection: duckdb.DuckDBPyConnection) -> None:
    """Table `matched`: the best fitting taxon of each name, or none. Same kingdom first, then accepted names."""
    connection.execute(
        """CREATE TEMP TABLE fitting AS
        SELECT w.name, w.kingdom, t."taxonID" AS matched_id, t."taxonomicStatus" AS status,
               w.how,
               CASE WHEN lower(t."taxonomicStatus") LIKE '%accepted%' OR t."acceptedNameUsageID" IS NULL
                    THEN t."taxonID" ELSE t."acceptedNameUsageID" END AS accepted_id,
               rank() OVER (PARTITION BY w.name, w.kingdom ORDER BY
                   w.how,  -- exact before species
                   coalesce(lower(t.kingdom) = lower(w.kingdom), false) DESC,
                   CASE WHEN lower(t."taxonomicStatus") = 'accepted' THEN 0
                        WHEN lower(t."taxonomicStatus") LIKE '%accepted%' THEN 1
                        WHEN lower(t."taxonomicStatus") LIKE '%synonym%' THEN 2 ELSE 3 END) AS place
        FROM (SELECT name, kingdom, full_key AS key, 'exact' AS how FROM wanted_names
              UNION ALL SELECT name, kingdom, species_key, 'species' FROM wanted_names) w
        JOIN taxon t ON t.key = w.key"""
    )
    connection.execute(
        """CREATE TEMP TABLE matched AS
        SELECT name, kingdom, count(DISTINCT accepted_id) > 1 AS ambiguous, min(how) AS how,
               min_by(matched_id, (accepted_id, matched_id)) AS matched_id,
               min_by(status, (accepted_id, matched_id)) AS status, min(accepted_id) AS accepted_id
        FROM fitting WHERE place = 1 GROUP BY name, kingdom"""
    )


def _climb(connection: duckdb.DuckDBPyConnection) -> None:
    """Table `lineage`: the ranks of each accepted taxon, from its own columns or from its parents."""
    ranks = ", ".join(
        f"""coalesce(max(CASE WHEN c.depth = 0 THEN t."{rank}" END),
                     min_by(t.canonical, c.depth) FILTER (WHERE lower(t."taxonRank") = '{rank}')) AS "{rank}\""""
        for rank in TAXON_RANKS
    )
    connection.execute(
        f"""CREATE TEMP TABLE lineage AS
        WITH RECURSIVE climb(id, node, depth) AS (
            SELECT DISTINCT accepted_id, accepted_id, 0 FROM matched WHERE NOT ambiguous
            UNION ALL
            SELECT c.id, t."parentNameUsageID", c.depth + 1
            FROM climb c JOIN taxon t ON t."taxonID" = c.node
            WHERE t."parentNameUsageID" IS NOT NULL AND c.depth < 60
        )
        SELECT c.id, max(CASE WHEN c.depth = 0 THEN t.canonical END) AS canonical, {ranks}
        FROM climb c JOIN taxon t ON t."taxonID" = c.node GROUP BY c.id"""
    )


_RESULT = f"""
SELECT w.name, w.kingdom AS kingdom_given,
       CASE WHEN m.name IS NULL OR (l.id IS NULL AND NOT m.ambiguous) THEN 'none'
            WHEN m.ambiguous THEN 'ambiguous' ELSE m.how END AS matched_how,
       CASE WHEN l.id IS NOT NULL THEN m.matched_id END AS matched_id,
       CASE WHEN l.id IS NOT NULL THEN m.status END AS matched_status,
       l.id AS accepted_id, l.canonical AS accepted_name,
       {", ".join(f'l."{rank}"' for rank in TAXON_RANKS)}, v.name AS vernacular
FROM wanted_names w
LEFT JOIN matched m ON m.name = w.name AND m.kingdom IS NOT DISTINCT FROM w.kingdom
LEFT JOIN lineage l ON l.id = m.accepted_id AND NOT m.ambiguous
LEFT JOIN vernacular v ON v.id = l.id
ORDER BY w.name, w.kingdom
"""
