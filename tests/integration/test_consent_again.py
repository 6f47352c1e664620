"""What owners said is kept with each row and judged again: a stricter build equals one that asks everything anew."""

from __future__ import annotations

import collections
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from building import list_source, loopback, write_small_config
from command_server import CommandServer
from misbehaving.answers import encode, pixels
from misbehaving.consent import licence
from misbehaving.owners import mining, with_xmp
from waiting import wait_until

from manifests.contract import tables
from manifests.contract.reader import open_reader
from pipeline import flow  # noqa: F401  (imported before `made` patches a table)
from pipeline.cli import main
from pipeline.fetching.settings import FetchSettings
from pipeline.stages.fetch import stage as fetch

ROBOTS = b"""User-agent: *
Disallow: /private/
Content-Usage: /art/ train-ai=n

User-agent: gentlebot
Disallow: /gentle/

License: /licence.xml
"""
LICENCE = licence('<permits type="usage">search</permits>', "/licensed/").encode()
TDMREP = b'[{"location": "/reserved/", "tdm-reservation": 1}]'
HEADERS = {
    "noai": ("X-Robots-Tag", "noai"),
    "noindex": ("X-Robots-Tag", "noindex"),
    "gentle": ("X-Robots-Tag", "gentlebot: noai"),
    "usage": ("Content-Usage", "train-ai=n"),
    "tdm": ("tdm-reservation", "1"),
}
MOVED = {"/moved/private": "/private/moved", "/moved/plain": "/plain/moved"}
PATHS = [
    *(f"/plain/{n}" for n in range(5)),
    *(f"/{place}/1" for place in ("private", "art", "reserved", "gentle", "licensed")),
    *(f"/header/{name}" for name in HEADERS),
    *MOVED,
    "/private/gone",
    "/plain/gone",
    "/header/tdm?text",
    "/mark/xmp",
    "/plain/tiny",
]
MARKS = {
    "xmp": with_xmp(mining("DMI-PROHIBITED-AIMLTRAINING")),
}
OPEN: dict[str, Any] = {"robots_txt": False, "x_robots_directives": [], "consent_signals": []}
STRICT: dict[str, dict[str, Any]] = {
    "robots_txt": {"robots_txt": True},
    "rsl_licence": {"robots_txt": True, "consent_signals": ["rsl_licence"]},
    "headers": {"x_robots_directives": ["noindex", "noai"], "consent_signals": ["tdm_reservation"]},
    "agent": {"robots_txt": True, "x_robots_directives": ["noai"], "user_agent": "gentlebot/1.0"},
    "all": {
        "robots_txt": True,
        "x_robots_directives": ["noai", "noindex"],
        "consent_signals": ["content_usage", "tdm_reservation", "tdmrep_file", "rsl_licence", "iptc_data_mining"],
    },
}


