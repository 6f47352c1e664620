"""Which column of a table holds what, guessed from names and from values. Pure: names and sampled values in.

A guess says what it was made from and how sure it is. `sure`: name and values agree. `likely`: the name says so, and
the values do not speak against it. `guess`: only the values say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import ConfigError
from manifests.names.equal import plain
from manifests.names.scientific import NAME_COLUMNS
from manifests.samples.endings import PICTURES
from pipeline.judging.captions.patterns import BARE_NAME
from pipeline.judging.vocabulary.licences import UNKNOWN, normalise_licence
from pipeline.sources.kinds import Place

Trust = Literal["sure", "likely", "guess"]
Values = Mapping[str, Sequence[str]]

# Names of columns, without case and signs, the most telling first: those of LAION, img2dataset, DataComp,
# Wikimedia, Flickr and Darwin Core tables; behind them German, French and Spanish ones.
_NAMES: dict[str, tuple[str, ...]] = {
    "url": (
        "imageurl", "imgurl", "photourl", "pictureurl", "mediaurl", "contenturl", "downloadurl", "originalurl",
        "accessuri", "url", "identifier", "imagelink", "image", "img", "src", "link", "uri", "href", "bildurl",
        "fotourl", "bildadresse", "adresse", "urlimage", "lienimage", "lien", "urlimagen", "urlfoto", "enlace",
    ),
    "file": ("filename", "file", "filepath", "imagefile", "imagepath", "image", "img", "path", "photo", "picture",
             "datei", "dateiname", "bilddatei", "bild", "foto", "fichier", "nomfichier", "archivo", "imagen"),
    "licence": ("licence", "license", "licencename", "licensename", "licencetype", "licensetype", "rights",
                "usageterms", "copyrightlicense", "lizenz", "licencia"),
    "licence_url": ("licenceurl", "licenseurl", "licencelink", "licenselink", "webstatement"),
    "rights_holder": ("rightsholder", "owner", "copyrightowner", "copyrightholder", "copyright", "rechteinhaber",
                      "ayantdroit", "titular"),
    "creator": ("creator", "author", "photographer", "artist", "username", "user", "ownername", "recordedby",
                "fotograf", "fotografin", "urheber", "autor", "auteur", "photographe", "fotografo", "fotógrafo"),
    "reference_url": ("referenceurl", "pageurl", "landingurl", "foreignlandingurl", "sourceurl", "references",
                      "pagelink", "observationurl"),
    "taxon_scientific_name": NAME_COLUMNS,
    "taxon_vernacular_name": ("vernacularname", "commonname", "common", "englishname", "popularname", "deutschername",
                              "trivialname", "nomvernaculaire", "nomcommun", "nombrecomun", "nombrecomún"),
    "taxon_species": ("species",),
    "taxon_genus": ("genus", "gattung", "género"),
    "taxon_family": ("family", "familie", "famille", "familia"),
    "taxon_order": ("order", "taxonorder"),
    "taxon_class": ("class", "taxonclass"),
    "taxon_phylum": ("phylum", "division"),
    "taxon_kingdom": ("kingdom",),
    "caption": (
        "caption", "text", "txt", "topcaption", "alttext", "alttextdescription", "alt", "description", "title",
        "captionreferencedescription", "captiontitleandreferencedescription", "prompt", "label", "sentence", "name",
        "beschreibung", "bildunterschrift", "titel", "légende", "legende", "titre", "descripción", "descripcion",
        "leyenda", "título", "titulo",
    ),
}  # fmt: skip
_ALSO_OTHER_WORDS = frozenset({"art"})  # German for species, and an English word
_TWO_NAMES = re.compile(r"^[A-Z][a-zë-]+ (?:[×x] ?)?[a-zë-]{3,}(?: [A-Z(].*|$)")
_FEW_ROWS = 20  # fewer rows that all say the same prove nothing
_ADDRESS = re.compile(r"(?i)^https?://\S+$")
_PICTURE_NAME = re.compile(rf"(?i)\.(?:{'|'.join(PICTURES)})(?:$|[?#])")
_PICTURE_FILE = re.compile(rf"(?i)^(?!https?://).*\.(?:{'|'.join(PICTURES)})$")
_SAYS_NOTHING = re.compile(
    r"(?i)^[\[({<]*(?:not (?:provided|given|available|specified|stated)|unknown|untitled|none|null|n/?a)[\])}>.]*$"
)
_NAME_LIKE = re.compile(r"^[\w×.'() -]{1,80}$")
_MOST = 0.6  # of the sampled values: real columns have empty and odd ones


@dataclass(frozen=True)
class ColumnGuess:
    """One column, and why it was taken."""

    column: str
    trust: Trust
    why: str


def guess_columns(
    names: Sequence[str], values: Values, of_files: bool = False, image: ColumnGuess | None = None
) -> dict[str, ColumnGuess]:
    """Field of the contract to column. `values` holds the non-empty values of some rows, by column.

    Holds `url` or `file`, whichever the table has; of both the first, `of_files` both. Where the pictures are a column,
    `image`, it may have neither. What is not recognised is left out.

    Raises: ConfigError when no column holds addresses or names of pictures.
    """
    guesses: dict[str, ColumnGuess] = {"image": image} if image else {}
    for field, share in (("url", _share_of_addresses), *([] if image else [("file", _share_of(_PICTURE_FILE))])):
        if (image or of_files or not guesses) and (guess := _best(names, values, field, share, guesses)):
            guesses[field] = guess
    if not guesses:
        raise ConfigError(
            f"no column holds addresses of pictures (http...) or file names of pictures; it has {', '.join(names)}. "
            "Texts for the pictures of another source belong there: `captions: [{join: TABLE, on: record_key, "
            "text: COLUMN, kind: caption}]`"
        )
    return guess_fields(names, values, guesses)


def guess_fields(names: Sequence[str], values: Values, taken: Mapping[str, ColumnGuess]) -> dict[str, ColumnGuess]:
    """Return the columns that are `taken`, and those of licences, owners, taxa and captions."""
    guesses = dict(taken)
    checks: dict[str, Callable[[Sequence[str]], float]] = {
        "licence_url": lambda some: _share_of_licences(some) if _share_of(_ADDRESS)(some) >= _MOST else 0.0,
        "licence": _share_of_licences,
        "reference_url": _share_of(_ADDRESS),
        "taxon_scientific_name": _share_of_names,
    }
    others = {field: _share_of(_NAME_LIKE) for field in _NAMES if field not in ("url", "file", "caption", *checks)}
    for by_values in (False, True):  # a column of classes is named, and its values look like those of names
        for field, check in (checks | others).items():
            if field in guesses or (by_values and (field not in checks or field == "reference_url")):
                continue
            if guess := _best(names, values, field, check, guesses, by_values):
                guesses[field] = guess
    caption = guess_caption(names, values, guesses)
    return guesses if caption is None else guesses | {"caption": caption}


def left_out(names: Sequence[str], values: Values, guesses: Mapping[str, ColumnGuess]) -> dict[str, str]:
    """Columns that no field takes, each with the reason."""
    used = {guess.column for guess in guesses.values()}
    reasons = {}
    for name in names:
        if name and name not in used:
            some = values.get(name, ())
            fields = [field for field, usual in _NAMES.items() if plain(name) in usual and field in guesses]
            if not some:
                reasons[name] = "empty in the first rows"
            elif _is_constant(some):
                reasons[name] = f"the same in each row: {some[0]:.40}"
            elif fields:
                reasons[name] = f"{guesses[fields[0]].column} is the {fields[0]}"
            else:
                reasons[name] = "its name says nothing that PlantMix reads"
    return reasons


def describe_columns(found: Place, guesses: Mapping[str, ColumnGuess], path: str) -> Place:
    """Return the place, with words on its columns and on what they lack."""
    found.comments |= {field: f"{guess.trust}, from {guess.why}" for field, guess in guesses.items()}
    found.states_licence = "licence" in guesses or "licence_url" in guesses
    found.has_taxa = any(field.startswith("taxon_") for field in guesses)
    if "caption" not in guesses:
        found.settings["columns"]["caption"] = []
        found.comments["caption"] = "none was found; the names of the taxa stand in" if found.has_taxa else "none found"
        if not found.has_taxa:
            found.missing.append(f"captions of {path}: no column of words was found; set `columns.caption`")
    return found


def is_address(text: str) -> bool:
    """Return whether a text is an address of the web and nothing else."""
    return bool(_ADDRESS.match(text.strip()))


def _free(names: Sequence[str], field: str, taken: Mapping[str, ColumnGuess]) -> tuple[list[str], list[str]]:
    """Return the columns that no field takes, and those of them that are named as the field usually is."""
    usual, used = _NAMES[field], {guess.column for guess in taken.values()}
    free = [name for name in names if name and name not in used]
    return free, sorted((name for name in free if plain(name) in usual), key=lambda name: usual.index(plain(name)))


def _best(
    names: Sequence[str],
    values: Values,
    field: str,
    share: Callable[[Sequence[str]], float],
    taken: Mapping[str, ColumnGuess],
    by_values: bool = True,
) -> ColumnGuess | None:
    """Return the column for a field.

    First by name and values, then by name where there are no values, then by values.
    """
    free, named = _free(names, field, taken)
    for name in named:
        if share(values.get(name, ())) >= _MOST:
            return ColumnGuess(name, "sure", "its name and its values")
    for name in named:
        if plain(name) in _ALSO_OTHER_WORDS and values.get(name) and _share_of(_TWO_NAMES)(values[name]) < _MOST:
            continue
        if not values.get(name) or field not in ("url", "file", "reference_url", "licence_url"):
            return ColumnGuess(name, "likely", "its name")
    fitting = [name for name in free if share(values.get(name, ())) >= _MOST] if by_values else []
    if not fitting:
        return None
    best = max(fitting, key=lambda name: _share_of(_PICTURE_NAME)(values[name]))
    return ColumnGuess(best, "guess", "its values")


def guess_caption(names: Sequence[str], values: Values, taken: Mapping[str, ColumnGuess]) -> ColumnGuess | None:
    """Return the column of words.

    By its name, else the one with the most words of those that differ from row to row.
    """
    mute = {name for name, some in values.items() if some and _share_of(_SAYS_NOTHING)(some) > 1 - _MOST}
    free, named = _free([name for name in names if name not in mute], "caption", taken)
    wordy = {name: _mean_words(values[name]) for name in free if values.get(name) and _are_words(values[name])}
    for name in named:
        if name in wordy and not _is_constant(values[name]):
            return ColumnGuess(name, "sure", "its name and its values")
    varied = [name for name in named if not _is_constant(values.get(name, ()))]
    if varied:
        return ColumnGuess(varied[0], "likely", "its name")
    best = max(wordy, key=lambda name: wordy[name], default=None)
    return ColumnGuess(best, "guess", "its values: the most words") if best and wordy[best] >= 2 else None


def _is_constant(values: Sequence[str]) -> bool:
    return len(values) >= _FEW_ROWS and len(set(values)) == 1


def _are_words(values: Sequence[str]) -> bool:
    lettered = sum(bool(re.search(r"[^\W\d_]{2,}", value)) for value in values)
    addresses = sum(bool(_ADDRESS.match(value.strip())) for value in values)
    return lettered >= _MOST * len(values) and addresses < 0.2 * len(values)


def _mean_words(values: Sequence[str]) -> float:
    differ = len(set(values)) / len(values)
    return sum(len(value.split()) for value in values) / len(values) if differ > 0.2 else 0.0


def _share_of(pattern: re.Pattern[str]) -> Callable[[Sequence[str]], float]:
    def share(values: Sequence[str]) -> float:
        return sum(bool(pattern.search(value.strip())) for value in values) / len(values) if values else 0.0

    return share


def _share_of_addresses(values: Sequence[str]) -> float:  # but for those of licences
    return 0.0 if _share_of_licences(values) >= _MOST else _share_of(_ADDRESS)(values)


def _share_of_names(values: Sequence[str]) -> float:
    """Scientific names, as the caption rules know them: "Red rose" is none."""
    named: list[bool] = pc.match_substring_regex(pa.array(values, pa.string()), BARE_NAME).to_pylist()
    return sum(named) / max(len(named), 1)


def _share_of_licences(values: Sequence[str]) -> float:
    """Licences are few and short. A caption that happens to name one does not make a column of licences."""
    if not values or len(set(values)) > 50 or any(len(value) > 200 for value in values):
        return 0.0
    return sum(normalise_licence(value) != UNKNOWN for value in values) / len(values)
