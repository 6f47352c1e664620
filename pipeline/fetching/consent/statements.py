"""May this picture be used? May this path be requested? What headers, robots.txt and tdmrep.json say, and what counts.

Headers and text in, statements out; `Consent` judges them. Pure. A header that cannot be understood forbids nothing;
what a site's files forbid while they cannot be read, visits.py decides.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from manifests.contract.outcomes import Outcome
from pipeline.fetching.consent import rsl
from pipeline.fetching.consent.patterns import fits, plain_path, unescaped
from pipeline.fetching.pictures.consent import MARKS

if TYPE_CHECKING:  # an extra brings it, and a config is read without
    from protego import Protego

# Directives that carry a value after a colon, so that their name is not taken for an agent's.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_AGENT = re.compile(r"[a-z*][a-z0-9_\-*.]*(/[a-z0-9.]+)?")
_USER_AGENT_LINE = re.compile(r"\s*user[- ]?agent\b[\s:]*([^#]*)", re.IGNORECASE)

_PREFERENCE = re.compile(r"(?:^|,)\s*([a-z*][a-z0-9_\-.*]*)\s*=\s*([^\s,;]+)")
_HTML_PAGE = re.compile(r"\s*<(?:!doctype\s+html|html)\b", re.IGNORECASE)
_LICENCE_LINE = re.compile(r"\s*license\s*:\s*(\S+)", re.IGNORECASE)
_USAGE_LINE = re.compile(r"\s*content-usage\s*:\s*(/\S*)?\s*([^#]*)", re.IGNORECASE)

ROBOTS_PATH, TDMREP_PATH = "/robots.txt", "/.well-known/tdmrep.json"
FILE_MAX_BYTES = 512 * 1024  # of a site's file; what is longer is cut. RFC 9309 asks for at least 500 KiB
MAX_LICENCES = 10
_MAX_STATEMENTS, _MAX_STATEMENT_CHARS = 100, 100  # that are kept of the headers of one answer


Said = Mapping[str, Sequence[str]]
"""Statements about use by the place that was looked at; a place that holds none is there all the same."""

TDMREP, HEADERS, PICTURE = "tdmrep.json", "headers", "picture"
"""Places beside robots.txt, whose statements are for one agent: its place is `robots_of` that agent."""
_DISALLOW, _USAGE, _RESERVED = "robots.txt", "robots.txt: Content-Usage", "tdmrep.json: tdm-reservation"


ROBOTS_FAILED, TDMREP_FAILED, LICENCE_FAILED = "robots.txt: ", "tdmrep.json: ", "the licence that robots.txt names: "
"""How the detail of a row begins that waited for a file which could not be read."""


def robots_of(agent_token: str) -> str:
    """Return the place of what robots.txt says to an agent."""
    return f"robots.txt {agent_token}"


def rsl_of(agent_token: str) -> str:
    """Return the place of what the licences say that robots.txt names to an agent."""
    return f"RSL {agent_token}"


@dataclass(frozen=True)
class Consent:
    """Which statements of an owner refuse a picture. Downloads and stored rows are judged alike."""

    agent_token: str
    robots_txt: bool
    directives: tuple[str, ...]
    """Of X-Robots-Tag; sorted, as are the signals."""
    signals: tuple[str, ...]

    @cached_property
    def counting(self) -> tuple[tuple[str, str, Outcome], ...]:
        """The refusals before a picture's body is read: signal, words and outcome of each. The first counts."""
        refusals = []
        if self.robots_txt:
            refusals.append((robots_of(self.agent_token), _DISALLOW, Outcome.ROBOTS_DISALLOWED))
            if "content_usage" in self.signals:
                refusals.append((robots_of(self.agent_token), _USAGE, Outcome.OPTED_OUT))
            if self.reads_licences:
                refusals += [(rsl_of(self.agent_token), words, Outcome.OPTED_OUT) for words in rsl.REFUSALS]
        if "tdmrep_file" in self.signals:
            refusals.append((TDMREP, _RESERVED, Outcome.OPTED_OUT))
        in_headers = [f"X-Robots-Tag: {who}{name}" for name in self.directives for who in ("", f"{self.agent_token}: ")]
        if "content_usage" in self.signals:
            in_headers += ["Content-Usage: train-ai=n", "Content-Usage: bots=n"]
        if "tdm_reservation" in self.signals:
            in_headers.append("tdm-reservation: 1")
        return (*refusals, *((HEADERS, statement, Outcome.OPTED_OUT) for statement in in_headers))

    @property
    def reads_licences(self) -> bool:
        """Return whether the licences count that robots.txt names."""
        return self.robots_txt and "rsl_licence" in self.signals

    @property
    def marks(self) -> tuple[str, ...]:
        """The first words of those statements inside a picture that refuse it."""
        return tuple(f"{MARKS[name]}:" for name in self.signals if name in MARKS)

    @property
    def unasked(self) -> tuple[str, ...]:
        """Return how details begin of rows that waited for files which nobody asks for any more."""
        asked = {
            ROBOTS_FAILED: self.robots_txt,
            TDMREP_FAILED: "tdmrep_file" in self.signals,
            LICENCE_FAILED: self.reads_licences,
        }
        return tuple(words for words, is_asked in asked.items() if not is_asked)

    def refusal(self, heard: Said) -> tuple[Outcome, str] | None:
        """Outcome and detail of a row with these statements; None when none of them counts."""
        fits = ((outcome, words) for signal, words, outcome in self.counting if words in heard.get(signal, ()))
        return next(fits, None)

    def unread(self, before: Consent) -> tuple[str, ...]:
        """Places that must still be looked at, for a row that was fetched when `before` counted."""
        new = set(self.counting) - set(before.counting)
        return tuple(sorted({signal for signal, *_ in new}))


