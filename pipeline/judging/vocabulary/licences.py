"""Read licence statements as SPDX-like ids, and apply the policy over them.

A statement is read as a whole or not at all: ids, names, addresses, their translations, and notices of owners in a few
forms. Everything else is `unknown`, since words around a licence may forbid what it allows. An id says what was stated
and no more: "CC BY" without a version is `CC-BY`. A name and an address that contradict each other are `conflicting`.
No policy allows these two unless it names them. Pure: texts in, ids out. The tables of what is read come first.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Mapping
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote

import pyarrow as pa
from pydantic import field_validator

from manifests.contract.settings import Settings
from manifests.contract.tables import make_verdicts

MAX_CHARS = 500
"""A longer statement is not read: no form is as long."""
UNKNOWN = "unknown"
KNOWN = "known"  # in `allow`: every licence that could be read
CONFLICTING = "conflicting"
ALL_RIGHTS_RESERVED = "all-rights-reserved"
PUBLIC_DOMAIN = "public-domain"
NO_KNOWN_COPYRIGHT = "no-known-copyright"
_CLASSES = (ALL_RIGHTS_RESERVED, CONFLICTING, NO_KNOWN_COPYRIGHT, PUBLIC_DOMAIN, UNKNOWN)
_NOTICE = "notice"  # the name of an owner alone: all rights are reserved, unless a licence stands beside it


def _forms(kind: str) -> list[tuple[str, str]]:
    """Return the keys and alternatives of one kind in licence_forms.tsv, which says what the kinds mean."""
    lines = Path(__file__).with_name("licence_forms.tsv").read_text(encoding="utf-8").splitlines()
    rows = (line.split("\t") for line in lines if not line.startswith("#"))
    return [
        (key, forms.replace(" ", "[ -]?") if kind in ("word", "name") else forms)
        for of, key, forms in rows
        if of == kind
    ]


_TOKEN = re.compile(
    "(?:" + "|".join(rf"(?P<{kind}>(?:{words})(?!(?!v\d)[^\W\d]))" for kind, words in _forms("word")) + r")[ ,:()-]*"
)
_WORDS = re.compile(f"(?:{_TOKEN.pattern})+")
_CC_SHAPE = re.compile("(?:licence |cc )*(?:by |nc |nd |sa )+(?:(?:licence|port|by|nc|nd|sa) )*(?:version )?"
                       "(?:(?:licence|port|nc|nd|sa) )*")  # fmt: skip
_GNU_SHAPE = re.compile("(?:licence )?(A?GPL|LGPL|GFDL) (?:licence )?(?:version (later |only )?)?")
_NAMED = [licence for licence, _ in _forms("name")]
_NAMES = re.compile("|".join(f"({re.escape(licence.lower())}|{names})" for licence, names in _forms("name")))
_SILENT = re.compile(_forms("silent")[0][1])
_FORMS = [re.compile(form) for _, form in _forms("form")]
_NAME = re.compile("[A-Za-zÀ-ɏ0-9 .,'&@_-]{1,80}")
_SMALL = re.compile(_forms("small")[0][1])
_NOT_IN_A_NAME = re.compile("|".join(rf"\b(?:{words})\b" for _, words in _forms("not_in_a_name")))
_ADDRESS = re.compile(r"<?((?:(?:https?:)?//|www\.|(?:[a-z0-9-]+\.)+[a-z]{2,}/)[^\s<>(),;|]*[^\s<>(),;|.])>?", re.I)
# What stands around the part of an address that names a licence: in front, a query, deed and language, a country.
_AROUND = (r"^(?:https?:)?(?://)?(?:www\.)?|[?#].*", r"(?:/(?:legalcode|deed)?(?:\.[a-z]{2}(?:[_-][a-z]+)?)?)?/?$",
           r"(?:\.[a-z]{2})?\.(?:html?|txt|php)$|(?<=\d)/(?:[a-z]{2}|igo|scotland)$")  # fmt: skip
_BELOW = re.compile(r"(creativecommons\.org/licen[sc]es?|gnu\.org/(?:licenses|copyleft)(?:/old-licenses)?"
                    r"|spdx\.org/licenses|opensource\.org/licenses?)/(.+)")  # fmt: skip
# Two licences side by side. With a comma or a stroke they are a choice, as Wikimedia Commons lists its licences, but
# for those that Commons does not list so: there both must be allowed.
_SPLITS = (("OR", re.compile(r" (?:or|oder|ou) (?!(?:any |later|newer))")),
           ("AND", re.compile(r" (?:and|und|et|&|\+) | ?[;|] ?")), ("", re.compile(" ?[,/] ?")))  # fmt: skip
_NO_CHOICE = re.compile(r"-N[CD]\b|^CC0|^CC-PDDC|^P|^p|^LicenseRef| AND ")
LICENCE_IDS = (
    KNOWN,
    *_CLASSES,
    *(f"CC-{parts}" for parts in ("BY", "BY-SA", "BY-NC", "BY-NC-SA", "BY-ND", "BY-NC-ND")),
    *(licence for licence in _NAMED if licence not in {*_CLASSES, _NOTICE}),
    *("AGPL", "GFDL", "GPL", "LGPL"),
)
"""What `allow` and `deny` take; those of Creative Commons and GNU also with a version, such as CC-BY-4.0."""


def normalise_licence(text: str | None, url: str | None = None, meant: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the id of the licence that a name, an address, or both state.

    Two licences offered as a choice give `A OR B`, two that hold together `A AND B`. Each line is read apart, beside
    the same line of the address: rows of a joined table may state several. `meant` is what `check_meanings` returns.
    """
    ids = {_agree(*(_read(one, meant) for one in line)) for line in _lines(text, url)} - {None}
    return _all_of({ALL_RIGHTS_RESERVED if one == _NOTICE else one for one in ids}) if ids else UNKNOWN


