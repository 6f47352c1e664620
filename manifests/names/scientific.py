"""Scientific names read into their parts: infraspecific marks, hybrids, cultivars, doubts; authors are left out.

Pure: a text in, a `Name` out. A part that the text doubts (cf., aff., ?) is left out, a text that is no name gives an
empty one, and nothing is invented.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass, replace
from functools import lru_cache

from manifests.names.species import NOT_A_NAME, UNCERTAIN, UNNAMED

MAX_NAME_CHARS = 500
"""A longer text is no name. Formulas are read again from each of their signs, which takes the cube of their length."""
NAME_COLUMNS = (
    "scientificname", "taxonname", "taxon", "speciesname", "latinname", "binomial", "canonicalname",
    "wissenschaftlichername", "art", "artname", "nomscientifique", "espece", "espèce", "nombrecientifico",
    "nombrecientífico", "especie",
)  # fmt: skip
"""What the column of scientific names is called, without case and signs, the most telling first."""
_HYBRID_SIGNS = frozenset("×✕✖☓")
_SPECIES_SIGNS = frozenset({"×", "x", "nothosp", "nothospecies"})  # in front of the epithet of a hybrid species
_MARKS = {
    "subsp": "subsp.", "ssp": "subsp.", "subspec": "subsp.", "subspecies": "subsp.", "var": "var.", "varietas": "var.",
    "variety": "var.", "subvar": "subvar.", "f": "f.", "fo": "f.", "fa": "f.", "forma": "f.", "form": "f.",
    "subf": "subf.", "subforma": "subf.", "convar": "convar.", "convariety": "convar.", "nothosubsp": "nothosubsp.",
    "nothossp": "nothosubsp.", "nothovar": "nothovar.", "nothof": "nothof.", "prol": "prol.", "pv": "pv.",
    "ab": "ab.", "morph": "morph", "lusus": "lusus", "microgene": "microgene", "f.sp": "f. sp.", "fsp": "f. sp.",
}  # fmt: skip
_AGGREGATES = frozenset({"agg", "aggr", "coll", "complex", "group"})
# Small words of authorships, and words of sequence archives, that must not be taken for an epithet.
_AUTHOR_WORDS = frozenset({
    "ex", "et", "in", "and", "y", "e", "de", "da", "do", "dos", "du", "des", "del", "della",
    "di", "la", "le", "les", "van", "von", "vom", "vander", "den", "der", "ter", "ten", "zu", "zur",
    "auct", "auctt", "hort", "non", "nec", "not", "sensu", "emend", "bis", "al", "apud", "pro", "nom", "orth",
    "mihi", "fide", "ap", "fil", "filius", "st", "d'",
    "bacterium", "archaeon", "fungus", "endosymbiont", "symbiont", "isolate", "strain", "clone", "vector",
})  # fmt: skip
_GENUS = re.compile(r"^[A-ZÀ-ÖØ-ÞŒŠŽ][a-zß-öø-ÿœšž]+(?:-[A-Za-zß-öø-ÿœ]+)?$")
_ABBREVIATED_GENUS = re.compile(r"^[A-Z][a-z]{0,3}\.$")
_EPITHET = re.compile(r"^(?:[a-z]{1,2}['’])?[a-zß-öø-ÿœšž]{2,}(?:-[a-zß-öø-ÿœšž]+)*$|^\d+-[a-z]{3,}$|^[a-z]-[a-z]{3,}$")
_CULTIVAR = re.compile(r"(?<![\w.])['‘’`´\"“]([^'‘’`´\"”]{2,60}(?:['’][a-zA-Z][^'‘’`´\"”]{0,40})?)['’`´\"”](?!\w)")
_CULTIVAR_MARK = re.compile(r"\bcv\.?\s+([A-ZÀ-Þ][\w' -]*)$")
_SUBGENUS = re.compile(r"\s\(([A-Z][a-zë-]+)\)(?=\s+(?:[×x]\s*)?[a-z])")
_INFRAGENERIC = re.compile(r"\s(?:subg|subgen|sect|subsect|ser|subser)\.\s+[A-Z]\w+", re.IGNORECASE)
_SENSE = re.compile(
    r"\s+(?:s\.\s?l(?:at)?\.?|s\.\s?s(?:tr)?\.?|sensu\s+(?:lato|stricto)|sens\.\s?lat\.?|incertae sedis)(?=\s|$).*$"
)
# Names of viruses have no parts, except two-part names (Orthopoxvirus variola) and genera (Rotavirus).
_VIRUS = re.compile(r"\s[\w-]*(?:virus|viroid|virophage|phage|satellite)(?=\W|$)")
_NOT_A_NAME = re.compile(NOT_A_NAME)
_SUFFIX_RANKS = (
    ("aceae", "family"), ("idae", "family"), ("ales", "order"), ("opsida", "class"), ("mycetes", "class"),
    ("phyta", "phylum"), ("mycota", "phylum"), ("oideae", "subfamily"), ("inae", "subfamily"),
)  # fmt: skip
_QUALIFIER_AROUND = re.compile(r"^(cf\.?|aff\.?|\?)\s*([A-Z][a-zë-]+)\s(?=[a-z])")  # cf. Iris tectorum
_KINGDOMS = frozenset({"Plantae", "Animalia", "Fungi", "Chromista", "Protozoa", "Bacteria", "Archaea", "Viruses"})


@dataclass(frozen=True)
class Name:
    """A scientific name in its parts; every part may be empty.

    `formula` holds the whole of a formula (Salix alba × S. fragilis), and the whole name of a virus.
    """

    genus: str = ""  # or the one name of a higher taxon
    species: str = ""  # epithet, with "× " in front for a hybrid species
    mark: str = ""  # subsp., var., f. ...; empty for a zoological third name
    infraspecific: str = ""
    cultivar: str = ""
    qualifier: str = ""  # cf., aff., sp. ...: what the person who named it was not sure of
    rank: str = ""  # of the lowest part that is certain; empty when nothing was read
    formula: str = ""  # the whole formula of a hybrid with authors removed, or the whole name of a virus

    @property
    def binomial(self) -> str:
        """Genus and species; empty when no species is certain."""
        return f"{self.genus} {self.species}" if self.species and not self.uncertain else ""

    @property
    def uncertain(self) -> bool:
        """True when the species was only compared with this one, not determined (cf., aff., ?)."""
        return self.qualifier in set(UNCERTAIN.values())

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
def parse_name(raw_name: str | None) -> Name:
    """Read one scientific name; a text that is no name (a BOLD number, "unidentified") gives an empty one."""
    if len(raw_name or "") > MAX_NAME_CHARS:
        return EMPTY_NAME
    text = tidy_name(raw_name or "")
    if not text or is_no_name(text):
        return EMPTY_NAME
    text = _SENSE.sub("", text)
    text = _SUBGENUS.sub(" ", _INFRAGENERIC.sub("", text))
    text, cultivar = _take_cultivar(text)
    if _VIRUS.search(text):
        return Name(rank="virus", formula=text)
    tokens = text.split()
    sign = ""
    if tokens and tokens[0] in {"×", "x", "X", "+"} and len(tokens) > 1:
        sign = "+" if tokens[0] == "+" else "×"
        tokens = tokens[1:]
    if not tokens:
        return EMPTY_NAME
    genus = _read_genus(tokens[0])
    if not genus:
        return EMPTY_NAME
    if sign:
        return _read_parts(f"{sign} {genus}", tokens[1:], cultivar)
    formula = _read_formula(genus, tokens)
    if formula:
        return replace(formula, formula=f"{formula.formula} '{cultivar}'", cultivar=cultivar) if cultivar else formula
    return _read_parts(genus, tokens[1:], cultivar)


def is_no_name(text: str) -> bool:
    """Return true for what sources write when there is no name: unidentified, a BOLD number, n/a."""
    return bool(_NOT_A_NAME.match(text))


def tidy_name(raw_name: str) -> str:
    """One spelling of a name: no tags, entities or loose signs, single spaces, × for every hybrid sign."""
    text = html.unescape(re.sub(r"</?[a-zA-Z][^<>]*>", "", raw_name))
    text = unicodedata.normalize("NFC", re.sub("[\u00ad\u200b-\u200d\ufeff]", "", text))
    if "_" in text and " " not in text.strip():
        text = text.replace("_", " ")
    text = " ".join(text.replace("†", " ").split()).strip(" ,;")
    for sign in _HYBRID_SIGNS:
        if sign in text:
            text = text.replace(sign, " × ")
    text = " ".join(text.split())
    text = re.sub(r"(?<=[a-zà-ÿ])\((?=[A-Z])", " (", text)  # robur(L.) Mill.
    text = re.sub(r"^\+(?=[A-Z])", "+ ", text)
    text = _QUALIFIER_AROUND.sub(lambda match: f"{match[2]} {match[1]} ", text)
    text = re.sub(r"\((cf|aff|nr)\.?\)", r"\1.", text)
    return _lower_capitals(" ".join(text.split()))


def _lower_capitals(text: str) -> str:
    """IRIS TECTORUM becomes Iris tectorum; capitals behind the epithet may be authors, so they stay."""
    words = text.split()
    if len(words) < 2 or not all(word.isupper() and word.isalpha() and len(word) > 2 for word in words[:2]):
        return text
    if text.isupper() and "." not in text:
        return " ".join([words[0].capitalize(), *(word.lower() for word in words[1:])])
    for i in range(2, len(words) - 1):
        if words[i].isupper() and len(words[i]) > 1 and words[i].rstrip(".").lower() in _MARKS:
            words[i : i + 2] = words[i].lower(), words[i + 1].lower()  # SUBSP. ALBA
    return " ".join([words[0].capitalize(), words[1].lower(), *words[2:]])


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
    """Return a name of two parents with a hybrid or graft sign between them; None when this is no formula."""
    for index in range(1, len(tokens) - 1):
        if tokens[index] not in {"×", "x", "X", "+"}:
            continue
        sign = "+" if tokens[index] == "+" else "×"
        following = tokens[index + 1]
        if _GENUS.match(following) or _ABBREVIATED_GENUS.match(following):
            first = parse_name(" ".join(tokens[:index]))
            second = parse_name(" ".join(tokens[index + 1 :]))
        elif index >= 2 and _EPITHET.match(following) and _EPITHET.match(tokens[1]):
            first = parse_name(" ".join(tokens[:index]))
            second = parse_name(" ".join([genus, *tokens[index + 1 :]]))
        else:
            continue
        genera = len(tokens) == 3 and bool(_GENUS.match(following))  # Crataegus + Mespilus
        if not first.genus or not (second.species or genera):
            continue
        other = second.genus
        if other.endswith(".") and genus.startswith(other[:-1]):
            other = genus
        second_text = " ".join(part for part in (other, second.species, second.mark, second.infraspecific) if part)
        same = other == genus
        return Name(
            genus=genus if same else "", rank="genus" if same else "hybrid",
            formula=f"{first.canonical} {sign} {second_text}",
        )  # fmt: skip
    return None


def _read_parts(genus: str, rest: list[str], cultivar: str) -> Name:
    qualifier = species = mark = infra = ""
    i = 0
    while i < len(rest) and not species:
        bare = rest[i].rstrip(".").lower()
        if rest[i] == "?" or bare in UNCERTAIN:
            qualifier = UNCERTAIN[bare or "?"]
        elif bare in UNNAMED:
            qualifier = UNNAMED[bare]
            i += 1
            break
        elif bare in _SPECIES_SIGNS and i + 1 < len(rest) and _EPITHET.match(rest[i + 1]):
            species = f"× {rest[i + 1]}"
            i += 1
        elif _is_epithet(rest[i]):
            species = rest[i].rstrip("?,")
            qualifier = "?" if rest[i].endswith("?") and not qualifier else qualifier
        else:
            break
        i += 1
    if species and rest[i:] and rest[i].rstrip(".").lower() in UNCERTAIN and len(rest) == i + 1:
        qualifier = UNCERTAIN[rest[i].rstrip(".").lower() or "?"]  # Iris tectorum cf.
    elif species:
        mark, infra = _read_infraspecific(rest, i)
    rank = _rank_of(genus, species, infra, cultivar, qualifier)
    return Name(genus, species, mark, infra, cultivar, qualifier, rank)


def _is_epithet(token: str) -> bool:
    word = token.rstrip("?,")
    return bool(_EPITHET.match(word)) and word not in _AUTHOR_WORDS and word.rstrip(".") not in _AGGREGATES


def _read_infraspecific(rest: list[str], start: int) -> tuple[str, str]:
    """Return the last infraspecific mark behind `start`, and its name."""
    mark = infra = ""
    i = start
    while i < len(rest) and rest[i].rstrip(".").lower() not in UNCERTAIN:  # cf. var. alba: not certain
        bare = rest[i].rstrip(".").lower()
        if bare == "f" and i + 2 < len(rest) and rest[i + 1] == "sp." and _is_epithet(rest[i + 2]):
            mark, infra = "f. sp.", rest[i + 2]
            i += 3
            continue
        following = rest[i + 1] if i + 1 < len(rest) else ""
        if following in {"×", "x"} and i + 2 < len(rest) and bare in _MARKS and _EPITHET.match(rest[i + 2]):
            mark, infra = _MARKS[bare], f"× {rest[i + 2]}"
            i += 3
            continue
        if bare in _MARKS and rest[i][0].islower() and _is_epithet(following):
            mark, infra = _MARKS[bare], following
            i += 2
            continue
        if i == start and not infra and _is_epithet(rest[i]) and bare not in _MARKS:
            infra = rest[i]  # a zoological third name has no mark
        i += 1
    return mark, infra


def _rank_of(genus: str, species: str, infra: str, cultivar: str, qualifier: str) -> str:
    uncertain = qualifier in set(UNCERTAIN.values())
    if infra and not uncertain:
        return "infraspecies"
    if species and not uncertain:
        return "species"
    if not species and not uncertain and not cultivar:
        if genus in _KINGDOMS:
            return "kingdom"
        return next((rank for suffix, rank in _SUFFIX_RANKS if genus.endswith(suffix)), "genus")
    return "genus"
