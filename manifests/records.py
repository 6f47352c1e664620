"""What the catalogue keeps of a part and of a stage: plain records without a database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
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