def unread_statements(text: str | None, url: str | None, meant: Mapping[str, str]) -> list[str]:
    """Return the names and addresses of a row that cannot be read."""
    return [one for line in _lines(text, url) for one in line if _read(one, meant) == UNKNOWN]


def check_meanings(texts: dict[str, str]) -> dict[str, str]:
    """Return ids by texts as they are compared. Raises: ValueError for a text that is read, and for what is no id."""
    for text, licence in texts.items():
        if (read := _read_text(text)) != UNKNOWN:
            raise ValueError(f"{text!r} is read as {read}" if read else f"{text!r} says nothing: write `defaults`")
        if LicenceSettings(allow=(licence,)).allow[0] in (KNOWN, UNKNOWN, CONFLICTING):
            raise ValueError(f"'{licence}' is no licence that a text can mean")
    return {_plain(text).lower(): licence for text, licence in texts.items()}


def _lines(text: str | None, url: str | None) -> Collection[tuple[str, str]]:
    return dict.fromkeys(zip_longest((text or "").split("\n"), (url or "").split("\n"), fillvalue=""))


def _read(stated: str, meant: Mapping[str, str]) -> str | None:
    return (meant.get(_plain(stated).lower()) if meant else None) or _read_text(stated)


@lru_cache(maxsize=65536)
def _read_text(stated: str) -> str | None:
    """Return the id of one statement, `unknown` where it cannot be read, None where it says nothing."""
    if len(stated) > MAX_CHARS:
        return UNKNOWN
    text = _ADDRESS.sub(lambda found: f"<{_read_address(found[1])}>", _plain(stated))
    if _SILENT.fullmatch(text.lower()):
        return None
    return (None if text.startswith("© ") else _read_list(text)) or _read_form(text) or UNKNOWN


def _plain(stated: str) -> str:
    """Return a text with one kind of blank, dash, apostrophe and copyright sign, without a full stop."""
    text = re.sub("[\u2010-\u2015\u2212]", "-", unicodedata.normalize("NFKC", stated)).replace("\u2019", "'")
    text = " ".join(re.sub(r"\([cC]\)", "©", text).split()).strip(" .\"'")
    return re.sub(r"(?i)^(?:©|copyright\b)(?: ?(?:©|copyright\b))? ?(?=.)", "© ", text)


