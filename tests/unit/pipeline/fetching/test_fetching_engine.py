"""A part from rows to facts, the settings, the life of a visit."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from fetched import fetch_rows

from manifests import __version__
from manifests.contract.outcomes import Outcome
from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError, RunError
from pipeline.fetching import decoding, engine
from pipeline.fetching.answers import Answer
from pipeline.fetching.consent.statements import (
    LICENCE_FAILED,
    ROBOTS_FAILED,
    TDMREP_FAILED,
    Consent,
    RobotsRules,
    parse_robots,
)
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.http import client_of_this_program
from pipeline.fetching.part import MEASURED
from pipeline.fetching.settings import FetchSettings, NetworkSettings
from pipeline.fetching.urls import parse_url
from pipeline.fetching.visits import AskAgain, Download, SiteFiles, Visit, failure_of, host_result, next_step

LOCAL = FetchSettings(network=NetworkSettings(allow_private_addresses=True, robots_txt=False, retries=0))


def fetch(rows, pool, settings=LOCAL):
    return fetch_rows(rows, settings, HostGate(settings.network), pool)


# ---- a part


def test_part_without_rows_and_part_without_pictures(tmp_path):
    table = fetch([], tmp_path / "none.tar")
    assert table.schema == MEASURED
    assert table.num_rows == 0
    table = fetch([("b" * 32, "ftp://a"), ("a" * 32, "nothing")], tmp_path / "bad.tar")
    assert table["sample_id"].to_pylist() == ["a" * 32, "b" * 32]
    assert table["outcome"].to_pylist() == ["invalid_url", "refused_target"]
    with tarfile.open(tmp_path / "bad.tar") as tar:
        assert tar.getnames() == []


def test_our_own_engine_imports_nothing_of_img2dataset(tmp_path):
    code = (
        "import sys; from pipeline.fetching.engine import fetch_in_pieces;from pipeline.fetching.hosts import HostGate;"
        "from pipeline.fetching.settings import FetchSettings; settings = FetchSettings();"
        f"pool, gate = {str(tmp_path / 'p.tar')!r}, HostGate(settings.network);"
        "list(fetch_in_pieces([('a' * 32, 'ftp://a')], settings, gate, lambda: pool));"
        "print([m for m in ('img2dataset', 'torch', 'cv2', 'albumentations', 'wandb') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (out.stdout, out.stderr) == ("[]\n", "")


def test_img2dataset_is_imported_in_the_file_of_its_engine_alone():
    importing = re.compile(r"^\s*(import|from) img2dataset\b", re.MULTILINE)
    package = Path(engine.__file__).parents[1]
    found = [path for path in package.rglob("*.py") if importing.search(path.read_text(encoding="utf-8"))]
    assert [path.relative_to(package).as_posix() for path in found] == ["fetching/img2dataset_engine.py"]


def test_defect_in_measuring_ends_the_part_instead_of_losing_a_row(tmp_path, monkeypatch):
    picture = Download(Outcome.OK, "", 200, 1, "a", "http://a/", (), b"body")

    class Finished:
        def __init__(self, urls, *_):
            self.urls = urls

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def take(self):
            return 0, picture

    def broken(body, settings, **options):
        raise ZeroDivisionError("a defect of ours")

    monkeypatch.setattr(engine, "Scheduler", Finished)
    monkeypatch.setattr(decoding, "measure_image", broken)
    with pytest.raises(ZeroDivisionError, match="a defect of ours"):
        fetch([("a" * 32, "http://localhost/")], tmp_path / "p.tar")
    assert list(tmp_path.iterdir()) == []


def test_row_without_a_fact_is_an_error(tmp_path, monkeypatch):
    class Forgetful(decoding.Decoders):
        def results(self, num):
            yield 0, Download(Outcome.HTTP_404, "status 404", 404, 1), None

    monkeypatch.setattr(engine, "Decoders", Forgetful)
    with pytest.raises(RunError, match=f"1 of 2 rows ended without a fact, the first is {'b' * 32}"):
        fetch([("a" * 32, "http://localhost/"), ("b" * 32, "http://localhost/b")], tmp_path / "p.tar")


# ---- settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": {"sizepx": 3}}, "unknown key 'image.sizepx'; did you mean 'size_px'?"),
        ({"image": {"max_pixels": 10**9}}, "less than or equal to 178956970"),
        ({"network": {"allow_private_addresses": ["10.0.0.0/99"]}}, "10.0.0.0/99"),
        ({"network": {"allow_private_addresses": ["a b"]}}, "neither a network like 10.0.0.0/8 nor a host name"),
        ({"network": {"user_agent": "Mozilla 5"}}, "user_agent"),
        ({"network": {"contact": "a\nb: c"}}, "contact"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(ConfigError) as found:
        parse_settings(values, FetchSettings, "config")
    assert message in str(found.value)


def test_identity_holds_what_changes_a_picture_and_nothing_of_the_network():
    plain = FetchSettings()
    faster = FetchSettings.model_validate({"network": {"threads": 99, "contact": "me@example.org"}})
    larger = FetchSettings.model_validate({"image": {"size_px": 384}})
    assert plain.identity() == faster.identity() != larger.identity()


def test_parts_of_one_process_share_a_client_until_the_settings_change():
    first = client_of_this_program(NetworkSettings())
    assert client_of_this_program(NetworkSettings()) is first
    assert client_of_this_program(NetworkSettings(threads=3)) is not first


def test_first_fitting_override_counts():
    settings = NetworkSettings.model_validate(
        {"hosts": [{"pattern": "*.Flickr.com", "requests_per_second": 50, "shared": True}, {"pattern": "*:8080"}]}
    )
    assert settings.limits_of("live.flickr.com")[0] == "*.flickr.com"
    assert settings.limits_of("live.flickr.com:8443")[1].requests_per_second == 50
    assert settings.limits_of("a.org:8080") == ("a.org:8080", settings.hosts[1])
    assert settings.limits_of("a.org") == ("a.org", settings.limits)


def test_user_agent_names_the_contact():
    settings = NetworkSettings(contact="https://example.org/bot")
    assert settings.user_agent_header == f"PlantMix/{__version__} (https://example.org/bot)"
    assert settings.agent_token == "plantmix"
    settings.require_contact(["http://example.org/"])
    NetworkSettings().require_contact(["http://127.0.0.1:1/", "http://localhost/", "nonsense", "http://[x", "ftp://a"])


# ---- the life of a visit

NETWORK = NetworkSettings(retries=2)


def visit(url="http://a.org/x", attempts=1):
    target = parse_url(url)
    return Visit(0, target, target, attempts=attempts)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_only_failures_that_may_pass_soon_are_tried_again(outcome):
    body = b"x" if outcome is Outcome.OK else b""
    step = next_step(visit(), Answer(outcome, "why", body=body), NETWORK, lambda: 0.5)
    later = (Outcome.DEADLINE_EXCEEDED, Outcome.HOST_UNAVAILABLE, Outcome.FILE_MISSING, Outcome.FILE_UNREADABLE)
    tried = outcome.passing and outcome not in later
    assert isinstance(step, AskAgain) is tried
    if not tried:
        assert (step.outcome, step.body, step.final_url) == (outcome, body, "http://a.org/x")
    last = next_step(visit(attempts=3), Answer(outcome, "why", body=body), NETWORK)
    assert last.outcome is outcome
    assert last.attempts == 3


def test_pauses_between_attempts_double_with_jitter():
    waits = [
        next_step(visit(attempts=n), Answer(Outcome.READ_TIMEOUT), NETWORK, jitter).wait_seconds
        for n in (1, 2)
        for jitter in (lambda: 0.0, lambda: 1.0)
    ]
    assert waits == [0.5, 1.5, 1.0, 3.0]


def test_retry_begins_at_the_first_url():
    row = visit()
    assert next_step(row, Answer(Outcome.OK, http_status=302, location="http://b.org/y"), NETWORK) == AskAgain(0.0)
    assert row.target.url == "http://b.org/y"
    next_step(row, Answer(Outcome.HTTP_5XX, http_status=500), NETWORK)
    assert (row.target.url, row.num_redirects) == ("http://a.org/x", 0)


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (Answer(Outcome.OK, http_status=200), "answered"),
        (Answer(Outcome.HTTP_404, http_status=404), "answered"),
        (Answer(Outcome.HTTP_4XX, http_status=403), "forbidden"),
        (Answer(Outcome.HTTP_429, http_status=429), "busy"),
        (Answer(Outcome.HTTP_5XX, http_status=503), "busy"),
        (Answer(Outcome.HTTP_5XX, http_status=500), "answered"),
        (Answer(Outcome.HTTP_5XX, http_status=500, retry_after_seconds=3), "busy"),
        (Answer(Outcome.DNS_FAILURE, was_sent=False), "unreachable"),
        (Answer(Outcome.CONNECTION_RESET), "unreachable"),
        (Answer(Outcome.REFUSED_TARGET, was_sent=False), "unused"),
    ],
)
def test_what_the_gate_learns(answer, result):
    target = parse_url("http://a.org/x")
    assert host_result(answer, Visit(0, target, target)) == result
    robots = host_result(answer, Visit(None, target, target))
    assert robots == ("answered" if result == "forbidden" else result), "a store has no robots.txt, and answers 403"


FOR_NOW = Outcome.HOST_UNAVAILABLE


@pytest.mark.parametrize(
    ("answer", "ends"),
    [  # of robots.txt, tdmrep.json and a licence: None where the rows may go on
        (Outcome.OK, (None, None, None)),
        (Outcome.EMPTY_BODY, (None, None, FOR_NOW)),
        (Outcome.HTTP_404, (None, None, FOR_NOW)),
        (Outcome.HTTP_410, (None, None, FOR_NOW)),
        (Outcome.HTTP_4XX, (None, None, FOR_NOW)),
        (Outcome.HTTP_429, (FOR_NOW, FOR_NOW, FOR_NOW)),
        (Outcome.HTTP_5XX, (FOR_NOW, FOR_NOW, FOR_NOW)),
        (Outcome.BAD_RESPONSE, (FOR_NOW, FOR_NOW, FOR_NOW)),
        (Outcome.BODY_TRUNCATED, (FOR_NOW, FOR_NOW, FOR_NOW)),
        (Outcome.BODY_TOO_LARGE, (FOR_NOW, FOR_NOW, FOR_NOW)),
        (Outcome.TOO_MANY_REDIRECTS, (FOR_NOW, FOR_NOW, FOR_NOW)),
        (Outcome.INVALID_URL, (FOR_NOW, FOR_NOW, FOR_NOW)),
        (Outcome.HOST_UNAVAILABLE, (FOR_NOW, FOR_NOW, FOR_NOW)),
        # whatever is below HTTP would meet the rows too
        (Outcome.DNS_FAILURE, (Outcome.DNS_FAILURE, FOR_NOW, FOR_NOW)),
        (Outcome.READ_TIMEOUT, (Outcome.READ_TIMEOUT, FOR_NOW, FOR_NOW)),
        (Outcome.TLS_FAILURE, (Outcome.TLS_FAILURE, FOR_NOW, FOR_NOW)),
        (Outcome.REFUSED_TARGET, (Outcome.REFUSED_TARGET, FOR_NOW, FOR_NOW)),
    ],
)
def test_what_a_file_of_a_site_means_by_its_answer(answer, ends):
    asked = visit("http://a.org/robots.txt")
    for kind, end in zip((ROBOTS_FAILED, TDMREP_FAILED, LICENCE_FAILED), ends, strict=True):
        found = failure_of(kind, asked, Download(answer, "so", host="a.org"))
        assert (found and found[0]) == end, (kind, answer)
        assert found is None or found[1].startswith(f"{kind}{answer.value} so")
    elsewhere = failure_of(ROBOTS_FAILED, asked, Download(answer, "", host="b.org"))  # behind a redirect
    assert (elsewhere and elsewhere[0]) == (FOR_NOW if ends[0] else None)


def bodies_in_turn(consent, *bodies):
    """The rules of a site whose files have these bodies, and the paths that were asked for."""
    files = SiteFiles(parse_url("http://a.org/x"), consent, [])
    asked, step = [], files.first()
    for body in bodies:
        asked.append(step.target.path)
        step = files.take(step, Download(Outcome.OK, "", host="a.org", body=body))
        if not isinstance(step, Visit):
            break
    return step, asked


EVERY = Consent("plantmix", True, (), ("content_usage", "rsl_licence", "tdmrep_file"))
LICENCE = b'<rsl xmlns="https://rslstandard.org/rsl"><content url="/"><license/></content></rsl>'


def test_each_file_of_a_site_is_asked_for_once():
    robots = b"User-agent: *\nLicense: /a.xml\nLicense: /a.xml\nLicense: http://a.org/a.xml\nLicense: /b.xml\n"
    rules, asked = bodies_in_turn(EVERY, robots, b"[]", LICENCE, LICENCE)
    assert isinstance(rules, RobotsRules)
    assert asked == ["/robots.txt", "/.well-known/tdmrep.json", "/a.xml", "/b.xml"]
    for own in (b"/robots.txt", b"/.well-known/tdmrep.json"):
        end, asked = bodies_in_turn(EVERY, b"License: " + own)
        assert (end[0], asked) == (FOR_NOW, ["/robots.txt"])
    end, _ = bodies_in_turn(EVERY, b"".join(b"License: /%d.xml\n" % number for number in range(11)))
    assert end == (FOR_NOW, "the licence that robots.txt names: 11 are named, 10 are read")
    end, _ = bodies_in_turn(EVERY, b"License: ftp://a.org/licence.xml\n")
    assert end[0] is FOR_NOW


@pytest.mark.parametrize(
    ("bodies", "ends"),
    [
        ((b"", b"", LICENCE), None),
        ((b"<html>Disallow: /</html>", b"<html></html>", LICENCE), None),
        ((b"User-agent: *\nAllow: /", b'{"not": "a list"}', LICENCE), None),
        ((b"License: /a.xml", b"[" + b" " * (512 << 10), LICENCE), FOR_NOW),
        ((b"License: /a.xml", b"<p>" + b" " * (512 << 10), LICENCE), None),
        ((b"License: /a.xml", b"[]", b"<html>not found"), FOR_NOW),
        ((b"License: /a.xml", b"[]", LICENCE[:-3]), FOR_NOW),
        ((b"License: /a.xml", b"[]", b""), FOR_NOW),
    ],
)
def test_what_a_file_of_a_site_means_by_its_body(bodies, ends):
    found, _ = bodies_in_turn(EVERY, *bodies)
    assert (found[0] if isinstance(found, tuple) else None) == ends


def test_of_a_long_robots_txt_the_first_512_kib_count():
    long = b"User-agent: *\nDisallow: /no\n" + b"# more\n" * 80_000 + b"Allow: /no\n"
    assert not parse_robots(long, "plantmix").allows("/no")
    cut = b"User-agent: *\nDisallow: /\n".ljust((512 << 10) - 9) + b"\nAllow: /very/long/path"
    assert not parse_robots(cut, "plantmix").allows("/v"), "a line that is cut does not count"
    assert not parse_robots("User-agent: *\nDisallow: /".encode("utf-16"), "plantmix").allows("/")


def test_row_of_a_closed_host_keeps_its_own_last_failure():
    row = visit()
    assert row.give_up("host cannot be reached").outcome is Outcome.HOST_UNAVAILABLE
    row.last_answer = Answer(Outcome.HTTP_429, "status 429", 429)
    ended = row.give_up("host asked to be left alone")
    assert (ended.outcome, ended.detail) == (Outcome.HTTP_429, "status 429; host asked to be left alone")
