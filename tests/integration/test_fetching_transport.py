"""Every request ends, with an answer or without: whatever its address and size, after a defect of ours, when closed."""

from __future__ import annotations

import gc
import queue
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from misbehaving.answers import hang_up, reset, send, send_picture, stay_silent
from misbehaving.server import MisbehavingServer
from waiting import let_pass, wait_until

from manifests.contract.outcomes import Outcome
from pipeline.fetching import settings as bounds
from pipeline.fetching import transport
from pipeline.fetching.answers import Answer
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.http import HttpClient
from pipeline.fetching.scheduler import Scheduler
from pipeline.fetching.settings import NetworkSettings
from pipeline.fetching.urls import parse_url

LARGE = transport._SMALL_BODY_BYTES + 1
NUM_LARGE = transport._NUM_LARGE_BODIES


def network(**changes: Any) -> NetworkSettings:
    values = {"allow_private_addresses": True, "robots_txt": False, "consent_signals": [], "retries": 0, **changes}
    return NetworkSettings.model_validate(values)


def here(_host: str) -> list[str]:
    return ["127.0.0.1"]


def photo_now(sock: socket.socket, request: Any) -> None:
    send_picture(sock)


NUM_TOGETHER = 4
together = threading.Barrier(NUM_TOGETHER, timeout=600)


def photo_together(sock: socket.socket, request: Any) -> None:
    """Answers when all have asked, each on a connection of its own."""
    together.wait()
    send_picture(sock)


def never(sock: socket.socket, request: Any) -> None:
    stay_silent(sock)


def ask(client: HttpClient, urls: list[str], max_bytes: int = 50_000_000, seconds: float = 300.0) -> list[Any]:
    """How each request ended, in the order in which they did."""
    ends: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for url in urls:
        client.send(parse_url(url), max_bytes, seconds, ends.put)
    return [ends.get(timeout=600) for _ in urls]


@pytest.mark.parametrize("end", [reset, hang_up])
def test_a_request_is_sent_once_more_when_kept_connections_end(end: Callable[[socket.socket], None]) -> None:
    extra = {"photo": photo_together, "ends": lambda sock, request: end(sock)}
    with MisbehavingServer(extra=extra) as server, HttpClient(network(), here) as client:
        kept = ask(client, [server.url("photo", "kept.test")] * NUM_TOGETHER)
        (ended,) = ask(client, [server.url("ends", "kept.test")])
        assert server.num_connections == NUM_TOGETHER, "both times on one of those"
        assert [answer.outcome for answer in (*kept, ended)] == ["ok"] * NUM_TOGETHER + ["connection_reset"]
        assert [request.path for request in server.log] == ["/photo"] * NUM_TOGETHER + ["/ends"] * 2


def test_the_next_address_is_tried_when_one_cannot_be_reached() -> None:
    with MisbehavingServer(extra={"photo": photo_now}) as server:
        url = server.url("photo", "two.test")
        for others in (["127.0.0.2"], ["127.0.0.2", "127.0.0.3"]):
            with HttpClient(network(), lambda _host, others=others: [*others, "127.0.0.1"]) as client:
                assert [answer.outcome for answer in ask(client, [url])] == [Outcome.OK]
        with HttpClient(network(), lambda _host: ["127.0.0.2", "127.0.0.3"]) as client:
            (answer,) = ask(client, [url])
    assert (answer.outcome, answer.detail) == (Outcome.CONNECT_FAILED, "Connection refused")


OK, HEAD = b"HTTP/1.1 200 OK\r\n", b"\r\nhello"


