"""The known ranks of a taxon, and the text types it gives.

Taxon columns of candidates in, known ranks and a map of text types out (BioCLIP's ten, the canonical name, and DALIP's
sentence). A hole in the ranks stays a hole, and no species is lost to it. Nothing is invented: only genus and species
are taken from the scientific name where their columns are empty, because the name states them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

import pyarrow as pa

from manifests.contract.tables import TAXON_RANKS
from manifests.names.scientific import EMPTY_NAME, Name, is_no_name, parse_name, tidy_name
from manifests.names.species import UNNAMED


def taxon_texts(ranks: tuple[str | None, ...], scientific_name: str | None, vernacular: str | None) -> dict[str, str]:
    """Text types of one taxon; empty when nothing is known of it.

    `ranks` are the seven columns kingdom to species, any of them empty; `species` may hold the epithet or the whole
    binomial. Without a vernacular name `common` is the scientific name, and without that one the taxonomic name.
    Source: the text types of Stevens et al. 2024 (BioCLIP, arXiv:2311.18803).
    """
    name = parse_name(scientific_name)
    held = _fill_from_name(_tidy_ranks(ranks), name)
    present = [(rank, value) for rank, value in zip(TAXON_RANKS, held, strict=True) if value]
    genus, species = held[5], held[6]
    taxonomic = " ".join(value for _, value in present)
    if genus and species:
        scientific = f"{genus} {species}"
    elif name.formula:
        scientific = name.formula
    else:
        scientific = present[-1][1] if present else name.genus
    taxonomic = taxonomic or scientific
    given_common = _first_vernacular(vernacular)
    if not scientific and not given_common:
        return {}
    common = given_common or scientific or taxonomic
    scientific = scientific or common
    taxonomic = taxonomic or scientific
    tags = " ".join(f"{rank} {value}" for rank, value in present) or scientific
    canonical = _canonical_text(name, scientific)
    known_as = given_common and given_common.casefold() != canonical.casefold()
    return {
        "scientific": scientific,
        "common": common,
        "taxonomic": taxonomic,
        "sci": f"a photo of {scientific}.",
        "com": f"a photo of {common}.",
        "taxon": f"a photo of {taxonomic}.",
        "taxonTag": f"a photo of {tags}.",
        "sci_com": f"a photo of {scientific} with common name {common}.",
        "taxon_com": f"a photo of {taxonomic} with common name {common}.",
        "taxonTag_com": f"a photo of {tags} with common name {common}.",
        "canonical": canonical,
        "sentence": f"{canonical}, commonly known as {given_common}." if known_as else f"{canonical}.",
    }


def _tidy_ranks(ranks: tuple[str | None, ...]) -> list[str]:
    """Return the ranks in one spelling; of a species that repeats the genus its epithet, however that is spelt."""
    *above, genus, species = ("" if rank is None else " ".join(rank.split()) for rank in ranks)
    epithet = species.removeprefix(f"{genus} ")
    return [tidy_name(rank) for rank in (*above, genus, species if " " in epithet else epithet)]


def _fill_from_name(held: list[str], name: Name) -> list[str]:
    """Complete genus and species from the name and from each other; species becomes the epithet alone."""
    in_species = parse_name(held[6]) if " " in held[6] else EMPTY_NAME
    if in_species.species and not in_species.uncertain:
        held[5] = held[5] or in_species.genus
        held[6] = in_species.species
    elif " " in held[6] or is_no_name(held[6]) or held[6].rstrip(".").lower() in UNNAMED:
        held[6] = ""
    held = ["" if value and is_no_name(value) else value for value in held]
    certain = name.species and not name.uncertain
    if certain and not held[6] and held[5] in ("", name.genus):
        held[6] = name.species
    if name.genus and not held[5] and (certain or (name.rank == "genus" and not name.formula and not any(held))):
        held[5] = name.genus
    return held


def _canonical_text(name: Name, scientific: str) -> str:
    """Return the name with its infraspecific part and cultivar, where the name agrees with the rank columns."""
    if name.uncertain or not name.genus or (name.qualifier and not name.species):
        return scientific
    return name.canonical if name.canonical.startswith(scientific) or name.formula else scientific


def _first_vernacular(names: str | None) -> str:
    """Return the first of several names that a source lists in one field, separated by ; or |."""
    for part in re.split(r"\s*[;|]\s*", names or ""):
        tidy = " ".join(unicodedata.normalize("NFC", part).split()).strip(" ,.")
        if tidy and not is_no_name(tidy):
            return tidy
    return ""


def known_ranks(ranks: tuple[str | None, ...], scientific_name: str | None) -> dict[str, str]:
    """Rank to name, as the texts use them; holes are left out, and `species` is the binomial."""
    held = _fill_from_name(_tidy_ranks(ranks), parse_name(scientific_name))
    if held[5] and held[6]:
        held[6] = f"{held[5]} {held[6]}"
    return {rank: value for rank, value in zip(TAXON_RANKS, held, strict=True) if value}


def derived_ranks(stated: tuple[str | None, ...], ranks: Mapping[str, str]) -> str | None:
    """Those of `ranks` that the source left empty, joined by a space; None where there are none.

    A source may state another genus or family than `ranks`. It then keeps its own ranks alone: half of one
    classification and half of another would be no taxon.
    """
    tidy = {rank: tidy_name(value or "") for rank, value in zip(TAXON_RANKS, stated, strict=True)}
    usable = {rank: value for rank, value in tidy.items() if value and not is_no_name(value)}
    as_texts_use_them = known_ranks(tuple(usable.get(rank) for rank in TAXON_RANKS), None)
    if any(ranks.get(rank) != value for rank, value in as_texts_use_them.items() if " " in value or rank != "species"):
        return None
    return " ".join(rank for rank in ranks if rank not in usable) or None


def taxon_columns(candidates: pa.Table, stated: pa.Table) -> dict[str, pa.Array]:
    """Columns texts, taxon_name, taxon_ranks and taxon_derived (see CAPTIONS); each distinct taxon is read once.

    `stated` are the same rows as the source gave them; in `candidates` a backbone may have put accepted names.
    """
    ranks = [f"taxon_{rank}" for rank in TAXON_RANKS]
    columns = [*ranks, "taxon_scientific_name", "taxon_vernacular_name"]
    both = [candidates[column].to_pylist() for column in columns] + [stated[column].to_pylist() for column in ranks]
    rows = zip(*both, strict=True)
    seen: dict[tuple[str | None, ...], int] = {}
    take = pa.array([seen.setdefault(row, len(seen)) for row in rows], pa.int64())
    texts = [taxon_texts(row[:7], row[7], row[8]) for row in seen]
    ranks_in_texts = [known_ranks(row[:7], row[7]) for row in seen]
    derived = [derived_ranks(row[9:], ranks) for row, ranks in zip(seen, ranks_in_texts, strict=True)]
    kind = pa.map_(pa.string(), pa.string())
    return {
        "texts": pa.array([list(text.items()) for text in texts], kind).take(take),
        "taxon_name": pa.array([text.get("canonical") for text in texts], pa.string()).take(take),
        "taxon_ranks": pa.array([list(ranks.items()) for ranks in ranks_in_texts], kind).take(take),
        "taxon_derived": pa.array(derived, pa.string()).take(take),
    }
