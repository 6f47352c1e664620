"""May this picture be used? May this path be requested? What X-Robots-Tag headers and robots.txt say.

Headers and text in, yes or no out. Pure. What cannot be understood forbids nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protego import Protego

# Directives that carry a value after a colon, so that their name is not taken for an agent's.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_AGENT = re.compile(r"[a-z*][a-z0-9_\-*.]*(/[a-z0-9.]+)?")
_USER_AGENT_LINE = re.compile(r"\s*user[- ]?agent\b[\s:]*([^#]*)", re.IGNORECASE)

ROBOTS_MAX_BYTES = 512 * 1024  # RFC 9309 asks for at least 500 KiB


def opted_out(headers: Iterable[str], agent_token: str, directives: Sequence[str]) -> str | None:
    """The directive in X-Robots-Tag headers that forbids us the picture; None when none does.

    `headers` are the values of every such header. A directive after `agent:` is for that agent only, and so are the
    directives that follow in the same header, up to the next agent's name.
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
    """What one host's robots.txt says to one agent."""

    parsed: Protego
    agent_token: str

    def allows(self, path: str) -> bool:
        """True when `path` (with its query) may be requested: the longest rule that fits counts, Allow wins a tie."""
        # Protego takes the start of "//x.jpg" for a host name. Of a whole URL it uses the path alone.
        return self.parsed.can_fetch(f"http://host{path}", self.agent_token)

    @property
    def crawl_delay_seconds(self) -> float | None:
        """The pause between two requests that the host asks for."""
        return self.parsed.crawl_delay(self.agent_token)


def parse_robots(body: bytes, agent_token: str) -> RobotsRules:
    """Rules for `agent_token`, or those for `*` when no group names it.

    Source: RFC 9309.
    """
    lines = body[:ROBOTS_MAX_BYTES].decode("utf-8-sig", "replace").splitlines()
    return RobotsRules(Protego.parse("\n".join(_with_plain_name(line, agent_token) for line in lines)), agent_token)


ALLOW_ALL = parse_robots(b"", "*")


def _with_plain_name(line: str, agent_token: str) -> str:
    """A `User-agent` line as Protego must read it; every other line as it is.

    RFC 9309 compares whole product tokens. Protego also takes `plant` for the name of `plantmix`, and does not take
    `plantmix/2.0` for it. So our name loses its version, and the names of other agents become one that is not ours.
    """
    found = _USER_AGENT_LINE.match(line)
    if found is None:
        return line
    name = found[1].partition("/")[0].strip().lower()
    return f"User-agent: {name if name in (agent_token, '*') else '(another)'}"
