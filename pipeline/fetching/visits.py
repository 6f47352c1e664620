"""The life of one URL, request by request: what follows from an answer.

An answer in, the next step out: done, ask elsewhere (redirect), or ask again (retry). Pure.
Gives up after `retries` further attempts, at once where asking again is useless or rude.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from manifests.outcomes import Outcome
from pipeline.fetching.answers import Answer
from pipeline.fetching.consent import ALLOW_ALL, RobotsRules, parse_robots
from pipeline.fetching.hosts import Result
from pipeline.fetching.settings import NetworkSettings
from pipeline.fetching.urls import BadURL, Target, follow

_RETRIED = frozenset(
    {
        Outcome.DNS_FAILURE,
        Outcome.CONNECT_FAILED,
        Outcome.CONNECT_TIMEOUT,
        Outcome.CONNECTION_RESET,
        Outcome.READ_TIMEOUT,
        Outcome.BODY_TRUNCATED,
        Outcome.HTTP_429,
        Outcome.HTTP_5XX,
    }
)
_UNREACHABLE = frozenset(
    {
        Outcome.DNS_FAILURE,
        Outcome.CONNECT_FAILED,
        Outcome.CONNECT_TIMEOUT,
        Outcome.CONNECTION_RESET,
        Outcome.READ_TIMEOUT,
        Outcome.DEADLINE_EXCEEDED,
    }
)
# Trouble below HTTP that a robots.txt request shares with every other request to its host.
_WHOLE_HOST = _UNREACHABLE | {Outcome.REFUSED_TARGET, Outcome.TLS_FAILURE}


@dataclass(frozen=True, slots=True)
class Download:
    """How the network part of one row ended; `body` only when `outcome` is ok."""

    outcome: Outcome
    detail: str
    http_status: int | None = None
    attempts: int = 0
    host: str | None = None
    final_url: str | None = None
    redirects: tuple[str, ...] = ()
    """Addresses that led to `final_url`, in order."""
    body: bytes = b""


@dataclass(slots=True, eq=False)
class Visit:
    """One row (or one robots.txt, whose `key` is None) on its way."""

    key: int | None
    first: Target
    target: Target
    attempts: int = 0  # attempts begun, the present one included
    hops: int = 0  # redirects followed in this attempt
    active_seconds: float = 0.0  # spent in requests in this attempt
    last: Answer | None = None
    been: dict[str, str] = field(default_factory=dict)  # addresses that redirected us, in order: as stored

    @property
    def is_robots(self) -> bool:
        """True for a request for robots.txt itself."""
        return self.key is None

    def end(self, outcome: Outcome, detail: str, body: bytes = b"") -> Download:
        """The row's download as it stands."""
        return Download(
            outcome,
            detail,
            self.last.http_status if self.last else None,
            self.attempts,
            self.target.host,
            self.target.shown_url,
            tuple(self.been.values()),
            body,
        )

    def give_up(self, detail: str) -> Download:
        """The host will not be asked any more: the last failure where there was one, else host_unavailable."""
        if self.last is not None and self.last.outcome is not Outcome.OK:
            return self.end(self.last.outcome, f"{self.last.detail}; {detail}")
        return self.end(Outcome.HOST_UNAVAILABLE, detail)


@dataclass(frozen=True, slots=True)
class Again:
    """Ask again, at `visit.target`, not before `wait_seconds` from now."""

    wait_seconds: float


def next_step(
    visit: Visit, answer: Answer, settings: NetworkSettings, jitter: Callable[[], float] = random.random
) -> Download | Again:
    """What an answer means for its visit, which is brought up to date."""
    visit.last = answer
    visit.active_seconds += answer.seconds
    if answer.location is not None:
        return _redirect(visit, answer.location, settings)
    if answer.outcome in _RETRIED and visit.attempts <= settings.retries:
        visit.target, visit.hops, visit.active_seconds = visit.first, 0, 0.0
        visit.been.clear()
        if answer.retry_after_seconds is not None or answer.outcome is Outcome.HTTP_429:
            return Again(0.0)  # the gate holds the host back
        return Again(settings.backoff_seconds * 2.0 ** (visit.attempts - 1) * (0.5 + jitter()))
    return visit.end(answer.outcome, answer.detail, answer.body)


def host_result(answer: Answer) -> Result:
    """What the gate should think of the host after this answer."""
    if not answer.asked and answer.outcome is Outcome.REFUSED_TARGET:
        return "unused"
    if answer.outcome in _UNREACHABLE:
        return "unreachable"
    if answer.outcome is Outcome.HTTP_429 or answer.http_status == 503:
        return "busy"
    return "busy" if answer.retry_after_seconds is not None and answer.outcome is Outcome.HTTP_5XX else "answered"


def robots_verdict(visit: Visit, download: Download, agent_token: str) -> RobotsRules | tuple[Outcome, str]:
    """Rules from a finished robots.txt request, or how the rows that wait for it end.

    An answer of 4xx allows everything; no answer, or 5xx, allows nothing for now. Source: RFC 9309, 2.3.1.
    """
    if download.outcome is Outcome.OK:
        return parse_robots(download.body, agent_token)
    detail = f"robots.txt: {download.outcome.value} {download.detail}".strip()
    if download.outcome in _WHOLE_HOST and download.host == visit.first.host:
        return download.outcome, detail
    if download.outcome.passing:
        return Outcome.HOST_UNAVAILABLE, detail
    return ALLOW_ALL


def _redirect(visit: Visit, location: str, settings: NetworkSettings) -> Download | Again:
    visit.been[visit.target.url] = visit.target.shown_url
    try:
        target = follow(visit.target, location)
    except BadURL as error:
        return visit.end(error.outcome, error.detail)
    visit.hops += 1
    if target.url in visit.been:
        return visit.end(Outcome.TOO_MANY_REDIRECTS, f"a loop after {visit.hops} redirects")
    if visit.hops > settings.max_redirects:
        return visit.end(Outcome.TOO_MANY_REDIRECTS, f"more than {settings.max_redirects} redirects")
    if visit.active_seconds >= settings.total_timeout_seconds:
        return visit.end(Outcome.DEADLINE_EXCEEDED, f"not finished after {visit.hops} redirects")
    visit.target = target
    return Again(0.0)
