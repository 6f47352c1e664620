"""Balance: a cap on how many images one taxon, host or other key may bring.

Settings of the caps, and the verdicts of one cap: a table with sample_id and the key in, one verdict a row out. Pure.
The rule is MetaCLIP's: of n rows with one key, each stays with probability min(1, t/n). The draw of a row depends on
the seed and its sample_id alone, or its group's where it has one. So when a key grows, few rows change sides, and no
dropped row comes back.
Source: Xu et al. 2024 (MetaCLIP, arXiv:2309.16671), algorithm 1.
"""

from __future__ import annotations

import binascii
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from manifests.contract.settings import Settings
from manifests.contract.tables import TAXON_RANKS, make_verdicts
from manifests.services.draws import splitmix64

REASON = "balance"
CAP_KEYS = ("taxon", *TAXON_RANKS, "host", "source", "creator", "rights_holder", "text")
EXTRA_PREFIX = "extra."
MAX_KEY_CHARS = 100  # of a key in a verdict


class CapSettings(Settings):
    """A cap over one key: `about` keeps each of a key's n rows with p = min(1, about/n), `at_most` is exact.

    Rows without the key are never capped.
    """

    by: str
    """What is counted: taxon, kingdom, phylum, class, order, family, genus, species, host, source, creator,
    rights_holder, text (the caption), or extra.COLUMN for a column kept by the source."""
    about: int | None = Field(None, ge=1)
    """Keep each row of a key with probability min(1, about / rows)."""
    at_most: int | None = Field(None, ge=1)
    """Keep so many rows of a key, no more."""
    domains: tuple[str, ...] = ()
    """Domains that are counted and capped; all when empty."""

    @field_validator("by")
    @classmethod
    def _known_key(cls, by: str) -> str:
        if by not in CAP_KEYS and not (by.startswith(EXTRA_PREFIX) and len(by) > len(EXTRA_PREFIX)):
            raise ValueError(f"no key '{by}'; take one of {', '.join(CAP_KEYS)}, or {EXTRA_PREFIX}COLUMN")
        return by

    @model_validator(mode="after")
    def _one_cap(self) -> Self:
        if (self.about is None) == (self.at_most is None):
            raise ValueError("give exactly one of about and at_most")
        return self

    @property
    def extra_column(self) -> str:
        """The column that the source keeps in `extra`; empty for the other keys."""
        return self.by.removeprefix(EXTRA_PREFIX) if self.by.startswith(EXTRA_PREFIX) else ""

    @property
    def most(self) -> int:
        """A key with more rows than this is cut."""
        return self.about or self.at_most or 0


class BalanceSettings(Settings):
    """Caps over the rows that rules and duplicates kept. They work in order: each counts what the one before kept."""

    caps: tuple[CapSettings, ...] = ()
    seed: int = 0
    """Seed of the draws."""


def judge_cap(table: pa.Table, cap: CapSettings, seed: int) -> pa.Table:
    """Verdicts (schema VERDICTS) of one cap over the columns sample_id, `key` and `unit`, row for row.

    Rows of one `unit` (32 hex digits) share a draw. With `about` the number that stays is binomial where units are
    single rows, and its mean the cap. With `at_most` the lowest draws stay, so at most one unit of a key is split. The
    value of a verdict is the key and its number of rows.
    """
    keys = table["key"].combine_chunks().dictionary_encode()
    no_key = len(keys.dictionary)
    codes = keys.indices.fill_null(no_key).to_numpy().astype(np.int64)
    counts = np.bincount(codes, minlength=no_key + 1)
    draws = draw_uniform(table["unit"], seed)
    if cap.about is not None:
        keep = draws * counts[codes] < cap.about
        threshold = f"about {cap.about} of one {cap.by}"
    else:
        high, low = _halves(table["sample_id"])
        order = np.lexsort((low, high, draws, codes))
        first = np.cumsum(counts) - counts
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - first[codes[order]]
        keep = rank < cap.most
        threshold = f"<= {cap.at_most} of one {cap.by}"
    keep |= codes == no_key
    shown = pc.utf8_slice_codeunits(pc.cast(table["key"].combine_chunks(), pa.string()), 0, MAX_KEY_CHARS)
    value = pc.binary_join_element_wise(shown, pc.cast(pa.array(counts[codes]), pa.string()), ": ")
    return make_verdicts(table["sample_id"], pa.array(keep), REASON, value, threshold)


def draw_uniform(sample_ids: pa.ChunkedArray, seed: int) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for each sample, fixed by the seed and the sample_id (32 hex digits)."""
    high, _ = _halves(sample_ids)
    mixed = splitmix64(high ^ np.uint64(splitmix64(seed & 0xFFFFFFFFFFFFFFFF)))
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def _halves(sample_ids: pa.ChunkedArray) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return the high and the low 64 bits of each sample_id."""
    column = pc.cast(sample_ids, pa.large_string()).combine_chunks()
    # straight from Arrow's buffer: 13 M ids as Python strings would take 1 GiB
    digits = memoryview(column.buffers()[2] or b"")[32 * column.offset :][: 32 * len(column)]
    numbers = np.frombuffer(binascii.unhexlify(digits), ">u8").astype(np.uint64)
    return numbers[0::2], numbers[1::2]
