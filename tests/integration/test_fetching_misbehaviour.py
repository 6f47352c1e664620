"""Every way the test server misbehaves ends in the outcome that its `BEHAVIOURS` says."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import tarfile
import threading
import time
from pathlib import Path
from typing import get_args

import imagehash
import pyarrow as pa
import pytest
from fetched import fetch_rows
from misbehaving.answers import with_everything
from misbehaving.registry import BEHAVIOURS
from misbehaving.server import MisbehavingServer
from PIL import Image
from waiting import wait_until

from manifests import __version__
from manifests.contract.outcomes import Outcome
from manifests.contract.tables import FACTS, SIGNALS
from pipeline.fetching import settings as bounds
from pipeline.fetching.addresses import system_lookup
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.http import HttpClient
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.fetching.settings import ConsentSignal, FetchSettings, HostLimits, NetworkSettings


def lookup(host: str) -> list[str]:
    if host.endswith(".test"):
        return ["127.0.0.1"]
    if host == "intranet.example":
        return ["192.168.0.1"]
    if host.endswith(".invalid"):
        raise OSError(-2, "Name or service not known")
    return system_lookup(host)


def impatient(**changes) -> NetworkSettings:
    values = {
        "threads": 48,
        "total_timeout_seconds": 300.0,
        "retries": 1,
        "limits": HostLimits(requests_per_second=None, connections=4),
        "contact": "tests@example.org",
        "allow_private_addresses": ("127.0.0.0/8",),
        "consent_signals": get_args(ConsentSignal),
        **changes,
    }
    return NetworkSettings(**values)


SETTINGS = FetchSettings(
    image=ImageSettings(max_body_bytes=2_000_000, max_pixels=50_000_000, min_side_px=16), network=impatient()
)


PATIENT = {"CONNECT": 300.0, "READ": 300.0, "BACKOFF": 0.05, "HOST_PATIENCE": 4.0}
LIMITS = (  # (behaviours, limits, total_timeout_seconds): what meets one limit has time without end for the others
    (re.compile("never_accepts"), {"CONNECT": 0.8}, 300.0),
    (re.compile("silent"), {"READ": 3.0}, 300.0),
    (re.compile("drip_fed|slow_headers"), {}, 3.0),
)


@contextlib.contextmanager
def limits(**changes):
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in (PATIENT | changes).items():
            monkeypatch.setattr(bounds, f"{name}_SECONDS", value)
        yield


@pytest.fixture(scope="module", autouse=True)
def patience():
    with limits():
        yield


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """All behaviours fetched as one part, but for those that wait until a limit is over: a part for each limit, since
    limits that are soon over would end others too on a slow machine."""
    folder = tmp_path_factory.mktemp("pool")
    pool = folder / "part.tar"
    names = sorted(BEHAVIOURS)
    late = [name for which, *_ in LIMITS for name in names if which.search(name)]
    names = [name for name in names if name not in late] + late
    with MisbehavingServer() as server:
        rows = {name: (f"{n:032x}", server.url(name)) for n, name in enumerate(names)}
        before = set(Path("/proc/self/fd").iterdir())
        num_threads = sum(thread.name.startswith(("fetch", "decode")) for thread in threading.enumerate())
        started = time.monotonic()
        with HttpClient(SETTINGS.network, lookup) as client:
            whole = [rows[name] for name in names if name not in late]
            tables = [fetch_rows(whole, SETTINGS, HostGate(SETTINGS.network), pool, client)]
        for number, (which, changes, total_seconds) in enumerate(LIMITS):
            network = impatient(total_timeout_seconds=total_seconds)
            settings = SETTINGS.model_copy(update={"network": network})
            some = [rows[name] for name in names if which.search(name)]
            with limits(**changes), HttpClient(network, lookup) as client:
                tables.append(fetch_rows(some, settings, HostGate(network), folder / f"{number}.tar", client))
        table = pa.concat_tables(tables)
        seconds = time.monotonic() - started
        left = sum(thread.name.startswith(("fetch", "decode")) for thread in threading.enumerate()) - num_threads
        facts = dict(zip(names, table.to_pylist(), strict=True))
        yield {
            "table": table,
            "facts": facts,
            "pool": pool,
            "log": list(server.log),
            "seconds": seconds,
            "threads_left": left,
            "before": before,
        }


@pytest.mark.parametrize("name", sorted(BEHAVIOURS))
def test_behaviour_ends_as_documented(fetched, name):
    fact = fetched["facts"][name]
    assert (fact["outcome"], fact["detail"]) == (BEHAVIOURS[name].outcome, fact["detail"])


def test_server_misbehaves_in_enough_ways_and_covers_every_outcome():
    assert len(BEHAVIOURS) >= 40
    of_the_web = {outcome.value for outcome in Outcome if not outcome.value.startswith(("file_", "takedown"))}
    assert {b.outcome for b in BEHAVIOURS.values()} == of_the_web


TRIED_BY = {  # of each signal of consent, some of the behaviours that send it
    "x_robots_directives": ("opt_out_noai",),
    "robots_txt": ("robots_txt",),
    "content_usage": ("opt_out_content_usage", "robots_txt_usage"),
    "tdm_reservation": ("opt_out_tdm_reservation",),
    "tdmrep_file": ("tdmrep_all", "tdmrep_pattern"),
    "rsl_licence": ("rsl_prohibits", "rsl_for_pay", "rsl_elsewhere"),
    "iptc_data_mining": ("owner_xmp", "owner_xmp_png"),
}


def test_every_signal_of_consent_is_tried():
    assert set(TRIED_BY) == {"x_robots_directives", "robots_txt", *get_args(ConsentSignal)}
    for names in TRIED_BY.values():
        assert {BEHAVIOURS[name].outcome for name in names} <= {"opted_out", "robots_disallowed"}, names


def test_nothing_hangs_and_nothing_leaks(fetched):
    assert fetched["seconds"] < 1200
    assert fetched["threads_left"] <= 0  # threads of tests before may have ended meanwhile
    # the server's side of open connections ends by its own sleep
    wait_until(lambda: len({*Path("/proc/self/fd").iterdir()} - fetched["before"]) <= 5)


def test_facts_are_whole_and_pool_holds_what_they_say(fetched):
    table = fetched["table"]
    assert table.schema == FACTS.append(SIGNALS)
    assert table["pool_file"].null_count == len(table)
    assert not any("secret" in str(fact) for fact in fetched["facts"].values())
    with tarfile.open(fetched["pool"]) as tar, fetched["pool"].open("rb") as raw:
        members = {member.name: (member.offset_data, member.size, member.mtime) for member in tar}
        kept = [fact for fact in table.to_pylist() if fact["outcome"] == "ok"]
        assert list(members) == [f"{fact['sample_id']}.jpg" for fact in kept]
        for fact in kept:
            assert members[f"{fact['sample_id']}.jpg"] == (fact["offset"], fact["length"], 0)
            raw.seek(fact["offset"])
            image = Image.open(io.BytesIO(raw.read(fact["length"])))
            assert int(str(imagehash.phash(image)), 16) == fact["phash"]
            assert image.size == (fact["stored_width_px"], fact["stored_height_px"])


def test_final_failures_are_asked_once_and_passing_ones_again(fetched):
    asked = {}
    for request in fetched["log"]:
        asked[request.path] = asked.get(request.path, 0) + 1
    for name in ("not_found", "gone", "forbidden", "opt_out_noai", "html_as_jpg", "huge_header", "gzip_bomb"):
        assert asked[f"/{name}"] == 1 == fetched["facts"][name]["attempts"], name
    for name in ("server_error", "busy_always", "length_too_long", "silent"):
        assert asked[f"/{name}"] == 2 == fetched["facts"][name]["attempts"], name
    on_kept = any(request.is_kept for request in fetched["log"] if request.path == "/resets_at_once")
    assert asked["/resets_at_once"] == 2 + on_kept, "the first try is sent once more where a kept connection ended"
    assert fetched["facts"]["resets_at_once"]["attempts"] == 2
    assert asked["/busy_for_hours"] == 1
    assert "/private/robots_txt" not in asked
    assert "/robots_txt_broken" not in asked
    assert asked["/redirect_loop"] == 1


def test_retry_after_is_kept_in_both_forms(fetched):
    for name in ("busy_seconds", "busy_date"):
        first, second = (r.seconds for r in fetched["log"] if r.path == f"/{name}")
        assert second - first >= 0.95


def test_every_request_says_who_asks(fetched):
    assert {r.headers["user-agent"] for r in fetched["log"]} == {f"PlantMix/{__version__} (tests@example.org)"}


def test_same_answers_give_the_same_bytes(tmp_path):
    network, settings = SETTINGS.network, SETTINGS
    with MisbehavingServer() as server:
        waiting = re.compile("busy|silent")  # for a time that is up
        names = [name for name, b in BEHAVIOURS.items() if b.outcome == "ok" and not waiting.search(name)]
        rows = [(f"{n:032x}", server.url(name)) for n, name in enumerate(names)]
        runs = []
        for run in range(2):
            pool = tmp_path / f"{run}.tar"
            with HttpClient(network, lookup) as client:
                table = fetch_rows(rows[:: 1 - 2 * run], settings, HostGate(network), pool, client)
            runs.append((table.drop_columns(["attempts"]), pool.read_bytes()))
    assert runs[0][0].equals(runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert {path.name for path in tmp_path.iterdir()} == {"0.tar", "1.tar"}


def test_redirects_are_recorded_and_secrets_in_them_are_not(fetched):
    facts = fetched["facts"]
    chain = facts["redirect_chain"]
    ends = [url.rpartition("/redirect_chain")[2] for url in [*chain["redirects"], chain["final_url"]]]
    assert ends == ["", "/1", "/2", "/3"]
    assert facts["redirect_to_other_host"]["final_url"].startswith("http://elsewhere.test:")
    assert facts["redirect_to_other_host"]["host"].startswith("elsewhere.test:")
    signed = facts["redirect_signed"]["final_url"]
    assert signed.endswith("/redirect_signed?w=640&X-Amz-Credential=***&X-Amz-Signature=***")
    assert any("X-Amz-Signature=5ec7e7" in request.path for request in fetched["log"]), "it was sent, though"
    assert facts["jpeg_grey"]["redirects"] == []
    assert not any("5ec7e7" in str(fact) for fact in facts.values())


def test_position_and_owner_of_a_photo_are_not_stored(fetched):
    fact = fetched["facts"]["jpeg_with_gps"]
    stored = fetched["pool"].read_bytes()[fact["offset"] : fact["offset"] + fact["length"]]
    assert b"Private" in with_everything()
    assert fact["image_id"] == hashlib.sha256(with_everything()).hexdigest()
    assert fact["stored_sha256"] == hashlib.sha256(stored).hexdigest() != fact["image_id"]
    assert not any(word in stored for word in (b"Private", b"Exif", b"at home", b"xmp", b"ftyp"))
    with Image.open(io.BytesIO(stored)) as image, Image.open(io.BytesIO(with_everything())) as given:
        assert image.tobytes() == given.tobytes(), "the same pixels, not encoded anew"
        assert dict(image.getexif()) == {}