def statements_of(headers: Mapping[str, Sequence[str]]) -> list[str]:
    """Collect statements on use from the headers of an answer, each once: for all, or for the agent that it names.

    A directive of X-Robots-Tag after `agent:` is for that agent only, and so are those that follow in the same header,
    up to the next agent's name.
    Source: Google, "Robots meta tag, data-nosnippet, and X-Robots-Tag specifications". W3C Community Group, "TDM
    Reservation Protocol (TDMRep)", 2024.
    """
    statements: dict[str, None] = {}
    for value in headers.get("x-robots-tag", ()):
        who = ""
        for item in re.split("[,;]", value.lower()):
            directive = item.strip()
            name, colon, rest = directive.partition(":")
            if colon and name.strip() not in _VALUED and _AGENT.fullmatch(name.strip()):
                agent = name.strip().partition("/")[0]
                who = "" if agent == "*" else f"{agent}: "
                directive = rest.strip()
            statements[f"X-Robots-Tag: {who}{directive}"] = None
    if usage := no_training(", ".join(headers.get("content-usage", ()))):
        statements[f"Content-Usage: {usage}"] = None
    if any(value.strip() == "1" for value in headers.get("tdm-reservation", ())):
        statements["tdm-reservation: 1"] = None
    return [words for words in statements if len(words) <= _MAX_STATEMENT_CHARS][:_MAX_STATEMENTS]


def no_training(usage: str) -> str | None:
    """Return the preference in a Content-Usage value that forbids training a model; None when none does.

    `train-ai` counts where it is stated, else `bots`, an earlier draft's word for all automated use. Other labels say
    nothing about training (`search`, `ai-use`) or are unknown. Of a key that is stated twice the last counts.
    Source: draft-ietf-aipref-attach-05 (2026-08-19) for the form, draft-ietf-aipref-vocab-08 (2026-09-14) for the keys.
    """
    stated = dict(_PREFERENCE.findall(usage.lower()))
    for key in ("train-ai", "bots"):
        if key in stated:
            return f"{key}=n" if stated[key] == "n" else None
    return None


@dataclass(frozen=True, slots=True)
class RobotsRules:
    """The rules of one host's robots.txt for one agent."""

    parsed: Protego | None
    """None allows every path."""
    agent_token: str
    usage: tuple[tuple[str, bool], ...] = ()
    """Its Content-Usage rules: a pattern of paths, and whether they must not train a model."""
    licences: tuple[str, ...] = ()
    """The addresses of its RSL licences."""
    of_licences: tuple[rsl.Rules, ...] = ()
    """What each of those says."""
    tdm: tuple[tuple[str, bool], ...] = ()
    """Rules of its tdmrep.json: a pattern of paths, and whether their rights are reserved."""

    def statements(self, path: str, consent: Consent) -> dict[str, list[str]]:
        """Collect what the files that `consent` asks for say of `path`."""
        heard: dict[str, list[str]] = {}
        if consent.robots_txt:
            usage = [] if self.allows_training(path) else [_USAGE]
            heard[robots_of(consent.agent_token)] = ([] if self.allows(path) else [_DISALLOW]) + usage
        if consent.reads_licences:
            refusals = (rsl.refusal(rules, path) for rules in self.of_licences)
            heard[rsl_of(consent.agent_token)] = [words for words in refusals if words]
        if "tdmrep_file" in consent.signals:
            heard[TDMREP] = [_RESERVED] if self.reserves(path) else []
        return heard

    def reserves(self, path: str) -> bool:
        """Return true when the first rule of tdmrep.json that fits `path` reserves its rights."""
        if not self.tdm:
            return False
        plain = plain_path(path)
        return next((is_reserved for pattern, is_reserved in self.tdm if fits(pattern, plain)), False)

    def allows(self, path: str) -> bool:
        """Return true when `path` (with its query) may be requested.

        The longest rule that fits counts, Allow wins a tie.
        """
        # Protego takes the start of "//x.jpg" for a host name. Of a whole URL it uses the path alone.
        return self.parsed is None or self.parsed.can_fetch(f"http://host{path}", self.agent_token)

    def allows_training(self, path: str) -> bool:
        """Return false when Content-Usage says that `path` must not train a model.

        The longest path that fits counts; of equal ones, one that forbids.
        """
        plain = plain_path(path)
        matches = ((len(pattern), forbids) for pattern, forbids in self.usage if fits(pattern, plain))
        return not max(matches, default=(0, False))[1]

    @property
    def crawl_delay_seconds(self) -> float | None:
        """The pause between two requests that the host asks for."""
        return None if self.parsed is None else self.parsed.crawl_delay(self.agent_token)


