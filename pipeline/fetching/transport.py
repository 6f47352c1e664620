"""Requests under way: one thread sends them all through libcurl, each within its limits of time and size.

It connects only to addresses that the caller gives, keeps connections for further requests, follows no redirect, and
stops reading when what has come decides the answer. Whatever a server does becomes an Answer. Reads the
network, writes nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import queue
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pycurl

from manifests.contract.outcomes import Outcome
from pipeline.fetching import settings as bounds
from pipeline.fetching.answers import UNEXPECTED_END, Answer, explain_failure, parse_retry_after, refuse_status, unpack
from pipeline.fetching.settings import NetworkSettings
from pipeline.fetching.urls import Target

_MAX_HEAD_BYTES = 64 * 1024
_RECEIVED_BYTES = 128 * 1024  # at a time, at most
_DRAIN_BYTES = 16 * 1024  # of an unwanted body, read so that the connection can be used again
_SMALL_BODY_BYTES = 4 << 20  # any number of bodies may grow to this size at the same time
_NUM_LARGE_BODIES = 4  # bodies that may be larger at the same time
_KEPT_CONNECTIONS = 64  # beside those in use
_MOST_SENT = 2  # times that a request may be sent before it is a failure
_CHECK_SECONDS = 0.1  # how often the limits of time are checked

Headers = dict[str, list[str]]
"""The values of each header, by its name in lower case."""

Done = Callable[[Answer | BaseException | None], object]
"""Is called when a request ends, with its answer, an error in our code, or None when the transport was closed."""


@dataclass(slots=True, eq=False)
class Request:
    """A request: its target, its limits, and what has come so far."""

    target: Target
    method: str
    max_body_bytes: int
    refuse: Callable[[Headers], tuple[list[str], str | None]] | None
    """Gives what headers say about use, and what of it forbids us the picture; None if none is asked for."""
    done: Done
    started: float
    deadline: float
    cuts: bool = False
    """A body that is too large is cut, and that is the answer."""
    addresses: list[str] = field(default_factory=list)
    """The one in use, then those that are not tried yet."""
    begun: float = 0.0  # when it began with this address, or went on after a pause
    num_sent: int = 0  # to this address
    status: int = 0
    headers: Headers = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    num_head_bytes: int = 0
    num_body_bytes: int = 0
    in_head: bool = False
    in_body: bool = False
    is_paused: bool = False
    said: list[str] | None = None  # in the headers, about use
    answer: Answer | None = None  # set before the body has ended: the rest of it is not used
    defect: BaseException | None = None

    def end(self, answer: Answer | BaseException | None) -> None:
        """Say how it ended."""
        if isinstance(answer, Answer):
            answer = replace(answer, seconds=time.monotonic() - self.started, said=self.said)
        self.done(answer)

    def take_line(self, line: bytes) -> int:
        """Take a line of the head. Return the number of bytes taken; -1 ends the transfer."""
        self.num_head_bytes += len(line)
        if self.num_head_bytes > _MAX_HEAD_BYTES:
            self.answer = Answer(Outcome.BAD_RESPONSE, f"more than {_MAX_HEAD_BYTES} bytes of headers")
            return -1
        if self.in_body:  # behind a chunked body
            return len(line)
        if not self.in_head:
            status = (line.split(None, 2)[1:2] or [b""])[0][:3]
            self.status = int(status) if status.isdigit() else 0
            self.headers.clear()
            self.in_head = True
        elif line[:1] not in (b"\r", b"\n"):
            name, _, value = line.decode("latin-1").partition(":")
            self.headers.setdefault(name.strip().lower(), []).append(value.strip())
        elif 100 <= self.status < 200:  # 100 Continue and its like: the answer is to come
            self.in_head = False
        else:
            self.in_body = True
            self.answer = self._of_head()
            if self.answer is not None and not self._ends_soon:
                return -1
        return len(line)

    def take_body(self, piece: bytes) -> int:
        """Take a piece of the body. Return the same as `take_line`."""
        if not self.in_body:  # as behind 101 Switching Protocols
            self.answer = Answer(Outcome.BAD_RESPONSE, f"status {self.status}, and no other", self.status)
            return -1
        self.num_body_bytes += len(piece)
        if self.answer is not None:
            return len(piece) if self.num_body_bytes <= _DRAIN_BYTES else -1
        if self.num_body_bytes > self.max_body_bytes and not self.cuts:
            self.answer = self._too_large(f"more than the allowed {self.max_body_bytes} bytes")
            return -1
        self.pieces.append(piece)
        if self.num_body_bytes > self.max_body_bytes:
            self.pieces = [b"".join(self.pieces)[: self.max_body_bytes]]
            self.answer = self.whole()
            return -1
        return len(piece)

    def whole(self) -> Answer:
        """Return the answer, when everything came."""
        if self.answer is not None:
            return self.answer
        if not self.in_body:
            return self.refusal or Answer(Outcome.CONNECTION_RESET, "closed within the headers")
        body = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        return unpack(body, ", ".join(self.headers.get("content-encoding", [])), self.max_body_bytes, self.status)

    @property
    def refusal(self) -> Answer | None:
        """The answer where a status is 400 or more, even where its headers break off."""
        return self._of_head() if self.status >= 400 else None

    def cut_off(self) -> Answer:
        """Return the answer when the connection ended in the body. A body whose length was not declared may end so."""
        if self.headers.keys() & {"content-length", "transfer-encoding"}:
            return Answer(*explain_failure(pycurl.E_PARTIAL_FILE, ""))
        return self.whole()

    def _first(self, name: str) -> str:
        return self.headers.get(name, [""])[0]

    @property
    def _declared_bytes(self) -> int | None:
        declared = self._first("content-length")
        return int(declared[:18]) if declared.isascii() and declared.isdigit() else None

    @property
    def _ends_soon(self) -> bool:
        declared = self._declared_bytes
        has_body = self.method != "HEAD" and self.status not in (204, 304)
        return not has_body or (declared is not None and declared <= _DRAIN_BYTES)

    def _too_large(self, why: str) -> Answer:
        return Answer(Outcome.BODY_TOO_LARGE, why, self.status)

    def _of_head(self) -> Answer | None:
        """Return the answer that the head gives; None when the body decides."""
        status, declared = self.status, self._declared_bytes
        location = self._first("location") if status in (301, 302, 303, 307, 308) else ""
        if not location and (refusal := refuse_status(status)):
            wait = parse_retry_after(self._first("retry-after"), self._first("date"))
            return Answer(refusal, f"status {status}", status, retry_after_seconds=wait)
        if self.refuse is not None:
            self.said, words = self.refuse(self.headers)
            if words is not None:
                return Answer(Outcome.OPTED_OUT, words, status)
        if location:
            return Answer(Outcome.OK, http_status=status, location=location)
        if self.method == "HEAD":
            return Answer(Outcome.OK, http_status=status, body=b"?" if declared is None else str(declared).encode())
        if declared is not None and declared > self.max_body_bytes and not self.cuts:
            return self._too_large(f"{declared} bytes declared, allowed {self.max_body_bytes}")
        return None


class Transport:
    """The thread that sends requests, and its connections. Its owner closes it."""

    def __init__(self, settings: NetworkSettings) -> None:
        self._settings = settings
        self._inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()  # None: close
        self._is_closed = False
        self._lock = threading.RLock()
        self._woken, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)
        for end in (self._woken, self._waker):
            end.setblocking(False)
        # from here on: for the thread only
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, settings.threads + _KEPT_CONNECTIONS)
        self._multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_NOTHING)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._due = math.inf  # when libcurl wants to be called
        self._check_at = 0.0  # when the limits of time are checked next
        self._stirred: dict[int, float] = {}  # by socket: when bytes came last, be it half a line
        self._free: list[Any] = []
        self._under_way: dict[Any, Request] = {}
        self._large: set[Any] = set()
        self._paused: deque[Any] = deque()
        self._authorities = _authorities()
        self._thread = threading.Thread(target=self._run, daemon=True, name="fetch-network")
        self._thread.start()

    def send(self, request: Request) -> None:
        """Send a request to the first of its addresses that can be reached."""
        with self._lock:
            if not self._is_closed:
                self._inbox.put(request)
                self._wake()
                return
        request.end(None)

    def close(self, *, wait: bool = True) -> None:
        """End all connections, and requests without an answer."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._inbox.put(None)
                self._wake()
        if wait:
            self._thread.join()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is awake, or has ended
            self._waker.send(b"x")

    # ---- the thread

    def _run(self) -> None:
        why: BaseException | None = None
        try:
            while self._take_new():
                self._step()
        except BaseException as error:  # an error in our code, which whoever waits must be told
            why = error
        for handle, request in self._under_way.items():
            request.end(why)
            with contextlib.suppress(pycurl.error):
                self._multi.remove_handle(handle)
        for handle in [*self._under_way, *self._free]:
            handle.close()
        self._multi.close()
        self._selector.close()
        while why is not None and (late := self._inbox.get()) is not None:
            late.end(why)
        self._woken.close()
        self._waker.close()

    def _take_new(self) -> bool:
        """Begin what has come; false when the transport is to be closed."""
        with contextlib.suppress(queue.Empty):
            while (request := self._inbox.get_nowait()) is not None:
                self._begin(request)
            return False
        return True

    def _step(self) -> None:
        """Wait for a socket or for a time that is due, and do what is to be done then."""
        until = min(self._due, self._check_at if self._under_way else math.inf)
        wait = None if until == math.inf else max(0.0, until - time.monotonic())
        for key, events in self._selector.select(wait):
            if key.fileobj is self._woken:
                self._woken.recv(4096)
                continue
            self._stirred[key.fd] = time.monotonic()
            self._multi.socket_action(key.fd, events)
        if time.monotonic() >= self._due:
            self._due = math.inf
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        self._end_those_that_ended()
        self._end_those_out_of_time()
        self._go_on_with_large_bodies()

    def _watch(self, what: int, fd: int, _multi: Any, _data: Any) -> None:
        events = what & pycurl.POLL_INOUT  # reading is 1 and writing 2, as in `selectors` and for `socket_action`
        is_known = fd in self._selector.get_map()
        if events:
            (self._selector.modify if is_known else self._selector.register)(fd, events)
        elif is_known:
            self._selector.unregister(fd)
            self._stirred.pop(fd, None)

    def _set_timer(self, milliseconds: int) -> None:
        self._due = math.inf if milliseconds < 0 else time.monotonic() + milliseconds / 1000

    def _begin(self, request: Request) -> None:
        handle = self._free.pop() if self._free else self._new_handle()
        self._under_way[handle] = request
        target, address = request.target, request.addresses[0]
        host = f"[{address}]" if ":" in address else address
        headers = ["Accept: image/*,*/*;q=0.5", "Accept-Encoding: identity"]
        if target.authorization:
            headers.append(f"Authorization: {target.authorization}")
        handle.setopt(pycurl.URL, f"{target.origin}/")
        handle.setopt(pycurl.REQUEST_TARGET, target.path)
        handle.setopt(pycurl.CONNECT_TO, [f"::{host}:{target.port}"])
        handle.setopt(pycurl.NOBODY if request.method == "HEAD" else pycurl.HTTPGET, 1)
        handle.setopt(pycurl.HTTPHEADER, headers)
        request.begun, request.num_sent = time.monotonic(), 0
        seconds = min(bounds.CONNECT_SECONDS, request.deadline - request.begun)
        handle.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, int(1000 * seconds)))
        self._multi.add_handle(handle)

    def _new_handle(self) -> Any:
        handle = pycurl.Curl()
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        handle.setopt(pycurl.PROXY, "")
        handle.setopt(pycurl.FOLLOWLOCATION, 0)
        handle.setopt(pycurl.BUFFERSIZE, _RECEIVED_BYTES)
        handle.setopt(pycurl.USERAGENT, self._settings.user_agent_header)
        handle.setopt(pycurl.PREREQFUNCTION, lambda *_: self._about_to_send(handle))
        handle.setopt(pycurl.HEADERFUNCTION, lambda line: self._take_line(handle, line))
        handle.setopt(pycurl.WRITEFUNCTION, lambda piece: self._take_body(handle, piece))
        for option in (pycurl.CAINFO, pycurl.CAPATH):
            handle.setopt(option, self._authorities.get(option))
        return handle

    # what libcurl calls must raise nothing: it would print the error and go on

    def _about_to_send(self, handle: Any) -> int:
        """Let a request be sent twice at most: libcurl would try it on every kept connection that has ended."""
        request = self._under_way[handle]
        request.num_sent += 1
        if request.num_sent > _MOST_SENT:
            request.answer = Answer(*explain_failure(pycurl.E_GOT_NOTHING, ""))
            return int(pycurl.PREREQFUNC_ABORT)
        return int(pycurl.PREREQFUNC_OK)

    def _take_line(self, handle: Any, line: bytes) -> int:
        request = self._under_way[handle]
        try:
            return request.take_line(line)
        except BaseException as error:
            request.defect = error
            return -1

    def _take_body(self, handle: Any, piece: bytes) -> int:
        request = self._under_way[handle]
        try:
            if request.num_body_bytes + len(piece) > _SMALL_BODY_BYTES and handle not in self._large:
                if len(self._large) >= _NUM_LARGE_BODIES:
                    request.is_paused = True
                    self._paused.append(handle)
                    return int(pycurl.WRITEFUNC_PAUSE)  # the piece comes again
                self._large.add(handle)
            return request.take_body(piece)
        except BaseException as error:
            request.defect = error
            return -1

    def _end_those_that_ended(self) -> None:
        num_left = 1
        while num_left:
            num_left, good, bad = self._multi.info_read()
            for handle in good:
                answer = self._under_way[handle].whole()
                self._release(handle).end(answer)
            for handle, code, text in bad:
                self._fail(handle, code, text)

    def _fail(self, handle: Any, code: int, text: str) -> None:
        """End a transfer that failed or that we stopped; if it could not connect, try its next address."""
        request = self._under_way[handle]
        end = request.defect or request.answer or request.refusal
        if end is None and time.monotonic() >= request.deadline:
            end = _OUT_OF_TIME
        if end is None and request.in_body and UNEXPECTED_END in text:
            end = request.cut_off()
        if end is None:
            end = Answer(*explain_failure(code, text, handle.getinfo(pycurl.OS_ERRNO)))
            if end.outcome in (Outcome.CONNECT_FAILED, Outcome.CONNECT_TIMEOUT) and request.addresses[1:]:
                self._release(handle)
                request.addresses = request.addresses[1:]
                self._begin(request)  # nothing has come of it yet
                return
        self._release(handle).end(end)

    def _end_those_out_of_time(self) -> None:
        now = time.monotonic()
        if now < self._check_at:
            return
        self._check_at = now + _CHECK_SECONDS
        for handle, request in list(self._under_way.items()):
            if now >= request.deadline:
                self._release(handle).end(_OUT_OF_TIME)
            elif now - request.begun >= bounds.READ_SECONDS and self._is_silent(handle, request, now):
                self._release(handle).end(Answer(Outcome.READ_TIMEOUT, "silent for too long"))

    def _is_silent(self, handle: Any, request: Request, now: float) -> bool:
        """Return whether nothing has come for too long, since the request was sent or since the last bytes."""
        seconds_to_send: float = handle.getinfo(pycurl.PRETRANSFER_TIME)
        if request.is_paused or not seconds_to_send:  # libcurl limits the time to connect
            return False
        came = self._stirred.get(handle.getinfo(pycurl.ACTIVESOCKET), 0.0)
        return now - max(request.begun + seconds_to_send, came) >= bounds.READ_SECONDS

    def _release(self, handle: Any) -> Request:
        """Take a handle out of the transfers; its connection is kept if its answer came whole."""
        request = self._under_way.pop(handle)
        self._multi.remove_handle(handle)
        self._free.append(handle)
        self._large.discard(handle)
        if request.is_paused:
            self._paused.remove(handle)
        return request

    def _go_on_with_large_bodies(self) -> None:
        for _ in range(min(len(self._paused), _NUM_LARGE_BODIES - len(self._large))):
            handle = self._paused.popleft()
            request = self._under_way[handle]
            request.is_paused = False
            request.begun = time.monotonic()
            try:
                handle.pause(pycurl.PAUSE_CONT)
            except pycurl.error as error:  # its next piece was too much
                self._fail(handle, *error.args)


_OUT_OF_TIME = Answer(Outcome.DEADLINE_EXCEEDED, "not finished in time")


def _authorities() -> dict[int, str]:
    """Return the authorities to trust.

    Those of the system, or where it has none, as in small containers, those of certifi.

    One file or one folder, never both: beside a folder libcurl would read the file for each connection again.
    """
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return {pycurl.CAINFO: paths.cafile}
    if paths.capath and any(Path(paths.capath).iterdir()):
        return {pycurl.CAPATH: paths.capath}
    if (certifi := importlib.util.find_spec("certifi")) and certifi.origin:
        return {pycurl.CAINFO: str(Path(certifi.origin).with_name("cacert.pem"))}
    return {}
