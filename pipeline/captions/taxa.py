"""Scientific names read into their parts, and the text types a taxon gives.

Reads the taxon columns of candidates; writes the known ranks and a map of text types (BioCLIP's ten, the canonical
name, and DALIP's sentence). Holes in the ranks stay holes and never cost a species; nothing is invented: only genus
and species are taken from the scientific name where their columns are empty, since the name states them.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from manifests.tables import TAXON_RANKS
from pipeline.captions.settings import TEXT_TYPES

# File name of each text type inside a shard, after the key.
# Source: TreeOfLife-10M card, imageomics/TreeOfLife-10M; canonical and sentence are ours.
MEMBER_NAMES = {
    "scientific": "scientific_name.txt",
    "common": "common_name.txt",
    "taxonomic": "taxonomic_name.txt",
    **{name: f"{name}.txt" for name in TEXT_TYPES[3:]},
}

_HYBRID_SIGNS = frozenset("×✕✖☓")
_MARKS = {
    "subsp": "subsp.", "ssp": "subsp.", "subspecies": "subsp.", "var": "var.", "varietas": "var.", "variety": "var.",
    "subvar": "subvar.", "f": "f.", "fo": "f.", "fa": "f.", "forma": "f.", "form": "f.", "subf": "subf.",
    "subforma": "subf.", "convar": "convar.", "convariety": "convar.", "nothosubsp": "nothosubsp.",
    "nothossp": "nothosubsp.", "nothovar": "nothovar.", "nothof": "nothof.", "prol": "prol.", "pv": "pv.",
    "ab": "ab.", "morph": "morph", "lusus": "lusus", "microgene": "microgene",
}  # fmt: skip
_UNCERTAIN = {"cf": "cf.", "aff": "aff.", "nr": "nr.", "near": "nr.", "?": "?", "conf": "cf.", "prox": "nr."}
_UNNAMED = {"sp": "sp.", "spp": "spp.", "spec": "sp.", "species": "sp.", "indet": "indet.", "ined": "ined."}
_AGGREGATES = frozenset({"agg", "aggr", "coll", "complex", "group"})
# Small words that stand in authorships, so that they are not taken for a third name.
_AUTHOR_WORDS = frozenset({
    "ex", "et", "in", "and", "y", "e", "de", "da", "do", "dos", "du", "des", "del", "della",
    "di", "la", "le", "les", "van", "von", "vom", "vander", "den", "der", "ter", "ten", "zu", "zur",
    "auct", "auctt", "hort", "non", "nec", "not", "sensu", "emend", "bis", "al", "apud", "pro", "nom", "orth",
    "mihi", "fide", "ap", "fil", "filius", "st", "d'",
})  # fmt: skip
_GENUS = re.compile(r"^[A-ZÀ-ÖØ-ÞŒŠŽ][a-zß-öø-ÿœšž]+(?:-[A-Za-zß-öø-ÿœ]+)?$")
_ABBREVIATED_GENUS = re.compile(r"^[A-Z][a-z]{0,3}\.$")
_EPITHET = re.compile(r"^[a-zß-öø-ÿœšž]{2,}(?:-[a-zß-öø-ÿœšž]+)*$|^\d+-[a-z]{3,}$|^[a-z]-[a-z]{3,}$")
_CULTIVAR = re.compile(r"(?<![\w.])['‘’`\"“]([^'‘’`\"”]{2,60}(?:['’][a-zA-Z][^'‘’`\"”]{0,40})?)['’`\"”](?!\w)")
_CULTIVAR_MARK = re.compile(r"\bcv\.?\s+([A-ZÀ-Þ][\w' -]*)$")
_SUBGENUS = re.compile(r"\s\(([A-Z][a-zë-]+)\)(?=\s+(?:[×x]\s*)?[a-z])")
_INFRAGENERIC = re.compile(r"\s(?:subg|subgen|sect|subsect|ser|subser)\.\s+[A-Z]\w+", re.IGNORECASE)
_SENSE = re.compile(r"\s+(?:s\.\s?l(?:at)?\.?|s\.\s?str\.?|sensu\s+(?:lato|stricto)|sens\.\s?lat\.?)(?=\s|$).*$")
_NOT_A_NAME = re.compile(
    r"^(?:bold:|sh\d|unidentified|unknown|unplaced|unassigned|not assigned|incertae|indet|n/?a$|none$|null$"
    r"|nan$|life$"
    r"|various|mixed|no name|undetermined|gen\.)",
    re.IGNORECASE,
)
_SUFFIX_RANKS = (
    ("aceae", "family"), ("idae", "family"), ("ales", "order"), ("opsida", "class"), ("mycetes", "class"),
    ("phyta", "phylum"), ("mycota", "phylum"), ("oideae", "subfamily"), ("inae", "subfamily"),
)  # fmt: skip
_KINGDOMS = frozenset({"Plantae", "Animalia", "Fungi", "Chromista", "Protozoa", "Bacteria", "Archaea", "Viruses"})


@dataclass(frozen=True)
class Name:
    """A scientific name in its parts; every part may be empty.

    `hybrid` is genus (×Cuprocyparis), species (Mentha × piperita), formula (Salix alba × S. fragilis) or graft (+).
    """

    genus: str = ""  # or the one name of a higher taxon
    species: str = ""  # epithet, with "× " in front for a hybrid species
    mark: str = ""  # subsp., var., f. ...; empty for a zoological third name
    infraspecific: str = ""
    cultivar: str = ""
    hybrid: str = ""
    qualifier: str = ""  # cf., aff., sp. ...: what the determiner was not sure of
    authorship: str = ""
    rank: str = ""  # of the lowest part that is certain; empty when nothing was read
    formula: str = ""  # the whole formula of a hybrid, authors removed

    @property
    def binomial(self) -> str:
        """Genus and species, or empty when there is no certain species."""
        return f"{self.genus} {self.species}" if self.species and not self.uncertain else ""

    @property
    def uncertain(self) -> bool:
        """True when the species was compared with, not determined (cf., aff., ?)."""
        return self.qualifier in set(_UNCERTAIN.values())

    @property
    def canonical(self) -> str:
        """The whole name without authors, with marks and cultivar: Brassica oleracea var. capitata."""
        if self.formula:
            return self.formula
        parts = [self.genus]
        if self.qualifier and self.species:
            parts.append(self.qualifier)
        parts.append(self.species)
        if self.infraspecific:
            parts += [self.mark, self.infraspecific]
        if self.qualifier and not self.species:
            parts.append(self.qualifier)
        if self.cultivar:
            parts.append(f"'{self.cultivar}'")
        return " ".join(part for part in parts if part)


EMPTY_NAME = Name()


@lru_cache(maxsize=262144)
def parse_name(given: str | None) -> Name:
    """Read one scientific name; what is no name (a BOLD number, "unidentified") gives an empty one."""
    text = _tidy(given or "")
    if not text or _NOT_A_NAME.match(text):
        return EMPTY_NAME
    text = _SENSE.sub("", text)
    text = _SUBGENUS.sub(" ", _INFRAGENERIC.sub("", text))
    text, cultivar = _take_cultivar(text)
    tokens = text.split()
    hybrid = ""
    if tokens and tokens[0] in {"×", "x", "X", "+"} and len(tokens) > 1:
        hybrid = "graft" if tokens[0] == "+" else "genus"
        tokens = tokens[1:]
    if not tokens:
        return EMPTY_NAME
    genus = _read_genus(tokens[0])
    if not genus:
        return EMPTY_NAME
    if hybrid:
        genus = ("+ " if hybrid == "graft" else "× ") + genus
    formula = _read_formula(genus, tokens) if not hybrid else None
    if formula:
        return formula
    return _read_parts(genus, tokens[1:], cultivar, hybrid)


def _tidy(given: str) -> str:
    text = unicodedata.normalize("NFC", re.sub(r"</?[a-zA-Z][^<>]*>", "", given))
    if "_" in text and " " not in text.strip():
        text = text.replace("_", " ")
    text = " ".join(text.replace("†", " ").split()).strip(" ,;")
    for sign in _HYBRID_SIGNS:
        if sign in text:
            text = text.replace(sign, " × ")
    text = " ".join(text.split())
    words = text.split()
    if len(words) >= 2 and text.isupper() and "." not in text:
        text = " ".join([words[0].capitalize(), *(word.lower() for word in words[1:])])
    return text


def _take_cultivar(text: str) -> tuple[str, str]:
    for pattern in (_CULTIVAR, _CULTIVAR_MARK):
        match = pattern.search(text)
        if match:
            rest = " ".join((text[: match.start()] + " " + text[match.end() :]).split())
            return rest.removesuffix(" cv.").removesuffix(" cv"), match[1].strip()
    return text, ""


def _read_genus(token: str) -> str:
    word = token.strip(",;")
    if _GENUS.match(word) or _ABBREVIATED_GENUS.match(word):
        return word
    if word.isupper() and word.isalpha() and len(word) > 2:
        return word.capitalize()
    if re.fullmatch(r"[a-zß-öø-ÿ]{3,}", word) and word not in _AUTHOR_WORDS:
        return word.capitalize()
    return ""


def _read_formula(genus: str, tokens: list[str]) -> Name | None:
    """Two parents with a hybrid sign between them; None when this is no formula."""
    for place in range(1, len(tokens) - 1):
        if tokens[place] not in {"×", "x", "X"}:
            continue
        following = tokens[place + 1]
        if _GENUS.match(following) or _ABBREVIATED_GENUS.match(following):
            first = parse_name(" ".join(tokens[:place]))
            second = parse_name(" ".join(tokens[place + 1 :]))
        elif place >= 2 and _EPITHET.match(following) and _EPITHET.match(tokens[1]):
            first = parse_name(" ".join(tokens[:place]))
            second = parse_name(" ".join([genus, *tokens[place + 1 :]]))
        else:
            continue
        if not first.genus or not second.species:
            continue
        other = second.genus
        if other.endswith(".") and genus.startswith(other[:-1]):
            other = genus
        second_text = " ".join(part for part in (other, second.species, second.mark, second.infraspecific) if part)
        same = other == genus
        return Name(
            genus=genus if same else "", hybrid="formula", rank="genus" if same else "hybrid",
            formula=f"{first.canonical} × {second_text}",
        )  # fmt: skip
    return None


def _read_parts(genus: str, rest: list[str], cultivar: str, hybrid: str) -> Name:
    qualifier = species = mark = infra = ""
    i = 0
    while i < len(rest) and not species:
        bare = rest[i].rstrip(".").lower()
        if rest[i] == "?" or bare in _UNCERTAIN:
            qualifier = _UNCERTAIN[bare or "?"]
        elif bare in _UNNAMED:
            qualifier = _UNNAMED[bare]
            i += 1
            break
        elif rest[i] in {"×", "x", "X"} and i + 1 < len(rest) and _EPITHET.match(rest[i + 1]):
            species, hybrid = f"× {rest[i + 1]}", hybrid or "species"
            i += 1
        elif _is_epithet(rest[i]):
            species = rest[i].rstrip("?")
            qualifier = "?" if rest[i].endswith("?") and not qualifier else qualifier
        else:
            break
        i += 1
    if not species and qualifier and qualifier not in _UNNAMED.values():
        i = 0
    authors_from = i
    if species:
        mark, infra, authors_from = _read_infraspecific(rest, i)
    authorship = " ".join(word for word in rest[authors_from:] if word.rstrip(".").lower() not in _AGGREGATES | {"cv"})
    rank = _rank_of(genus, species, infra, cultivar, qualifier)
    return Name(genus, species, mark, infra, cultivar, hybrid, qualifier, authorship, rank)


def _is_epithet(token: str) -> bool:
    word = token.rstrip("?,")
    return bool(_EPITHET.match(word)) and word not in _AUTHOR_WORDS and word.rstrip(".") not in _AGGREGATES


def _read_infraspecific(rest: list[str], start: int) -> tuple[str, str, int]:
    """The last infraspecific mark with its name after `start`, and where the authorship begins."""
    mark = infra = ""
    authors_from = start
    i = start
    while i < len(rest):
        bare = rest[i].rstrip(".").lower()
        following = rest[i + 1] if i + 1 < len(rest) else ""
        if following in {"×", "x"} and i + 2 < len(rest) and bare in _MARKS and _EPITHET.match(rest[i + 2]):
            mark, infra, authors_from = _MARKS[bare], f"× {rest[i + 2]}", i + 3
            i += 3
            continue
        if bare in _MARKS and rest[i][0].islower() and _is_epithet(following):
            mark, infra, authors_from = _MARKS[bare], following, i + 2
            i += 2
            continue
        if i == start and not infra and _is_epithet(rest[i]) and bare not in _MARKS:
            infra, authors_from = rest[i], i + 1  # a zoological third name has no mark
        i += 1
    return mark, infra, authors_from


def _rank_of(genus: str, species: str, infra: str, cultivar: str, qualifier: str) -> str:
    uncertain = qualifier in set(_UNCERTAIN.values())
    if infra and not uncertain:
        return "infraspecies"
    if species and not uncertain:
        return "species"
    if not species and not qualifier and not cultivar:
        if genus in _KINGDOMS:
            return "kingdom"
        return next((rank for suffix, rank in _SUFFIX_RANKS if genus.endswith(suffix)), "genus")
    return "genus"


def taxon_texts(ranks: tuple[str | None, ...], scientific_name: str | None, vernacular: str | None) -> dict[str, str]:
    """Text types of one taxon; empty when nothing is known of it.

    `ranks` are the seven columns kingdom to species, any of them empty; `species` may hold the epithet or the
    whole binomial. Without a vernacular name `common` is the scientific name, or the taxonomic one without that.
    Source: the text types of Stevens et al. 2024 (BioCLIP, arXiv:2311.18803).
    """
    name = parse_name(scientific_name)
    held = _fill_from_name([_tidy(rank or "") for rank in ranks], name)
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


def _fill_from_name(held: list[str], name: Name) -> list[str]:
    """Genus and species completed from the name and from each other; `species` ends as the epithet."""
    in_species = parse_name(held[6]) if " " in held[6] else EMPTY_NAME
    if in_species.species and not in_species.uncertain:
        held[5] = held[5] or in_species.genus
        held[6] = in_species.species
    elif " " in held[6] or _NOT_A_NAME.match(held[6]) or held[6].rstrip(".").lower() in _UNNAMED:
        held[6] = ""
    held = ["" if value and _NOT_A_NAME.match(value) else value for value in held]
    certain = name.species and not name.uncertain
    if certain and not held[6] and held[5] in ("", name.genus):
        held[6] = name.species
    if name.genus and not held[5] and (certain or (name.rank == "genus" and not name.formula and not any(held))):
        held[5] = name.genus
    return held


def _canonical_text(name: Name, scientific: str) -> str:
    """The name with its infraspecific part and cultivar, where the given name agrees with the columns."""
    if name.uncertain or not name.genus or (name.qualifier and not name.species):
        return scientific
    return name.canonical if name.canonical.startswith(scientific) or name.formula else scientific


def _first_vernacular(given: str | None) -> str:
    """The first of several names that a source lists in one field, separated by ; or |."""
    for part in re.split(r"\s*[;|]\s*", given or ""):
        tidy = " ".join(unicodedata.normalize("NFC", part).split()).strip(" ,.")
        if tidy and not _NOT_A_NAME.match(tidy):
            return tidy
    return ""


def known_ranks(ranks: tuple[str | None, ...], scientific_name: str | None) -> dict[str, str]:
    """Rank to name as the texts use them; holes are left out, and `species` is the binomial."""
    held = _fill_from_name([_tidy(rank or "") for rank in ranks], parse_name(scientific_name))
    if held[5] and held[6]:
        held[6] = f"{held[5]} {held[6]}"
    return {rank: value for rank, value in zip(TAXON_RANKS, held, strict=True) if value}


def taxon_columns(candidates: pa.Table) -> dict[str, pa.Array]:
    """Columns texts, taxon_name and taxon_ranks (see CAPTIONS) of candidates; each distinct taxon is read once."""
    columns = [f"taxon_{rank}" for rank in TAXON_RANKS] + ["taxon_scientific_name", "taxon_vernacular_name"]
    rows = zip(*(candidates[column].to_pylist() for column in columns), strict=True)
    seen: dict[tuple[str | None, ...], int] = {}
    take = pa.array([seen.setdefault(row, len(seen)) for row in rows], pa.int64())
    texts = [taxon_texts(row[:7], row[7], row[8]) for row in seen]
    kind = pa.map_(pa.string(), pa.string())
    return {
        "texts": pa.array([list(text.items()) for text in texts], kind).take(take),
        "taxon_name": pa.array([text.get("canonical") for text in texts], pa.string()).take(take),
        "taxon_ranks": pa.array([list(known_ranks(row[:7], row[7]).items()) for row in seen], kind).take(take),
    }