def parse_robots(body: bytes, agent_token: str) -> RobotsRules:
    """Return the rules for `agent_token`, or those for `*` when no group names it. An HTML page has none.

    A line that FILE_MAX_BYTES cuts does not count.

    Source: RFC 9309.
    """
    from protego import Protego

    if len(body) >= FILE_MAX_BYTES:
        body = body[:FILE_MAX_BYTES].rpartition(b"\n")[0]
    text = body.decode("utf-16" if body[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig", "replace")
    lines = [] if _HTML_PAGE.match(text) else text.splitlines()
    plain = [_with_plain_name(line, agent_token) for line in lines]
    usage, licences = _usage_and_licences(plain, agent_token)
    return RobotsRules(Protego.parse("\n".join(plain)), agent_token, usage, licences)


def parse_tdmrep(body: bytes) -> tuple[tuple[str, bool], ...] | None:
    """Return the rules of a tdmrep.json in their order, or None for JSON that FILE_MAX_BYTES cuts.

    Entries that are not rules are ignored; a file that is not JSON has no rules.

    Source: W3C Community Group, "TDM Reservation Protocol (TDMRep)", final report of 10 May 2024, "TDM File on the
    Origin Server": the first rule that fits counts; patterns are those of robots.txt.
    """
    try:
        rows = json.loads(body)
    except (ValueError, RecursionError):
        return None if len(body) >= FILE_MAX_BYTES and body.lstrip()[:1] in (b"[", b"{") else ()
    rules = []
    for row in rows if isinstance(rows, list) else ():
        location, value = (row.get("location"), row.get("tdm-reservation")) if isinstance(row, dict) else (None, None)
        if isinstance(location, str) and str(value) in ("0", "1"):
            rules.append((unescaped(location), str(value) == "1"))
    return tuple(rules)


def _with_plain_name(line: str, agent_token: str) -> str:
    """Return a `User-agent` line as Protego must read it; every other line as it is.

    RFC 9309 compares whole product tokens. Protego also takes `plant` for the name of `plantmix`, and does not take
    `plantmix/2.0` for it. So our name loses its version, and the names of other agents become one that is not ours.
    """
    match = _USER_AGENT_LINE.match(line)
    if match is None:
        return line
    name = match[1].partition("/")[0].strip().lower()
    return f"User-agent: {name if name in (agent_token, '*') else '(another)'}"


def _usage_and_licences(lines: Sequence[str], agent_token: str) -> tuple[tuple[tuple[str, bool], ...], tuple[str, ...]]:
    """Return the Content-Usage rules for an agent, and its licences.

    A licence in the lines of a group is for the agents of the group. Before all groups, or behind an empty line, it is
    for everybody. Source: RSL 1.0, section 4.4.
    """
    groups: list[tuple[set[str], list[tuple[str, bool]], list[str]]] = []
    for_all: list[str] = []
    is_naming = in_block = False
    for line in lines:
        if line.lstrip().startswith("#"):
            continue
        if (match := _USER_AGENT_LINE.match(line)) is not None:
            if not is_naming:
                groups.append((set(), [], []))
            groups[-1][0].add(match[1].strip())
            is_naming = in_block = True
            continue
        if not line.strip():
            in_block = False
        is_naming = is_naming and ":" not in line
        if (match := _LICENCE_LINE.match(line)) is not None:
            (groups[-1][2] if in_block else for_all).append(match[1])
        match = _USAGE_LINE.match(line)
        if groups and match is not None and _PREFERENCE.search(match[2].lower()):
            groups[-1][1].append((unescaped(match[1] or "/"), no_training(match[2]) is not None))
    name = agent_token if any(agent_token in agents for agents, *_ in groups) else "*"
    ours = [group for group in groups if name in group[0]]
    licences = dict.fromkeys([*(licence for *_, named in ours for licence in named), *for_all])
    return tuple(rule for _, usage, _ in ours for rule in usage), tuple(licences)


ALLOW_ALL = RobotsRules(None, "*")
