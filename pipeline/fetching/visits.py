"""The life of one URL, request by request: what to do after each answer.

An answer in, the next step out: done, ask elsewhere (redirect), or ask again (retry). Pure.
Stops after `retries` further attempts. A failure that another attempt cannot mend is never retried.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from manifests.contract.outcomes import UNREACHABLE, Outcome
from pipeline.fetching import settings as bounds
from pipeline.fetching.answers import Answer
from pipeline.fetching.consent.rsl import parse_rsl
from pipeline.fetching.consent.statements import (
    ALLOW_ALL,
    HEADERS,
    LICENCE_FAILED,
    ROBOTS_FAILED,
    ROBOTS_PATH,
    TDMREP_PATH,
    Consent,
    RobotsRules,
    Said,
    parse_robots,
    parse_tdmrep,
)
from pipeline.fetching.hosts import Result
from pipeline.fetching.settings import NetworkSettings
from pipeline.fetching.urls import BadURL, Target, follow

_RETRIED = UNREACHABLE - {Outcome.DEADLINE_EXCEEDED} | {Outcome.BODY_TRUNCATED, Outcome.HTTP_429, Outcome.HTTP_5XX}
# Failures below HTTP: when a request for robots.txt meets one, every other request to its host would too.
_WHOLE_HOST = UNREACHABLE | {Outcome.REFUSED_TARGET, Outcome.TLS_FAILURE}


@dataclass(frozen=True, slots=True)
class Download:
    """How the download of one row ended; `body` only when `outcome` is ok."""

    outcome: Outcome
    detail: str
    http_status: int | None = None
    attempts: int = 0
    host: str | None = None
    final_url: str | None = None
    redirects: tuple[str, ...] = ()
    """Addresses that redirected on the way to `final_url`, in order."""
    body: bytes = b""
    said: Mapping[str, list[str]] = field(default_factory=dict)
    """What was said about use, by place."""


@dataclass(slots=True, eq=False)
class Visit:
    """The way of one row, or of a file of a site, from its first request to its end."""

    row: int | None  # its number; None for a robots.txt, a tdmrep.json or a licence
    start: Target
    target: Target  # of the next request
    attempts: int = 0  # begun so far
    num_redirects: int = 0  # followed in this attempt
    active_seconds: float = 0.0  # spent in requests in this attempt
    last_answer: Answer | None = None
    said: dict[str, list[str]] = field(default_factory=dict)
    redirected_by: dict[str, str] = field(default_factory=dict)  # addresses in order, each with its form for the table
    files: SiteFiles | None = None  # of which this is one

    @property
    def is_robots(self) -> bool:
        """True for a request for robots.txt itself, for tdmrep.json or for a licence."""
        return self.row is None

    def end(self, outcome: Outcome, detail: str, body: bytes = b"") -> Download:
        """The download that this visit ends with."""
        return Download(
            outcome,
            detail,
            self.last_answer.http_status if self.last_answer else None,
            self.attempts,
            self.target.host,
            self.target.shown_url,
            tuple(self.redirected_by.values()),
            body,
            self.said,
        )

    def hear(self, heard: Said) -> None:
        """Note statements about use, also those of earlier steps of the way."""
        for signal, words in heard.items():
            self.said[signal] = sorted({*self.said.get(signal, ()), *words})

    def give_up(self, detail: str) -> Download:
        """The host is not asked any more: its last failure where there was one, else host_unavailable."""
        last = self.last_answer
        if last is not None and last.outcome is not Outcome.OK:
            return self.end(last.outcome, f"{last.detail}; {detail}")
        return self.end(Outcome.HOST_UNAVAILABLE, detail)


@dataclass(slots=True, eq=False)
class SiteFiles:
    """The files in which a site says what may be done: robots.txt, tdmrep.json, and the licences that robots.txt names.

    They are asked for one after the other, while rows of the site wait.
    """

    site: Target
    consent: Consent
    waiting: list[Visit]
    rules: RobotsRules = ALLOW_ALL
    _left: list[Target] = field(default_factory=list)

    def first(self) -> Visit:
        """The visit of the first file."""
        places = {ROBOTS_PATH: self.consent.robots_txt, TDMREP_PATH: "tdmrep_file" in self.consent.signals}
        self._left = [replace(self.site, path=path) for path, counts in places.items() if counts]
        return self._visit()

    def take(self, visit: Visit, download: Download) -> Visit | RobotsRules | tuple[Outcome, str]:
        """Act on a file: the visit of the next one, the rules of the site, or how the rows that wait end.

        A tdmrep.json that does not come says nothing, whatever the reason. A licence that robots.txt names and that
        cannot be read for now allows nothing for now.
        """
        came = download.outcome is Outcome.OK
        if visit.start == replace(self.site, path=ROBOTS_PATH):
            verdict = robots_verdict(visit, download, self.consent.agent_token)
            if isinstance(verdict, tuple):
                return verdict
            self.rules = verdict
            if self.consent.reads_licences:
                self._left += self._licences()
        elif visit.start == replace(self.site, path=TDMREP_PATH):
            self.rules = replace(self.rules, tdm=parse_tdmrep(download.body) if came else ())
        elif came:
            rules = parse_rsl(download.body, self.site)
            self.rules = replace(self.rules, of_licences=(*self.rules.of_licences, rules))
        elif download.outcome.passing:
            return Outcome.HOST_UNAVAILABLE, f"{LICENCE_FAILED}{download.outcome.value} {download.detail}".strip()
        return self._visit() if self._left else self.rules

    def _visit(self) -> Visit:
        target = self._left.pop(0)
        return Visit(None, target, target, files=self)

    def _licences(self) -> list[Target]:
        """Where the licences lie; the site's credentials are for the site alone."""
        targets = []
        for address in self.rules.licences:
            with suppress(BadURL):
                targets.append(follow(replace(self.site, path=ROBOTS_PATH), address))
        return targets


