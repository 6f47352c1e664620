"""Counts over a release's samples table: what its card, its report and a comparison of two releases say.

Reads samples.parquet by column through DuckDB, so memory stays small at any size. Writes nothing.
"""

from __future__ import annotations

from typing import Any

from pipeline.store.sql import view_parquet

NO_LICENCE = "unknown"


def summarise(connection: Any, samples: str) -> dict[str, Any]:
    """Counts as plain values; `images` are distinct pictures, `samples` count repeats. Lists are in a fixed order."""
    view_parquet(connection, "samples", [samples])

    def rows(sql: str) -> list[dict[str, Any]]:
        return list(connection.sql(sql).to_arrow_table().to_pylist())

    return {
        "domains": rows(
            "SELECT split, domain, count(*) AS samples, count(*) FILTER (copy = 0) AS images, max(copy) + 1 AS copies "
            "FROM samples GROUP BY ALL ORDER BY split DESC, domain"
        ),
        "sources": rows(
            "SELECT domain, source, count(*) AS images FROM samples WHERE copy = 0 GROUP BY ALL ORDER BY domain, source"
        ),
        "licences": rows(
            f"SELECT coalesce(licence_id, '{NO_LICENCE}') AS licence, count(*) AS images FROM samples WHERE copy = 0 "
            "GROUP BY ALL ORDER BY images DESC, licence"
        ),
        "owners": rows(
            f"SELECT coalesce(licence_id, '{NO_LICENCE}') AS licence, "
            "coalesce(nullif(rights_holder, ''), nullif(creator, ''), '(nobody named)') AS owner, count(*) AS images "
            "FROM samples WHERE copy = 0 GROUP BY ALL ORDER BY licence, images DESC, owner"
        ),
        "text_types": rows(
            "SELECT domain, coalesce(text_type, 'none') AS text_type, count(*) AS samples FROM samples "
            "GROUP BY ALL ORDER BY domain, samples DESC, text_type"
        ),
        "taxa": rows(
            "SELECT domain, count(name) AS images, count(DISTINCT name) AS names FROM (SELECT domain, "
            "coalesce(taxon_scientific_name, taxon_species) AS name FROM samples WHERE copy = 0) "
            "GROUP BY ALL ORDER BY domain"
        ),
    }
