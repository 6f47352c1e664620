"""Ranks out of a tree of taxa: each taxon with the names of its seven main ancestors.

Runs in DuckDB, one step a level of the tree, from the roots down. A taxon whose parent is missing counts as a root; a
taxon that is its own ancestor gets no ranks. Reads and writes tables of the given connection.
"""

from __future__ import annotations

from typing import Any

from manifests.tables import TAXON_RANKS

MAX_LEVELS = 200  # the deepest branch of the tree of life as databases draw it has some 60


def make_lineages(sql: Any, taxa: str) -> None:
    """Make the table `lineages` (id, name, kingdom ... species) of a view (id, parent, rank, name), all strings."""
    ranks = ", ".join(f'"{rank}"' for rank in TAXON_RANKS)
    own = ", ".join(f"""if(lower(t.rank) = '{rank}', t.name, NULL) AS "{rank}\"""" for rank in TAXON_RANKS)
    inherited = ", ".join(f"""if(lower(t.rank) = '{rank}', t.name, p."{rank}") AS "{rank}\"""" for rank in TAXON_RANKS)
    sql.execute(
        f"CREATE TABLE lineages AS SELECT t.id, t.name, {own}, 0 AS level FROM {taxa} t "
        f"WHERE t.parent IS NULL OR t.parent = t.id OR NOT EXISTS (SELECT 1 FROM {taxa} p WHERE p.id = t.parent)"
    )
    for level in range(1, MAX_LEVELS):
        ((num,),) = sql.execute(
            f"INSERT INTO lineages SELECT t.id, t.name, {inherited}, {level} FROM {taxa} t "
            f"JOIN (SELECT id, {ranks} FROM lineages WHERE level = {level - 1}) p ON p.id = t.parent "
            "WHERE t.parent <> t.id"
        ).fetchall()
        if not num:
            return
