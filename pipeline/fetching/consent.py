"""May this picture be used, may this path be asked: X-Robots-Tag headers and robots.txt.

Headers and text in, yes or no out. Pure. Gives up on nothing: what cannot be understood forbids nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

# Directives that carry a value after a colon, so that their name is not taken for an agent's.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_AGENT = re.compile(r"[a-z*][a-z0-9_\-*.]*(/[a-z0-9.]+)?")

ROBOTS_MAX_BYTES = 512 * 1024  # RFC 9309 asks for at least 500 KiB


def opted_out(headers: Iterable[str], agent_token: str, directives: Sequence[str]) -> str | None:
    """The directive in X-Robots-Tag headers that forbids us the picture; None when none does.

    `headers` are the values of every such header. A directive after `agent:` speaks to that agent only,
    and an agent's name holds until the next one within the same header.
    Source: Google, "Robots meta tag, data-nosnippet, and X-Robots-Tag specifications".
    """
    for value in headers:
        for_us = True
        for item in value.lower().split(","):
            directive = item.strip()
            name, colon, rest = directive.partition(":")
            if colon and name.strip() not in _VALUED and _AGENT.fullmatch(name.strip()):
                for_us = name.strip().partition("/")[0] in (agent_token, "*")
                directive = rest.strip()
            if for_us and directive in directives:
                return directive
    return None


@dataclass(frozen=True, slots=True)
class RobotsRules:
    """What one host's robots.txt says to us."""

    rules: tuple[tuple[str, bool], ...] = ()  # pattern, allowed
    crawl_delay_seconds: float | None = None

    def allows(self, path: str) -> bool:
        """True when `path` (with its query) may be asked: the longest matching rule decides, allow wins a tie."""
        wanted = _normal(path or "/")
        if wanted == "/robots.txt":
            return True
        best, allowed = -1, True
        for pattern, allow in self.rules:
            if (len(pattern) > best or (len(pattern) == best and allow)) and _matches(pattern, wanted):
                best, allowed = len(pattern), allow
        return allowed


ALLOW_ALL = RobotsRules()


def parse_robots(body: bytes, agent_token: str) -> RobotsRules:
    """Rules for `agent_token`, or those for `*` when no group names it.

    Source: RFC 9309.
    """
    groups: list[tuple[set[str], list[tuple[str, bool]], list[float]]] = []
    naming = False
    for line in body[:ROBOTS_MAX_BYTES].decode("utf-8", "replace").lstrip("\ufeff").splitlines():
        key, colon, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon:
            continue
        if key == "user-agent":
            if not naming:
                groups.append((set(), [], []))
            groups[-1][0].add(value.partition("/")[0].strip().lower())
            naming = True
            continue
        if key not in ("allow", "disallow", "crawl-delay") or not groups:
            continue
        naming = False
        if key == "crawl-delay":
            if re.fullmatch(r"\d+(\.\d+)?", value):
                groups[-1][2].append(float(value))
        elif value:
            groups[-1][1].append((_normal(value), key == "allow"))
    ours = [group for group in groups if agent_token in group[0]] or [group for group in groups if "*" in group[0]]
    delays = [delay for group in ours for delay in group[2]]
    return RobotsRules(tuple(rule for group in ours for rule in group[1]), max(delays) if delays else None)


def _normal(path: str) -> str:
    """One spelling of percent-encoding, so that a rule and a path compare byte by byte."""
    return quote(unquote_to_bytes(path), safe="/?*$&=+:;,@!'()~-._%#[]")


def _matches(pattern: str, path: str) -> bool:
    """A rule's pattern with * and a closing $ against a path, in time linear in both for each star."""
    anchored = pattern.endswith("$")
    pieces = pattern.removesuffix("$").split("*")
    if not path.startswith(pieces[0]):
        return False
    at = len(pieces[0])
    if len(pieces) == 1:
        return not anchored or at == len(path)
    for piece in pieces[1:-1]:
        found = path.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    if anchored:
        return len(path) - len(pieces[-1]) >= at and path.endswith(pieces[-1])
    return path.find(pieces[-1], at) >= 0
