"""One polite, bounded request: one request, one answer, whatever the other side does.

Requests go to addresses that were checked. Follows no redirect and retries nothing: the scheduler does both, because it
must ask the gate first. Reads the network, writes nothing. Whatever a server does, the caller gets an Answer with an
outcome, never an exception.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from manifests.contract.outcomes import Outcome
from pipeline.fetching.addresses import LOOKUP_THREADS, LookupFailed, Resolver, TargetRefused
from pipeline.fetching.answers import Answer
from pipeline.fetching.consent.statements import HEADERS, RobotsRules, statements_of
from pipeline.fetching.settings import NetworkSettings
from pipeline.fetching.transport import Done, Headers, Request, Transport
from pipeline.fetching.urls import Target

_ROBOTS_KEPT = 10_000
_ROBOTS_KEPT_SECONDS = 24 * 3600.0  # RFC 9309: not longer than a day


@dataclass(slots=True)
class _RobotsCache:
    kept: OrderedDict[str, tuple[float, RobotsRules]] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class HttpClient(contextlib.AbstractContextManager["HttpClient"]):
    """Connections, addresses and robots.txt rules that requests share; safe for threads.

    One client may serve many parts. Its owner closes it.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        lookup: Callable[[str], list[str]] | None = None,
        pictures_by_head: bool = False,
    ) -> None:
        """With `pictures_by_head`, the body of a picture is its declared length, `?` where none is."""
        self.settings, self._pictures_by_head = settings, pictures_by_head
        self.consent = settings.consent
        self._resolver = Resolver(settings, lookup) if lookup else Resolver(settings)
        self._lookups = ThreadPoolExecutor(LOOKUP_THREADS, "resolve-wait")  # the resolver may hang
        self._robots = _RobotsCache()
        self._transport = Transport(settings)
        weakref.finalize(self, self._transport.close, wait=False).atexit = False

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and end the threads. Requests under way end without an answer."""
        self._lookups.shutdown(wait=False, cancel_futures=True)
        self._resolver.close()
        self._transport.close()

    def robots_rules(self, origin: str) -> RobotsRules | None:
        """Return the rules of an origin; None when its robots.txt must be requested, or has become too old."""
        with self._robots.lock:
            entry = self._robots.kept.get(origin)
            return entry[1] if entry and entry[0] > time.monotonic() else None

    def keep_robots_rules(self, origin: str, rules: RobotsRules) -> None:
        """Remember an origin's rules for a day."""
        with self._robots.lock:
            self._robots.kept[origin] = (time.monotonic() + _ROBOTS_KEPT_SECONDS, rules)
            while len(self._robots.kept) > _ROBOTS_KEPT:
                self._robots.kept.popitem(last=False)

    def send(
        self,
        target: Target,
        max_body_bytes: int,
        max_seconds: float,
        done: Done,
        *,
        check_opt_out: bool = True,
    ) -> None:
        """Send one request.

        A 200 gives the body, unpacked if the server packed it without being asked to, or its length where pictures are
        asked for by HEAD. A picture's body over the limit is refused; a site's file (no `check_opt_out`) is cut there.

        `done` hears how it ended, in a thread of the client, and must neither wait nor raise.
        """
        now = time.monotonic()
        refuse = self._refuse if check_opt_out else None
        method = "HEAD" if self._pictures_by_head and check_opt_out else "GET"
        request = Request(target, method, max_body_bytes, refuse, done, now, now + max_seconds, cuts=not check_opt_out)
        if self._resolver.knows(target.hostname):
            self._look_up(request)
        else:
            self._lookups.submit(self._look_up, request).add_done_callback(partial(_end_if_cancelled, request))

    def _look_up(self, request: Request) -> None:
        try:
            request.addresses = self._resolver.addresses(request.target.hostname)
        except LookupFailed as error:
            request.end(Answer(Outcome.DNS_FAILURE, str(error), was_sent=False))
        except TargetRefused as error:
            request.end(Answer(Outcome.REFUSED_TARGET, str(error), was_sent=False))
        except BaseException as error:  # a defect of ours
            request.end(error)
        else:
            self._transport.send(request)

    def _refuse(self, headers: Headers) -> tuple[list[str], str | None]:
        """Return the statements of headers about use, and the one that forbids us the picture; None when none does."""
        statements = statements_of(headers)
        refusal = self.consent.refusal({HEADERS: statements})
        return statements, refusal[1] if refusal else None


def client_of_this_program(settings: NetworkSettings) -> HttpClient:
    """Return the client that all parts in this process share: robots.txt is asked once a day, not once a part.

    Changed settings make a new client; the old one goes when nobody uses it any more.
    """
    global _client
    with _client_lock:
        if _client is None or _client.settings != settings:
            _client = HttpClient(settings)
        return _client


_client: HttpClient | None = None
_client_lock = threading.Lock()


def _end_if_cancelled(request: Request, lookup: Future[None]) -> None:
    if lookup.cancelled():
        request.end(None)
