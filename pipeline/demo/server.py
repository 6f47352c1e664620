"""Serve the demo's little web on the loopback, so that the demo fetches over HTTP like any other build.

Reads files under one folder, writes nothing. Speaks HTTP/1.1 and keeps connections open; answers 404 for what is not
there. Binds 127.0.0.1 only. Gives up with ConfigError when there is no free port.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from manifests.errors import ConfigError

HOST = "127.0.0.1"
WHO_PATH = "/.plantmix-demo"  # answers with the folder that is served


class DemoServer(ThreadingHTTPServer):
    """A threaded HTTP server over one folder."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, web: Path, port: int) -> None:
        self.web = web.resolve()
        super().__init__((HOST, port), partial(_Handler, directory=str(self.web)))

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])


class _Handler(SimpleHTTPRequestHandler):
    server: DemoServer
    protocol_version = "HTTP/1.1"
    server_version = "plantmix-demo"
    # Headers and body leave in one write. In two, Nagle's algorithm and delayed ACKs cost 40 ms a request.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    timeout = 60

    def send_head(self) -> BytesIO | BinaryIO | None:
        """Send a file of the folder, or at WHO_PATH the folder's name; any other path is not found."""
        if self.path == WHO_PATH:
            return self._text(HTTPStatus.OK, str(self.server.web))
        file = Path(self.translate_path(self.path).replace("\0", "?")).resolve()
        if not file.is_relative_to(self.server.web) or not file.is_file():
            return self._text(HTTPStatus.NOT_FOUND, "not found\n")
        return super().send_head()

    def _text(self, status: HTTPStatus, text: str) -> BytesIO:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        return BytesIO(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the fetch stage records every URL."""


def find_port(web: Path, preferred: int) -> tuple[int, bool]:
    """A port for `web`: `preferred` when it is free or already serves this folder, else any free one.

    Returns the port, and whether a server for this folder runs there already.
    """
    if _serves(preferred, web):
        return preferred, True
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1]), False
    raise ConfigError(f"no free port on {HOST}: close other servers and run this again")


@contextmanager
def serving(web: Path, port: int = 0) -> Iterator[DemoServer]:
    """Serve `web` from a thread of this process within a `with` block; port 0 takes a free one.

    Raises: ConfigError when the port is taken.
    """
    try:
        server = DemoServer(web, port)
    except OSError as error:
        raise ConfigError(f"port {port} on {HOST} is taken ({error.strerror}); run this again") from None
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="demo-server", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _serves(port: int, web: Path) -> bool:
    """Whether a demo server for this folder answers on the port."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", WHO_PATH)
        answer = connection.getresponse()
        return answer.status == HTTPStatus.OK and answer.read().decode("utf-8", "replace") == str(web.resolve())
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
