"""Names of a class in a prompt: as given, or by BioCLIP's text types from its ranks and common name.

Pure functions on strings. Ranks of a taxon may be missing. A missing common name is replaced by the scientific one, and
the other way round, so that every class has a text of every type.

Source of the text types: Stevens et al. 2024, "BioCLIP: A Vision Foundation Model for the Tree of Life", table 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from manifests.contract.tables import TAXON_RANKS
from manifests.names.species import ranks_of_folder, species_of
from training.config import ClassText


@dataclass(frozen=True)
class Taxon:
    """Ranks from kingdom to species, "" where unknown, and the common name."""

    ranks: tuple[str, ...]
    common: str = ""

    def up_to(self, rank: str) -> Taxon:
        """Without the ranks below one."""
        kept = TAXON_RANKS.index(rank) + 1
        return Taxon(self.ranks[:kept] + ("",) * (len(TAXON_RANKS) - kept), self.common)

    @property
    def scientific(self) -> str:
        """The species, or the lowest rank that is known above it."""
        species = species_of(*map(pa.scalar, self.ranks[5:])).as_py()
        return species or next((rank for rank in reversed(self.ranks[:6]) if rank), self.common)

    @property
    def taxonomic(self) -> str:
        """All known ranks, kingdom first; the species as its epithet, since the genus stands before it."""
        names = self.ranks[:6]
        if self.ranks[6] and self.scientific not in names:
            names += (self.scientific.removeprefix(f"{names[5]} "),)
        return " ".join(filter(None, names)) or self.common


def taxon_of(row: Mapping[str, object], prefix: str = "") -> Taxon | None:
    """Return the taxon in a row's columns `{prefix}kingdom` to `{prefix}species` and its common name.

    None without any.
    """

    def text(*names: str) -> str:
        values = (row.get(prefix + name) for name in names)
        return next((str(value).strip() for value in values if value not in (None, "")), "")

    taxon = Taxon(tuple(text(rank) for rank in TAXON_RANKS), text("vernacular_name", "common_name", "common"))
    return taxon if any(taxon.ranks) or taxon.common else None


def most_stated(rows: Iterable[tuple[Any, Sequence[str | None], int]]) -> dict[Any, tuple[str, ...]]:
    """Return the values that most rows of each key state, "" where none does. Rows have a key, values and a count.

    Of equal counts the first of the alphabet counts, so that the order of rows decides nothing.
    """
    votes = dict[Any, list[Counter[str]]]()
    for key, values, count in rows:
        for counter, value in zip(votes.setdefault(key, [Counter() for _ in values]), values, strict=True):
            if text := (value or "").strip():
                counter[text] += count
    return {
        key: tuple(min(counter, key=lambda text: (-counter[text], text), default="") for counter in counters)
        for key, counters in votes.items()
    }


def taxon_of_folder(name: str) -> Taxon | None:
    """Return the taxon in a class folder's name as iNaturalist 2021 writes it; None for any other name."""
    ranks = ranks_of_folder(name)
    return None if ranks is None else Taxon(ranks)


def class_text(name: str, taxon: Taxon | None, kind: ClassText) -> str:
    """Return the class in a prompt; without a taxon, or with `kind` "asis", its given name as words."""
    if kind == "asis" or taxon is None:
        return " ".join(name.replace("_", " ").replace("-", " ").split())
    common = taxon.common or taxon.scientific
    return {
        "common": common,
        "scientific": taxon.scientific,
        "taxonomic": taxon.taxonomic,
        "scientific_common": f"{taxon.scientific} with common name {common}",
        "taxonomic_common": f"{taxon.taxonomic} with common name {common}",
    }[kind]