@dataclass(frozen=True, slots=True)
class AskAgain:
    """Send another request, to `visit.target`, not before `wait_seconds` from now."""

    wait_seconds: float


def next_step(
    visit: Visit, answer: Answer, settings: NetworkSettings, jitter: Callable[[], float] = random.random
) -> Download | AskAgain:
    """Decide what to do after an answer; notes the answer in `visit`."""
    visit.last_answer = answer
    visit.active_seconds += answer.seconds
    if answer.said is not None:
        visit.hear({HEADERS: answer.said})
    if answer.location is not None:
        return _redirect(visit, answer.location, settings)
    if answer.outcome in _RETRIED and visit.attempts <= settings.retries:
        visit.target, visit.num_redirects, visit.active_seconds = visit.start, 0, 0.0
        visit.redirected_by.clear()
        visit.said.clear()
        if answer.retry_after_seconds is not None or answer.outcome is Outcome.HTTP_429:
            return AskAgain(0.0)  # the gate makes the host wait
        return AskAgain(bounds.BACKOFF_SECONDS * 2.0 ** (visit.attempts - 1) * (0.5 + jitter()))
    return visit.end(answer.outcome, answer.detail, answer.body)


def host_result(answer: Answer, visit: Visit) -> Result:
    """The result of an answer for the gate of its host. A store answers 403 for a robots.txt that is not there."""
    if not answer.was_sent and answer.outcome is Outcome.REFUSED_TARGET:
        return "unused"
    if answer.outcome in UNREACHABLE:
        return "unreachable"
    if answer.outcome is Outcome.HTTP_429 or answer.http_status == 503:
        return "busy"
    if answer.http_status == 403 and not visit.is_robots:
        return "forbidden"
    return "busy" if answer.retry_after_seconds is not None and answer.outcome is Outcome.HTTP_5XX else "answered"


def robots_verdict(visit: Visit, download: Download, agent_token: str) -> RobotsRules | tuple[Outcome, str]:
    """Rules from a finished robots.txt request, or how the rows that wait for it end.

    An answer of 4xx allows everything; no answer, or 5xx, allows nothing for now. Source: RFC 9309, 2.3.1.
    """
    if download.outcome is Outcome.OK:
        return parse_robots(download.body, agent_token)
    detail = f"{ROBOTS_FAILED}{download.outcome.value} {download.detail}".strip()
    if download.outcome in _WHOLE_HOST and download.host == visit.start.host:
        return download.outcome, detail
    if download.outcome.passing:
        return Outcome.HOST_UNAVAILABLE, detail
    return ALLOW_ALL


def _redirect(visit: Visit, location: str, settings: NetworkSettings) -> Download | AskAgain:
    visit.redirected_by[visit.target.url] = visit.target.shown_url
    try:
        target = follow(visit.target, location)
    except BadURL as error:
        return visit.end(error.outcome, error.detail)
    visit.num_redirects += 1
    if target.url in visit.redirected_by:
        return visit.end(Outcome.TOO_MANY_REDIRECTS, f"a loop after {visit.num_redirects} redirects")
    if visit.num_redirects > bounds.MAX_REDIRECTS:
        return visit.end(Outcome.TOO_MANY_REDIRECTS, f"more than {bounds.MAX_REDIRECTS} redirects")
    if visit.active_seconds >= settings.total_timeout_seconds:
        return visit.end(Outcome.DEADLINE_EXCEEDED, f"not finished after {visit.num_redirects} redirects")
    visit.target = target
    return AskAgain(0.0)
