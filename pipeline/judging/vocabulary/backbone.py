"""Names resolved against a taxonomic backbone that the user supplies: synonyms to accepted names, ranks, vernaculars.

Reads scientific names, and a GBIF backbone or Catalogue of Life archive (Darwin Core, a zip or an unpacked folder)
through DuckDB, which spills to disk. Writes one row a name: as given, how it matched, what is accepted. Downloads
nothing. A name that fits several accepted taxa stays as given and is called ambiguous; holes in the backbone's ranks
stay holes. Raises ConfigError when the archive has no taxon table or the table lacks columns.
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

from manifests.contract.settings import ConfigPath, Settings
from manifests.contract.tables import NAMES, TAXON_RANKS
from manifests.errors import ConfigError
from manifests.names.scientific import parse_name
from manifests.names.species import species_of
from manifests.names.sql import identifier
from manifests.services.untrusted import check_packing

_MARKS = r"(×|\b(?:f\. ?sp|x|subsp|ssp|var|f|subvar|subf|convar|nothosubsp|nothovar|nothof)\b\.?)"
_TERMS = ("taxonID", "parentNameUsageID", "acceptedNameUsageID", "canonicalName", "scientificName",
          "scientificNameAuthorship", "taxonRank", "taxonomicStatus", *TAXON_RANKS)  # fmt: skip


class BackboneSettings(Settings):
    """A taxonomic backbone that the user supplies, against which names are resolved; nothing is downloaded."""

    path: ConfigPath
    """GBIF backbone or Catalogue of Life archive: a Darwin Core zip, or its folder."""
    languages: tuple[str, ...] = Field(("en", "eng"), min_length=1)
    """Languages of vernacular names, as the archive writes them; the most wanted first."""

    def identity(self) -> dict[str, Any]:
        """Return the values that a resolved name depends on besides the archive's content: no path."""
        return {"languages": list(self.languages)}


def check_backbone(settings: BackboneSettings | None) -> None:
    """Make sure that the backbone can be read, before any work.

    Raises: ConfigError when it is missing, holds no taxon table, or that table lacks columns.
    """
    if settings is None:
        return
    backbone, taxa, _ = _find_tables(settings)
    with contextlib.ExitStack() as stack:
        if backbone.is_dir():
            stream: Any = stack.enter_context(taxa.open("rb"))
        else:
            archive = stack.enter_context(zipfile.ZipFile(backbone))
            stream = stack.enter_context(archive.open(taxa.as_posix()))
        header = stream.readline(1 << 16).decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
    _check_terms(taxa.name, {_term(column): column for column in header})


def backbone_files(settings: BackboneSettings) -> list[str]:
    """Return the files whose content is the backbone: the zip itself, or the tables in the folder.

    Raises: ConfigError when it is missing or holds no taxon table.
    """
    backbone, *tables = _find_tables(settings)
    return [str(path) for path in tables if path] if backbone.is_dir() else [str(backbone)]


def _find_tables(settings: BackboneSettings) -> tuple[Path, Path, Path | None]:
    """Return the backbone, its taxon table and its vernacular table; of a zip, the names of the tables inside it.

    Raises: ConfigError when there is no backbone, or no taxon table in it.
    """
    backbone = Path(settings.path).expanduser()
    if not backbone.exists():
        raise ConfigError(f"caption.backbone.path: {backbone} is missing; download a backbone archive and name it")
    if backbone.is_dir():
        members = sorted(file for file in backbone.rglob("*") if file.is_file())
    elif zipfile.is_zipfile(backbone):
        with zipfile.ZipFile(backbone) as archive:
            members = [Path(member) for member in archive.namelist()]
            try:
                check_packing(backbone.stat().st_size, sum(member.file_size for member in archive.infolist()))
            except ValueError as error:
                raise ConfigError(f"caption.backbone.path: {backbone}: {error}") from None
    else:
        raise ConfigError(f"{backbone} is neither a folder nor a zip; give a Darwin Core archive of a backbone")
    by_stem: dict[str, Path] = {}
    for member in members:
        if member.suffix.lower() in {".tsv", ".txt"}:
            by_stem.setdefault(member.stem.lower(), member)
    if "taxon" not in by_stem:
        raise ConfigError(f"{backbone} holds no Taxon.tsv; give a GBIF backbone or Catalogue of Life archive")
    return backbone, by_stem["taxon"], by_stem.get("vernacularname")