def _read_address(address: str) -> str:
    plain = unquote(address).lower()
    for around in _AROUND:
        plain = re.sub(around, "", plain)
    if below := _BELOW.fullmatch(plain):
        plain = ("cc " if plain.startswith("creative") else "") + below[2].replace("/", " ")
    return _read_name(plain) or UNKNOWN


def _read_list(text: str) -> str | None:
    """Return the id of licences side by side, or of one; None where a part cannot be read alone."""
    lowered = text.replace("_", " ").lower()
    if licence := _read_licence(lowered):
        return licence
    kind, parts = next(((kind, split.split(lowered)) for kind, split in _SPLITS if split.search(lowered)), ("", [""]))
    for at in range(1, len(parts)):  # a version alone is one of the licence before it
        if re.fullmatch(r"[1-4]\.\d", parts[at]):
            parts[at] = re.sub(r"[1-4]\.\d$", parts[at], parts[at - 1])
    ids = {_read_licence(part) or "" for part in parts}
    if "" in ids:
        return None
    if len(ids) > 1 and ids & {ALL_RIGHTS_RESERVED, NO_KNOWN_COPYRIGHT, _NOTICE}:
        return CONFLICTING
    holds = kind == "AND" or UNKNOWN in ids or (not kind and any(_NO_CHOICE.search(licence) for licence in ids))
    return _all_of(ids) if holds else " OR ".join(sorted(ids))


def _read_licence(lowered: str) -> str | None:
    """Return the id of a licence that is named alone, or again in brackets; None for any other text."""
    if (licence := _read_name(lowered)) or not (again := re.findall(r"[(<[]([^()<>[\]]+)[)>\]]", lowered)):
        return licence
    name = " ".join(re.sub(r"[(<[][^()<>[\]]+[)>\]]", " ", lowered).split()).strip(" .,:;-")
    ids = [_read_name(one) for one in ([name] if name else []) + again]
    if None in ids:
        return None
    return _agree(ids[0], _all_of(ids[1:])) if name else _all_of(ids)


@lru_cache(maxsize=4096)
def _read_name(lowered: str) -> str | None:
    """Return the id that a name, or the id itself, stands for."""
    named = _NAMES.fullmatch(lowered)
    return _NAMED[(named.lastindex or 1) - 1] if named else _read_words(lowered)


def _read_words(lowered: str) -> str | None:
    """Return the id of a licence of Creative Commons or GNU, when all words of a text belong to its name."""
    if not _WORDS.fullmatch(lowered):
        return None
    found = list(_TOKEN.finditer(lowered))
    kinds = [str(word.lastgroup) for word in found]
    shape = "".join(f"{kind} " for kind in kinds)
    version = next((".".join(re.findall("[0-9]", word[0])) for word in found if word["version"]), "")
    version += ".0" if len(version) == 1 else ""
    if gnu := _GNU_SHAPE.fullmatch(shape):
        return "-".join(filter(None, (gnu[1], version, "or-later" if gnu[2] == "later " else "")))
    parts = [part.upper() for part in ("by", "nc", "nd", "sa") if part in kinds]
    if {"ND", "SA"} <= set(parts):
        return None  # Creative Commons has no such licence
    sure = "cc" in kinds or version or len(parts) > 1 or lowered == "by" or ("licence" in kinds and "by" not in lowered)
    # of the licences without BY, all retired, one restricts nothing that a policy names otherwise: SA 1.0
    named = "BY" in parts or (parts == ["SA"] and "cc" in kinds and version)
    if not (_CC_SHAPE.fullmatch(shape) and sure and named):
        return None
    return "-".join(filter(None, ("CC", *parts, version)))


