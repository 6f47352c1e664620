"""One gate for all workers: how often each host may be asked, how many times at once, and when it must be left alone.

`HostGate` is the state, in plain Python: the driver holds it directly, or an actor holds it for a cluster. Workers call
one method, `exchange`. It reports all that has ended and asks for all that may start: one round trip serves many
requests. Parts also tell the gate how far they are (tally.py). Times pass through it as durations, so machines need not
agree on a clock. Reads and writes nothing. A host that fails is paused and tried again later.
"""

from __future__ import annotations

import math
import random
import secrets
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from pipeline.fetching import settings as bounds
from pipeline.fetching.settings import HostLimits, HostOverride, NetworkSettings
from pipeline.fetching.tally import AdaptiveGiven, Board, Given, Tally

Result = Literal["answered", "forbidden", "busy", "unreachable", "unused"]
"""How a request ended for its host: it answered (whatever the answer), it answered 403, it asked to be left alone (429,
503), it could not be reached, or the permission came back unused."""

_MAX_BUSY_PAUSE_SECONDS = 300.0
_AHEAD_SECONDS = 0.1  # a permission is given at most this long before its time
_LEASE_MARGIN_SECONDS = 30.0
_WINDOW_SECONDS = 10.0  # of an adaptive host, between two decisions
_MIN_ANSWERS = 5  # in a window
_STEP_SHARE = 0.2  # of the first rate, that a calm window adds
MOST_TIMES = 8  # the rate stays between an eighth of the limit and eight times it
_SLOWER_TIMES = 2.0
_USED_SHARE = 0.7  # of its rate that a host must have been asked at before it is asked faster
_REFUSALS_TOGETHER_SECONDS = 2.0
_FORBIDDEN_IN_A_ROW = 3  # answers 403, after which they are taken for a refusal of all
_SHOWN_HOSTS = 15
_FULL_HOST_SECONDS = 0.02  # after this a worker asks again for a host whose connections are all in use
_WAITING_SECONDS = 0.5  # a part that got too few connections counts so long as one that waits; it asks again before


class HostReport(NamedTuple):
    """The end of one permitted request."""

    host: str
    lease: int
    result: Result
    retry_after_seconds: float | None = None
    min_gap_seconds: float | None = None
    """Crawl-delay: the pause between requests that the host asks for. An override in the config counts more."""
    seconds: float | None = None
    """How long an answer took, for adaptive hosts."""


class Permission(NamedTuple):
    """One request may start after `wait_seconds`; its report names the `lease`."""

    lease: int
    wait_seconds: float


class Verdict(NamedTuple):
    """The gate's answer for one host: permissions, and when to ask for more."""

    permissions: tuple[Permission, ...]
    ask_again_seconds: float
    closed_because: str | None = None
    """Set when the host is closed for `ask_again_seconds`, because it is dead or busy."""


class Gate(Protocol):
    """The part of a gate that the scheduler needs; a handle on an actor has the same method."""

    exchange_interval_seconds: float
    """Shortest time between two calls: 0 for a gate in this process, about 0.02 for a remote one."""

    def exchange(self, reports: Sequence[HostReport], asked: Mapping[str, int], part: str = "") -> dict[str, Verdict]:
        """Report what has ended, and ask for up to `asked[host]` permissions for the requests of a part."""

    def check_in(self, part: str, tally: Tally, ended: bool = False) -> bool:
        """Say how far a part is; True when it should store what it has and end."""


