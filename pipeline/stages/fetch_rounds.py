"""Which rows fetch takes up, and which result counts when an address was asked several times.

A build takes up the rows that no part has yet. A round of `plantmix retry` takes up the rows that ended with one of its
outcomes. Reads parts of the table `fetched` (manifests/tables.py). Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from manifests.outcomes import Outcome
from manifests.records import PartRecord, fingerprint
from manifests.rounds import FetchRound
from pipeline.pictures.settings import ImageSettings
from pipeline.runner.work import BuildContext, StageRun
from pipeline.store.files import Files, RowGroup

VERSION = 3

# Where several rounds asked the same address, a picture counts, or else what was seen last.
COUNTS = (
    "row_number() OVER (PARTITION BY f.sample_id, f.url ORDER BY f.outcome = 'ok' DESC, f.round DESC, "
    "f.pool_file DESC NULLS LAST, f.outcome, f.detail) = 1"
)


@dataclass(frozen=True)
class FetchInputs:
    """What fetch stands on. Candidates count by their addresses alone: an edited caption fetches nothing."""

    candidates: Files
    secrets: Files
    image: ImageSettings
    round: int


@dataclass(frozen=True)
class PicturesInputs:
    """The rows of one part, what becomes of their pictures, and the round that asks for them."""

    rows: RowGroup
    image: ImageSettings
    round: int


def download_recipe(image: ImageSettings) -> str:
    """Name of all that decides what a downloaded picture becomes: parts of one recipe serve every build."""
    return fingerprint({"version": VERSION, "image": image.model_dump(mode="json")})


def last_round(context: BuildContext) -> int:
    """The round that is being run, or else the last one that was finished."""
    if context.fetch_round is not None:
        return context.fetch_round.number
    return context.catalog.rounds.last_closed(download_recipe(context.config.fetch.image))


def parts_up_to(run: StageRun[Any], step: str, recipe: str, number: int) -> list[PartRecord]:
    """Committed parts of a recipe, of any build, up to a round."""
    return [part for part in run.catalog.parts_like("fetch", step, recipe) if part.notes["round"] <= number]


def rows_to_fetch(fetch_round: FetchRound | None, columns: str, address: str, where: str) -> str:
    """A query for the rows to take up, over the views `candidates` and `parts`.

    `address` is the column that identifies what is fetched (url or locator). `where` picks the rows that have one.
    """
    if fetch_round is None:
        return (
            f"SELECT {columns} FROM candidates c WHERE {where} AND NOT EXISTS "
            f"(SELECT 1 FROM parts p WHERE p.sample_id = c.sample_id AND p.url = c.{address})"
        )
    number = fetch_round.number
    outcomes = ", ".join(f"'{Outcome(name).value}'" for name in fetch_round.outcomes)
    return (
        f"SELECT {columns} FROM candidates c WHERE {where} AND EXISTS "
        f"(SELECT 1 FROM (SELECT * FROM parts f WHERE f.round < {number} QUALIFY {COUNTS}) b "
        f"WHERE b.sample_id = c.sample_id AND b.url = c.{address} AND b.outcome IN ({outcomes})) AND NOT EXISTS "
        f"(SELECT 1 FROM parts p WHERE p.round = {number} AND p.sample_id = c.sample_id AND p.url = c.{address})"
    )
