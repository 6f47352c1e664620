"""One polite, bounded GET: one request, one answer, whatever the other side does.

Connects only to an address that was checked, keeps connections for further requests, and holds every answer to limits
of time (connect, silence, whole attempt) and size (head, body, unpacked body). Follows no redirect and retries nothing:
the scheduler does both, because it must ask the gate first. Reads the network, writes nothing. Whatever a server does,
the caller gets an Answer with an outcome, never an exception.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import socket
import ssl
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from manifests.outcomes import Outcome
from pipeline.fetching.addresses import LookupFailed, Resolver, TargetRefused
from pipeline.fetching.answers import Answer, causes, explain_failure, parse_retry_after, refuse_status
from pipeline.fetching.consent import RobotsRules, no_training, opted_out, reserved
from pipeline.fetching.settings import NetworkSettings
from pipeline.fetching.urls import Target

_MAX_HEAD_BYTES = 64 * 1024
_CHUNK_BYTES = 64 * 1024
_DRAIN_BYTES = 16 * 1024  # of an unwanted body, read so that the connection can be used again
_SMALL_BODY_BYTES = 4 << 20  # any number of bodies may grow to this size at the same time
_NUM_LARGE_BODIES = 4  # bodies that may be larger at the same time
_KEPT_HOSTS = 64
_ROBOTS_KEPT = 10_000
_ROBOTS_KEPT_SECONDS = 24 * 3600.0  # RFC 9309: not longer than a day


class _DeadlineError(Exception):
    """The attempt has no time left."""


class _HeadSizeError(Exception):
    """Status line and headers are too long."""


@dataclass(slots=True)
class _Budget:
    """The time and bytes that the request of this thread may still use."""

    deadline: float
    read_timeout_seconds: float
    connect_timeout_seconds: float
    head_bytes_left: int | None = _MAX_HEAD_BYTES  # None once the body has begun
    fresh_connection: bool = False

    def remaining_seconds(self) -> float:
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise _DeadlineError
        return remaining


class _Current(threading.local):
    budget: _Budget | None = None


_current = _Current()


if TYPE_CHECKING:  # the base classes that the two mixins below are used with
    _AnySocket = socket.socket
    _AnyConnection = HTTPConnection
else:
    _AnySocket = _AnyConnection = object


class _Bounded(_AnySocket):
    """Mixed into sockets: no receive waits longer than the request's budget allows."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        budget = _current.budget
        if budget is None:
            return int(super().recv_into(*args, **kwargs))
        remaining = budget.remaining_seconds()
        wait_seconds = min(budget.read_timeout_seconds, remaining)
        if wait_seconds != self.gettimeout():  # setting it is a call of the system, in which another thread takes over
            self.settimeout(wait_seconds)
        try:
            num = int(super().recv_into(*args, **kwargs))
        except TimeoutError:
            if remaining <= budget.read_timeout_seconds:
                raise _DeadlineError from None
            raise
        if budget.head_bytes_left is not None:
            budget.head_bytes_left -= num
            if budget.head_bytes_left < 0:
                raise _HeadSizeError
        return num


class _BoundedSocket(_Bounded, socket.socket):
    pass


class _BoundedTLSSocket(_Bounded, ssl.SSLSocket):
    pass


class _CheckedConnect(_AnyConnection):
    """Mixed into urllib3's connections: they connect to an address that the resolver has checked, not to the name."""

    resolver: Resolver  # set on a subclass, one a client

    def _new_conn(self) -> socket.socket:
        budget = _current.budget
        assert budget is not None, "a connection is only made for a request with a budget"
        budget.fresh_connection = True
        host, port = self._dns_host, self.port
        failure: OSError | None = None
        for address in self.resolver.addresses(host):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = _BoundedSocket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(min(budget.connect_timeout_seconds, budget.remaining_seconds()))
                sock.connect((address, port))
                return sock
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
        if isinstance(failure, TimeoutError):
            raise urllib3.exceptions.ConnectTimeoutError(None, "connect timed out")
        raise urllib3.exceptions.NewConnectionError(self, str(failure and failure.strerror))