@dataclass(slots=True)
class _Pace:
    """The pace of an adaptive host: a little faster after each calm window, much slower once the host complains.

    A host has enough when it answers 429 or 503: then the rate halves. Or when its median answer takes twice as long as
    in its best window: then the rate loses a quarter, but not below the first rate. After either it stays below nine
    tenths of what was too much. A 403 may be about one picture alone. So it halves the rate down to the first one, and
    further only when several come in a row, and the host may be asked as fast again later. Additive increase and
    multiplicative decrease keep several clients fair to each other.
    Source: Chiu and Jain 1989, "Analysis of the increase and decrease algorithms for congestion avoidance".
    """

    start: float  # requests a second
    start_connections: int
    rate: float
    connections: int
    most: float  # never faster
    most_connections: int
    fastest: float = 0.0  # rate of the fastest calm window
    num_slow_downs: int = 0
    best_seconds: float = math.inf
    slowed_at: float = -math.inf
    window_started: float | None = None
    window_seconds: list[float] = field(default_factory=list)  # that answers of this window took
    was_full: bool = False  # all connections were in use in this window

    @classmethod
    def of(cls, limits: HostLimits) -> _Pace | None:
        """Return the pace that a host starts with; None where the limits are fixed."""
        rate, connections = limits.requests_per_second, limits.connections
        if not limits.adaptive or rate is None:
            return None
        return cls(rate, connections, rate, connections, rate * MOST_TIMES, connections * MOST_TIMES)

    def answered(self, seconds: float, now: float) -> None:
        """Note an answer; at the end of a window, decide whether to go faster."""
        if self.window_started is None:
            self.window_started = now
        self.window_seconds.append(seconds)
        window = now - self.window_started
        if window < _WINDOW_SECONDS or len(self.window_seconds) < _MIN_ANSWERS:
            return
        per_second, took = len(self.window_seconds) / window, statistics.median(self.window_seconds)
        if took > _SLOWER_TIMES * self.best_seconds:
            if self.rate > self.start:
                self._slow_down(max(self.start, 0.75 * self.rate), now)
        else:
            self.fastest = max(self.fastest, min(per_second, self.rate))
            self.best_seconds = min(self.best_seconds, took)
            if per_second >= _USED_SHARE * self.rate:
                self.rate = min(self.rate + _STEP_SHARE * self.start, self.most)
            elif self.was_full:  # the connections bound it, and not the rate
                self.connections = min(self.connections + 1, self.most_connections)
        self.window_started, self.window_seconds, self.was_full = now, [], False

    def refused(self, now: float) -> None:
        """Note a 429 or 503. Of those that come together only the first counts."""
        if now - self.slowed_at >= _REFUSALS_TOGETHER_SECONDS:
            self._slow_down(max(self.start / MOST_TIMES, 0.5 * self.rate), now)

    def forbidden(self, now: float, num_in_a_row: int) -> None:
        """Note a 403; as with `refused`, of those that come together only the first counts."""
        least = self.start if num_in_a_row < _FORBIDDEN_IN_A_ROW else self.start / MOST_TIMES
        if now - self.slowed_at >= _REFUSALS_TOGETHER_SECONDS and self.rate > least:
            most, most_connections = self.most, self.most_connections
            self._slow_down(max(least, 0.5 * self.rate), now)
            self.most, self.most_connections = most, most_connections

    def given(self) -> AdaptiveGiven:
        return {"rate": self.rate, "fastest": self.fastest, "slow_downs": self.num_slow_downs}

    def _slow_down(self, rate: float, now: float) -> None:
        self.num_slow_downs += 1
        self.most = max(rate, min(self.most, 0.9 * self.rate))
        self.connections = self.most_connections = max(self.start_connections, self.connections - 1)
        self.rate, self.slowed_at = rate, now
        self.window_started, self.window_seconds, self.was_full = None, [], False


