"""Which request goes next: hosts interleaved, each at the pace the gate allows, no thread waiting for a host.

One thread plans (it alone touches the queues), `threads` others each carry out one request at a time, and the
caller takes finished downloads with `take`. Redirects and retries go back into the queue of their host, so
that every single request passes the gate. Reads the network through HttpClient; writes nothing.
Gives up by ending rows of a host that stays closed for longer than the host's patience; any programming error
in a thread surfaces in the caller.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from manifests.outcomes import Outcome
from pipeline.fetching.answers import Answer
from pipeline.fetching.consent import ROBOTS_MAX_BYTES
from pipeline.fetching.hosts import Gate, HostReport, Permission, Verdict
from pipeline.fetching.http import HttpClient
from pipeline.fetching.urls import BadURL, Target, parse_url
from pipeline.fetching.visits import Again, Download, Visit, host_result, next_step, robots_verdict

_MAX_WAITING_BYTES = 128 << 20  # finished bodies not yet decoded; no new request starts above it
_SHORT_SECONDS = 0.02


@dataclass(slots=True)
class _Host:
    name: str
    queue: deque[Visit] = field(default_factory=deque)
    ask_at: float = 0.0
    closed_since: float | None = None
    has_turn: bool = False  # stands in the scheduler's row of turns
    parked: dict[str, list[Visit]] = field(default_factory=dict)  # origin: rows that wait for its robots.txt


@dataclass(frozen=True, slots=True)
class _Job:
    visit: Visit
    host: str
    lease: int


class Scheduler:
    """Carries out the downloads of some rows; use as a context manager, `take` once a row."""

    def __init__(self, urls: Sequence[str], client: HttpClient, gate: Gate, max_body_bytes: int) -> None:
        self._urls = urls
        self._client = client
        self._settings = client.settings
        self._gate = gate
        self._max_body_bytes = max_body_bytes
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[tuple[_Job, Answer] | BaseException | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, Download] | BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        # below: touched by the planning thread only
        self._hosts: dict[str, _Host] = {}
        self._turns: deque[str] = deque()  # hosts with something to ask, in the order they get their turn
        self._timed: list[tuple[float, int, Visit | tuple[_Host, Permission]]] = []
        self._order = itertools.count()
        self._reports: list[HostReport] = []
        self._in_flight = 0
        self._num_open = len(urls)
        self._next_exchange = 0.0
        self._waiting = _WaitingBytes()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Scheduler:
        num = min(self._settings.threads, max(1, len(self._urls)))
        self._threads = [threading.Thread(target=self._work, daemon=True, name="fetch") for _ in range(num)]
        self._threads.append(threading.Thread(target=self._guard_plan, daemon=True, name="fetch-plan"))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._done.put(RuntimeError("the scheduler is closed"))  # wakes who still waits, after an error
        self._events.put(None)
        for _ in self._threads:
            self._jobs.put(None)
        # requests still under way (only after an error in the caller) end by their own deadline
        until = time.monotonic() + (1.0 if self._in_flight else 5.0)
        for thread in self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))

    def take(self) -> tuple[int, Download]:
        """The next row's number and download, in the order they finish; to be called once a row, by any thread.

        Raises: whatever a thread of the scheduler raised.
        """
        item = self._done.get()
        if isinstance(item, BaseException):
            self._done.put(item)  # for the others who wait
            raise item
        return item

    def let_go(self, download: Download) -> None:
        """Say that a taken download's body is needed no longer; bodies under way are bounded by this."""
        if self._waiting.took(len(download.body)):
            self._events.put(None)  # room again

    # ---- the request threads

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and not self._stop.is_set():
            visit = job.visit
            limit = ROBOTS_MAX_BYTES * 2 if visit.is_robots else self._max_body_bytes
            left = max(0.1, self._settings.total_timeout_seconds - visit.active_seconds)
            try:
                answer = self._client.get(visit.target, limit, left, check_opt_out=not visit.is_robots)
            except BaseException as error:  # a defect of ours: the caller must see it, not wait for ever
                self._events.put(error)
                return
            self._events.put((job, answer))

    # ---- the planning thread

    def _guard_plan(self) -> None:
        try:
            self._plan()
        except BaseException as error:  # as above; a gate that is gone arrives here too
            self._done.put(error)

    def _plan(self) -> None:
        for key, url in enumerate(self._urls):
            try:
                target = parse_url(url)
            except BadURL as error:
                self._finish(key, Download(error.outcome, error.detail))
                continue
            self._enqueue(Visit(key, target, target))
        while (self._num_open or self._in_flight) and not self._stop.is_set():
            now = time.monotonic()
            self._run_due(now)
            now = self._exchange(now)
            self._take_events(self._seconds_to_wait(now))
        self._hand_back()

    def _take_events(self, seconds: float) -> None:
        """Wait for something to happen, then take in all that has."""
        try:
            event = self._events.get(timeout=seconds)
            while True:
                if isinstance(event, BaseException):
                    raise event
                if event is not None:
                    self._take_answer(*event)
                event = self._events.get_nowait()
        except queue.Empty:
            return

    def _take_answer(self, job: _Job, answer: Answer) -> None:
        self._in_flight -= 1
        host = self._hosts[job.host]
        host.ask_at = 0.0
        result = host_result(answer)
        if result == "answered":
            host.closed_since = None
        self._reports.append(HostReport(job.host, job.lease, result, answer.retry_after_seconds))
        visit = job.visit
        step = next_step(visit, answer, self._settings)
        if isinstance(step, Again):
            if step.wait_seconds > 0:
                self._at(time.monotonic() + step.wait_seconds, visit)
            else:
                self._enqueue(visit, first=True)
        elif visit.is_robots:
            self._end_robots(visit, step)
        else:
            self._finish(visit.key, step)

    def _end_robots(self, visit: Visit, download: Download) -> None:
        """Rules are known, or the host cannot say: let the rows that waited go, or end them."""
        host = self._hosts[visit.first.host]
        parked = host.parked.pop(visit.first.origin, [])
        verdict = robots_verdict(visit, download, self._settings.agent_token)
        if isinstance(verdict, tuple):
            of_origin = [v for v in host.queue if v.target.origin == visit.first.origin and not v.is_robots]
            host.queue = deque(v for v in host.queue if v not in of_origin) if of_origin else host.queue
            for row in [*parked, *of_origin]:
                self._finish(row.key, row.end(*verdict))
            return
        self._client.keep_robots_rules(visit.first.origin, verdict)
        if verdict.crawl_delay_seconds:
            self._reports.append(HostReport(host.name, 0, "unused", min_gap_seconds=verdict.crawl_delay_seconds))
        for row in reversed(parked):
            self._enqueue(row, first=True)

    def _enqueue(self, visit: Visit, *, first: bool = False) -> None:
        """Put a visit into its host's queue, or end it where robots.txt forbids it."""
        target = visit.target
        host = self._hosts.get(target.host)
        if host is None:
            host = self._hosts[target.host] = _Host(target.host)
        if self._settings.robots_txt and not visit.is_robots:
            rules = self._client.robots_rules(target.origin)
            if rules is None:
                waiting = host.parked.get(target.origin)
                if waiting is not None:
                    waiting.append(visit)
                    return
                host.parked[target.origin] = [visit]
                robots = Target(target.scheme, target.hostname, target.port, "/robots.txt")
                visit = Visit(None, robots, robots)
                first = True
            elif not rules.allows(target.path):
                self._finish(visit.key, visit.end(Outcome.ROBOTS_DISALLOWED, "robots.txt"))
                return
        if not host.has_turn:
            host.has_turn = True
            self._turns.append(host.name)
        if first:
            host.queue.appendleft(visit)
        else:
            host.queue.append(visit)

    def _finish(self, key: int | None, download: Download) -> None:
        if key is None:
            return
        self._num_open -= 1
        self._waiting.put(len(download.body))
        self._done.put((key, download))

    def _at(self, when: float, what: Visit | tuple[_Host, Permission]) -> None:
        heapq.heappush(self._timed, (when, next(self._order), what))

    def _run_due(self, now: float) -> None:
        while self._timed and self._timed[0][0] <= now:
            what = heapq.heappop(self._timed)[2]
            if isinstance(what, Visit):
                self._enqueue(what)
            else:
                self._start(*what)

    def _start(self, host: _Host, permission: Permission) -> None:
        """Use a permission whose time has come, or hand it back: used late it would break the host's rate."""
        if not host.queue or self._in_flight >= self._settings.threads:
            self._reports.append(HostReport(host.name, permission.lease, "unused"))
            return
        visit = host.queue.popleft()
        if visit.hops == 0:
            visit.attempts += 1
        self._in_flight += 1
        self._jobs.put(_Job(visit, host.name, permission.lease))

    def _num_free(self) -> int:
        return 0 if self._waiting.full else self._settings.threads - self._in_flight

    def _exchange(self, now: float) -> float:
        """Report what ended and ask for what can start; one call for all hosts."""
        if now < self._next_exchange:
            return now
        wanted = self._wanted(now)
        if not wanted and not self._reports:
            return now
        reports, self._reports = self._reports, []
        verdicts = self._gate.exchange(reports, wanted)
        now = time.monotonic()
        self._next_exchange = now + self._gate.exchange_interval_seconds
        for name, verdict in verdicts.items():
            self._take_verdict(self._hosts[name], verdict, now)
        return now

    def _wanted(self, now: float) -> dict[str, int]:
        """What to ask for: every host with rows gets its turn, one permission a round, while threads are free."""
        wanted: dict[str, int] = {}
        free = self._num_free()
        for _ in range(len(self._turns)):
            if free <= 0:
                break
            host = self._hosts[self._turns.popleft()]
            if not host.queue:
                host.has_turn = False  # until its next row
                continue
            self._turns.append(host.name)
            if host.ask_at <= now:
                wanted[host.name] = 1
                free -= 1
        while free > 0:
            more = [name for name, num in wanted.items() if len(self._hosts[name].queue) > num]
            if not more:
                break
            for name in more[:free]:
                wanted[name] += 1
            free -= len(more[:free])
        return wanted

    def _take_verdict(self, host: _Host, verdict: Verdict, now: float) -> None:
        host.ask_at = now + verdict.ask_again_seconds
        for permission in verdict.permissions:
            if permission.wait_seconds <= 0:
                self._start(host, permission)
            else:
                self._at(now + permission.wait_seconds, (host, permission))
        if verdict.closed_because is None:
            return
        if host.closed_since is None:
            host.closed_since = now
        if now + verdict.ask_again_seconds - host.closed_since > self._settings.host_patience_seconds:
            self._close_host(host, verdict.closed_because)

    def _close_host(self, host: _Host, why: str) -> None:
        """End every row that waits for this host; those under way end by themselves."""
        rows = [visit for visit in host.queue if not visit.is_robots]
        robots = [visit for visit in host.queue if visit.is_robots]
        for visit in robots:  # a redirect may have led here from another host's robots.txt
            rows += self._hosts[visit.first.host].parked.pop(visit.first.origin, [])
        host.queue.clear()
        host.ask_at = 0.0  # a row that comes back from a retry must hear the same at once
        for visit in rows:
            self._finish(visit.key, visit.give_up(why))

    def _seconds_to_wait(self, now: float) -> float:
        """Until the next thing that is known to happen; an answer wakes the planner earlier."""
        soonest = now + 5.0
        if self._timed:
            soonest = min(soonest, self._timed[0][0])
        if self._reports:
            soonest = min(soonest, self._next_exchange)
        if self._num_free() > 0:
            asks = [self._hosts[name].ask_at for name in self._turns if self._hosts[name].queue]
            if asks:
                soonest = min(soonest, max(min(asks), self._next_exchange))
        return max(0.0005, soonest - now)

    def _hand_back(self) -> None:
        """Tell the gate the last results, and permissions that were not needed."""
        for _, _, what in self._timed:
            if isinstance(what, tuple):
                self._reports.append(HostReport(what[0].name, what[1].lease, "unused"))
        if self._reports:
            self._gate.exchange(self._reports, {})


class _WaitingBytes:
    """Bytes of finished bodies that the caller has not let go; bounds memory between network and decoder."""

    def __init__(self) -> None:
        self._bytes = 0
        self._num = 0
        self._lock = threading.Lock()

    @property
    def full(self) -> bool:
        return self._bytes > _MAX_WAITING_BYTES

    def put(self, num_bytes: int) -> None:
        with self._lock:
            self._bytes += num_bytes

    def took(self, num_bytes: int) -> bool:
        """True when this made room."""
        with self._lock:
            was_full = self.full
            self._bytes -= num_bytes
            return was_full and not self.full