@pytest.mark.parametrize(
    ("greeting", "answer", "wanted"),
    [
        ("closes", b"", Outcome.CONNECTION_RESET),
        ("closes after ours", b"", Outcome.CONNECTION_RESET),
        ("resets after ours", b"", Outcome.CONNECTION_RESET),
        ("says nothing", b"", Outcome.CONNECT_TIMEOUT),
        ("refuses", b"", Outcome.TLS_FAILURE),
        ("is sound", b"", Outcome.CONNECTION_RESET),
        ("is sound", OK + b"Content-Le", Outcome.CONNECTION_RESET),
        ("is sound", OK + HEAD, Outcome.OK),
        ("is sound", OK + b"Content-Length: 100\r\n" + HEAD, Outcome.BODY_TRUNCATED),
        ("is sound", OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Outcome.BODY_TRUNCATED),
    ],
)
@pytest.mark.slow
def test_a_tls_connection_that_just_ends_ends_as_a_plain_one(
    greeting: str, answer: bytes, wanted: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many servers close it without a last word of TLS, which is no fault of a certificate."""
    certificate = Path(__file__).parents[1] / "self_signed.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        if greeting != "closes":
            sock.recv(1 << 14, 0 if greeting != "is sound" else socket.MSG_PEEK)
        if greeting == "says nothing":
            stay_silent(sock)
        if greeting == "refuses":
            sock.sendall(b"\x15\x03\x03\x00\x02\x02\x28")
        if greeting == "is sound":
            secure = context.wrap_socket(sock, server_side=True)
            secure.recv(1 << 14)
            secure.sendall(answer)
            sock = socket.socket(fileno=secure.detach())
        if greeting == "resets after ours":
            reset(sock)
        sock.close()

    monkeypatch.setattr(bounds, "CONNECT_SECONDS", 3.0 if greeting == "says nothing" else 300.0)
    settings = network()
    with socket.create_server(("127.0.0.1", 0)) as listener, HttpClient(settings, here) as client:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        (end,) = ask(client, [f"https://a.test:{listener.getsockname()[1]}/photo"])
    assert (end.outcome, end.body) == (wanted, b"hello" if wanted is Outcome.OK else b"")


@pytest.mark.slow
def test_large_bodies_wait_for_each_other_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four may grow at a time: the server sees how far it gets with the others."""
    monkeypatch.setattr(bounds, "READ_SECONDS", 600.0)
    num_sent = [0] * (NUM_LARGE + 3)
    go_on = threading.Event()

    def large(sock: socket.socket, request: Any) -> None:
        number = int(request.path.rpartition("/")[2])
        send(sock, headers={"Content-Length": str(8 * LARGE)}, length=False)
        for part in range(8):
            if part == 6:
                go_on.wait(600)
            sock.sendall(bytes([number]) * LARGE)
            num_sent[number] = part + 1

    with (
        MisbehavingServer(extra={"large": large}) as server,
        HttpClient(network(), here) as client,
    ):
        ends: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for number in range(len(num_sent)):
            client.send(parse_url(server.url("large") + f"/{number}"), 9 * LARGE, 600.0, ends.put)
        wait_until(lambda: sum(num >= 5 for num in num_sent) >= NUM_LARGE)
        let_pass(0.3)
        assert sum(num >= 5 for num in num_sent) == NUM_LARGE
        go_on.set()
        answers = [ends.get(timeout=600) for _ in num_sent]
    assert sorted(answer.body[0] for answer in answers) == list(range(len(num_sent)))
    assert {(answer.outcome, len(answer.body), len(set(answer.body))) for answer in answers} == {
        (Outcome.OK, 8 * LARGE, 1)
    }


def test_large_bodies_that_waited_may_still_be_too_large() -> None:
    def endless(sock: socket.socket, request: Any) -> None:
        send(sock, length=False)
        while True:
            sock.sendall(bytes(1 << 16))

    with MisbehavingServer(extra={"endless": endless}) as server, HttpClient(network(), here) as client:
        answers = ask(client, [server.url("endless")] * (2 * NUM_LARGE), max_bytes=LARGE + 100)
    assert [answer.outcome for answer in answers] == [Outcome.BODY_TOO_LARGE] * (2 * NUM_LARGE)


def test_a_closed_client_leaves_nobody_waiting() -> None:
    ends: queue.SimpleQueue[Any] = queue.SimpleQueue()
    slow_lookup = threading.Event()
    before = set(threading.enumerate())

    def lookup(host: str) -> list[str]:
        if host != "localhost":
            slow_lookup.wait(600)
        return ["127.0.0.1"]

    with MisbehavingServer(extra={"never": never}) as server, HttpClient(network(), lookup) as client:
        urls = [server.url("never", "localhost")] * 3 + [server.url("never", f"{n}.test") for n in range(40)]
        for url in urls:
            client.send(parse_url(url), 100, 300.0, ends.put)
        wait_until(lambda: len(server.log) >= 3)
        client.close()
        slow_lookup.set()
        client.close()
        assert [ends.get(timeout=600) for _ in urls] == [None] * len(urls)
    wait_until(lambda: not set(threading.enumerate()) - before)


@pytest.mark.parametrize("where", ["take_line", "take_body", "whole", "_of_head"])
def test_a_defect_reaches_whoever_waits(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(transport.Request, where, broken)
    settings = network()
    with MisbehavingServer(extra={"photo": photo_now}) as server:
        urls = [server.url("photo") + f"/{n}" for n in range(5)]
        with HttpClient(settings, here) as client:
            assert [type(end) for end in ask(client, urls)] == [ZeroDivisionError] * 5
            assert [type(end) for end in ask(client, urls)] == [ZeroDivisionError] * 5
        with (
            HttpClient(settings, here) as client,
            Scheduler(urls, client, HostGate(settings), 10**6) as scheduler,
            pytest.raises(ZeroDivisionError, match="a defect"),
        ):
            scheduler.take()


def test_a_client_that_nobody_uses_any_more_ends_its_thread() -> None:
    def network_threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "fetch-network"}

    before = network_threads()
    client: HttpClient | None = HttpClient(network(), here)
    (own,) = network_threads() - before  # those of tests before may end meanwhile
    with MisbehavingServer(extra={"photo": photo_now}) as server:
        assert client is not None
        assert isinstance(ask(client, [server.url("photo")])[0], Answer)
    client = None
    gc.collect()
    wait_until(lambda: not own.is_alive())


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (OK + b"X-Robots-Tag: noai\r\nHTTP/1.1 200: OK" + b"\r\n" + HEAD, Outcome.OPTED_OUT),  # no status line
        (b"HTTP/1.1 103 Early Hints\r\nX-Robots-Tag: noai\r\n\r\n" + OK + HEAD, Outcome.OK),
        (b"HTTP/1.1 101 Switching Protocols\r\n" + HEAD, Outcome.BAD_RESPONSE),
        (b"HTTP/1.1 429 Too Many Requests\r\n\r: x\r\nRetry-After: 9\r\n\r\n", Outcome.HTTP_429),
        (b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 9\r\nno header", Outcome.HTTP_429),
        (b"HTTP/1.1 503 Busy\r\nRetry-After: 9\r\nno header\r\n\r\n", Outcome.HTTP_5XX),
        (OK + b"Content-Type: image/j", Outcome.CONNECTION_RESET),
        (b"HTTP/1.1 302 Found\r\nLocation: /els", Outcome.CONNECTION_RESET),
        (OK + b"no header" + HEAD, Outcome.BAD_RESPONSE),
        (OK + b"Content-Length: " + b"9" * 5000 + b"\r\n" + HEAD, Outcome.BODY_TOO_LARGE),
    ],
)
def test_broken_headers_are_no_picture_and_hide_no_refusal(answer: bytes, wanted: Outcome) -> None:
    def odd(sock: socket.socket, request: Any) -> None:
        sock.sendall(answer)
        hang_up(sock)

    with MisbehavingServer(extra={"odd": odd}) as server, HttpClient(network(), here) as client:
        (end,) = ask(client, [server.url("odd")])
    assert (end.outcome, end.body) == (wanted, b"hello" if wanted is Outcome.OK else b"")


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy", "ALL_PROXY"])
def test_no_proxy_of_the_environment_is_asked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with MisbehavingServer(extra={"photo": photo_now}) as server, HttpClient(network(), here) as client:
        assert [answer.outcome for answer in ask(client, [server.url("photo")])] == [Outcome.OK]


def test_path_and_query_are_sent_as_they_are() -> None:
    paths = ["/photo/a/../b/./c", "/photo//x", "/photo?q=[1|2]&e=%e4%2F%5b", "/photo/%7euser;v=1,2"]
    with MisbehavingServer(extra={"photo": photo_now}) as server, HttpClient(network(), here) as client:
        ask(client, [f"http://a.test:{server.port}{path}" for path in paths])
        assert sorted(request.path for request in server.log) == sorted(paths)
