"""Balance: a cap on how much one taxon, host or any other key may bring.

Settings of the caps, and pure verdicts: reads a table with sample_id and the key; writes one verdict a row.
MetaCLIP's rule: of n rows with the same key each stays with probability min(1, t/n). The draw of a row hangs on
seed and sample_id alone, and a row once dropped by growth of its key never comes back by it: adding data moves as
few samples as possible.
Source: Xu et al. 2024 (MetaCLIP, arXiv:2309.16671), algorithm 1.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from manifests.errors import ConfigError
from manifests.settings import Settings
from manifests.tables import TAXON_RANKS, VERDICTS

REASON = "balance"
CAP_KEYS = ("taxon", *TAXON_RANKS, "host", "source", "creator", "rights_holder", "text")
EXTRA_PREFIX = "extra."


class CapSettings(Settings):
    """A cap over one key: `about` draws each row of a key with n rows with p = min(1, about/n), `at_most` is exact.

    Rows without the key are never capped.
    """

    by: str = Field(description=f"{', '.join(CAP_KEYS)}, or {EXTRA_PREFIX}COLUMN for a column kept by the source")
    about: int | None = Field(None, ge=1)
    at_most: int | None = Field(None, ge=1)
    domains: tuple[str, ...] = Field((), description="domains it counts and caps; all when empty")

    @field_validator("by")
    @classmethod
    def _known_key(cls, by: str) -> str:
        if by not in CAP_KEYS and not (by.startswith(EXTRA_PREFIX) and len(by) > len(EXTRA_PREFIX)):
            raise ValueError(f"no key '{by}'; known: {', '.join(CAP_KEYS)}, {EXTRA_PREFIX}COLUMN")
        return by

    @model_validator(mode="after")
    def _one_cap(self) -> Self:
        if (self.about is None) == (self.at_most is None):
            raise ValueError("give exactly one of about and at_most")
        return self

    @property
    def extra_column(self) -> str:
        """The column of the source that it counts, kept in `extra`; empty for the other keys."""
        return self.by.removeprefix(EXTRA_PREFIX) if self.by.startswith(EXTRA_PREFIX) else ""

    @property
    def most(self) -> int:
        """Rows above which a key is cut."""
        return self.about or self.at_most or 0


class BalanceSettings(Settings):
    """Caps over what is left after rules and duplicates, one after the other: each counts what the last one left."""

    caps: tuple[CapSettings, ...] = ()
    seed: int = 0


def judge_cap(table: pa.Table, cap: CapSettings, seed: int) -> pa.Table:
    """Verdicts (schema VERDICTS) of one cap over the columns sample_id and `key`."""
    named = table.rename_columns({"key": cap.by})
    if cap.about is not None:
        return cap_by_key(named, cap.by, cap.about, seed, REASON)
    return cap_exactly(named, cap.by, cap.most, seed, REASON)


def cap_by_key(table: pa.Table, key: str, t: int, seed: int = 0, reason: str = REASON) -> pa.Table:
    """Verdicts (schema VERDICTS) that keep about `t` rows of each value of column `key`; rows without key stay.

    The kept number of a key with n > t rows is binomial with mean t; `value` is the key and n, `threshold` the cap.

    Raises: ConfigError for a cap below 1 or a missing column.
    """
    coded, counts = _count(table, key, t)
    num_of_row = counts[coded]
    keep = draw_uniform(table["sample_id"], seed) * num_of_row < t
    keep |= coded == len(counts) - 1  # no key, no cap
    return _verdicts(table, key, keep, num_of_row, reason, f"about {t} of one {key}")


def cap_exactly(table: pa.Table, key: str, most: int, seed: int = 0, reason: str = REASON) -> pa.Table:
    """Verdicts (schema VERDICTS) that keep at most `most` rows of each value of `key`, lowest draws first.

    For hard limits, such as images of one host.

    Raises: ConfigError for a cap below 1 or a missing column.
    """
    coded, counts = _count(table, key, most)
    order = np.lexsort((*reversed(_numbers_of(table["sample_id"])), draw_uniform(table["sample_id"], seed), coded))
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - starts[coded[order]]
    keep = (place < most) | (coded == len(counts) - 1)
    return _verdicts(table, key, keep, counts[coded], reason, f"<= {most} of one {key}")


def draw_uniform(sample_ids: pa.ChunkedArray, seed: int) -> np.ndarray:
    """A number in [0, 1) of each sample, fixed by seed and sample_id (32 hex digits, already a hash)."""
    high, _ = _numbers_of(sample_ids)
    mixed = _mix(high ^ _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64)))
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def _numbers_of(sample_ids: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """High and low 64 bits of each sample_id."""
    column = pc.cast(sample_ids, pa.large_string()).combine_chunks()
    # straight from Arrow's buffer: 13 M ids as Python strings would take 1 GiB
    start = column.offset * 32
    digits = np.frombuffer(column.buffers()[2] or b"", np.uint8)[start : start + 32 * len(column)].reshape(-1, 32)
    halves = []
    for half in (digits[:, :16], digits[:, 16:]):
        number = np.zeros(len(column), np.uint64)
        for place in range(16):
            digit = half[:, place].astype(np.uint64)
            number = (number << np.uint64(4)) | np.where(digit > 57, digit - 87, digit - 48)  # a-f, 0-9
        halves.append(number)
    return halves[0], halves[1]


def _mix(number: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64, so that seeds give unrelated draws. Source: Steele et al., OOPSLA 2014."""
    with np.errstate(over="ignore"):
        number = number + np.uint64(0x9E3779B97F4A7C15)
        number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = number ^ (number >> np.uint64(31))
    return mixed


def _count(table: pa.Table, key: str, cap: int) -> tuple[np.ndarray, np.ndarray]:
    """(code of each row's key, rows of each code); the last code is for rows without a key."""
    if cap < 1:
        raise ConfigError(f"a cap of {cap} for {key} keeps nothing; give at least 1")
    if key not in table.column_names:
        raise ConfigError(f"no column {key} to balance by; there are {', '.join(table.column_names)}")
    coded = table[key].combine_chunks().dictionary_encode()
    codes = coded.indices.fill_null(len(coded.dictionary)).to_numpy().astype(np.int64)
    return codes, np.bincount(codes, minlength=len(coded.dictionary) + 1)


def _verdicts(table: pa.Table, key: str, keep: np.ndarray, num: np.ndarray, reason: str, threshold: str) -> pa.Table:
    kept = pa.array(keep)
    nothing = pa.scalar(None, pa.string())
    named = pc.utf8_slice_codeunits(pc.cast(table[key].combine_chunks(), pa.string()), 0, 100)
    value = pc.binary_join_element_wise(named, pc.cast(pa.array(num), pa.string()), ": ")
    columns = [
        table["sample_id"].combine_chunks(),
        kept,
        pc.if_else(kept, nothing, reason),
        pc.if_else(kept, nothing, value),
        pc.if_else(kept, nothing, threshold),
    ]
    return pa.table(columns, schema=VERDICTS)