def names_to_resolve(candidates: pa.Table) -> pa.Table:
    """Columns `name` and `kingdom` of each row; the name is the scientific name, else genus and species, else null."""
    scientific_name, genus, species, kingdom = (
        _without_blanks(candidates[f"taxon_{column}"]) for column in ("scientific_name", "genus", "species", "kingdom")
    )
    binomial = species_of(genus, species)
    binomial = pc.if_else(pc.match_substring(binomial, " "), binomial, None)
    name = pc.coalesce(scientific_name, binomial, genus)
    return pa.table({"name": name, "kingdom": kingdom})


def _without_blanks(column: pa.ChunkedArray) -> pa.Array:
    text = pc.utf8_trim_whitespace(column.combine_chunks())
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def resolve_names(names: pa.Table, settings: BackboneSettings, scratch: str, memory_gb: float = 2.0) -> pa.Table:
    """Look up distinct names (columns `name` and `kingdom`, which may be null) in a backbone; gives schema NAMES.

    `scratch` is a folder for unpacked tables, and for data that does not fit into `memory_gb`.

    Raises: ConfigError when the archive cannot be read.
    """
    backbone, taxa, vernaculars = _find_tables(settings)
    with tempfile.TemporaryDirectory(dir=scratch) as folder, duckdb.connect() as connection:
        if not backbone.is_dir():
            with zipfile.ZipFile(backbone) as archive:
                taxa = Path(archive.extract(taxa.as_posix(), folder))
                vernaculars = vernaculars and Path(archive.extract(vernaculars.as_posix(), folder))
        connection.execute("SET temp_directory = ?", [folder])
        connection.execute("SET memory_limit = ?", [f"{max(256, int(memory_gb * 1000))}MB"])
        _read_taxa(connection, taxa)
        _read_vernaculars(connection, vernaculars, settings.languages)
        connection.register("wanted_names", _with_keys(names))
        _match(connection)
        _climb(connection)
        resolved: pa.Table = connection.sql(_RESULT).to_arrow_table()
        return resolved.cast(NAMES)


