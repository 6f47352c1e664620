"""What the two steps of fetch that make pictures share: which rows to take up, and which of several findings counts.

A build takes up what no part has; a round of `plantmix retry` what ended with one of its outcomes. Reads parts of
the table `fetched` (manifests/tables.py), writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manifests import storage, tables
from manifests.outcomes import Outcome
from manifests.records import PartRecord, fingerprint
from pipeline.runner.work import BuildContext
from pipeline.store.sql import view_parquet

VERSION = 3

# Of several rounds that took up the same address: a picture stands, else what was seen last counts.
COUNTS = (
    "row_number() OVER (PARTITION BY f.sample_id, f.url ORDER BY f.outcome = 'ok' DESC, f.round DESC, "
    "f.pool_file DESC NULLS LAST, f.outcome, f.detail) = 1"
)


def download_recipe(context: BuildContext) -> str:
    """Name of all that decides what a downloaded picture becomes: parts of one recipe serve every build."""
    return fingerprint({"version": VERSION, "image": context.config.fetch.identity()})


def round_of(context: BuildContext) -> int:
    """The round a build stands on, or the one that is being run."""
    if context.fetch_round is not None:
        return context.fetch_round.number
    return int(context.catalog.rounds.last_closed(download_recipe(context)))


def parts_that_count(context: BuildContext, step: str, recipe: str) -> Sequence[PartRecord]:
    """Committed parts of a recipe, of any build, up to the round that counts."""
    number = round_of(context)
    return [part for part in context.catalog.parts_like("fetch", step, recipe) if part.notes["round"] <= number]


def paths_of(context: BuildContext, parts: Sequence[PartRecord]) -> list[str]:
    """Where the findings of parts lie."""
    return [
        storage.join(context.workdir, file.path) for part in parts for file in part.files if file.table == "fetched"
    ]


def view_fetched(sql: Any, name: str, paths: Sequence[str]) -> None:
    """A view over findings, empty when there are none yet."""
    if paths:
        view_parquet(sql, name, paths)
    else:
        sql.register(name, tables.FETCHED.empty_table())


def wanted(context: BuildContext, columns: str, address: str, where: str) -> str:
    """Query of the rows to take up out of the views `candidates` and `parts`.

    `address` is the column that a finding is about (url or locator), `where` picks the rows that have one.
    """
    if context.fetch_round is None:
        return (
            f"SELECT {columns} FROM candidates c WHERE {where} AND NOT EXISTS "
            f"(SELECT 1 FROM parts p WHERE p.sample_id = c.sample_id AND p.url = c.{address})"
        )
    number = context.fetch_round.number
    outcomes = ", ".join(f"'{Outcome(name).value}'" for name in context.fetch_round.outcomes)
    return (
        f"SELECT {columns} FROM candidates c WHERE {where} AND EXISTS "
        f"(SELECT 1 FROM (SELECT * FROM parts f WHERE f.round < {number} QUALIFY {COUNTS}) b "
        f"WHERE b.sample_id = c.sample_id AND b.url = c.{address} AND b.outcome IN ({outcomes})) AND NOT EXISTS "
        f"(SELECT 1 FROM parts p WHERE p.round = {number} AND p.sample_id = c.sample_id AND p.url = c.{address})"
    )
