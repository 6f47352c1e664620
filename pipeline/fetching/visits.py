"""The life of one URL, request by request: what to do after each answer.

An answer in, the next step out: done, ask elsewhere (redirect), or ask again (retry). Pure.
Stops after `retries` further attempts. A failure that another attempt cannot mend is never retried.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from manifests.contract.outcomes import UNREACHABLE, Outcome
from pipeline.fetching import settings as bounds
from pipeline.fetching.answers import Answer
from pipeline.fetching.consent.rsl import parse_rsl
from pipeline.fetching.consent.statements import (
    ALLOW_ALL,
    FILE_MAX_BYTES,
    HEADERS,
    LICENCE_FAILED,
    MAX_LICENCES,
    ROBOTS_FAILED,
    ROBOTS_PATH,
    TDMREP_FAILED,
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
_NOT_THERE = {Outcome.HTTP_404, Outcome.HTTP_410, Outcome.HTTP_4XX, Outcome.EMPTY_BODY}


@dataclass(frozen=True, slots=True)
class Download:
    """The end of one row's download. `body` is set only when `outcome` is ok."""

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
        """Return the download that this visit ends with."""
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
        """Return the download of a host that is not asked any more: its last failure, else host_unavailable."""
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
    _left: list[tuple[str, Target]] = field(default_factory=list)
    """Files to ask for, each by how a failure of it is told; the first one is under way. No address stands twice."""

    def first(self) -> Visit:
        """Return the visit of the first file."""
        counts = {ROBOTS_FAILED: self.consent.robots_txt, TDMREP_FAILED: "tdmrep_file" in self.consent.signals}
        self._left = [(kind, target) for kind, target in self._own.items() if counts[kind]]
        return self._visit()

    def take(self, visit: Visit, download: Download) -> Visit | RobotsRules | tuple[Outcome, str]:
        """Act on a file: the visit of the next one, the rules of the site, or how the rows that wait end.

        What is there and cannot be read allows nothing for now, and `retry` asks again.
        """
        kind, _ = self._left.pop(0)
        fault = failure_of(kind, visit, download)
        if fault is None and kind == ROBOTS_FAILED:
            self.rules = parse_robots(download.body, self.consent.agent_token)
            fault = self._add_licences() if self.consent.reads_licences else None
        elif fault is None and kind == TDMREP_FAILED:
            tdm = parse_tdmrep(download.body)
            self.rules = replace(self.rules, tdm=tdm or ())
            fault = _unread(kind, f"more than {FILE_MAX_BYTES:,} bytes of JSON") if tdm is None else None
        elif fault is None:
            rules = parse_rsl(download.body, self.site)
            self.rules = replace(self.rules, of_licences=(*self.rules.of_licences, rules or ()))
            fault = _unread(kind, f"{visit.start.shown_url} is no RSL document") if rules is None else None
        return fault or (self._visit() if self._left else self.rules)

    @property
    def _own(self) -> dict[str, Target]:
        paths = {ROBOTS_FAILED: ROBOTS_PATH, TDMREP_FAILED: TDMREP_PATH}
        return {kind: replace(self.site, path=path) for kind, path in paths.items()}

    def _visit(self) -> Visit:
        _, target = self._left[0]
        return Visit(None, target, target, files=self)

    def _add_licences(self) -> tuple[Outcome, str] | None:
        """Ask for the licences that robots.txt names too. The site's credentials are for the site alone."""
        if len(self.rules.licences) > MAX_LICENCES:
            return _unread(LICENCE_FAILED, f"{len(self.rules.licences)} are named, {MAX_LICENCES} are read")
        targets: dict[Target, None] = {}
        for address in self.rules.licences:
            try:
                targets[follow(self._own[ROBOTS_FAILED], address)] = None
            except BadURL as error:
                return _unread(LICENCE_FAILED, f"{error.outcome.value} {error.detail}")
        if twice := next((target for target in targets if target in self._own.values()), None):
            return _unread(LICENCE_FAILED, f"{twice.shown_url} is no RSL document")
        self._left += [(LICENCE_FAILED, target) for target in targets]
        return None


def failure_of(kind: str, visit: Visit, download: Download) -> tuple[Outcome, str] | None:
    """Return how the rows end that wait for a site's file, or None where it came, or is not there and allows.

    Only 4xx and an empty body allow. 429, 5xx, no answer, an encoding that was not asked for and redirects that lead
    nowhere forbid for now, and so does a licence that is named and not there. Source: RFC 9309, 2.3.1.
    """
    outcome = download.outcome
    if outcome is Outcome.OK or (outcome in _NOT_THERE and kind != LICENCE_FAILED):
        return None
    if kind == ROBOTS_FAILED and outcome in _WHOLE_HOST and download.host == visit.start.host:
        return outcome, f"{kind}{outcome.value} {download.detail}".strip()
    return _unread(kind, f"{outcome.value} {download.detail}".strip())


def _unread(kind: str, why: str) -> tuple[Outcome, str]:
    return Outcome.HOST_UNAVAILABLE, f"{kind}{why}"


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
    """Return the result of an answer for the gate of its host.

    A store answers 403 for a robots.txt that is not there.
    """
    if not answer.was_sent and answer.outcome is Outcome.REFUSED_TARGET:
        return "unused"
    if answer.outcome in UNREACHABLE:
        return "unreachable"
    if answer.outcome is Outcome.HTTP_429 or answer.http_status == 503:
        return "busy"
    if answer.http_status == 403 and not visit.is_robots:
        return "forbidden"
    return "busy" if answer.retry_after_seconds is not None and answer.outcome is Outcome.HTTP_5XX else "answered"


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
