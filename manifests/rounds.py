"""Rounds of fetching: the first is 0, every `plantmix retry` is one more.

No build sees the parts of a round until the round is closed. So a retry that was killed half-way changes nothing that
is sealed, and the same command continues it. Writes through the catalogue's own connection.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FetchRound:
    """One round of one recipe: its number, and the outcomes whose rows are asked for again."""

    number: int
    outcomes: tuple[str, ...]


class FetchRounds:
    """The rounds of each recipe of the fetch stage."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def last_closed(self, recipe: str) -> int:
        """Number of the newest finished round; 0 when nothing was ever retried."""
        rows = self._connection.execute(
            "SELECT coalesce(max(round), 0) FROM fetch_rounds WHERE recipe = ? AND closed_at IS NOT NULL", [recipe]
        ).fetchall()
        return int(rows[0][0])

    def find_open(self, recipe: str) -> FetchRound | None:
        """The round that a retry began and has not finished, or None."""
        rows = self._connection.execute(
            "SELECT round, outcomes FROM fetch_rounds WHERE recipe = ? AND closed_at IS NULL", [recipe]
        ).fetchall()
        return FetchRound(int(rows[0][0]), tuple(json.loads(rows[0][1]))) if rows else None

    def begin(self, recipe: str, outcomes: Sequence[str], after: int = 0) -> FetchRound:
        """Open the next round behind `after`, or continue the open one, for these outcomes from now on."""
        unfinished = self.find_open(recipe)
        number = unfinished.number if unfinished else max(self.last_closed(recipe), after) + 1
        self._connection.execute(
            "INSERT OR REPLACE INTO fetch_rounds VALUES (?, ?, ?, ?, NULL)",
            [recipe, number, json.dumps(sorted(outcomes)), _now()],
        )
        return FetchRound(number, tuple(sorted(outcomes)))

    def close(self, recipe: str, number: int) -> None:
        """Close the round: from now on every build uses what it fetched."""
        self._connection.execute(
            "UPDATE fetch_rounds SET closed_at = ? WHERE recipe = ? AND round = ?", [_now(), recipe, number]
        )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