@dataclass(slots=True)
class _HostState:
    limits: HostLimits
    pace: _Pace | None = None
    gap_seconds: float = 0.0  # between the starts of two requests
    crawl_delay_seconds: float = 0.0  # the host's own wish for that gap; 0 where the config counts more
    next_start: float = 0.0
    not_before: float = 0.0
    # lease: when it ends by itself, if its worker is lost, and its part
    leases: dict[int, tuple[float, str]] = field(default_factory=dict)
    waiting: dict[str, float] = field(default_factory=dict)  # parts that want more connections, and until when
    num_answers: int = 0
    answered_from: float | None = None  # the clock at the first answer, and at the last
    answered_to: float = 0.0
    num_refusals: int = 0
    paused_seconds: float = 0.0  # in all, for its refusals
    busy_in_a_row: int = 0
    forbidden_in_a_row: int = 0
    unreachable_in_a_row: int = 0
    dead: bool = False

    def num_free(self, part: str, now: float) -> int:
        """Return how many connections a part may still take. Other parts that wait get their share.

        The share is max-min fair: parts that have what they want keep it, the others divide the rest. Without it the
        first part would take each connection again as soon as it is free, and other workers would stand idle.
        """
        connections = self.pace.connections if self.pace else self.limits.connections
        if self.dead:  # gets one request first
            connections = 1
        free = connections - len(self.leases)
        self.waiting = {other: until for other, until in self.waiting.items() if until > now}
        wanting = {part, *self.waiting}
        if len(wanting) == 1:
            return free
        held = Counter(other for _, other in self.leases.values())
        to_share = connections - sum(num for other, num in held.items() if other not in wanting)
        share, rest = divmod(max(0, to_share), len(wanting))
        if sum(held[other] > share for other in wanting - {part}) < rest:
            share += 1
        return min(free, share - held[part])

    def given(self, session: str) -> Given:
        seconds = self.answered_to - (self.answered_from or 0.0)
        pace = self.pace
        return {
            "session": session,
            "answers": self.num_answers,
            "refusals": self.num_refusals,
            "paused_seconds": self.paused_seconds,
            "per_second": (self.num_answers - 1) / seconds if seconds > 0 else 0.0,
            "adaptive": pace.given() if pace else None,
        }


