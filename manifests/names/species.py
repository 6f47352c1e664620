"""Which taxon a row names. Its species is a binomial, from its genus and from what stands in its species column.

Sources write that column in two ways: Quercus alba, or alba beside a column of the genus. Ingest writes the binomial.
Readers of a release ask the same function, for those that were sealed with the epithet alone. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

UNCERTAIN = {"cf": "cf.", "aff": "aff.", "nr": "nr.", "near": "nr.", "?": "?", "conf": "cf.", "prox": "nr."}
UNNAMED = {"sp": "sp.", "spp": "spp.", "spec": "sp.", "species": "sp.", "indet": "indet.", "ined": "ined.",
            "hybrid": "hybrid", "hybr": "hybrid", "hyb": "hybrid"}  # fmt: skip
NOT_A_NAME = (
    r"(?i)^(?:bold:|sh\d|unidentified|unknown|unplaced|unassigned|not assigned|incertae|indet|n/?a$|none$|null$"
    r"|nan$|life$"
    r"|various|mixed|no name|undetermined|gen\.|unclassified|uncultured|environmental sample|metagenome)"
)
_NO_EPITHET = rf"(?i)^(?:\S+\s+)?(?:{'|'.join(map(re.escape, (*UNCERTAIN, *UNNAMED)))})(?:[.\s]|$)"
_WHOLE = r"^(?:[×x+]\s?)?\p{Lu}\S*\s"  # begins with a genus


_RANKS_OF_FOLDER = re.compile(r"\d+((?:_[^_]+){7})")


def ranks_of_folder(name: str) -> tuple[str, ...] | None:
    """Kingdom to species, from a class folder's name as iNaturalist 2021 writes it; None for any other name.

    It is NUMBER_KINGDOM_PHYLUM_CLASS_ORDER_FAMILY_GENUS_SPECIES; the species is the epithet.
    """
    named = _RANKS_OF_FOLDER.fullmatch(name)
    return None if named is None else tuple(named[1].split("_")[1:])


def species_of(genus: Any, species: Any) -> Any:
    """Return the binomial of each row, from two Arrow columns or scalars of text; null where no species is certain.

    Without a genus the species is what its column says.
    """
    genus, species = _text(genus), _text(species)
    first = pc.replace_substring_regex(species, r"\s.*", "")
    rest = pc.replace_substring_regex(species, r"^\S+\s+", "")
    repeats = pc.fill_null(pc.equal(pc.utf8_lower(first), pc.utf8_lower(genus)), False)
    epithet = pc.if_else(repeats, rest, species)
    names_none = pc.or_(pc.match_substring_regex(epithet, _NO_EPITHET), pc.match_substring_regex(epithet, NOT_A_NAME))
    names_none = pc.or_(names_none, pc.fill_null(pc.equal(species, genus), False))
    whole = pc.or_(pc.match_substring_regex(epithet, _WHOLE), pc.is_null(genus))
    binomial = pc.if_else(whole, epithet, pc.binary_join_element_wise(genus, epithet, " "))
    return pc.if_else(names_none, pa.scalar(None, pa.string()), binomial)


def taxon_keys(taxa: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(kingdom, name) of taxa, the same for the same taxon; "" where a kingdom is not stated.

    One name in two kingdoms names two taxa: botany and zoology give names without asking each other. A row without a
    kingdom is of the one that other rows of its name state, if they state one.
    """
    stated: dict[str, set[str]] = {}
    for kingdom, name in taxa:
        stated.setdefault(name, set()).update({kingdom} - {""})
    return [(kingdom or (min(stated[name]) if len(stated[name]) == 1 else ""), name) for kingdom, name in taxa]


def _text(value: Any) -> Any:
    """Text with single spaces; null where nothing is said."""
    text = pc.utf8_trim_whitespace(pc.replace_substring_regex(value.cast(pa.string()), r"[\s_]+", " "))
    return pc.if_else(pc.or_(pc.equal(text, ""), pc.match_substring_regex(text, NOT_A_NAME)), None, text)
