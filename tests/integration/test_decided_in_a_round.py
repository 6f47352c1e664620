"""Rows that a setting decided in a round of `retry` are asked again when it is loosened, as in a clean build."""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from building import list_source, loopback, write_small_config
from misbehaving.answers import encode, pixels
from misbehaving.consent import licence
from misbehaving.owners import mining, with_xmp

from manifests.contract.reader import open_reader
from pipeline.cli import main

SITE_FILES = {
    "/robots.txt": b"User-agent: *\nDisallow: /private/\nContent-Usage: /art/ train-ai=n\n\nLicense: /licence.xml\n",
    "/.well-known/tdmrep.json": b'[{"location": "/reserved/", "tdm-reservation": 1}]',
    "/licence.xml": licence('<permits type="usage">search</permits>', "/licensed/").encode(),
}
MARKED = with_xmp(mining("DMI-PROHIBITED-AIMLTRAINING"), image=pixels(60, 60))
SIZES = {"/small/1": (40, 40), "/long/1": (400, 50), "/pixels/1": (500, 400)}
DECIDED = {
    "/header/1": "opted_out",
    "/art/1": "opted_out",
    "/reserved/1": "opted_out",
    "/licensed/1": "opted_out",
    "/private/1": "robots_disallowed",
    "/small/1": "image_too_small",
    "/long/1": "aspect_too_extreme",
    "/pixels/1": "too_many_pixels",
    "/large/1": "body_too_large",
}
STRICT = {
    "network": {
        "robots_txt": True,
        "x_robots_directives": ["noai"],
        "consent_signals": ["content_usage", "tdmrep_file", "rsl_licence"],
    },
    "image": {"min_side_px": 48, "max_aspect_ratio": 6, "max_pixels": 150_000, "max_body_bytes": 60_000},
}
OPEN: dict[str, Any] = {"network": {"robots_txt": False, "x_robots_directives": [], "consent_signals": []}, "image": {}}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        server.asked[self.path] += 1
        status, body = 200, SITE_FILES.get(self.path)
        if server.is_down(self.path):
            status, body = (404 if body else 500), b""
        elif body is None:
            body = encode(pixels(*SIZES.get(self.path, (96, 64)), seed=sum(self.path.encode())), quality=90)
            body = {"/marked/1": MARKED, "/broken/1": body[: len(body) // 2]}.get(self.path, body)
            body += bytes(80_000 if self.path == "/large/1" else 0)
        self.send_response(server.fails.get(self.path, status))
        if self.path == "/header/1":
            self.send_header("X-Robots-Tag", "noai")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.asked, running.fails, running.is_down = collections.Counter(), {}, lambda path: False
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


def run(server: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> set[str]:
    """Run a command; gives the pictures that were asked for."""
    server.asked.clear()
    monkeypatch.setattr("pipeline.commands.build.check_config", lambda *_: [])
    monkeypatch.setattr("pipeline.fetching.http._client", None)  # which remembers robots.txt
    assert main([*words]) == 0
    return set(server.asked) - {*SITE_FILES}


def write_config(folder: Path, server: Any, fetch: dict[str, Any], paths: Iterable[str] = DECIDED) -> str:
    folder.mkdir(exist_ok=True)
    source = list_source(folder, [f"http://127.0.0.1:{server.server_port}{path}" for path in paths])
    network = loopback(threads=4, profiles=[], limits={"connections": 4}, **fetch["network"])
    fetch = {**network, "image": fetch["image"]}
    return str(write_small_config(folder, source, fetch=fetch, dedup={"radius": 0}, run={"max_passing_share": 1}))


def facts_of(folder: Path, *but_for: str) -> dict[str, tuple[Any, ...]]:
    """What is known of each row, by its path, apart from where its picture lies, and how it was asked."""
    left_out = ", ".join(("outcome", "pool_file", '"offset"', "attempts", "http_status", *but_for))
    with open_reader(str(folder / "work")) as connection:
        rows = connection.sql(
            f"SELECT c.url, outcome, f.* EXCLUDE ({left_out}) FROM facts f JOIN candidates c USING (sample_id) "
            "ORDER BY record_key"
        ).fetchall()
    return {"/" + url.split("/", 3)[3]: tuple(rest) for url, *rest in rows}


def outcomes(folder: Path) -> dict[str, str]:
    return {path: outcome for path, (outcome, *_) in facts_of(folder).items()}


@pytest.mark.slow
def test_every_kind_of_decision_is_asked_again(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, clean = tmp_path / "one", tmp_path / "clean"
    strict = write_config(folder, server, STRICT)
    server.is_down = lambda path: True
    run(server, monkeypatch, "build", strict, "--to", "fetch")
    assert set(outcomes(folder).values()) == {"http_5xx"}

    server.is_down = lambda path: False
    run(server, monkeypatch, "retry", str(folder / "work"))
    assert outcomes(folder) == DECIDED

    loose = write_config(folder, server, OPEN)
    assert run(server, monkeypatch, "build", loose, "--to", "fetch") == set(DECIDED)
    run(server, monkeypatch, "build", write_config(clean, server, OPEN), "--to", "fetch")
    assert facts_of(folder) == facts_of(clean)
    assert set(outcomes(folder).values()) == {"ok"}
    assert run(server, monkeypatch, "build", loose, "--to", "fetch") == set(), "once"

    strict = write_config(folder, server, STRICT)
    assert run(server, monkeypatch, "build", strict, "--to", "fetch") == set()
    assert outcomes(folder) == DECIDED, "what was heard in the round is stored"


def test_what_is_stored_is_judged_as_a_download(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, clean = tmp_path / "one", tmp_path / "clean"
    run(server, monkeypatch, "build", write_config(folder, server, OPEN), "--to", "fetch")
    limits = {**OPEN, "image": STRICT["image"]}
    assert run(server, monkeypatch, "build", write_config(folder, server, limits), "--to", "fetch") == set()
    run(server, monkeypatch, "build", write_config(clean, server, limits), "--to", "fetch")
    assert facts_of(folder, "detail") == facts_of(clean, "detail")  # which says whether a length was declared
    strict = write_config(folder, server, STRICT)
    asked = run(server, monkeypatch, "build", strict, "--to", "fetch")
    assert asked == {"/small/1", "/long/1", "/pixels/1", "/large/1"}, "no statement refuses these"
    assert run(server, monkeypatch, "build", strict, "--to", "fetch") == set(), "once"
    assert outcomes(folder) == DECIDED


def test_what_is_broken_or_refused_meets_other_limits_as_in_a_download(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, clean, paths = tmp_path / "one", tmp_path / "clean", ["/long/1", "/marked/1", "/broken/1"]
    network = {"consent_signals": ["iptc_data_mining"]}
    before = {"network": network, "image": {"max_aspect_ratio": 6}}
    after = {"network": network, "image": {"max_aspect_ratio": 6, "min_side_px": 70, "max_body_bytes": 4_000}}
    run(server, monkeypatch, "build", write_config(folder, server, before, paths), "--to", "fetch")
    assert list(outcomes(folder).values()) == ["aspect_too_extreme", "opted_out", "corrupt_image"]
    assert run(server, monkeypatch, "build", write_config(folder, server, after, paths), "--to", "fetch") == set()
    run(server, monkeypatch, "build", write_config(clean, server, after, paths), "--to", "fetch")
    assert facts_of(folder, "detail") == facts_of(clean, "detail")
    assert list(outcomes(folder).values()) == ["body_too_large", "image_too_small", "image_too_small"]


def test_a_newer_failure_stays_a_failure(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = write_config(tmp_path, server, STRICT)
    server.is_down = lambda path: True
    run(server, monkeypatch, "build", strict, "--to", "fetch")
    server.is_down = lambda path: False
    run(server, monkeypatch, "retry", str(tmp_path / "work"))
    server.is_down = lambda path: True
    loose = write_config(tmp_path, server, OPEN)
    assert run(server, monkeypatch, "build", loose, "--to", "fetch") == set(DECIDED)
    assert run(server, monkeypatch, "build", loose, "--to", "fetch") == set()
    assert set(outcomes(tmp_path).values()) == {"http_5xx"}


@pytest.mark.parametrize("file", ["/robots.txt", "/licence.xml"])
def test_who_waited_for_a_file_that_does_not_count_any_more_is_asked(
    file: str, tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fails = {file: 500}
    strict = write_config(tmp_path, server, STRICT)
    run(server, monkeypatch, "build", strict, "--to", "fetch")
    assert set(outcomes(tmp_path).values()) == {"host_unavailable"}
    assert run(server, monkeypatch, "build", strict, "--to", "fetch") == set()
    loose = write_config(tmp_path, server, OPEN)
    assert run(server, monkeypatch, "build", loose, "--to", "fetch") == set(DECIDED)
    assert set(outcomes(tmp_path).values()) == {"ok"}
