"""A web server on the loopback that gives files in ranges, with an ETag, and can fail on purpose."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from waiting import be_slow

from manifests.stores.web import WebFiles


@dataclass
class RangeServer:
    """Files by name; what was asked: (name, first byte, bytes sent). `choose` names the fault of a request, or None:
    `reset`, `short` (half of the body, then the end), `slow`, `whole` (no ranges), 503.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    choose: Callable[[str, int], Any] = lambda name, start: None
    address: str = ""
    fails_heads: bool = False

    def put(self, name: str, content: bytes, etag: str = "") -> None:
        self.files[name] = content
        self.etags[name] = f'"{etag or hashlib.md5(content).hexdigest()}"'

    def num_sent(self, name: str) -> int:
        return sum(num for asked, _, num in self.asked if asked == name)


@contextmanager
def serving_ranges() -> Iterator[RangeServer]:
    served = RangeServer()
    handler: Any = type("Bound", (_Handler,), {"served": served})
    server = _Server(("127.0.0.1", 0), handler)
    served.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        WebFiles.clear_instance_cache()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has enough closes its connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: RangeServer

    def log_message(self, format: str, *values: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        name = self.path.lstrip("/").partition("?")[0]
        content = self.served.files.get(name)
        if content is None:
            self._send(404, b"")
            return
        parts = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start = int(parts[1]) if parts else 0
        fault = self.served.choose(name, start) if self.command == "GET" or self.served.fails_heads else None
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(fault, int):
            self._send(fault, b"")
            return
        status, body = 200, content
        headers = {"ETag": self.served.etags[name]} if self.served.etags.get(name) else {}
        if parts and fault != "whole":
            status, body = 206, content[start : int(parts[2]) + 1]
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(content)}"
        self._send(status, body, headers, fault)
        if self.command == "GET":
            self.served.asked.append((name, start, len(body)))

    do_HEAD = do_GET  # noqa: N815

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: str | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "short":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "slow":
            for at in range(0, len(body), 1 + len(body) // 3):
                self.wfile.write(body[at : at + 1 + len(body) // 3])
                be_slow(0.05)
        else:
            self.wfile.write(body)