SITE_FILES = {"/robots.txt": ROBOTS, "/.well-known/tdmrep.json": TDMREP, "/licence.xml": LICENCE}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(self.server.fails.get(self.path))

    def _answer(self, status: int | None) -> None:
        self.server.asked[self.command, self.path] += 1
        name, headers = self.path.rpartition("/")[2], {}
        body = SITE_FILES.get(self.path)
        if body is None and self.server.holds_after is not None and self.server.asked.total() > self.server.holds_after:
            self.server.let_go.wait(600)
        if self.path in MOVED:
            status, headers = 302, {"Location": MOVED[self.path]}
        elif name == "gone":
            status = 404
        elif body is None:
            first = name.partition("?")[0]
            headers = dict([HEADERS[first]]) if self.path.startswith("/header/") else {}
            body = MARKS.get(name) or _picture(self.path)
        self.send_response(status or 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")

    def log_message(self, *_: Any) -> None:
        pass


def _picture(path: str) -> bytes:
    if path.endswith("?text"):
        return b"<html>no picture</html>"
    size = (20, 20) if path.endswith("tiny") else (96, 64)
    return encode(pixels(*size, seed=sum(path.encode())), quality=90)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: collections.Counter[tuple[str, str]] = collections.Counter()
        self.fails: dict[str, int] = {}  # paths, with the status of their answer
        self.holds_after: int | None = None  # requests, after which a picture waits until it is let go
        self.let_go = threading.Event()


@pytest.fixture(scope="module")
def server() -> Iterator[_Server]:
    with _Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


def write_config(folder: Path, server: _Server, network: dict[str, Any], paths: list[str] = PATHS, **run: Any) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    source = list_source(folder, [f"http://127.0.0.1:{server.server_address[1]}{path}" for path in paths])
    fetch = loopback(**{"threads": 4, "profiles": [], "limits": {"connections": 4}, **OPEN, **network})
    return write_small_config(folder, source, fetch=fetch, dedup={"radius": 0}, run={"fetch_part_size": 7, **run})


def build(
    folder: Path, server: _Server, network: dict[str, Any], *options: str, **run: Any
) -> collections.Counter[tuple[str, str]]:
    """Build; gives what was asked of the server for it."""
    config = write_config(folder, server, network, **run)
    server.asked.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.commands.build.check_config", lambda *_: [])
        patch.setattr("pipeline.fetching.http._client", None)  # which remembers robots.txt
        assert main(["build", str(config), *options]) == 0
    return +server.asked


def outcomes(folder: Path) -> dict[str, str]:
    with open_reader(str(folder / "work")) as connection:
        rows = connection.sql("SELECT url, outcome FROM facts JOIN candidates USING (sample_id)").fetchall()
    return {url.partition("//")[2].partition("/")[2]: outcome for url, outcome in rows}


def facts_of(folder: Path) -> list[tuple[Any, ...]]:
    """What is known of each row, apart from how it was asked and where it lies."""
    with open_reader(str(folder / "work")) as connection:
        return connection.sql(
            'SELECT * EXCLUDE (pool_file, "offset", attempts, http_status, final_url, redirects) FROM facts ORDER BY 1'
        ).fetchall()


def is_site_file(request: tuple[str, str]) -> bool:
    return request[1] in SITE_FILES


@pytest.fixture(scope="module")
def made(server: _Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders that were made under some settings from the start: `name` of STRICT, or OPEN."""
    folders: dict[str, Path] = {}

    def make(name: str, *options: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                if name == "unstored":  # as versions did that stored nothing of what was said
                    signals = tables.FETCHED.get_field_index("signals")
                    patch.setitem(fetch.STAGE.tables, "fetched", tables.FETCHED.remove(signals))
                build(folders[name], server, STRICT.get(name, OPEN), *options)
        return folders[name]

    return make


TO_FETCH = ("--to", "fetch")


@pytest.mark.parametrize("name", ["all", pytest.param("agent", marks=pytest.mark.slow)])
def test_what_was_said_is_judged_again(tmp_path: Path, server: _Server, made: Any, name: str) -> None:
    shutil.copytree(made("stored", *TO_FETCH), tmp_path, dirs_exist_ok=True)
    loose = facts_of(tmp_path)
    asked = build(tmp_path, server, STRICT[name], *TO_FETCH)
    assert facts_of(tmp_path) == facts_of(made(name, *TO_FETCH))
    assert set(asked.values()) <= {1}
    pictures = {path for _, path in asked} - {*SITE_FILES}
    refused = {f"/{path}" for path, outcome in outcomes(tmp_path).items() if outcome == "opted_out"}
    assert "/plain/1" in pictures, "it lacks what robots.txt says"
    assert not {path for path in refused & pictures if path.startswith(("/header/", "/mark/"))}, "that was stored"
    needs = {
        *({("GET", "/robots.txt")} if STRICT[name].get("robots_txt") else ()),
        *({("GET", "/licence.xml")} if "rsl_licence" in STRICT[name].get("consent_signals", ()) else ()),
        *({("GET", "/.well-known/tdmrep.json")} if "tdmrep_file" in STRICT[name].get("consent_signals", ()) else ()),
    }
    assert {request for request in asked if is_site_file(request)} == needs
    assert build(tmp_path, server, STRICT[name], *TO_FETCH) == {}

    back = build(tmp_path, server, OPEN, *TO_FETCH)
    refused = {path for path, outcome in outcomes(made(name)).items() if outcome in ("opted_out", "robots_disallowed")}
    assert {path.lstrip("/") for _, path in back} <= refused | {path.lstrip("/") for path in MOVED.values()}
    assert facts_of(tmp_path) == loose


@pytest.mark.slow
@pytest.mark.parametrize("name", ["headers", "robots_txt"])
def test_what_was_not_stored_is_asked_for(tmp_path: Path, server: _Server, made: Any, name: str) -> None:
    shutil.copytree(made("unstored", *TO_FETCH), tmp_path, dirs_exist_ok=True)
    asked = build(tmp_path, server, STRICT[name], *TO_FETCH)
    assert facts_of(tmp_path) == facts_of(made(name, *TO_FETCH))
    assert set(asked.values()) <= {1}
    assert {method for method, _ in asked} == {"GET"}, "the request that fetches the picture hears all"
    if name == "robots_txt":
        assert ("GET", "/private/1") not in asked
    else:
        assert ("GET", "/plain/gone") not in asked
    assert build(tmp_path, server, STRICT[name], *TO_FETCH) == {}
    build(tmp_path, server, OPEN, *TO_FETCH)
    assert outcomes(tmp_path)["header/noai"] == "ok"


def test_a_stored_picture_that_is_gone_stays_where_its_host_was_heard(
    tmp_path: Path, server: _Server, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made("stored", *TO_FETCH), tmp_path, dirs_exist_ok=True)
    anew = facts_of(made("robots_txt", *TO_FETCH))
    monkeypatch.setattr(server, "fails", {"/plain/1": 404, "/plain/2": 503})
    asked = build(tmp_path, server, STRICT["robots_txt"], *TO_FETCH)
    assert {("GET", "/plain/1"), ("GET", "/plain/2")} <= set(asked)
    assert facts_of(tmp_path) == anew
    assert build(tmp_path, server, STRICT["robots_txt"], *TO_FETCH) == {}


@pytest.mark.slow
def test_a_host_that_does_not_tell_keeps_its_pictures_out_until_it_does(
    tmp_path: Path, server: _Server, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made("unstored", *TO_FETCH), tmp_path, dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(_Handler, "do_GET", lambda handler: handler._answer(503))
        build(tmp_path, server, STRICT["robots_txt"], *TO_FETCH, max_passing_share=1)
    assert set(outcomes(tmp_path).values()) == {"host_unavailable"}
    server.asked.clear()
    assert main(["retry", str(tmp_path / "work")]) == 0
    assert server.asked["GET", "/plain/1"] == 1
    build(tmp_path, server, STRICT["robots_txt"], *TO_FETCH)
    assert facts_of(tmp_path) == facts_of(made("robots_txt", *TO_FETCH))


@pytest.mark.slow
def test_a_licence_is_obeyed_after_a_kill_on_the_way(
    tmp_path: Path,
    server: _Server,
    made: Any,
    commands: CommandServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path, server, STRICT["rsl_licence"])
    server.asked.clear()
    monkeypatch.setattr(server, "holds_after", 12)
    process = commands.start("plantmix", "build", config, *TO_FETCH)
    wait_until(lambda: server.asked.total() >= 13, process)
    process.kill()
    process.wait(600)
    assert server.asked["GET", "/licence.xml"] == 1, "once a host, whatever the pictures"
    server.let_go.set()
    monkeypatch.undo()
    build(tmp_path, server, STRICT["rsl_licence"], *TO_FETCH)
    assert facts_of(tmp_path) == facts_of(made("rsl_licence", *TO_FETCH))
    url = f"http://127.0.0.1:{server.server_address[1]}/licensed/1"
    capsys.readouterr()
    assert main(["explain", str(tmp_path / "work"), url]) == 0
    assert "opted_out" in (said := capsys.readouterr().out)
    assert "RSL: training is not among what it permits" in said
    assert build(tmp_path, server, STRICT["rsl_licence"], *TO_FETCH) == {}


def test_what_will_be_asked_again_is_said_before(
    tmp_path: Path, server: _Server, made: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made("unstored", *TO_FETCH), tmp_path, dirs_exist_ok=True)
    server.asked.clear()

    def estimate(network: dict[str, Any]) -> str:
        capsys.readouterr()
        config = write_config(tmp_path, server, network)
        assert main(["estimate", str(config)]) == 0
        return capsys.readouterr().out

    assert "22 addresses are in the work folder already\nnothing to download\n" in estimate({})
    again = "signals of consent count now that nobody listened to when {} of them were fetched"
    rules = estimate(STRICT["robots_txt"])
    assert again.format(18) in rules
    assert "22 distinct addresses on 1 host" in rules
    every = estimate(STRICT["all"])
    assert again.format(17) in every, "one says so itself"
    assert "21 distinct addresses on 1 host" in every
    assert server.asked == {}
    build(tmp_path, server, STRICT["all"], *TO_FETCH)
    assert (
        "fetch: signals of consent count now that nobody listened to when 17 pictures were fetched: they are "
        "downloaded once more\n"
    ) in capsys.readouterr().err
    config = write_config(tmp_path, server, STRICT["all"])
    config.write_text(config.read_text().replace("  network:", "  image: {size_px: 64}\n  network:"))
    assert main(["build", str(config), *TO_FETCH]) == 0
    said = capsys.readouterr().err
    assert "pictures are downloaded again: fetch.image.size_px is 64, was 256\n" in said
    assert main(["estimate", str(config)]) == 0
    assert "nothing to download" in capsys.readouterr().out


def test_the_recipe_holds_what_counts() -> None:
    config = {"network": {"x_robots_directives": ["NoIndex", "noai"], "consent_signals": ["tdm_reservation"]}}
    recipe = FetchSettings.model_validate(config).identity()
    assert recipe["consent"] == {
        "agent_token": "plantmix",
        "robots_txt": True,
        "directives": ("noai", "noindex"),
        "signals": ("tdm_reservation",),
    }
    config["network"]["x_robots_directives"] = ["noai", "noindex"]
    assert FetchSettings.model_validate(config).identity() == recipe, "an order decides nothing"
