"""Licences in all their spellings to short ids, and the policy over them.

Licence names and addresses as sources give them in, SPDX-like ids out. An id says what was stated and no more: "CC BY"
without a version is `CC-BY`. What cannot be read is `unknown`; a name and an address that contradict each other are
`conflicting`. No policy allows these two unless it names them.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache, partial

import pyarrow as pa
from pydantic import field_validator

from manifests.contract.settings import Settings
from manifests.contract.tables import make_verdicts

MAX_CHARS = 10_000
"""A longer statement is not read. Reading takes some 4 microseconds a character, and no licence needs as many."""
UNKNOWN = "unknown"
KNOWN = "known"  # in `allow`: every licence that could be read
CONFLICTING = "conflicting"
ALL_RIGHTS_RESERVED = "all-rights-reserved"
PUBLIC_DOMAIN = "public-domain"
NO_KNOWN_COPYRIGHT = "no-known-copyright"
_CLASSES = frozenset({UNKNOWN, CONFLICTING, ALL_RIGHTS_RESERVED, PUBLIC_DOMAIN, NO_KNOWN_COPYRIGHT})

_CC_PARTS = ("by", "nc", "nd", "sa")
# The words of the licences in the languages in which sources write them out.
_CC_WORDS = (
    (re.compile(r"\b(?:attribution|namensnennung|reconocimiento|reconeixement|atribución|atribuição|paternité"
                r"|attribuzione|naamsvermelding|uznanie autorstwa|erkännande|navngivelse)\b"), "by"),
    (re.compile(r"\bnon[\s-]?commercial|\bnicht[\s-]?kommerziell|\bno[\s-]?comercial|\bnão[\s-]?comercial"
                r"|\bpas d['’ ]?utilisation commerciale|\bnon[\s-]?commerciale|\bniet[\s-]?commercieel"
                r"|\bużycie niekomercyjne|\bicke[\s-]?kommersiell|\bikke[\s-]?kommerciel"), "nc"),
    (re.compile(r"\bno[\s-]?deriv|\bkeine[\s-]?bearbeitung|\bpas de modification|\bnon opere derivate"
                r"|\bsin[\s-]?(?:obra[\s-]?)?derivad|\bsem[\s-]?deriva|\bgeen[\s-]?afgeleide|\bbez utworów zależnych"
                r"|\binga bearbetningar|\bsense[\s-]?obra[\s-]?derivada"), "nd"),
    (re.compile(r"\bshare[\s-]?alike\b|\bweitergabe unter gleichen bedingungen|\bcompartir[\s-]?igual"
                r"|\bcompartilha[\s-]?igual|\bpartage (?:des conditions initiales )?(?:à l['’]identique|dans les mêmes)"
                r"|\bcondividi allo stesso modo|\bgelijk[\s-]?delen|\bna tych samych warunkach"), "sa"),
)  # fmt: skip
# What a restriction may look like in a language that is not listed above: then no licence is claimed.
_PERHAPS_RESTRICTED = re.compile(r"komm?er|comm?er|deriv|modif|bearbeit|utilis|personal use|educational")
_CC_URL = re.compile(
    r"creativecommons\.org/licen[sc]es?/(?P<parts>[a-z+-]+)(?:/(?P<version>\d(?:\.\d)?))?", re.IGNORECASE
)
_CC_SHORT = re.compile(
    r"\b(?:cc|creative commons)[\s_:-]*(?:license\s+)?(?P<parts>by(?:[\s_-]*(?:nc|nd|sa))*)(?![a-z])"
    r"(?:[\s_,:()-]*(?:licen[sc]e|version|v\.?|unported|generic|international)*[\s_,:()-]*(?P<version>[1-4](?:[._]\d|(?=$))))?"
)
_CC_LATER_PART = re.compile(r"\b(nc|nd|sa)\b")
_BARE_SHORT = re.compile(r"^by(?:[\s_-]+(?:nc|nd|sa))*(?:[\s_-]+(?P<version>[1-4][._]\d))?$")
_VERSION = re.compile(r"\b(?:v(?:ersion)?\.?\s*)?(?P<version>[1-4][._]\d)\b")
_SPLIT_OR = re.compile(
    r"\s+or\s+|\s*\|\s*|\s*;\s*|\s+/\s+|(?<=[a-z0-9.])/(?=(?:cc|gfdl|gpl|lgpl|mit|bsd|apache|ofl)\b)"
)
_SPLIT_AND = re.compile(r"\s*[|;]\s*|\s+and\s+|\s*&\s*|\s+\+\s+|\s*,\s+(?=(?:cc|gfdl|gpl|lgpl|mit|bsd|apache|ofl)\b)")

_GNU = re.compile(
    r"\b(?P<family>agpl|lgpl|gpl|gfdl|fdl"
    r"|gnu affero general public licen[sc]e|gnu (?:lesser|library) general public licen[sc]e"
    r"|gnu general public licen[sc]e|gnu free documentation licen[sc]e|free documentation licen[sc]e)"
    r"[\s_,:()-]*(?:licen[sc]e|niv)?[\s_,:()-]*(?:version|v)?\.?[\s_-]*(?P<version>[1-3](?:\.\d)?)?"
    r"(?:\.0)?(?P<later>\s*\+|[\s_,-]*or[\s_-]+(?:any[\s_-]+)?(?:later|newer))?"
)
_GNU_URL = re.compile(
    r"gnu\.org/(?:licenses|copyleft)/(?:old-licenses/)?(?P<family>agpl|lgpl|gpl|fdl)(?:-(?P<version>\d(?:\.\d)?))?"
)
# A part of the family's name, and the family; the first that fits counts.
_GNU_FAMILIES = (
    ("agpl", "AGPL"), ("affero", "AGPL"), ("lgpl", "LGPL"), ("lesser", "LGPL"), ("library", "LGPL"),
    ("fdl", "GFDL"), ("documentation", "GFDL"), ("", "GPL"),
)  # fmt: skip
# Pattern on the lower-case text, and the id it stands for; the first that is found counts.
_NAMED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), licence)
    for pattern, licence in (
        (r"creativecommons\.org/publicdomain/zero|\bcc[\s_-]*0\b|\bcc[\s_-]*zero\b|\bcc0[\s_-]"
         r"|\bcreative commons zero\b"
         r"|\bzero v?1\.0 universal\b", "CC0-1.0"),
        (r"creativecommons\.org/publicdomain/mark|\bpublic domain mark\b|\bpdm\b|\bpdm[\s_-]1", "PDM-1.0"),
        (r"creativecommons\.org/licenses/publicdomain", "CC-PDDC"),
        (r"apache\.org/licenses/license-2\.0|\bapache[\s_-]*(?:software)?[\s_-]*(?:licen[sc]e)?[\s_,-]*"
         r"(?:version|v)?\.?[\s_-]*2(?:\.0)?\b|\basl[\s_-]?2", "Apache-2.0"),
        (r"opensource\.org/licenses?/mit\b|^(?:the )?(?:mit|expat)\b(?:[\s/-]*x11)?(?:[\s_-]*licen[sc]ed?)?"
         r"(?:$| ?[(;,])|\bmit licen[sc]ed?\b|\bexpat licen[sc]e\b|\bmit/expat\b", "MIT"),
        (r"\bbsd[\s_-]*3|\b3[\s-]clause bsd|\bnew bsd\b|\bmodified bsd\b|licenses?/bsd-3", "BSD-3-Clause"),
        (r"\bbsd[\s_-]*2|\b2[\s-]clause bsd|\bsimplified bsd\b|licenses?/bsd-2", "BSD-2-Clause"),
        (r"^isc(?:\s+licen[sc]e)?$", "ISC"),
        (r"\bunlicense\b|\bunlicence\b", "Unlicense"),
        (r"\bwtfpl\b", "WTFPL"),
        (r"\bodbl\b|\bopen database licen[sc]e\b|opendatacommons\.org/licenses/odbl", "ODbL-1.0"),
        (r"\bodc[\s-]by\b|opendatacommons\.org/licenses/by", "ODC-By-1.0"),
        (r"\bpddl\b|opendatacommons\.org/licenses/pddl", "PDDL-1.0"),
        (r"\bopen government licen[sc]e\b.*?\b3|\bogl[\s_-]*(?:uk)?[\s_-]*3|open-government-licence/version/3",
         "OGL-UK-3.0"),
        (r"\bopen government licen[sc]e\b(?!.*(?:canada|alberta|ontario|columbia))|open-government-licence"
         r"|\bogl[\s_-]?uk\b", "OGL-UK"),
        (r"\bfree art licen[sc]e\b|\blicence art libre\b|artlibre\.org|^fal\b|^lal[\s_-]?1", "FAL-1.3"),
        (r"\bartistic(?:[\s_-]licen[sc]e)?[\s_-]*2", "Artistic-2.0"),
        (r"\bmozilla public licen[sc]e\b.*?2|\bmpl[\s_-]*2", "MPL-2.0"),
        (r"\bsil open font licen[sc]e\b|\bofl[\s_-]*1", "OFL-1.1"),
        (r"unsplash\.com/license|\bunsplash licen[sc]e\b", "LicenseRef-Unsplash"),
        (r"pixabay\.com/(?:service/)?licen[sc]e|\bpixabay licen[sc]e\b", "LicenseRef-Pixabay"),
        (r"rightsstatements\.org/vocab/noc-us", PUBLIC_DOMAIN),
        (r"rightsstatements\.org/vocab/nkc|\bno known copyright\b", NO_KNOWN_COPYRIGHT),
        (r"rightsstatements\.org/vocab/inc", ALL_RIGHTS_RESERVED),
        (r"^not in (?:the )?public domain", ALL_RIGHTS_RESERVED),
        (r"\bpublic[\s_-]*domain\b|^pd(?:[\s-].*)?$|\bgemeinfrei\b|\bdomaine public\b|\bdominio público\b",
         PUBLIC_DOMAIN),
        (r"\ball rights? reserved\b|^arr$|^c$|\bno reuse\b|\bnot? licen[sc]ed\b|\balle rechte vorbehalten\b"
         r"|\btous droits réservés\b|\btodos los derechos reservados\b|\bfair use\b|^©|^copyright(?:ed)?\b|^\(c\)",
         ALL_RIGHTS_RESERVED),
    )
)  # fmt: skip
LICENCE_IDS = (
    KNOWN,
    *sorted(_CLASSES),
    *(f"CC-{parts}" for parts in ("BY", "BY-SA", "BY-NC", "BY-NC-SA", "BY-ND", "BY-NC-ND")),
    *(licence for _, licence in _NAMED if licence not in _CLASSES),
    *sorted({family for _, family in _GNU_FAMILIES}),
)
"""What `allow` and `deny` take; those of Creative Commons and GNU also with a version, such as CC-BY-4.0."""
_DASHES = re.compile("[\u2010-\u2015\u2212]")  # as in CC BY‑NC, where the dash is no hyphen
_PER_FILE = re.compile(r"\bper (?:file|image|photo|picture|item)\b|\bdepending\b")
_NOT_OF_THIS_FILE = re.compile(r"\bmostly\b|\bnot listed\b|\bper \S+ author\b")  # states no licence of this picture
_NOTICE = re.compile(r"^(?:©|\(c\)|copyright\b)(?!.*reserved)")
_NO_LICENCE = frozenset({"", "unknown", "none", "null", "nan", "unspecified", "unsupported", "n/a", "na", "other", "-"})


def normalise_licence(text: str | None, url: str | None = None) -> str:
    """Id of the licence that a name, an address, or both state.

    Two licences offered as a choice give `A OR B`, two that hold together `A AND B`. Where name and address agree, the
    more exact one counts; where they contradict each other the id is `conflicting`.
    """
    return _normalise_pair((text or "").strip(), (url or "").strip())


@lru_cache(maxsize=65536)
def _normalise_pair(text: str, url: str) -> str:
    from_text, from_url = _read_one(text), _read_one(url)
    if from_url == UNKNOWN or from_text == from_url:
        return from_text
    if from_text == UNKNOWN:
        return from_url
    if _refines(from_url, from_text):
        return from_url
    if _refines(from_text, from_url):
        return from_text
    if from_text == ALL_RIGHTS_RESERVED and _NOTICE.match(text.lower()):
        return from_url
    return CONFLICTING


def _refines(exact: str, loose: str) -> bool:
    """True when `exact` says all that `loose` says and more: CC-BY-4.0 and CC-BY, PDM-1.0 and public domain."""
    if re.fullmatch(re.escape(loose) + r"-\d[\d.]*(?:-or-later)?", exact):
        return True
    return loose == PUBLIC_DOMAIN and exact in {"CC0-1.0", "PDM-1.0", "CC-PDDC", "PDDL-1.0"}


def family_of(licence_id: str) -> str:
    """The licence without its version: two statements of one family do not contradict each other."""
    family = re.sub(r"-\d[\d.]*(?:-or-later)?$", "", licence_id)
    return PUBLIC_DOMAIN if _refines(licence_id, PUBLIC_DOMAIN) else family


def _read_one(stated: str) -> str:
    if len(stated) > MAX_CHARS:
        return UNKNOWN
    plain = _DASHES.sub("-", unicodedata.normalize("NFKC", stated)).replace("_", " ")
    lowered = " ".join(plain.split()).lower().strip(" .\"'")
    if lowered in _NO_LICENCE:
        return UNKNOWN
    if lowered in _CLASSES:
        return lowered
    if _NOT_OF_THIS_FILE.search(lowered):
        return UNKNOWN
    whole = _read_single(lowered)
    if _contradicts_itself(whole, lowered):
        return CONFLICTING
    # "A/B per file" is no choice: it is not known which of them holds for this file, so both must be allowed.
    choice = " AND " if _PER_FILE.search(lowered) else " OR "
    for splitter, joiner in ((_SPLIT_AND, " AND "), (_SPLIT_OR, choice)):
        parts = [part for part in splitter.split(lowered) if part]
        if len(parts) < 2:
            continue
        # A copyright notice beside a licence ("© Smith, CC BY 4.0") is usual and restricts nothing.
        licences = {_read_single(part.strip(" .()")) for part in parts if not _NOTICE.match(part)}
        recognised = sorted(licences - {UNKNOWN})
        if len(recognised) > 1:
            return joiner.join(recognised)
    return whole


def _contradicts_itself(licence: str, lowered: str) -> bool:
    """True for texts like "public domain, non-commercial use only" and "all rights reserved, CC BY"."""
    if licence.startswith("CC-BY"):
        return "all rights reserved" in lowered
    free = licence not in {UNKNOWN, ALL_RIGHTS_RESERVED} and not licence.startswith("CC-")
    return free and any(pattern.search(lowered) for pattern, part in _CC_WORDS if part in {"nc", "nd"})


def _read_single(lowered: str) -> str:
    return next((licence for read in _READERS if (licence := read(lowered))), UNKNOWN)


def _read_cc_address(lowered: str) -> str | None:
    match = _CC_URL.search(lowered)
    if not match or match["parts"] == "publicdomain":
        return None
    return _cc_id(re.split(r"[+-]", match["parts"]), match["version"])


def _read_cc_short(lowered: str) -> str | None:
    match = _CC_SHORT.search(lowered)
    if match:
        version = match["version"] or _first_version(lowered)
        # words behind it can only add restrictions: CC BY (NC), CC BY 4.0 non-commercial
        later = _CC_LATER_PART.findall(lowered, match.end("parts")) + _cc_words(lowered)
        return _cc_id(re.findall(r"by|nc|nd|sa", match["parts"]) + later, version)
    bare = _BARE_SHORT.match(lowered)
    return _cc_id(re.findall(r"by|nc|nd|sa", lowered), bare["version"]) if bare else None


def _read_cc_words(lowered: str) -> str | None:
    parts = _cc_words(lowered)
    if parts == ["by"] and _PERHAPS_RESTRICTED.search(lowered):
        return UNKNOWN
    if "by" not in parts or (len(parts) == 1 and "creative commons" not in lowered and not _first_version(lowered)):
        return None
    return _cc_id(parts, _first_version(lowered))


def _cc_words(lowered: str) -> list[str]:
    return [part for pattern, part in _CC_WORDS if pattern.search(lowered)]


def _read_gnu(lowered: str) -> str | None:
    match = _GNU_URL.search(lowered) or _GNU.search(lowered)
    if not match:
        return None
    family = next(name for part, name in _GNU_FAMILIES if part in match["family"])
    version = match["version"]
    if version and "." not in version:
        version += ".0"
    later = "-or-later" if version and match.groupdict().get("later") else ""
    return f"{family}{f'-{version}' if version else ''}{later}"


def _read_named(named: Sequence[tuple[re.Pattern[str], str]], lowered: str) -> str | None:
    return next((licence for pattern, licence in named if pattern.search(lowered)), None)


# CC0 and the public domain mark are read early, because their words look like other CC licences
_FIRST, _LAST = (partial(_read_named, named) for named in (_NAMED[:3], _NAMED[3:]))
_READERS = (_read_cc_address, _FIRST, _read_cc_short, _read_cc_words, _read_gnu, _LAST)


def _cc_id(parts: list[str], version: str | None) -> str | None:
    have = set(parts)
    if "by" not in have and not have & {"nc", "nd", "sa"}:
        return None
    names = [part.upper() for part in _CC_PARTS if part in have]
    if version and "." not in version:
        version = version.replace("_", ".") if "_" in version else f"{version}.0"
    return "-".join(["CC", *names, *([version] if version else [])])


def _first_version(lowered: str) -> str | None:
    match = _VERSION.search(lowered.replace(" 0", ".0") if re.search(r"\b[1-4] 0\b", lowered) else lowered)
    return match["version"].replace("_", ".") if match else None


class LicenceSettings(Settings):
    """Which licences may go into a release.

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
        """True when a picture under this licence may be used; of a choice (`OR`) one allowed part is enough."""
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


def normalise_licences(names: pa.ChunkedArray | pa.Array, urls: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Ids for two string columns; each distinct pair is read once."""
    pairs = zip(names.to_pylist(), urls.to_pylist(), strict=True)
    return pa.array([normalise_licence(name, url) for name, url in pairs], pa.string())


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
