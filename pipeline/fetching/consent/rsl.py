"""RSL licences: may pictures of a site train a model? XML in, rules out. Pure.

A document that is no XML, or that declares entities, cannot be read.
Source: RSL Technical Steering Committee, "Really Simple Licensing (RSL) 1.0", Recommendation published 2025-12-10,
https://rslstandard.org/rsl. Sections 3.1.1 (a prohibition counts before a permission), 3.3 (content), 3.4.1.1 (words
for uses), 3.5 to 3.7 (permits, prohibits, payment), 4.9 (the most specific content counts).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from manifests.services.untrusted import is_read_xml
from pipeline.fetching.consent.patterns import fits, plain_path, unescaped
from pipeline.fetching.urls import Target

PROHIBITED = "RSL: prohibits training"
NOT_PERMITTED = "RSL: training is not among what it permits"
FOR_SOME = "RSL: permits training to some users or countries only"
FOR_PAY = "RSL: permits training for payment"
FROM_SERVER = "RSL: a licence must be asked of a server"
REFUSALS = (PROHIBITED, NOT_PERMITTED, FOR_SOME, FOR_PAY, FROM_SERVER)

Rules = tuple[tuple[str, str], ...]
"""A pattern of paths, and why pictures there must not train a model; "" where they may."""

_NAMESPACE = "https://rslstandard.org/rsl"
_TRAINING = frozenset({"ai-train", "train-ai", "ai-all", "all"})  # train-ai is AIPREF's word, which RSL's guide uses
_WITHOUT_PAY = ("free", "attribution")
_MAX_CONTENTS = 10_000


@dataclass(slots=True)
class _Licence:
    permits: set[str] | None = None
    prohibits: set[str] = field(default_factory=set)
    payment: str = "free"
    is_for_some: bool = False

    def refusal(self) -> str:
        if self.prohibits & _TRAINING:
            return PROHIBITED
        if self.permits is not None and not self.permits & _TRAINING:
            return NOT_PERMITTED
        if self.is_for_some:
            return FOR_SOME
        return "" if self.payment in _WITHOUT_PAY else FOR_PAY


@dataclass(slots=True)
class _Content:
    url: str
    has_server: bool
    licences: list[_Licence] = field(default_factory=list)

    def refusal(self) -> str:
        """Each licence is an offer: one that lets us train is enough."""
        if self.has_server:
            return FROM_SERVER
        refusals = [licence.refusal() for licence in self.licences]
        return refusals[0] if refusals and all(refusals) else ""


def parse_rsl(body: bytes, site: Target) -> Rules | None:
    """Return the rules of a licence for the paths of a site, or None where the document cannot be read."""
    contents = _contents(body)
    if contents is None:
        return None
    patterns = ((_pattern_of(content.url, site), content.refusal()) for content in contents)
    return tuple((pattern, words) for pattern, words in patterns if pattern is not None)


def refusal(rules: Rules, path: str) -> str:
    """Why `path` must not train a model; "" where it may.

    The longest pattern counts; of equal ones, one that refuses.
    """
    plain = plain_path(path)
    return max(((len(pattern), words) for pattern, words in rules if fits(pattern, plain)), default=(0, ""))[1]


def _pattern_of(url: str, site: Target) -> str | None:
    """Return the pattern of paths that the `url` of a content stands for; None where it is of another host.

    "" fits all.
    """
    _, is_whole, rest = url.strip().partition("://")
    if not is_whole:
        path = url.strip()
        return unescaped(path if path.startswith("/") or not path else f"/{path}")
    host, slash, path = rest.partition("/")
    is_ours = fits(f"{re.sub(':(80|443)$', '', host.lower())}$", site.host)
    return unescaped(slash + path) if is_ours else None


def _contents(body: bytes) -> list[_Content] | None:
    contents: list[_Content] = []
    about: tuple[str, str] | None = None  # `permits` or `prohibits` that is open, and its type
    words: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal about
        tag = _tag(name)
        licence = contents[-1].licences[-1] if contents and contents[-1].licences else None
        if tag == "content":
            if len(contents) >= _MAX_CONTENTS:
                raise ValueError("more contents than are read")
            contents.append(_Content(attributes.get("url", ""), bool(attributes.get("server"))))
        elif tag == "license" and contents:
            contents[-1].licences.append(_Licence())
        elif tag == "payment" and licence:
            licence.payment = attributes.get("type", "free").strip().lower()
        elif tag in ("permits", "prohibits"):
            about = tag, attributes.get("type", "usage")
            words.clear()

    def end(name: str) -> None:
        nonlocal about
        if about is None or _tag(name) != about[0]:
            return
        (tag, kind), about = about, None
        if not contents or not contents[-1].licences:
            return
        licence, uses = contents[-1].licences[-1], set(re.split(r"[\s,]+", "".join(words).strip().lower()))
        if kind != "usage":
            licence.is_for_some = True
        elif tag == "permits":
            licence.permits = (licence.permits or set()) | uses
        else:
            licence.prohibits |= uses

    def text(content: str) -> None:
        if about is not None:
            words.append(content)

    return contents if is_read_xml(body.strip(), start, end, text) else None


def _tag(name: str) -> str:
    """Return the name of an element of RSL's own namespace, or of none; "" for another one."""
    space, _, tag = name.rpartition(" ")
    return tag if space.rstrip("/") in ("", _NAMESPACE) else ""