class HostGate(Board):
    """The state of every host behind one lock; safe for threads.

    `clock` gives seconds that never go back; tests give their own.
    """

    exchange_interval_seconds = 0.0

    def __init__(
        self,
        settings: NetworkSettings,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._clock = clock
        self._jitter = jitter
        self._hosts: dict[str, _HostState] = {}  # by the name under which requests are counted
        self._by_host: dict[str, _HostState] = {}
        self._lock = threading.Lock()
        self._last_lease = 0
        self._session = secrets.token_hex(4)
        self._all_closed_until = 0.0

    def start_over(self) -> None:
        """Close all hosts until every request that a lost gate allowed must have ended.

        The lost gate took its knowledge with it, so this one cannot know which requests still run. It waits less
        than the patience of the rows, which would otherwise all end.
        """
        with self._lock:
            pause = min(self._settings.total_timeout_seconds, 0.9 * bounds.HOST_PATIENCE_SECONDS)
            self._all_closed_until = self._clock() + pause

    def exchange(self, reports: Sequence[HostReport], asked: Mapping[str, int], part: str = "") -> dict[str, Verdict]:
        """Note the reports and give permissions.

        Permissions of one host are 1 / rate apart, and never more than its `connections` are in use at once. Parts that
        want more than there are share them evenly.
        """
        with self._lock:
            now = self._clock()
            for report in reports:
                self._note(report, now)
            return {host: self._permit(host, num, part, now) for host, num in asked.items()}

    def progress(self) -> Tally:
        """Sum what all parts have done so far, and what the hosts that answered most gave."""
        tally = super().progress()
        with self._lock:
            most = sorted(self._hosts.items(), key=lambda item: (-item[1].num_answers, item[0]))[:_SHOWN_HOSTS]
            tally.given = {
                name: state.given(self._session) for name, state in most if state.num_answers or state.num_refusals
            }
        return tally

    def _state(self, host: str) -> _HostState:
        if kept := self._by_host.get(host):
            return kept
        name, limits = self._settings.limits_of(host)
        state = self._hosts.get(name)
        if state is None:
            rate = limits.requests_per_second
            state = self._hosts[name] = _HostState(limits, _Pace.of(limits), 1 / rate if rate else 0.0)
            state.not_before = self._all_closed_until
        self._by_host[host] = state
        return state

    def _note(self, report: HostReport, now: float) -> None:
        state = self._state(report.host)
        state.leases.pop(report.lease, None)
        if report.min_gap_seconds and not isinstance(state.limits, HostOverride):
            state.crawl_delay_seconds = max(state.crawl_delay_seconds, report.min_gap_seconds)
            state.gap_seconds = max(state.gap_seconds, report.min_gap_seconds)
        if report.result in ("answered", "forbidden"):
            state.busy_in_a_row = state.unreachable_in_a_row = 0
            state.forbidden_in_a_row = state.forbidden_in_a_row + 1 if report.result == "forbidden" else 0
            state.dead = False
            state.num_answers += 1
            state.answered_to = now
            if state.answered_from is None:
                state.answered_from = now
            if state.pace and state.forbidden_in_a_row:
                state.pace.forbidden(now, state.forbidden_in_a_row)
            elif state.pace and report.seconds is not None:
                state.pace.answered(report.seconds, now)
        elif report.result == "busy":
            state.busy_in_a_row += 1
            state.unreachable_in_a_row = 0
            until = max(state.not_before, now + self._busy_pause(state, report.retry_after_seconds))
            state.num_refusals += 1
            state.paused_seconds += until - max(state.not_before, now)
            state.not_before = until
            if state.pace:
                state.pace.refused(now)
        elif report.result == "unreachable":
            state.unreachable_in_a_row += 1
            if state.unreachable_in_a_row >= bounds.BREAKER_FAILURES:
                state.dead = True
                state.not_before = max(state.not_before, now + bounds.BREAKER_SECONDS)
        if state.pace:
            state.gap_seconds = max(1 / state.pace.rate, state.crawl_delay_seconds)

    def _busy_pause(self, state: _HostState, retry_after_seconds: float | None) -> float:
        if retry_after_seconds is not None:
            return max(0.0, retry_after_seconds)
        pause = bounds.BACKOFF_SECONDS * 2.0 ** min(state.busy_in_a_row - 1, 12)
        return min(pause, _MAX_BUSY_PAUSE_SECONDS) * (0.5 + self._jitter())

    def _permit(self, host: str, num_wanted: int, part: str, now: float) -> Verdict:
        state = self._state(host)
        if state.not_before > now:
            why = "cannot be reached" if state.dead else "asked to be left alone"
            return Verdict((), state.not_before - now, f"host {why}, for {state.not_before - now:.0f} s more")
        for lease in [lease for lease, (ends, _) in state.leases.items() if ends <= now]:
            del state.leases[lease]
        num_free = state.num_free(part, now)
        lease_seconds = self._settings.total_timeout_seconds + _LEASE_MARGIN_SECONDS
        leased: list[Permission] = []
        while len(leased) < min(num_wanted, num_free):
            start = max(now, state.next_start)
            if start - now > _AHEAD_SECONDS + 1e-6:
                break
            state.next_start = start + state.gap_seconds
            self._last_lease += 1
            state.leases[self._last_lease] = start + lease_seconds, part
            leased.append(Permission(self._last_lease, start - now))
        until_next = state.next_start - now - _AHEAD_SECONDS
        if not leased and until_next > 0 and state.crawl_delay_seconds > bounds.HOST_PATIENCE_SECONDS:
            why = f"host wants {state.crawl_delay_seconds:g} s between requests (Crawl-delay), the patience is "
            return Verdict((), state.crawl_delay_seconds, f"{why}{bounds.HOST_PATIENCE_SECONDS:g} s")
        if state.pace and num_wanted > num_free:
            state.pace.was_full = True
        # a request must end first, and this worker does not hear of others' requests
        full = len(leased) >= num_free
        state.waiting.pop(part, None)
        if full and len(leased) < num_wanted:
            state.waiting[part] = now + _WAITING_SECONDS
        return Verdict(tuple(leased), max(until_next, _FULL_HOST_SECONDS if full else 0.0, 0.001))
