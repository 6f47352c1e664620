"""One gate for all workers: how often, how many at once, and not before when each host may be asked.

`HostGate` is the state, in plain Python: the driver holds it directly, or an actor holds it for a cluster.
Workers talk to it through one method, `exchange`, which carries everything since the last call and asks for
everything wanted now, so that one round trip serves many requests. Times cross it only as durations; no two
machines need the same clock. Reads and writes nothing. Gives up on no host for ever: a breaker closes again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from pipeline.fetching.settings import HostLimits, HostOverride, NetworkSettings

Result = Literal["answered", "busy", "unreachable", "unused"]
"""How a request to a host ended, as far as the host is concerned: it answered (whatever the answer), it asked
to be left alone (429, 503), it could not be reached, or the permission was handed back without asking."""

_MAX_BUSY_PAUSE_SECONDS = 300.0
_AHEAD_SECONDS = 0.1  # permissions are given at most so long before their time
_LEASE_MARGIN_SECONDS = 30.0
_LOOK_AGAIN_SECONDS = 0.02  # a worker whose host is full asks again after this


class HostReport(NamedTuple):
    """What became of one permission."""

    host: str
    lease: int
    result: Result
    retry_after_seconds: float | None = None
    min_gap_seconds: float | None = None
    """The host's own wish (Crawl-delay): requests so far apart, unless an override in the config names it."""


class Permission(NamedTuple):
    """One request may start after `wait_seconds`; `lease` comes back in the report."""

    lease: int
    wait_seconds: float


class Verdict(NamedTuple):
    """The gate's answer for one host: permissions now, and when to ask again for more."""

    permissions: tuple[Permission, ...]
    ask_again_seconds: float
    closed_because: str | None = None
    """Set when the host stays closed for `ask_again_seconds`: dead, or busy."""


class Gate(Protocol):
    """What the engine needs of a gate; a proxy to an actor has the same method."""

    exchange_interval_seconds: float
    """Smallest pause between two calls; 0 for a gate in this very program, some 0.02 for a remote one."""

    def exchange(self, reports: Sequence[HostReport], wanted: Mapping[str, int]) -> dict[str, Verdict]:
        """Hand in reports, and ask for up to `wanted[host]` permissions."""
        ...


@dataclass(slots=True)
class _HostState:
    limits: HostLimits
    gap_seconds: float = 0.0  # between the starts of two requests
    next_start: float = 0.0
    not_before: float = 0.0
    leases: dict[int, float] = field(default_factory=dict)  # lease: when it lapses, should its worker be lost
    busy_in_a_row: int = 0
    unreachable_in_a_row: int = 0
    dead: bool = False


class HostGate:
    """The state of every host, guarded by one lock; safe for threads, picklable through its settings only.

    `clock` gives seconds that never go back; tests give their own.
    """

    exchange_interval_seconds = 0.0

    def __init__(
        self,
        settings: NetworkSettings,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._jitter = jitter
        self._hosts: dict[str, _HostState] = {}
        self._lock = threading.Lock()
        self._last_lease = 0
        self._all_rest_until = 0.0

    def start_over(self) -> None:
        """What was known of the hosts is lost with the program that knew it, but requests it allowed may still run: all
        hosts rest until the last of them must have ended, and no longer than their rows have patience.
        """
        with self._lock:
            rest_seconds = min(self._settings.total_timeout_seconds, 0.9 * self._settings.host_patience_seconds)
            self._all_rest_until = self._clock() + rest_seconds

    def exchange(self, reports: Sequence[HostReport], wanted: Mapping[str, int]) -> dict[str, Verdict]:
        """Take in reports, give out permissions; a host's permissions are 1 / rate apart, never more at once
        than its `connections`."""
        with self._lock:
            now = self._clock()
            for report in reports:
                self._take(report, now)
            return {host: self._give(host, num, now) for host, num in wanted.items()}

    def _state(self, host: str) -> _HostState:
        name, limits = self._settings.limits_of(host)
        state = self._hosts.get(name)
        if state is None:
            rate = limits.requests_per_second
            state = self._hosts[name] = _HostState(limits, 1 / rate if rate else 0.0)
            state.not_before = self._all_rest_until
        return state

    def _take(self, report: HostReport, now: float) -> None:
        state = self._state(report.host)
        state.leases.pop(report.lease, None)
        if report.min_gap_seconds and not isinstance(state.limits, HostOverride):
            state.gap_seconds = max(state.gap_seconds, report.min_gap_seconds)
        if report.result == "answered":
            state.busy_in_a_row = state.unreachable_in_a_row = 0
            state.dead = False
        elif report.result == "busy":
            state.busy_in_a_row += 1
            state.unreachable_in_a_row = 0
            state.not_before = max(state.not_before, now + self._busy_pause(state, report.retry_after_seconds))
        elif report.result == "unreachable":
            state.unreachable_in_a_row += 1
            if state.unreachable_in_a_row >= self._settings.breaker_failures:
                state.dead = True
                state.not_before = max(state.not_before, now + self._settings.breaker_seconds)

    def _busy_pause(self, state: _HostState, retry_after_seconds: float | None) -> float:
        if retry_after_seconds is not None:
            return max(0.0, retry_after_seconds)
        pause = self._settings.backoff_seconds * 2.0 ** min(state.busy_in_a_row - 1, 12)
        return min(pause, _MAX_BUSY_PAUSE_SECONDS) * (0.5 + self._jitter())

    def _give(self, host: str, num_wanted: int, now: float) -> Verdict:
        state = self._state(host)
        if state.not_before > now:
            why = "cannot be reached" if state.dead else "asked to be left alone"
            return Verdict((), state.not_before - now, f"host {why}, for {state.not_before - now:.0f} s more")
        for lease in [lease for lease, lapses in state.leases.items() if lapses <= now]:
            del state.leases[lease]
        # a host that was dead gets one try first
        num_free = (1 if state.dead else state.limits.connections) - len(state.leases)
        lapse_seconds = self._settings.total_timeout_seconds + _LEASE_MARGIN_SECONDS
        given: list[Permission] = []
        while len(given) < min(num_wanted, num_free):
            start = max(now, state.next_start)
            if start - now > _AHEAD_SECONDS + 1e-6:
                break
            state.next_start = start + state.gap_seconds
            self._last_lease += 1
            state.leases[self._last_lease] = start + lapse_seconds
            given.append(Permission(self._last_lease, start - now))
        until_next = state.next_start - now - _AHEAD_SECONDS
        full = len(given) >= num_free  # a connection must end first; another worker's end is not told to this one
        return Verdict(tuple(given), max(until_next, _LOOK_AGAIN_SECONDS if full else 0.0, 0.001))
