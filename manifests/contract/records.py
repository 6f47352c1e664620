"""Records in the catalogue of a part, a stage, a round of fetching and the files that a build reads.

Of such a file it keeps a stamp (`manifests/stores/stamps.py`) beside the sha256. No fingerprint sees it. Single files
stand in `inputs`, by their path; pictures, which are many, in `stamps`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from manifests.errors import IntegrityError
from manifests.stores import stamps, storage
from manifests.stores.faults import ask

_HASHED_AT_A_TIME = 8
UNREADABLE = ""
"""Stands for the sha256 of a file that cannot be read."""
LOOKED = pa.schema([("place", pa.string()), ("path", pa.string()), ("stamp", pa.string())])


@dataclass(frozen=True)
class Funnel:
    """Rows in, rows kept, rows dropped by reason. They must add up."""

    num_in: int
    num_kept: int
    reasons: Mapping[str, int] = field(default_factory=dict)

    def check(self, what: str) -> None:
        """Raise IntegrityError when the rows in are not the rows kept plus the rows dropped."""
        dropped = sum(self.reasons.values())
        if self.num_in != self.num_kept + dropped:
            raise IntegrityError(
                f"{what}: {self.num_in:,} rows came in, but {self.num_kept:,} kept + {dropped:,} dropped do not "
                "add up; this is a defect of the stage, please report it with this line"
            )

    def __add__(self, other: Funnel) -> Funnel:
        reasons = Counter(self.reasons)
        reasons.update(other.reasons)
        return Funnel(self.num_in + other.num_in, self.num_kept + other.num_kept, dict(reasons))


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
        """Return number of the newest finished round; 0 when nothing was ever retried."""
        rows = self._connection.execute(
            "SELECT coalesce(max(round), 0) FROM fetch_rounds WHERE recipe = ? AND closed_at IS NOT NULL", [recipe]
        ).fetchall()
        return int(rows[0][0])

    def find_open(self, recipe: str) -> FetchRound | None:
        """Return the round that a retry began and has not finished, or None."""
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
    """Return the time as the catalogue holds it: UTC, without a zone."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


# ---- files that a build reads


def hash_or_unreadable(path: str) -> str:
    """Return the sha256 of a file, or UNREADABLE.

    Raises: AwayError when a store does not give what it has.
    """
    try:
        return storage.hash_file(path).sha256
    except (OSError, ValueError):
        return UNREADABLE


class Stamps:
    """Stored stamps and hashes. Writes through the catalogue's own connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def sha256_of(self, path: str, name: str) -> str:
        """Return the hash of one file, which is kept under `name`.

        It is read again only when its stamp is another one.
        """
        stamp = stamps.to_keep(path)
        stored = self._connection.execute("SELECT sha256 FROM inputs WHERE path = ? AND stamp = ?", [name, stamp])
        for (sha256,) in stored.fetchall():
            return str(sha256)
        fs, inner = storage.filesystem(path)
        info = ask(path, lambda: fs.info(inner))
        sha256 = storage.hash_file(path).sha256
        self._connection.execute(
            "INSERT OR REPLACE INTO inputs BY NAME "
            "SELECT ? AS path, ? AS num_bytes, ? AS mtime_ns, ? AS sha256, ? AS stamp",
            [name, int(info["size"]), stamps.changed_ns(info), sha256, stamp],
        )
        return sha256

    def is_hashed(self, name: str, stamp: str | None) -> bool:
        """Return whether the whole file that is kept under `name` was hashed when it had this stamp."""
        query = "SELECT 1 FROM inputs WHERE path = ? AND stamp = ?"
        return bool(self._connection.execute(query, [name, stamp]).fetchall())

    def stored(self, looked: pa.Table) -> pa.Table:
        """Rows of LOOKED with `sha256`, null where the stamp is not the stored one, and whether any is `stored`."""
        self._connection.register("looked", looked)
        rows = self._connection.sql(
            "SELECT l.*, if(s.stamp = l.stamp, s.sha256, NULL) AS sha256, s.place IS NOT NULL AS stored "
            "FROM looked l LEFT JOIN stamps s USING (place)"
        ).to_arrow_table()
        self._connection.unregister("looked")
        return rows

    def keep(self, hashed: pa.Table) -> None:
        """Store `stamp` and `sha256` by `place`, in place of older ones; a row without a stamp is left out."""
        self._connection.register("hashed", hashed)
        self._connection.execute("DELETE FROM stamps WHERE place IN (SELECT place FROM hashed)")
        self._connection.execute("INSERT INTO stamps SELECT place, stamp, sha256 FROM hashed WHERE stamp IS NOT NULL")
        self._connection.unregister("hashed")

    def hash_files(self, looked: pa.Table) -> pa.Table:
        """Rows of LOOKED with `sha256`: read now, in several threads, and stored."""
        with ThreadPoolExecutor(_HASHED_AT_A_TIME) as threads:
            hashes = list(threads.map(hash_or_unreadable, looked["path"].to_pylist()))
        hashed = looked.select(LOOKED.names).append_column("sha256", pa.array(hashes, pa.string()))
        self.keep(hashed)
        return hashed

    def sha256_of_all(self, looked: pa.Table) -> pa.Table:
        """Rows of LOOKED with `sha256`; those are read whose stamp is another one, or was never seen."""
        rows = self.stored(looked)
        is_new = pa.compute.is_null(rows["sha256"])
        names = [*LOOKED.names, "sha256"]
        return pa.concat_tables(
            [rows.filter(pa.compute.invert(is_new)).select(names), self.hash_files(rows.filter(is_new))]
        )


def fingerprints_of_run(record: Mapping[str, Any]) -> list[str]:
    """Return the releases that a run was trained on, by its run.json: first those of its last configuration."""
    releases = (record.get("identity") or {}).get("releases") or {}
    return [*releases.get("fingerprints", ()), *record.get("earlier_releases", ())]