@dataclass(slots=True)
class _RobotsCache:
    kept: OrderedDict[str, tuple[float, RobotsRules]] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class HttpClient(contextlib.AbstractContextManager["HttpClient"]):
    """Connections, addresses and robots.txt rules that requests share; safe for threads.

    One client may serve many parts. Its owner closes it.
    """

    def __init__(self, settings: NetworkSettings, lookup: Callable[[str], list[str]] | None = None) -> None:
        self.settings = settings
        self._resolver = Resolver(settings, lookup) if lookup else Resolver(settings)
        checked = {"resolver": self._resolver}
        plain = type("CheckedHTTPConnection", (_CheckedConnect, HTTPConnection), checked)
        secure = type("CheckedHTTPSConnection", (_CheckedConnect, HTTPSConnection), checked)
        context = _tls_context()
        self._pools = urllib3.PoolManager(
            num_pools=_KEPT_HOSTS, maxsize=settings.threads, block=False, retries=False, ssl_context=context
        )
        self._pools.pool_classes_by_scheme = {
            "http": type("CheckedHTTPPool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
            "https": type("CheckedHTTPSPool", (HTTPSConnectionPool,), {"ConnectionCls": secure}),
        }
        self._robots = _RobotsCache()
        self._large_bodies = threading.BoundedSemaphore(_NUM_LARGE_BODIES)
        self._timeout = urllib3.Timeout(connect=settings.connect_timeout_seconds, read=settings.read_timeout_seconds)
        self._headers = {
            "User-Agent": settings.user_agent_header,
            "Accept": "image/*,*/*;q=0.5",
            "Accept-Encoding": "identity",
        }

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections and the lookup threads."""
        self._pools.clear()
        self._resolver.close()

    def robots_rules(self, origin: str) -> RobotsRules | None:
        """The rules of an origin; None when its robots.txt must be requested, or has become too old."""
        with self._robots.lock:
            known = self._robots.kept.get(origin)
            return known[1] if known and known[0] > time.monotonic() else None

    def keep_robots_rules(self, origin: str, rules: RobotsRules) -> None:
        """Remember an origin's rules for a day."""
        with self._robots.lock:
            self._robots.kept[origin] = (time.monotonic() + _ROBOTS_KEPT_SECONDS, rules)
            while len(self._robots.kept) > _ROBOTS_KEPT:
                self._robots.kept.popitem(last=False)

    def get(self, target: Target, max_body_bytes: int, max_seconds: float, *, check_opt_out: bool = True) -> Answer:
        """Send one request. A 200 gives the body, unpacked if the server packed it without being asked to."""
        started = time.monotonic()
        limits = self.settings
        budget = _Budget(started + max_seconds, limits.read_timeout_seconds, limits.connect_timeout_seconds)
        _current.budget = budget
        try:
            answer = self._ask(target, max_body_bytes, check_opt_out, budget)
        finally:
            _current.budget = None
        return replace(answer, seconds=time.monotonic() - started)

    def _ask(self, target: Target, max_body_bytes: int, check_opt_out: bool, budget: _Budget) -> Answer:
        for final in (False, True):
            try:
                with contextlib.closing(self._open(target)) as response:
                    budget.head_bytes_left = None
                    return self._read(response, max_body_bytes, check_opt_out, budget)
            except LookupFailed as error:
                return Answer(Outcome.DNS_FAILURE, str(error), was_sent=False)
            except TargetRefused as error:
                return Answer(Outcome.REFUSED_TARGET, str(error), was_sent=False)
            except _HeadSizeError:
                return Answer(Outcome.BAD_RESPONSE, f"more than {_MAX_HEAD_BYTES} bytes of headers")
            except _DeadlineError:
                return Answer(Outcome.DEADLINE_EXCEEDED, "not finished in time")
            except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
                # the server had closed a kept connection, so nothing was asked: try once more on a new one
                if not final and not budget.fresh_connection and _was_closed(error):
                    budget.head_bytes_left = _MAX_HEAD_BYTES
                    continue
                outcome, detail = explain_failure(error)
                return Answer(outcome, detail)
        raise AssertionError("the second round always returns")

    def _open(self, target: Target, method: str = "GET") -> urllib3.BaseHTTPResponse:
        headers = self._headers
        if target.authorization:
            headers = {**headers, "Authorization": target.authorization}
        pool = self._pools.connection_from_host(target.hostname, target.port, target.scheme)
        return pool.urlopen(
            method,
            target.path,
            headers=headers,
            retries=False,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
            decode_content=False,
            timeout=self._timeout,
        )

    def _read(
        self, response: urllib3.BaseHTTPResponse, max_body_bytes: int, check_opt_out: bool, budget: _Budget
    ) -> Answer:
        status = response.status
        if status in (301, 302, 303, 307, 308) and (location := response.headers.get("Location")):
            _drain(response)
            return Answer(Outcome.OK, http_status=status, location=location)
        if refusal := refuse_status(status):
            _drain(response)
            wait = parse_retry_after(response.headers.get("Retry-After"), response.headers.get("Date"))
            return Answer(refusal, f"status {status}", status, retry_after_seconds=wait)
        if check_opt_out and (signal := self._opt_out(response.headers)):
            return Answer(Outcome.OPTED_OUT, signal, status)
        declared = response.headers.get("Content-Length", "")
        if declared.isdigit() and int(declared) > max_body_bytes:
            return Answer(Outcome.BODY_TOO_LARGE, f"{declared} bytes declared, allowed {max_body_bytes}", status)
        body = self._read_body(response, max_body_bytes, budget)
        if body is None:
            return Answer(Outcome.BODY_TOO_LARGE, f"more than the allowed {max_body_bytes} bytes", status)
        response.release_conn()
        return _unpack(body, response.headers.get("Content-Encoding", ""), max_body_bytes, status)

    def _opt_out(self, headers: urllib3.HTTPHeaderDict) -> str | None:
        """The header that forbids us the picture, as the detail of its row; None when none does."""
        settings = self.settings
        if directive := opted_out(headers.getlist("X-Robots-Tag"), settings.agent_token, settings.x_robots_directives):
            return f"X-Robots-Tag: {directive}"
        if "content_usage" in settings.consent_signals and (usage := no_training(headers.get("Content-Usage", ""))):
            return f"Content-Usage: {usage}"
        if "tdm_reservation" in settings.consent_signals and reserved(headers.getlist("tdm-reservation")):
            return "tdm-reservation: 1"
        return None

    def _read_body(self, response: urllib3.BaseHTTPResponse, max_body_bytes: int, budget: _Budget) -> bytes | None:
        """The body; None when it becomes too large. Only a few large bodies grow at a time, which bounds the memory."""
        body = bytearray()
        has_place = False
        try:
            for chunk in response.stream(_CHUNK_BYTES, decode_content=False):
                body += chunk
                if len(body) > max_body_bytes:
                    return None
                if len(body) > _SMALL_BODY_BYTES and not has_place:
                    has_place = self._large_bodies.acquire(timeout=budget.remaining_seconds())
                    budget.remaining_seconds()
            return bytes(body)
        finally:
            if has_place:
                self._large_bodies.release()


def client_of_this_program(settings: NetworkSettings) -> HttpClient:
    """The client that all parts in this process share, so that robots.txt is asked once a day and not once a part.

    Changed settings make a new client; the old one goes when nobody uses it any more.
    """
    global _client
    with _client_lock:
        if _client is None or _client.settings != settings:
            _client = HttpClient(settings)
        return _client


_client: HttpClient | None = None
_client_lock = threading.Lock()


def _tls_context() -> ssl.SSLContext:
    """The certificates that the system trusts; where it has none, as in small containers, those of certifi."""
    context = ssl.create_default_context()
    if not context.get_ca_certs() and (certifi := importlib.util.find_spec("certifi")) and certifi.origin:
        bundle = Path(certifi.origin).with_name("cacert.pem")
        if bundle.exists():
            context.load_verify_locations(bundle)
    context.sslsocket_class = _BoundedTLSSocket
    return context


def _was_closed(error: Exception) -> bool:
    return any(isinstance(cause, (ConnectionError, ssl.SSLEOFError)) for cause in causes(error))


def _drain(response: urllib3.BaseHTTPResponse) -> None:
    """Read the rest of a short body, so that its connection can be used again."""
    declared = response.headers.get("Content-Length", "")
    if declared.isdigit() and int(declared) <= _DRAIN_BYTES:
        with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
            response.read(_DRAIN_BYTES, decode_content=False)
            response.release_conn()


def _unpack(body: bytes, encoding: str, max_body_bytes: int, status: int) -> Answer:
    """Undo a content encoding that we did not ask for, within the same limit of bytes."""
    encoding = encoding.strip().lower()
    packed = (encoding in ("gzip", "x-gzip") and body[:2] == b"\x1f\x8b") or encoding == "deflate"
    if packed:
        unpacker = zlib.decompressobj(wbits=47 if encoding != "deflate" or body[:1] == b"\x78" else -15)
        try:
            plain = unpacker.decompress(body, max_body_bytes + 1)
        except zlib.error as error:
            return Answer(Outcome.BAD_RESPONSE, f"broken {encoding} body: {error}", status)
        if len(plain) > max_body_bytes:
            return Answer(Outcome.BODY_TOO_LARGE, f"unpacks to more than {max_body_bytes} bytes", status)
        if not unpacker.eof:
            return Answer(Outcome.BODY_TRUNCATED, f"{encoding} body ends early", status)
        body = plain
    elif encoding not in ("", "identity", "gzip", "x-gzip"):
        return Answer(Outcome.BAD_RESPONSE, f"content encoding {encoding[:40]} was not asked for", status)
    if not body:
        return Answer(Outcome.EMPTY_BODY, "no bytes", status)
    return Answer(Outcome.OK, http_status=status, body=body)
