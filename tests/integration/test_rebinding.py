"""A name that leads elsewhere from one lookup to the next: nothing is sent to an address that was not checked."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fetched import fetch_rows
from misbehaving.answers import photo, send_picture
from misbehaving.server import MisbehavingServer

from pipeline.fetching import addresses
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.http import HttpClient
from pipeline.fetching.settings import FetchSettings, NetworkSettings

GOOD, INNER = "127.0.0.2", "127.0.0.1"  # only the first may be asked


@pytest.fixture
def inner() -> Iterator[MisbehavingServer]:
    """A server that nobody may reach."""
    with MisbehavingServer(extra={"p": lambda sock, request: send_picture(sock)}) as server:
        yield server


def fetch(
    folder: Path, urls: list[str], answers: dict[str, list[list[str]]], **network: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """Facts of the URLs, and the names that were looked up. Of each name the lookups are answered one after another."""
    looked_up = []

    def lookup(host: str) -> list[str]:
        looked_up.append(host)
        left = answers[host]
        return left.pop(0) if len(left) > 1 else left[0]

    settings = NetworkSettings.model_validate(
        {"allow_private_addresses": [f"{GOOD}/32"], "contact": "a@b.org", "retries": 0, "threads": 1,
         "total_timeout_seconds": 3, "profiles": [],
         "limits": {"requests_per_second": None, "connections": 1}, **network}
    )  # fmt: skip
    rows = [(f"{number:032x}", url) for number, url in enumerate(urls)]
    with HttpClient(settings, lookup) as client:
        table = fetch_rows(rows, FetchSettings(network=settings), HostGate(settings), folder / "p.tar", client)
    return table.to_pylist(), looked_up


@pytest.fixture
def good() -> Iterator[tuple[str, int]]:
    """A server at the address that may be asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", "http:/" + self.path.removeprefix("/to"))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = photo() if self.path.startswith("/p/") else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer((GOOD, 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield GOOD, server.server_address[1]
    server.shutdown()
    server.server_close()


def test_the_address_that_was_checked_is_the_one_that_is_asked(
    tmp_path: Path, good: tuple[str, int], inner: MisbehavingServer
) -> None:
    urls = [f"http://rebind.test:{good[1]}/p/{n}" for n in range(3)]
    facts, looked_up = fetch(tmp_path, urls, {"rebind.test": [[GOOD], [INNER]]})
    assert [fact["outcome"] for fact in facts] == ["ok"] * 3
    assert looked_up == ["rebind.test"], "one lookup, for robots.txt, tdmrep.json and all pictures"
    assert inner.num_connections == 0


def test_a_kept_connection_is_no_way_around_a_new_lookup(
    tmp_path: Path, good: tuple[str, int], inner: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "_CACHE_SECONDS", 0.0)
    urls = [f"http://rebind.test:{good[1]}/p/{n}" for n in range(3)]
    no_files: dict[str, Any] = {"robots_txt": False, "consent_signals": []}
    facts, _ = fetch(tmp_path, urls, {"rebind.test": [[GOOD], [INNER]]}, **no_files)
    assert [fact["outcome"] for fact in facts] == ["ok", "refused_target", "refused_target"]
    assert inner.num_connections == 0
    mixed, _ = fetch(tmp_path, urls[:1], {"rebind.test": [[INNER, GOOD]]}, **no_files)
    assert mixed[0]["outcome"] == "ok", "of several addresses only those that may be asked are"
    assert inner.num_connections == 0


@pytest.mark.parametrize("robots_txt", [True, False])
def test_a_redirect_is_looked_up_and_checked_as_well(
    tmp_path: Path, good: tuple[str, int], inner: MisbehavingServer, robots_txt: bool
) -> None:
    host, port = "inner.test", inner.port
    urls = [f"http://outer.test:{good[1]}/to/{place}/p/1" for place in (f"{host}:{port}", f"{INNER}:{port}")]
    facts, _ = fetch(
        tmp_path, urls, {"outer.test": [[GOOD]], host: [[INNER]]}, robots_txt=robots_txt, consent_signals=[]
    )
    assert [fact["outcome"] for fact in facts] == ["refused_target"] * 2
    assert inner.num_connections == 0


def test_robots_txt_is_asked_at_a_checked_address(tmp_path: Path, inner: MisbehavingServer) -> None:
    facts, _ = fetch(tmp_path, [f"http://inner.test:{inner.port}/p/1"], {"inner.test": [[INNER]]})
    assert facts[0]["outcome"] == "refused_target"
    assert inner.num_connections == 0
