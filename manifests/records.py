"""What the catalogue keeps of a part, of a stage and of a round of fetching."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from manifests.errors import IntegrityError


@dataclass(frozen=True)
class Funnel:
    """Rows in, rows kept, rows dropped by reason. They must add up."""

    num_in: int
    num_kept: int
    reasons: Mapping[str, int] = field(default_factory=dict)

    def check(self, what: str) -> None:
        """Raises: IntegrityError when the rows in are not the rows kept plus the rows dropped."""
        dropped = sum(self.reasons.values())
        if self.num_in != self.num_kept + dropped:
            raise IntegrityError(
                f"{what}: {self.num_in:,} rows came in, but {self.num_kept:,} kept + {dropped:,} dropped do not "
                "add up; this is a defect of the stage, please report it with this line"
            )

    def __add__(self, other: Funnel) -> Funnel:
        reasons = dict(self.reasons)
        for reason, num in other.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + num
        return Funnel(self.num_in + other.num_in, self.num_kept + other.num_kept, reasons)


@dataclass(frozen=True)
class PartFile:
    """A file of a part: what it holds and where it lies, relative to the work folder."""

    table: str
    path: str
    num_rows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class PartRecord:
    """A committed part."""

    key: str
    stage: str
    step: str
    reuse_key: str
    files: tuple[PartFile, ...]
    funnel: Funnel | None
    notes: Mapping[str, Any]
    seconds: float
    attempts: int


@dataclass(frozen=True)
class StageRecord:
    """A sealed stage version."""

    stage: str
    fingerprint: str
    funnel: Funnel
    notes: Mapping[str, Any]


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Hash of plain JSON values: equal values give equal fingerprints, on any machine."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class FetchRound:
    """One round of one recipe: its number, and the outcomes whose rows are asked for again."""

    number: int
    outcomes: tuple[str, ...]


class FetchRounds:
    """The rounds of each recipe of the fetch stage: the first is 0, every `plantmix retry` is one more.

    No build sees the parts of a round until the round is closed. So a retry that was killed half-way changes nothing
    that is sealed, and the same command continues it. Writes through the catalogue's own connection.
    """

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
            [recipe, number, json.dumps(sorted(outcomes)), utc_now()],
        )
        return FetchRound(number, tuple(sorted(outcomes)))

    def close(self, recipe: str, number: int) -> None:
        """Close the round: from now on every build uses what it fetched."""
        self._connection.execute(
            "UPDATE fetch_rounds SET closed_at = ? WHERE recipe = ? AND round = ?", [utc_now(), recipe, number]
        )


def utc_now() -> datetime.datetime:
    """The time as the catalogue holds it: UTC, without a zone."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
