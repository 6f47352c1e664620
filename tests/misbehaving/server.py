"""A web server on the loopback that misbehaves in every way it has a name for, and keeps a log of who asked when.

Each behaviour is a function that gets an open connection and a parsed request and does harm. Its name is the
first piece of the path; its host name is free (tests map all names to 127.0.0.1), so that what one behaviour
does to a host's reputation never touches another. `BEHAVIOURS` also says how a row of it must end.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from misbehaving import bodies, connections, consent, pictures, statuses  # noqa: F401  (they fill BEHAVIOURS)
from misbehaving.answers import send
from misbehaving.registry import BEHAVIOURS, Act, Request, host_of

CERTIFICATE = Path(__file__).parents[1] / "self_signed.pem"
SITE_FILES = ("/robots.txt", "/.well-known/tdmrep.json", "/licence.xml")
ROBOTS = b"User-agent: *\nDisallow: /private/\n"


@dataclass
class MisbehavingServer:
    """Listens on ephemeral ports of 127.0.0.1 while its context lasts; `log` holds every request."""

    extra: dict[str, Act] = field(default_factory=dict)
    """More behaviours, by first piece of the path, for one test."""
    robots: Act | None = None
    log: list[Request] = field(default_factory=list)
    num_connections: int = 0
    open_now: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> MisbehavingServer:
        (
            bodies.bomb(),
            bodies.deflate_bomb_body(),
            pictures.png_bomb_body(),
            pictures.png_text_bomb_body(),
            consent.owners(),
        )  # made before anyone waits for them
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}
        self._sockets: list[socket.socket] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(CERTIFICATE)
        self.port = self._listen(tls=False)
        self.tls_port = self._listen(tls=True)
        self.closed_port = self._bound().getsockname()[1]  # bound, never listening
        self._full = self._bound()
        self._full.listen(0)
        self.full_port = self._full.getsockname()[1]
        for _ in range(3):  # fill its queue
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.full_port))
            self._sockets.append(filler)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with self._lock:
            for sock in self._sockets:
                sock.close()

    def close_full_port(self) -> None:
        """From now on it refuses connections."""
        self._full.close()

    def url(self, name: str, host: str | None = None) -> str:
        known = BEHAVIOURS.get(name)
        return (known.url if known else "http://{host}:{port}/{name}").format(
            host=host or host_of(name),
            name=name,
            port=self.port,
            tls_port=self.tls_port,
            closed_port=self.closed_port,
            full_port=self.full_port,
        )

    def asked(self, host: str) -> list[Request]:
        """The log of one host name (without port), files of the site left out."""
        return [r for r in self.log if r.host.partition(":")[0] == host and r.path not in SITE_FILES]

    def _bound(self) -> socket.socket:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self._sockets.append(sock)
        return sock

    def _listen(self, *, tls: bool) -> int:
        sock = self._bound()
        sock.listen(256)
        sock.settimeout(0.1)
        threading.Thread(target=self._accept, args=(sock, tls), daemon=True).start()
        return sock.getsockname()[1]

    def _accept(self, listener: socket.socket, tls: bool) -> None:
        while not self._stop.is_set():
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self.num_connections += 1
            threading.Thread(target=self._serve, args=(sock, tls), daemon=True).start()

    def _serve(self, sock: socket.socket, tls: bool) -> None:
        try:
            sock.settimeout(600)
            with contextlib.ExitStack() as closing:
                closing.enter_context(sock)
                if tls:
                    sock = closing.enter_context(self._context.wrap_socket(sock, server_side=True))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                is_kept = False
                while not self._stop.is_set() and (request := self._read(sock, is_kept)):
                    self._answer(sock, request)
                    is_kept = True
        except (OSError, ValueError):
            return  # the client had enough

    def _read(self, sock: socket.socket, is_kept: bool) -> Request | None:
        head = b""
        while b"\r\n\r\n" not in head:
            more = sock.recv(8192)
            if not more:
                return None
            head += more
            if head[:1] == b"\x16":  # a TLS greeting where plain HTTP is spoken
                send(sock, "400 Bad Request")
                return None
        lines = head.decode("latin-1").split("\r\n")
        path = lines[0].split(" ")[1]
        pairs = (line.partition(":") for line in lines[1:] if line)
        headers = {key.lower(): value.strip() for key, _, value in pairs}
        host = headers.get("host", "")
        with self._lock:
            nth = self._counts[host, path] = self._counts.get((host, path), 0) + 1
            request = Request(time.monotonic(), host, path, headers, nth, is_kept)
            self.log.append(request)
            self.open_now[host] = self.open_now.get(host, 0) + 1
        return request

    def _answer(self, sock: socket.socket, request: Request) -> None:
        try:
            name = request.path.partition("?")[0].strip("/").split("/")[0]
            if request.path == "/robots.txt":
                self._answer_robots(sock, request)
            elif request.path == SITE_FILES[1] and (tdmrep := TDMREP_OF.get(request.host.partition(":")[0])):
                tdmrep(sock, request)
            elif request.path == SITE_FILES[2] and (licence := LICENCE_OF.get(request.host.partition(":")[0])):
                licence(sock, request)
            elif name in self.extra:
                self.extra[name](sock, request)
            elif name in BEHAVIOURS:
                BEHAVIOURS[name].act(sock, request)
            else:
                send(sock, "404 Not Found")
        finally:
            with self._lock:
                self.open_now[request.host] -= 1

    def _answer_robots(self, sock: socket.socket, request: Request) -> None:
        own = ROBOTS_OF.get(request.host.partition(":")[0])
        if self.robots or own:
            (self.robots or own)(sock, request)
        else:
            send(sock, headers={"Content-Type": "text/plain"}, body=ROBOTS)


TDMREP_OF = {host_of(known.name): known.tdmrep for known in BEHAVIOURS.values() if known.tdmrep}
LICENCE_OF = {host_of(known.name): known.licence for known in BEHAVIOURS.values() if known.licence}
ROBOTS_OF = {host_of(known.name): known.robots for known in BEHAVIOURS.values() if known.robots}
