"""Captions cleaned step by named step, until nothing changes any more.

A string column in, the clean column and the names of the steps that changed each row out (the source text stays in the
candidates). Every step has a gate, a pattern that Arrow searches over the whole column: only rows that match it go
through Python. A text that still changes after `MAX_ROUNDS` becomes empty: to clean a clean text again must change
nothing. A text over `MAX_CHARS` becomes empty too: it is no caption, and some patterns take seconds on it.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

MAX_ROUNDS = 32
MAX_CHARS = 10_000

_TAG_NAMES = (
    "a abbr address article aside b big blockquote body br caption center cite code dd del details div dl dt em "
    "figcaption figure font footer form h1 h2 h3 h4 h5 h6 head header hr html i iframe img input ins label li link "
    "main mark meta nav ol option p pre q s script section select small source span strike strong style sub sup "
    "svg table tbody td th thead time title tr tt u ul video wbr"
).replace(" ", "|")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_TAG = re.compile(
    # bounded: of a thousand marks that are never closed each would search the rest of the text
    rf"<!--.{{0,2000}}?-->|<(?:script|style)\b[^<>]*>.{{0,2000}}?</(?:script|style)\s*>|</?(?:{_TAG_NAMES})(?:\s[^<>]*"
    rf"|/)?/?>",
    re.IGNORECASE | re.DOTALL,
)
_SPACES = r"\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f"
                        "\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffd\U000e0001]")  # fmt: skip
# Joiners have a meaning inside emoji, Arabic and Indic text, and none beside ASCII or at an edge.
_LOOSE_JOINER = re.compile("(?:^|(?<=[\x00-\x7f]))[\u200c\u200d]+|[\u200c\u200d]+(?=[\x00-\x7f]|$)")
_TLD = r"(?:com|org|net|info|biz|edu|gov|io|eu|de|fr|nl|it|es|pl|ru|jp|cn|co\.uk|com\.au)"
_BEFORE_URL = r"(?:\b(?:see|visit|via|from|at|source|more(?: info)?(?: at)?|website|link|url)\b:?\s*)?"
_URL = re.compile(
    rf"{_BEFORE_URL}[<(\[]?(?:(?:https?|ftp)://|\bwww\.)[^\s<>()\[\]]+[>)\]]?"
    rf"|\b(?:[a-z0-9-]+\.)+{_TLD}/[^\s<>()]+"
    rf"|\s*[|–—-]\s+(?:[a-z0-9-]+\.)+{_TLD}\s*$",
    re.IGNORECASE,
)
_EMAIL = re.compile(
    r"[<(\[]?(?:\b(?:e-?mail|mail|contact)\b:?\s*)?(?:mailto:)?\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+[>)\]]?", re.IGNORECASE
)
_PHONE = re.compile(
    r"(?:\b(?:tel|phone|call|fax|mobile|whatsapp)\b[.:]*\s*)?(?<![\w/.])(?:\+\d[\d ().-]{7,}\d"
    r"|\(\d{3}\)\s?\d{3}[-.\s]\d{4}"
    r"|\d{3}[-.]\d{3}[-.]\d{4})(?![\w/])|\b(?:tel|phone|call|fax|mobile|whatsapp)\b[.:]*\s*\(?\d[\d ()-]{5,}\d(?!\w)",
    re.IGNORECASE,
)
_HANDLE = re.compile(r"(?<![\w@./])@[A-Za-z_][\w.]{1,29}(?!\w)")
_TAG_WORD = re.compile(r"#[^\W\d][\w-]*")
_HASHTAG = re.compile(r"(?<![\w&#/])#(?=[^\W\d])")
_CAMERA = re.compile(
    r"\b(?:OLYMPUS DIGITAL CAMERA|SONY DSC|KODAK Digital Still Camera|SAMSUNG CAMERA PICTURES|MINOLTA DIGITAL CAMERA"
    r"|Exif[_ ]JPEG(?:[_ ]PICTURE)?|DIGITAL CAMERA|DCIM[\\/]\w+[\\/]?\w*)"
    r"|^\s*ASCII\s*$"
    r"|\b(?:Processed|Edited|Created|Made) with (?:Inkscape|VSCO(?: with \w+ preset)?|(?:The )?GIMP|Snapseed"
    r"|Instagram|Canva"
    r"|Lightroom|Photoshop|RNI Films\.?(?: Preset '[^']*')?)"
)
_UP = "A-ZÀ-ÖØ-ÞŠŽŁŚŻČŘ"
_NAME = (
    rf"(?:[{_UP}][\w.'’-]*|[a-z]+[\d_]\w*)"
    rf"(?:\s*(?:[/&,]|\band\b|\bvan\b|\bvon\b|\bde\b|\bof\b)?\s*[{_UP}][\w.'’-]*){{0,4}}"
)
_AGENCY = (
    r"(?:shutter ?stock|getty ?images?|i ?stock(?: ?photo)?|alamy|dreamstime|123rf|depositphotos|adobe stock|fotolia"
    r"|big ?stock|can ?stock(?: photo)?|thinkstock|vectorstock|freepik|flickr|unsplash|pexels|pixabay"
    r"|wikimedia(?: commons)?)"
)
_CREDITS = (
    re.compile(r"\ball rights reserved\b\.?", re.IGNORECASE),
    re.compile(
        r"(?<!\b[aA] )(?<!\b[tT]he )[(\[]?\b(?i:photo(?:graph|graphy|s)?|image|picture|pic|clip ?art|foto|bild)"
        r"(?:\s*:?\s*(?i:credits?\s*:?(?:\s*by\b)?|courtesy(?: of)?|©|\(c\))|\s+(?i:by)\b)\s*:?\s*(?:©\s*)?"
        rf"{_NAME}(?:\s*[/|,-]?\s*(?:via\s+)?(?i:{_AGENCY}))?[)\]]?\.?"
    ),
    re.compile(rf"[(\[]?\b(?i:courtesy of|credits?:|photographer:|source:)\s*{_NAME}[)\]]?\.?\s*$"),
    re.compile(
        r"[(\[]?(?:©|(?<!\w)\([cC]\)(?!\s*[a-z]{3})|\b[Cc]opyright\b\s*(?:©|\([cC]\)|:|(?=\d{4}\b)|(?=by\s)))"
        r"\s*(?:\d{4}(?:\s*[-–]\s*\d{2,4})?)?,?\s*"
        rf"(?:(?i:by)\s+)?(?:{_NAME})?(?:\s*/\s*(?i:{_AGENCY}))?[)\]]?\.?"
    ),
    re.compile(
        r"\s*[-–—|,.:]?\s*\b(?:premium |vintage )?(?:royalty[- ]free )?stock (?:photo(?:graph|graphy)?|image"
        r"|vector|illustration"
        r"|footage|picture|art|clip ?art|video)s?(?:[,\s]+royalty[- ]free(?: images?)?)?"
        r"(?:\s*[-#:–]?\s*(?:image\s*)?[A-Z]?\d{3,}[\d/]*)?\s*[.|]?\s*$",
        re.IGNORECASE,
    ),
    re.compile(rf"\s*(?:[|–—/]|\s-|\bvia\b|\bby\b|\bon\b|\bfrom\b)\s*{_AGENCY}(?:\.com)?\s*$", re.IGNORECASE),
)
# Words of which a text must hold one before a pattern is tried: six searches took 55 us a text, these take 2 us.
_COPYRIGHT = ("©", "(c)", "copyright")  # not in a list: (a) (b) (c)
_CREDIT_NEEDLES = (
    ("reserved",),
    ("photo", "image", "pic", "clip", "foto", "bild"),
    ("courtesy", "credit", "photographer", "source"),
    _COPYRIGHT,
    ("stock",),
    ("stock", "getty", "alamy", "dreamstime", "123rf", "deposit", "fotolia", "freepik", "flickr", "unsplash", "pexels",
     "pixabay", "wikimedia"),
)  # fmt: skip
_EMPTY_BRACKETS = re.compile(r"\(\s*[,;|]?\s*\)|\[\s*\]|\{\s*\}|<\s*>|“\s*”|\"\s*\"")
_EDGES = " \t-–—|•·,;:/\\_*~=>"
_END_EDGES = _EDGES.replace("*", "")  # "* rose" is a list item, "keycap: *" a caption
_SLUG = re.compile(r"^(?=\S*[^\W\d_]{3})\S*_\S*$")
_SUFFIX = re.compile(r"\.[A-Za-z]{2,4}\d?$")
_QUOTES = (("“", "”"), ('"', '"'), ("«", "»"), ("„", "“"))


@dataclass(frozen=True)
class Step:
    """One cleaning step. `change` must not change a text in which `gate` (an RE2 pattern) is not found."""

    gate: str
    change: Callable[[str], str]


def _drop(pattern: re.Pattern[str]) -> Callable[[str], str]:
    return lambda text: pattern.sub(" ", text)


def _mend_encoding(text: str) -> str:
    import ftfy

    return ftfy.fix_encoding(text)


def _drop_hashtags(text: str) -> str:
    """Drop two or more hashtags at the end, and the mark of every other one. One pattern for both was quadratic."""
    start, num_tags = len(text), 0
    for word in reversed(text.split()):
        if not _TAG_WORD.fullmatch(word):
            break
        start, num_tags = text.rindex(word, 0, start), num_tags + 1
    return _HASHTAG.sub("", text[: max(0, start - 1)] if num_tags > 1 else text)


def _drop_credits(text: str) -> str:
    for pattern, needles in zip(_CREDITS, _CREDIT_NEEDLES, strict=True):
        lowered = text.lower()
        if any(needle in lowered for needle in needles) and not (needles == _COPYRIGHT and "(b)" in lowered):
            text = pattern.sub(" ", text)
    return text


def _split_slug(text: str) -> str:
    """Split words that are joined by underscores; the rule for file names judges names with a suffix."""
    return text.replace("_", " ") if _SLUG.match(text) and not _SUFFIX.search(text) else text


def _tidy_spaces(text: str) -> str:
    text = " ".join(_EMPTY_BRACKETS.sub(" ", text).split()).lstrip(_EDGES).rstrip(_END_EDGES)
    for left, right in _QUOTES:
        inner = text[1:-1]
        if len(text) > 2 and text[0] == left and text[-1] == right and left not in inner and right not in inner:
            return inner.lstrip(_EDGES).rstrip(_END_EDGES)
    return text


STEPS: dict[str, Step] = {
    "entities": Step(
        r"&[#A-Za-z][0-9A-Za-z]*;", lambda text: _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    ),
    "mojibake": Step(r"[^\x00-\x7f]", _mend_encoding),
    "tags": Step(r"<[!/A-Za-z]", _drop(_TAG)),
    "control": Step(
        r"[\x00-\x08\x0e-\x1b\x7f]|[\x{80}-\x{84}\x{86}-\x{9f}\x{ad}\x{61c}\x{180e}\x{200b}-\x{200f}\x{202a}-\x{202e}"
        r"\x{2060}-\x{206f}\x{feff}\x{fff9}-\x{fffd}\x{e0001}]",
        lambda text: _LOOSE_JOINER.sub("", _INVISIBLE.sub("", text)),
    ),
    "unicode": Step(r"[^\x00-\x7f]", lambda text: unicodedata.normalize("NFC", text)),
    "urls": Step(
        r"(?i)://|www\.|\.(?:com|org|net|info|biz|edu|gov|io|eu|de|fr|nl|it|es|pl|ru|jp|cn|co\.uk)(?:/|\s*$)",
        _drop(_URL),
    ),
    "emails": Step(r"@.", _drop(_EMAIL)),
    "phones": Step(r"[0-9\pN][0-9\pN ().\-\s]{5}", _drop(_PHONE)),
    "handles": Step(r"@[A-Za-z_]", _drop(_HANDLE)),
    "hashtags": Step(r"#[^#\s]", _drop_hashtags),
    "camera": Step(
        r"(?i)digital (?:still )?camera|sony dsc|samsung camera|exif[_ ]jpeg|dcim|ascii"
        r"|(?:processed|edited|created|made) with",
        _drop(_CAMERA),
    ),
    "credits": Step(
        r"(?i)©|\(c\)|copyright|all rights|stock|courtesy|credits?|photographer|source:|getty|alamy"
        r"|(?:photo(?:graph|graphy|s)?|image|pic(?:ture)?|clip ?art|foto|bild)\s+by[^a-z]"
        r"|dreamstime|123rf"
        r"|depositphotos|fotolia|freepik|flickr|unsplash|pexels|pixabay|wikimedia",
        _drop_credits,
    ),
    "slugs": Step(r"_", _split_slug),
    "whitespace": Step(
        r"^[\s\-–—|•·,;:/\\_*~=>]|[\s\-–—|•·,;:/\\_~=>]$|\s\s|[\t\n\x0b\x0c\r\x1c-\x1f]|[()\[\]{}<>“”\"«»„]"
        rf"|[{_SPACES}]",
        _tidy_spaces,
    ),
}  # fmt: skip


def clean_captions(captions: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Clean texts, and for each row the steps that changed it; a null caption gives the empty text."""
    raw = pc.fill_null(captions.combine_chunks() if isinstance(captions, pa.ChunkedArray) else captions, "")
    raw = pc.if_else(pc.greater(pc.utf8_length(raw), MAX_CHARS), "", raw)
    texts = raw.to_pylist()
    changed_by: dict[int, list[str]] = {}
    any_gate = "|".join(f"(?:{step.gate})" for step in STEPS.values())
    rows = _rows_where(pc.match_substring_regex(raw, any_gate))
    for _ in range(MAX_ROUNDS):
        rows = _run_round(texts, rows, changed_by)
        if not rows:
            break
    for row in rows:
        texts[row] = ""
    lists: list[list[str]] = [[] for _ in range(len(texts))]
    for row, names in changed_by.items():
        lists[row] = [name for name in STEPS if name in names]
    return pa.array(texts, pa.string()), pa.array(lists, pa.list_(pa.string()))


def _run_round(texts: list[str], rows: list[int], changed_by: dict[int, list[str]]) -> list[int]:
    """Run every step once over `rows` of `texts`, in place; returns the rows that changed."""
    changed: set[int] = set()
    for name, step in STEPS.items():
        here = pa.array([texts[row] for row in rows], pa.string())
        for index in _rows_where(pc.match_substring_regex(here, step.gate)):
            row = rows[index]
            after = step.change(texts[row])
            if after != texts[row]:
                texts[row] = after
                changed.add(row)
                changed_by.setdefault(row, []).append(name)
    return sorted(changed)


def _rows_where(mask: pa.Array) -> list[int]:
    rows: list[int] = pc.indices_nonzero(mask).to_pylist()
    return rows