def _read_form(text: str) -> str | None:
    """Return the id of the licence in a sentence or beside the name of an owner, and `_NOTICE` for a name alone."""
    for found in filter(None, (form.fullmatch(text) for form in _FORMS)):
        groups = {kind: value for kind, value in found.groupdict().items() if value}
        rest = " ".join(groups.pop(kind) for kind in ("rest", "again") if kind in groups)
        named = all(_is_name(name, kind == "login") for kind, name in groups.items())
        if named and (licence := _read_list(rest) if rest else _NOTICE):
            return licence
    return None


def _is_name(name: str, is_login: bool) -> bool:
    """Tell a name by its letters and that it holds no word which may restrict a licence; a login may be any such text.

    Else its words have capitals, and one word at most follows a comma, as in "Royal Botanic Gardens, Kew".
    """
    if not _NAME.fullmatch(name) or _NOT_IN_A_NAME.search(name.replace("_", " ").lower()):
        return False
    capitals = all(not word[0].islower() or _SMALL.fullmatch(word) for word in name.split())
    return is_login or (capitals and re.fullmatch("[^,]+(?:, [^, ]+)?", name) is not None)


def _agree(one: str | None, other: str | None) -> str | None:
    """Return the id of two statements on one licence: the more exact one, or `conflicting`."""
    if one is None or other is None or one == other:
        return one or other
    if _NOTICE in (one, other):
        return other if one == _NOTICE else one
    return one if _refines(one, other) else other if _refines(other, one) else CONFLICTING


def _all_of(ids: Collection[str | None]) -> str:
    """Return the id of statements that all hold. With one that cannot be read, or that is a choice, it is unknown."""
    if len(ids) == 1 or CONFLICTING in ids:
        return CONFLICTING if CONFLICTING in ids else str(next(iter(ids)))
    parts = {part for one in ids for part in str(one).split(" AND ")}
    if UNKNOWN in parts or any(" OR " in part for part in parts):
        return UNKNOWN
    return " AND ".join(sorted(part for part in parts if not any(_refines(other, part) for other in parts)))


def _refines(exact: str, loose: str) -> bool:
    """Return true when `exact` says all that `loose` says and more: CC-BY-4.0 and CC-BY, PDM-1.0 and public domain."""
    if re.fullmatch(re.escape(loose) + r"-\d[\d.]*(?:-or-later)?", exact):
        return True
    return loose == PUBLIC_DOMAIN and exact in {"CC0-1.0", "PDM-1.0", "CC-PDDC", "PDDL-1.0"}


def family_of(licence_id: str) -> str:
    """Return the licence without its version: two statements of one family do not contradict each other."""
    family = re.sub(r"-\d[\d.]*(?:-or-later)?$", "", licence_id)
    return PUBLIC_DOMAIN if _refines(licence_id, PUBLIC_DOMAIN) else family


