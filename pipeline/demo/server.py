"""Serve the demo's little web on the loopback, so that the demo fetches over HTTP like any other build.

Reads files under one folder, writes nothing. Speaks HTTP/1.1 and keeps connections open; answers 404 for what is not
there. Binds 127.0.0.1 only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"


class DemoServer(ThreadingHTTPServer):
    """A threaded HTTP server over one folder."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, web: Path, port: int) -> None:
        super().__init__((HOST, port), partial(_Handler, directory=str(web.resolve())))

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "plantmix-demo"
    # Headers and body leave in one write. In two, Nagle's algorithm and delayed ACKs cost 40 ms a request.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    timeout = 60

    def send_head(self) -> Any:
        """Send a file of the folder; any other path is not found."""
        if not Path(self.translate_path(self.path)).is_file():
            self.send_response(HTTPStatus.NOT_FOUND)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return super().send_head()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the fetch stage records every URL."""


@contextmanager
def serving(web: Path, preferred: int = 0) -> Iterator[DemoServer]:
    """Serve `web` from a thread of this process within a `with` block, on the preferred port or else a free one."""
    try:
        server = DemoServer(web, preferred)
    except OSError:
        server = DemoServer(web, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="demo-server", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
