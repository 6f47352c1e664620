"""Which request goes next: hosts take turns, each at the pace that the gate allows, and no thread waits for a host.

One thread plans, and only this thread touches the queues. The client sends the requests, at most `threads` at a time.
The caller gets finished downloads from `take`. Redirects and retries go back into the queue of their host, so that
every request passes the gate. When a host stays closed for longer than HOST_PATIENCE_SECONDS, its rows end. `give_back`
ends everything early: rows without an answer are None. A programming error in a thread is raised in the caller.
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
from functools import partial

from pipeline.fetching import settings as bounds
from pipeline.fetching.answers import Answer
from pipeline.fetching.consent.statements import FILE_MAX_BYTES, RobotsRules
from pipeline.fetching.hosts import Gate, HostReport, Permission, Verdict
from pipeline.fetching.http import HttpClient
from pipeline.fetching.urls import BadURL, Target, parse_url
from pipeline.fetching.visits import AskAgain, Download, SiteFiles, Visit, host_result, next_step

_MAX_WAITING_BYTES = 128 << 20  # of finished bodies that wait for a decoder; above it no new request starts


@dataclass(slots=True)
class _Host:
    name: str
    queue: deque[Visit] = field(default_factory=deque)
    ask_at: float = 0.0
    closed_since: float | None = None
    in_turns: bool = False  # its name is in the scheduler's `_turns`
    site_files: dict[str, SiteFiles] = field(default_factory=dict)  # that are asked for, by origin


@dataclass(frozen=True, slots=True)
class _Job:
    visit: Visit
    host: str
    lease: int


class Scheduler:
    """Carries out the downloads of some rows; use as a context manager, `take` once a row.

    The gate knows them as the `part` of that name.
    """

    def __init__(
        self,
        urls: Sequence[str],
        client: HttpClient,
        gate: Gate,
        max_body_bytes: int,
        part: str = "",
    ) -> None:
        self._urls = urls
        self._client = client
        self._settings = client.settings
        self._gate = gate
        self._part = part
        self._max_body_bytes = max_body_bytes
        # an answer of None: the client was closed before one came
        self._events: queue.SimpleQueue[tuple[_Job, Answer | None] | BaseException | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, Download | None] | BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._give_back_at: float | None = None  # set once, by any thread: no request starts any more
        self._waiting_bytes = 0  # of finished bodies that are not released yet; any thread changes it under the lock
        self._lock = threading.Lock()
        # from here on: for the planning thread only
        self._hosts: dict[str, _Host] = {}
        self._turns: deque[str] = deque()  # hosts that have requests to send, in the order of their turns
        self._timed: list[tuple[float, int, Visit | tuple[_Host, Permission]]] = []
        self._order = itertools.count()
        self._reports: list[HostReport] = []
        self._in_flight = 0
        self._open = set(range(len(urls)))  # rows that have not ended
        self._next_exchange = 0.0
        self._thread = threading.Thread(target=self._run_plan, daemon=True, name="fetch-plan")

    def __enter__(self) -> Scheduler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._done.put(RuntimeError("the scheduler is closed"))  # ends a `take` that still waits, after an error
        self._events.put(None)
        # requests still in flight (only after an error in the caller) end by their own deadline
        self._thread.join(timeout=1.0 if self._in_flight else 5.0)

    def take(self) -> tuple[int, Download | None]:
        """Return the number and download of the next row that ends.

        None for a row that `give_back` left without an answer.

        To be called once a row, from any thread.

        Raises: whatever a thread of the scheduler raised.
        """
        item = self._done.get()
        if isinstance(item, BaseException):
            self._done.put(item)  # for other threads that wait
            raise item
        return item

    def release(self, download: Download) -> None:
        """Say that the body of a taken download is not needed any more, which makes room for further requests."""
        with self._lock:
            was_full = self._is_full
            self._waiting_bytes -= len(download.body)
        if was_full and not self._is_full:
            self._events.put(None)  # wakes the planning thread

    def give_back(self, grace_seconds: float) -> None:
        """Start no more requests. Those in flight may end within the grace; all other rows come back as None."""
        if self._give_back_at is None:
            self._give_back_at = time.monotonic() + grace_seconds
            self._events.put(None)

    # ---- the planning thread

    def _run_plan(self) -> None:
        try:
            self._plan()
        except BaseException as error:  # as above; the gate may also be gone
            self._done.put(error)

    def _plan(self) -> None:
        for row, url in enumerate(self._urls):
            try:
                target = parse_url(url)
            except BadURL as error:
                self._finish(row, Download(error.outcome, error.detail))
                continue
            self._enqueue(Visit(row, target, target))
        while (self._open or self._in_flight) and not self._stop.is_set():
            now = time.monotonic()
            if self._give_back_at is not None and (not self._in_flight or now >= self._give_back_at):
                break
            self._run_due(now)
            now = self._exchange(now)
            self._handle_events(self._seconds_to_wait(now))
        for row in sorted(self._open):
            self._done.put((row, None))
        self._send_last_reports()
        self._await_open_requests()

    def _handle_events(self, seconds: float) -> None:
        """Wait for an event, then handle every event there is."""
        try:
            event = self._events.get(timeout=seconds)
            while True:
                if isinstance(event, BaseException):
                    raise event
                if event is not None:
                    self._handle_answer(*event)
                event = self._events.get_nowait()
        except queue.Empty:
            return

    def _handle_answer(self, job: _Job, answer: Answer | None) -> None:
        self._in_flight -= 1
        report = _report(job, answer)
        self._reports.append(report)
        if answer is None:
            return
        host = self._hosts[job.host]
        host.ask_at = 0.0
        if report.result in ("answered", "forbidden"):
            host.closed_since = None
        visit = job.visit
        step = next_step(visit, answer, self._settings)
        if isinstance(step, AskAgain):
            if step.wait_seconds > 0:
                self._schedule(time.monotonic() + step.wait_seconds, visit)
            else:
                self._enqueue(visit, first=True)
        elif visit.files is not None:
            self._end_file(visit.files, visit, step)
        else:
            self._finish(visit.row, step)

    def _end_file(self, files: SiteFiles, visit: Visit, download: Download) -> None:
        """Finish a file of a site: ask for the next one, queue the rows that waited, or end them."""
        verdict = files.take(visit, download)
        if isinstance(verdict, Visit):
            self._enqueue(verdict, first=True)
            return
        host, origin = self._hosts[files.site.host], files.site.origin
        if host.site_files.get(origin) is files:
            del host.site_files[origin]
        if isinstance(verdict, RobotsRules):
            self._keep_rules(host, files, verdict)
            return
        of_origin = [v for v in host.queue if v.target.origin == origin and not v.is_robots]
        host.queue = deque(v for v in host.queue if v.target.origin != origin or v.is_robots)
        for other in [*files.waiting, *of_origin]:
            self._finish(other.row, other.end(*verdict))

    def _keep_rules(self, host: _Host, files: SiteFiles, rules: RobotsRules) -> None:
        """Remember the rules of an origin, and queue the rows that waited for them.

        A Crawl-delay holds from here on: were it longer than the patience, tdmrep.json would be all that is asked for.
        """
        if rules.crawl_delay_seconds:
            self._reports.append(HostReport(host.name, 0, "unused", min_gap_seconds=rules.crawl_delay_seconds))
        self._client.keep_robots_rules(files.site.origin, rules)
        for other in reversed(files.waiting):
            self._enqueue(other, first=True)

    def _enqueue(self, visit: Visit, *, first: bool = False) -> None:
        """Put a visit into its host's queue. It may have to wait for robots.txt, and ends when that forbids it."""
        target = visit.target
        host = self._hosts.get(target.host)
        if host is None:
            host = self._hosts[target.host] = _Host(target.host)
        consent = self._client.consent
        if (consent.robots_txt or "tdmrep_file" in consent.signals) and not visit.is_robots:
            rules = self._client.robots_rules(target.origin)
            if rules is None:
                files = host.site_files.get(target.origin)
                if files is not None:
                    files.waiting.append(visit)
                    return
                site = Target(target.scheme, target.hostname, target.port, "/")
                files = host.site_files[target.origin] = SiteFiles(site, consent, [visit])
                visit, first = files.first(), True
            else:
                statements = rules.statements(target.path, consent)
                visit.hear(statements)
                if refusal := consent.refusal(statements):
                    self._finish(visit.row, visit.end(*refusal))
                    return
        if not host.in_turns:
            host.in_turns = True
            self._turns.append(host.name)
        if first:
            host.queue.appendleft(visit)
        else:
            host.queue.append(visit)

    def _finish(self, row: int | None, download: Download) -> None:
        if row is None:
            return
        self._open.remove(row)
        with self._lock:
            self._waiting_bytes += len(download.body)
        self._done.put((row, download))

    def _schedule(self, when: float, what: Visit | tuple[_Host, Permission]) -> None:
        heapq.heappush(self._timed, (when, next(self._order), what))

    def _run_due(self, now: float) -> None:
        while self._timed and self._timed[0][0] <= now:
            what = heapq.heappop(self._timed)[2]
            if isinstance(what, Visit):
                self._enqueue(what)
            else:
                self._start(*what)

    def _start(self, host: _Host, permission: Permission) -> None:
        """Use a permission whose time has come, or give it back unused: used later, it would break the rate."""
        if not host.queue or self._in_flight >= self._settings.threads or self._give_back_at is not None:
            self._reports.append(HostReport(host.name, permission.lease, "unused"))
            return
        visit = host.queue.popleft()
        if visit.num_redirects == 0:
            visit.attempts += 1
        self._in_flight += 1
        self._client.send(
            visit.target,
            FILE_MAX_BYTES if visit.is_robots else self._max_body_bytes,
            max(0.1, self._settings.total_timeout_seconds - visit.active_seconds),
            partial(self._hear, _Job(visit, host.name, permission.lease)),
            check_opt_out=not visit.is_robots,
        )

    def _hear(self, job: _Job, answer: Answer | BaseException | None) -> None:
        """Take a finished request, in a thread of the client. A defect goes to `take`, which would wait forever."""
        self._events.put(answer if isinstance(answer, BaseException) else (job, answer))

    @property
    def _is_full(self) -> bool:
        return self._waiting_bytes > _MAX_WAITING_BYTES

    def _num_free(self) -> int:
        if self._is_full or self._give_back_at is not None:
            return 0
        return self._settings.threads - self._in_flight

    def _exchange(self, now: float) -> float:
        """Report what has ended and ask for what may start, for all hosts in one call."""
        if now < self._next_exchange:
            return now
        asked = self._wanted(now)
        if not asked and not self._reports:
            return now
        reports, self._reports = self._reports, []
        verdicts = self._gate.exchange(reports, asked, self._part)
        now = time.monotonic()
        self._next_exchange = now + self._gate.exchange_interval_seconds
        for name, verdict in verdicts.items():
            self._handle_verdict(self._hosts[name], verdict, now)
        return now

    def _wanted(self, now: float) -> dict[str, int]:
        """Return how many permissions to ask for, by host. While there is room, the hosts take turns, one each."""
        asked: dict[str, int] = {}
        free = self._num_free()
        for _ in range(len(self._turns)):
            if free <= 0:
                break
            host = self._hosts[self._turns.popleft()]
            if not host.queue:
                host.in_turns = False  # until its next visit
                continue
            self._turns.append(host.name)
            if host.ask_at <= now:
                asked[host.name] = 1
                free -= 1
        while free > 0:
            more = [name for name, num in asked.items() if len(self._hosts[name].queue) > num]
            if not more:
                break
            for name in more[:free]:
                asked[name] += 1
            free -= len(more[:free])
        return asked

    def _handle_verdict(self, host: _Host, verdict: Verdict, now: float) -> None:
        host.ask_at = now + verdict.ask_again_seconds
        for permission in verdict.permissions:
            if permission.wait_seconds <= 0:
                self._start(host, permission)
            else:
                self._schedule(now + permission.wait_seconds, (host, permission))
        if verdict.closed_because is None:
            return
        if host.closed_since is None:
            host.closed_since = now
        if now + verdict.ask_again_seconds - host.closed_since > bounds.HOST_PATIENCE_SECONDS:
            self._close_host(host, verdict.closed_because)

    def _close_host(self, host: _Host, why: str) -> None:
        """End every row that waits for this host; requests in flight end by themselves."""
        rows = [visit for visit in host.queue if not visit.is_robots]
        for files in [visit.files for visit in host.queue if visit.files]:  # perhaps of a site that names this host
            self._hosts[files.site.host].site_files.pop(files.site.origin, None)
            rows += files.waiting
            files.waiting.clear()
        host.queue.clear()
        host.ask_at = 0.0  # a row that comes back for a retry must end at once too
        for visit in rows:
            self._finish(visit.row, visit.give_up(why))

    def _seconds_to_wait(self, now: float) -> float:
        """Time until the next planned event; an answer wakes the planning thread earlier."""
        soonest = now + 5.0
        if self._give_back_at is not None:
            soonest = min(soonest, self._give_back_at)
        if self._timed:
            soonest = min(soonest, self._timed[0][0])
        if self._reports:
            soonest = min(soonest, self._next_exchange)
        if self._num_free() > 0:
            asks = [self._hosts[name].ask_at for name in self._turns if self._hosts[name].queue]
            if asks:
                soonest = min(soonest, max(min(asks), self._next_exchange))
        return max(0.0005, soonest - now)

    def _send_last_reports(self) -> None:
        """Report to the gate how the last requests ended and which permissions were not used."""
        for _, _, what in self._timed:
            if isinstance(what, tuple):
                self._reports.append(HostReport(what[0].name, what[1].lease, "unused"))
        if self._reports:
            self._gate.exchange(self._reports, {}, self._part)

    def _await_open_requests(self) -> None:
        """After an early end, wait for each request in flight and report it, which frees its place at its host."""
        until = time.monotonic() + self._settings.total_timeout_seconds
        while self._in_flight:
            try:
                event = self._events.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            if isinstance(event, tuple):
                self._in_flight -= 1
                self._gate.exchange([_report(*event)], {}, self._part)


def _report(job: _Job, answer: Answer | None) -> HostReport:
    """Return the report to the gate on a request that has ended."""
    if answer is None:
        return HostReport(job.host, job.lease, "unused")
    result = host_result(answer, job.visit)
    return HostReport(job.host, job.lease, result, answer.retry_after_seconds, seconds=answer.seconds)
