"""A server that answers with any bytes, and the client that asks it: what it may do with them is end in an Answer."""

from __future__ import annotations

import queue
import socket
import threading
from contextlib import suppress
from functools import cached_property
from typing import Any

from pipeline.fetching.answers import Answer
from pipeline.fetching.http import HttpClient
from pipeline.fetching.settings import NetworkSettings
from pipeline.fetching.urls import Target

ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 12\r\nX-Robots-Tag: all\r\n\r\npicture here",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\npicture \r\n4;a=b\r\nhere\r\n0\r\nTrailer: x\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 120\r\nDate: Wed, 21 Oct 2026 07:28:00 GMT\r\n\r\n",
)
WORDS = (
    b"\r\n", b"\r\n\r\n", b": ", b"\t", b"\r\n folded", b"9" * 5000, b"ffffffff\r\n", b"HTTP/1.1 200 ",
    b"HTTP/1.1 103 \r\n\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n",
    b"Content-Encoding: deflate\r\n", b"Connection: close\r\n", b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
)  # fmt: skip
_MAX_BODY_BYTES = 100_000


class Asker:
    """Asks once for each answer that it is given."""

    def __init__(self) -> None:
        self._content = b""

    def __call__(self, content: bytes) -> None:
        """Raises: what is no answer, an AssertionError among it."""
        self._content = content
        ends: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._client.send(Target("http", "127.0.0.1", self._port, "/"), _MAX_BODY_BYTES, 300.0, ends.put)
        end = ends.get(timeout=600)
        if isinstance(end, BaseException):
            raise end
        assert isinstance(end, Answer)
        assert len(end.body) <= _MAX_BODY_BYTES

    @cached_property
    def _client(self) -> HttpClient:
        return HttpClient(NetworkSettings(allow_private_addresses=True))

    @cached_property
    def _port(self) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()
        return int(listener.getsockname()[1])

    def _serve(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(self._content)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass
