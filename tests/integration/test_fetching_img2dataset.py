"""Both engines on one server: the same pictures and facts, and every difference between them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from building import done, list_source, loopback, write_small_config
from fetched import fetch_rows
from misbehaving.answers import send_picture
from misbehaving.registry import BEHAVIOURS
from misbehaving.server import MisbehavingServer

from manifests.contract.tables import FACTS
from pipeline.fetching import img2dataset_engine
from pipeline.fetching import settings as bounds
from pipeline.fetching.engine import fetch_in_pieces
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.part import MEASURED
from pipeline.fetching.settings import FetchSettings

PHOTOS = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))
NOT_TOLD = ["http_status", "attempts", "final_url", "redirects"]
"""What img2dataset keeps to itself."""
NEVER_END = {"drip_fed_body", "slow_headers", "endless_chunks", "endless_stream", "endless_continue"}
"""Behaviours under which urllib waits, or reads into memory, until the server gives up."""
ELSEWHERE = {
    "private_name", "private_in_hex", "redirect_to_private", "redirect_to_metadata", "redirect_to_ipv6_loopback",
    "redirect_to_private_name", "redirect_to_other_host", "redirect_to_no_such_host", "no_such_host",
}  # fmt: skip
"""Behaviours that lead away from the server: urllib would really go there."""

pytestmark = pytest.mark.filterwarnings(
    # urllib leaves the answers of its errors to the garbage collector
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    # below what a silent server costs otherwise, above what a sound one takes on a busy machine
    monkeypatch.setattr(bounds, "CONNECT_SECONDS", 5.0)
    monkeypatch.setattr(bounds, "READ_SECONDS", 5.0)


def settings(engine: str) -> FetchSettings:
    values = {
        "engine": engine,
        "image": {"max_body_bytes": 2_000_000, "max_pixels": 50_000_000, "min_side_px": 16},
        "network": {
            "threads": 8,
            "total_timeout_seconds": 10.0,
            "retries": 0,
            "robots_txt": False,
            "consent_signals": [],
            "profiles": [],
            "allow_private_addresses": True,
            "limits": {"requests_per_second": None, "connections": 8},
        },
    }
    return FetchSettings.model_validate(values)


def fetch(urls, engine, pool):
    chosen = settings(engine)
    rows = [(f"{n:032x}", url) for n, url in enumerate(urls)]
    return fetch_rows(rows, chosen, HostGate(chosen.network), pool)


def test_same_pictures_and_facts(tmp_path):
    bodies = {f"photo{n}": path.read_bytes() for n, path in enumerate(PHOTOS)}
    extra = {name: lambda sock, request, body=body: send_picture(sock, body) for name, body in bodies.items()}
    bad = ["not_found", "server_error", "html_as_jpg", "jpeg_truncated", "one_pixel", "zero_bytes", "port_closed",
           "closes_at_once", "length_too_long", "silent", "opt_out_noai", "redirect_loop", "wrong_scheme", "no_host",
           "jpeg_with_gps", "exif_6", "png_alpha", "webp"]  # fmt: skip
    with MisbehavingServer(extra=extra) as server:
        urls = [server.url(name, "127.0.0.1") for name in [*bodies, *bad]]
        ours = fetch(urls, "plantmix", tmp_path / "ours.tar")
        theirs = fetch(urls, "img2dataset", tmp_path / "theirs.tar")
    assert ours["outcome"].to_pylist().count("ok") == len(PHOTOS) + 4
    assert theirs.schema == MEASURED
    told = [name for name in FACTS.names if name not in NOT_TOLD]
    passed = [outcome == "ok" for outcome in ours["outcome"].to_pylist()]
    assert theirs.select(told).filter(passed).equals(ours.select(told).filter(passed))
    measured = [name for name in told if name not in ("detail", "host")]
    assert theirs.select(measured).equals(ours.select(measured))
    assert (tmp_path / "theirs.tar").read_bytes() == (tmp_path / "ours.tar").read_bytes()


def test_what_is_not_told_is_null_and_never_guessed(tmp_path):
    with MisbehavingServer() as server:
        urls = [server.url(name, "127.0.0.1") for name in ("wrong_type", "not_found", "redirect_chain")]
        facts = fetch(urls, "img2dataset", tmp_path / "p.tar").to_pylist()
    assert [fact["http_status"] for fact in facts] == [None, 404, None]
    assert [fact["attempts"] for fact in facts] == [1, 1, 1]  # there are no retries
    assert {(fact["final_url"], fact["redirects"]) for fact in facts} == {(None, None)}
    assert {fact["host"] for fact in facts} == {f"127.0.0.1:{server.port}"}


DIFFERENCES = {  # behaviours that end otherwise: with our engine, with img2dataset
    "chunks_nonsense": ("bad_response", "body_truncated"),
    "credentials": ("ok", "http_4xx"),
    # Python 3.13 waits for bytes that were declared and never come
    "declared_too_large": ("body_too_large", "bad_response" if sys.version_info < (3, 13) else "read_timeout"),
    "deflate_bomb": ("body_too_large", "not_an_image"),
    "encoding_unknown": ("bad_response", "ok"),
    "gzip_bomb": ("body_too_large", "not_an_image"),
    "gzip_broken": ("bad_response", "not_an_image"),
    "gzip_cut_off": ("body_truncated", "not_an_image"),
    "gzip_unasked": ("ok", "not_an_image"),
    "length_nonsense": ("bad_response", "ok"),
    "length_twice": ("bad_response", "corrupt_image"),
    "opt_out_content_usage": ("opted_out", "ok"),
    "opt_out_of_a_redirect": ("opted_out", "ok"),
    "opt_out_semicolons": ("opted_out", "ok"),
    "opt_out_tdm_reservation": ("opted_out", "ok"),
    "owner_xmp": ("opted_out", "ok"),
    "owner_xmp_png": ("opted_out", "ok"),
    "partial": ("bad_response", "not_an_image"),
    "rsl_elsewhere": ("opted_out", "ok"),
    "rsl_empty": ("host_unavailable", "ok"),
    "rsl_endless": ("host_unavailable", "ok"),
    "rsl_failing": ("host_unavailable", "ok"),
    "rsl_for_pay": ("opted_out", "ok"),
    "rsl_large": ("host_unavailable", "ok"),
    "rsl_missing": ("host_unavailable", "ok"),
    "rsl_page": ("host_unavailable", "ok"),
    "rsl_private": ("host_unavailable", "ok"),
    "rsl_prohibits": ("opted_out", "ok"),
    "rsl_redirected": ("opted_out", "ok"),
    "rsl_silent": ("host_unavailable", "ok"),
    "tdmrep_all": ("opted_out", "ok"),
    "tdmrep_broken": ("host_unavailable", "ok"),
    "tdmrep_large": ("host_unavailable", "ok"),
    "tdmrep_looping": ("host_unavailable", "ok"),
    "tdmrep_packed": ("host_unavailable", "ok"),
    "tdmrep_pattern": ("opted_out", "ok"),
    "tdmrep_redirected": ("opted_out", "ok"),
    "tdmrep_silent": ("host_unavailable", "ok"),
}


def test_these_behaviours_and_no_others_end_otherwise(tmp_path):
    names = sorted(set(BEHAVIOURS) - NEVER_END - ELSEWHERE)
    with MisbehavingServer() as server:
        table = fetch([server.url(name, "127.0.0.1") for name in names], "img2dataset", tmp_path / "p.tar")
    ended = dict(zip(names, table["outcome"].to_pylist(), strict=True))
    # robots.txt rules and retries are switched off here: only the engine is compared
    switched_off = {name for name in names if "robots" in name or "busy" in name} | {
        "unavailable_once", "redirect_to_disallowed"}  # fmt: skip
    different = {
        name: (BEHAVIOURS[name].outcome, outcome)
        for name, outcome in ended.items()
        if outcome != BEHAVIOURS[name].outcome and name not in switched_off
    }
    assert different == DIFFERENCES


def test_what_img2dataset_keeps_on_disk_lies_in_the_scratch_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that is killed leaves it there, and the next one empties that folder."""
    seen = []
    folder = tempfile.TemporaryDirectory

    def noted(*values: str, **options: str) -> tempfile.TemporaryDirectory[str]:
        if options.get("prefix", "").startswith("plantmix"):
            seen.append(options["dir"])
        return folder(*values, **options)

    monkeypatch.setattr(img2dataset_engine.tempfile, "TemporaryDirectory", noted)
    chosen = settings("img2dataset")
    rows = [("0" * 32, "http://127.0.0.1:9/none.jpg")]
    scratch = str(tmp_path / "scratch")
    pieces = fetch_in_pieces(
        rows, chosen, HostGate(chosen.network), lambda: str(tmp_path / "pool.tar"), scratch=scratch
    )
    assert [piece.facts.num_rows for piece in pieces] == [1]
    assert seen == [scratch]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_change_of_engine_downloads_nothing_but_for_signals_that_it_did_not_hear(tmp_path):
    told = "fetch: engine img2dataset stores no signal of owners: when the config names another one, its pictures are"
    limits = {"connections": 32}
    fetching = loopback(retries=1, robots_txt=False, consent_signals=[], profiles=[], limits=limits)
    with MisbehavingServer(extra={"photo": lambda sock, request: send_picture(sock)}) as server:
        source = list_source(tmp_path, [server.url("photo", "127.0.0.1")])

        def build(**fetch: Any) -> str:
            config = write_small_config(tmp_path, source, fetch={**fetching, **fetch})
            return done("build", config, "--to", "fetch")

        assert told in build(engine="img2dataset")
        assert told not in build(engine="plantmix")
        assert [request.path for request in server.log] == ["/photo"]
        life = done("explain", tmp_path / "work", server.url("photo", "127.0.0.1"))
        assert "ok after an unknown number of attempts: " in life, "our own engine would have told the number"
        fetching["network"]["consent_signals"] = ["tdm_reservation"]
        assert "nobody listened to when 1 pictures were fetched: they are downloaded once more" in build()
        assert "nobody listened" not in build()
        assert [request.path for request in server.log] == ["/photo", "/photo"]


@pytest.mark.slow
def test_it_loads_where_python_has_no_imghdr():
    code = (
        "import sys; sys.modules['imghdr'] = None\n"  # as from Python 3.13
        "from pipeline.fetching.img2dataset_engine import _downloader_class\n"
        "print(_downloader_class().__name__, _downloader_class().__name__)"  # of one part, and of the next
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["Downloader"] * 2, ended.stderr
