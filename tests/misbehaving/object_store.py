"""A real S3 server (moto) on the loopback, and a proxy before it that counts requests and injects faults."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pytest
from waiting import be_slow

BUCKET = "bucket"
_SLOW_SECONDS = 0.3
_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
_ERRORS = {
    "expired": (400, "ExpiredToken", "The provided token has expired."),  # S3 answers 400, some stores 403
    "expired_403": (403, "ExpiredToken", "The provided token has expired."),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
}


@dataclass
class Store:
    """Address of the store as clients see it, what was asked of it, and the fault that now answers."""

    endpoint: str
    requests: list[tuple[str, str]] = field(default_factory=list)  # (method, path)
    sent: list[tuple[str, int]] = field(default_factory=list)  # of each GET that was answered: path and bytes
    injected: int = 0
    choose: Callable[[str, str], str | None] = lambda method, path: None
    """The fault that answers a request, or None: of _ERRORS, `slow`, `truncated`, `reset` before the store sees it, or
    `unanswered`: the store does what is asked, and then the connection is reset."""

    @property
    def options(self) -> dict[str, object]:
        """What fsspec needs to talk to it."""
        return {"key": "testing", "secret": "testing", "client_kwargs": {"endpoint_url": self.endpoint}}

    def environment(self) -> dict[str, str]:
        """The same for any client, as users set it: on every node."""
        return {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def serving() -> Iterator[Store]:
    """Run server and proxy; the bucket `bucket` is there and empty."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    handler: Any = type("Bound", (_Proxy,), {"behind": (host, port)})
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    proxy.daemon_threads = True
    handler.store = store = Store(f"http://127.0.0.1:{proxy.server_address[1]}")
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        connection = http.client.HTTPConnection(host, port, timeout=600)
        # servers of one process share their content
        for method, path in (("POST", "/moto-api/reset"), ("PUT", f"/{BUCKET}")):
            connection.request(method, path)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
        connection.close()
        yield store
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


def hash_stored(store: Store, folder: str) -> dict[str, str]:
    """sha256 of every object below a folder of the bucket, by its path there."""
    fs = fsspec.filesystem("s3", **store.options)
    fs.invalidate_cache()
    top = f"{BUCKET}/{folder}/"
    return {path.removeprefix(top): hashlib.sha256(fs.cat_file(path)).hexdigest() for path in fs.find(top)}


def become_user(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process reads and writes the store with few tries of the client library; no fault is injected yet."""
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    store.choose = lambda method, path: None
    store.requests.clear()


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store
    behind: tuple[str, int]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        store = self.store
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        store.requests.append((self.command, self.path))
        fault = store.choose(self.command, self.path)
        store.injected += fault is not None
        if fault == "reset":
            self._reset()
            return
        if fault in _ERRORS:
            status, code, message = _ERRORS[fault]
            content = b"" if self.command == "HEAD" else _ERROR.format(code=code, message=message).encode()
            self._send(status, [("Content-Type", "application/xml")], content)
            return
        connection = http.client.HTTPConnection(*self.behind, timeout=600)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "unanswered":
            self._reset()
            return
        dropped = {"connection", "transfer-encoding", "content-length", "server", "date"}
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in dropped]
        if self.command == "HEAD" and answer.getheader("Content-Length"):
            kept.append(("Content-Length", answer.headers["Content-Length"]))
        if self.command == "GET":
            store.sent.append((self.path, len(content)))
        self._send(answer.status, kept, content, fault)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes, fault: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "slow":
            for start in range(0, len(content), max(1, len(content) // 4)):
                self.wfile.write(content[start : start + max(1, len(content) // 4)])
                be_slow(_SLOW_SECONDS / 4)
        elif fault == "truncated":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif content:
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815