class LicenceSettings(Settings):
    """Which licences may go into a release.

    A statement is read as a whole or it is `unknown`. Licences beside each other with a comma or a stroke (`GFDL, CC
    BY-SA 3.0`, `cc-by-sa-3.0,2.5`) are a choice, as on Wikimedia Commons, and one allowed licence is enough. Where one
    of them is NC, ND, CC0 or public domain, and with `and` or `;`, all of them must be allowed.

    `allow` and `deny` hold ids or families: `CC-BY` covers every version of CC BY and no other licence of Creative
    Commons, `CC-BY-4.0` only that version, and `known` every licence that could be read. An empty `allow` is `[known]`;
    `unknown` and `conflicting` are allowed only when `allow` names them. `deny` wins.
    """

    allow: tuple[str, ...] = ()
    """Ids or families that may stay; empty: every licence that is stated."""
    deny: tuple[str, ...] = (ALL_RIGHTS_RESERVED,)
    """Ids or families that may not; this wins."""

    @field_validator("allow", "deny")
    @classmethod
    def _ids(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            licence = normalise_licence(entry)
            if entry not in LICENCE_IDS and licence != entry:
                near = difflib.get_close_matches(entry.upper(), {known.upper(): known for known in LICENCE_IDS}, n=1)
                ids = [licence] if licence != UNKNOWN else [known for known in LICENCE_IDS if known.upper() in near]
                hint = f"did you mean '{ids[0]}'?" if ids else f"the ids are {', '.join(LICENCE_IDS)}"
                raise ValueError(f"'{entry}' is not a licence id; {hint}")
        return entries

    def allows(self, licence_id: str | None) -> bool:
        """Return true when a picture under this licence may be used; of a choice (`OR`) one allowed part is enough."""
        licence = licence_id or UNKNOWN
        if " OR " in licence:
            return any(self.allows(part) for part in licence.split(" OR "))
        if " AND " in licence:
            return all(self.allows(part) for part in licence.split(" AND "))
        if any(_covers(entry, licence) for entry in self.deny):
            return False
        readable = licence not in {UNKNOWN, CONFLICTING}
        return any(readable if entry == KNOWN else _covers(entry, licence) for entry in self.allow or (KNOWN,))


def _covers(entry: str, licence: str) -> bool:
    return entry == licence or _refines(licence, entry)


def normalise_licences(
    names: pa.ChunkedArray | pa.Array, urls: pa.ChunkedArray | pa.Array, meant: Mapping[str, str] = MappingProxyType({})
) -> pa.Array:
    """Return the ids for two string columns; each distinct pair is read once."""
    pairs = list(zip(names.to_pylist(), urls.to_pylist(), strict=True))
    ids = {pair: normalise_licence(*pair, meant) for pair in set(pairs)}
    return pa.array([ids[pair] for pair in pairs], pa.string())


def judge_licences(table: pa.Table, settings: LicenceSettings) -> pa.Table:
    """Verdicts (schema VERDICTS) over the columns `sample_id` and `licence_id`."""
    ids = table["licence_id"].combine_chunks().fill_null(UNKNOWN)
    keep = pa.array([settings.allows(licence) for licence in ids.to_pylist()], pa.bool_())
    policy = f"allow {', '.join(settings.allow) or 'every known one'}; deny {', '.join(settings.deny) or 'none'}"
    return make_verdicts(table["sample_id"], keep, "licence", ids, policy)


REDISTRIBUTABLE = LicenceSettings(
    allow=(
        "CC0-1.0", "PDM-1.0", PUBLIC_DOMAIN, "CC-BY", "CC-BY-SA", "CC-BY-NC", "CC-BY-NC-SA",
        "MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Unlicense", "WTFPL", "Artistic-2.0", "MPL-2.0",
        "GPL", "LGPL", "AGPL", "GFDL", "FAL-1.3", "OFL-1.1", "OGL-UK", "OGL-UK-3.0", "ODbL-1.0", "ODC-By-1.0",
        "PDDL-1.0",
    ),
)  # fmt: skip
"""Licences under which anyone may pass on a picture that was scaled and encoded anew.

Left out: ND, which forbids sharing a changed picture; Unsplash and Pixabay, which forbid offering their pictures as a
collection; "no known copyright", which grants nothing; what is unknown or contradicts itself.
Source: section 2a of the legal codes of Creative Commons 4.0; unsplash.com/license; pixabay.com/service/terms.
"""


def licence_address(licence_id: str) -> str:
    """Where a licence can be read: its address at Creative Commons or SPDX, or the id where there is none."""
    creative = re.fullmatch(r"CC-((?:BY|NC|ND|SA)(?:-(?:NC|ND|SA))*)-(\d\.\d)", licence_id)
    if creative:
        return f"https://creativecommons.org/licenses/{creative[1].lower()}/{creative[2]}/"
    if licence_id in {"CC0-1.0", "PDM-1.0"}:
        return f"https://creativecommons.org/publicdomain/{'zero' if licence_id == 'CC0-1.0' else 'mark'}/1.0/"
    if re.fullmatch(r"(?!LicenseRef)[\w-]+-\d\.\d(-or-later)?|MIT|ISC|BSD-[23]-Clause|Unlicense|WTFPL", licence_id):
        return f"https://spdx.org/licenses/{licence_id}.html"
    return licence_id