def apply_names(candidates: pa.Table, resolved: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Candidates with the accepted name and ranks of their taxon, and the provenance of each row.

    Unresolved rows stay as they are. Ranks that the backbone leaves empty keep what the source gave, except genus and
    species, which follow the accepted name. A vernacular name that the source gave is kept. The provenance columns are
    taxon_given, taxon_matched and taxon_id of CAPTIONS.
    """
    names = names_to_resolve(candidates)
    needed = resolved.filter(pc.is_in(resolved["name"], pc.unique(names["name"])))
    by_name = {(row["name"], row["kingdom_given"]): row for row in needed.to_pylist()}
    pairs = zip(names["name"].to_pylist(), names["kingdom"].to_pylist(), strict=True)
    matched = pa.Table.from_pylist([by_name.get(pair, {}) for pair in pairs], schema=NAMES)
    provenance = pa.table(
        {"taxon_given": names["name"], "taxon_matched": matched["matched_how"], "taxon_id": matched["accepted_id"]}
    )
    is_resolved = pc.is_valid(matched["accepted_name"])
    for rank in TAXON_RANKS:
        stated = candidates[f"taxon_{rank}"]
        fresh = matched[rank] if rank in {"genus", "species"} else pc.coalesce(matched[rank], stated)
        candidates = _put(candidates, f"taxon_{rank}", pc.if_else(is_resolved, fresh, stated))
    name = pc.coalesce(matched["accepted_name"], candidates["taxon_scientific_name"])
    candidates = _put(candidates, "taxon_scientific_name", name)
    vernacular = pc.coalesce(_without_blanks(candidates["taxon_vernacular_name"]), matched["vernacular"])
    return _put(candidates, "taxon_vernacular_name", vernacular), provenance


def _put(table: pa.Table, column: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(column), table.schema.field(column), values)


def name_key(name: str) -> str:
    """Return the key that names are matched by.

    The canonical name in lower case, without hybrid signs and rank marks.
    """
    return " ".join(re.sub(_MARKS, " ", name.lower()).split())


def _with_keys(names: pa.Table) -> pa.Table:
    """Return the distinct names, each with the keys of the whole name and of its species; null where it has none."""
    distinct = names.filter(names["name"].is_valid()).group_by(["name", "kingdom"]).aggregate([])
    full_keys: list[str | None] = []
    species_keys: list[str | None] = []
    for name in distinct["name"].to_pylist():
        parsed = parse_name(name)
        virus = parsed.formula if parsed.rank == "virus" else ""
        usable = virus or (parsed.genus and not parsed.formula and not parsed.uncertain)
        named = usable and not (parsed.qualifier and not parsed.species)
        full = virus or " ".join(part for part in (parsed.genus, parsed.species, parsed.infraspecific) if part)
        full_keys.append(name_key(full) if named else None)
        species_keys.append(name_key(parsed.binomial) if named and parsed.infraspecific else None)
    keys = {"full_key": pa.array(full_keys, pa.string()), "species_key": pa.array(species_keys, pa.string())}
    return pa.table({"name": distinct["name"], "kingdom": distinct["kingdom"], **keys})


def _open_tsv(connection: duckdb.DuckDBPyConnection, file: Path, name: str) -> dict[str, str]:
    """Make the view `name` over a tab-separated file; its columns by their Darwin Core term."""
    connection.read_csv(
        str(file), sep="\t", header=True, all_varchar=True, quotechar="", escapechar="", strict_mode=False
    ).create_view(name)
    columns = [row[0] for row in connection.execute(f"DESCRIBE {name}").fetchall()]
    return {_term(column): column for column in columns}


def _term(column: str) -> str:
    """Return the Darwin Core term of a column that may carry a prefix or a whole address."""
    return column.rsplit(":", 1)[-1].rsplit("/", 1)[-1]


def _check_terms(file: str, held: dict[str, str]) -> None:
    missing = [term for term in ("taxonID", "scientificName", "taxonomicStatus") if term not in held]
    if missing:
        raise ConfigError(
            f"{file} lacks the columns {', '.join(missing)}; give a GBIF backbone or Catalogue of Life archive "
            "as it was downloaded"
        )


def _read_taxa(connection: duckdb.DuckDBPyConnection, file: Path) -> None:
    held = _open_tsv(connection, file, "taxon_file")
    _check_terms(file.name, held)
    columns = ", ".join(
        (f"nullif({identifier(held[term])}, '')" if term in held else "NULL::VARCHAR") + f" AS {identifier(term)}"
        for term in _TERMS
    )
    connection.execute(f"CREATE TEMP VIEW raw_taxon AS SELECT {columns} FROM taxon_file")
    # Catalogue of Life has no canonicalName: there the authors are cut off the end of scientificName.
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
    # One name a taxon: of the most wanted language, then the one that most sources agree on, then by the alphabet.
    connection.execute(
        f"""INSERT INTO vernacular
        SELECT id, first(name ORDER BY place, votes DESC, name)
        FROM (SELECT {identifier(held["taxonID"])} AS id, trim({identifier(held["vernacularName"])}) AS name,
                     min(list_position(?, lower({identifier(held["language"])}))) AS place, count(*) AS votes
              FROM vernacular_file WHERE list_contains(?, lower({identifier(held["language"])})) GROUP BY ALL)
        WHERE name <> '' GROUP BY id""",
        [list(languages), list(languages)],
    )


def _match(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the table `matched`: the best fitting taxon of each name. The same kingdom wins, then an accepted name."""
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
    """Make the table `lineage`: the ranks of each accepted taxon, from its own columns or from its parents."""
    ranks = ", ".join(
        f"""coalesce(max(CASE WHEN c.depth = 0 THEN t.{identifier(rank)} END),
                     min_by(t.canonical, c.depth) FILTER (WHERE lower(t."taxonRank") = '{rank}'))
           AS {identifier(rank)}"""
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
       {", ".join(f"l.{identifier(rank)}" for rank in TAXON_RANKS)}, v.name AS vernacular
FROM wanted_names w
LEFT JOIN matched m ON m.name = w.name AND m.kingdom IS NOT DISTINCT FROM w.kingdom
LEFT JOIN lineage l ON l.id = m.accepted_id AND NOT m.ambiguous
LEFT JOIN vernacular v ON v.id = l.id
ORDER BY w.name, w.kingdom
"""
