"""URLs as people write them, redirects, statuses, Retry-After, addresses."""

from __future__ import annotations

import email.utils
import ipaddress
import threading
import time

import pytest

from manifests.contract.outcomes import Outcome
from manifests.masking import mask_secrets
from pipeline.fetching import settings as bounds
from pipeline.fetching.addresses import LookupFailed, Resolver, TargetRefused, is_public
from pipeline.fetching.answers import parse_retry_after, refuse_status
from pipeline.fetching.settings import NetworkSettings
from pipeline.fetching.urls import BadURL, follow, parse_url


@pytest.mark.parametrize(
    ("text", "url", "host"),
    [
        ("http://a.org/x.jpg", "http://a.org/x.jpg", "a.org"),
        (" HTTPS://A.org:443/x y?q=ä&r=%20#part ", "https://a.org/x%20y?q=%C3%A4&r=%20", "a.org"),
        ("http://a.org:8080", "http://a.org:8080/", "a.org:8080"),
        ("http://a.org/100%.jpg", "http://a.org/100%25.jpg", "a.org"),
        ("http://bücher.example/ü", "http://xn--bcher-kva.example/%C3%BC", "xn--bcher-kva.example"),
        ("http://[2001:DB8::1]:81/x", "http://[2001:db8::1]:81/x", "[2001:db8::1]:81"),
        ("http://user:p%40ss@a.org/x", "http://a.org/x", "a.org"),
        ("http://a.org./x?", "http://a.org/x", "a.org"),
    ],
)
def test_urls(text, url, host):
    target = parse_url(text)
    assert (target.url, target.host) == (url, host)


def test_credentials_are_kept_apart_and_never_printed():
    target = parse_url("http://user:p%40ss@a.org/x")
    assert target.authorization == "Basic dXNlcjpwQHNz"
    assert "dXNlc" not in repr(target)
    assert follow(target, "/y").authorization == target.authorization
    assert follow(target, "http://b.org/y").authorization is None
    assert follow(target, "https://a.org/y").authorization is None


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("", Outcome.INVALID_URL),
        (None, Outcome.INVALID_URL),
        ("a.org/x.jpg", Outcome.INVALID_URL),
        ("http://", Outcome.INVALID_URL),
        ("http://a b/", Outcome.INVALID_URL),
        ("http://a.org:99999/", Outcome.INVALID_URL),
        ("http://a.org\r\nHost: b/", Outcome.INVALID_URL),
        ("http://" + "a" * 64 + ".org/", Outcome.INVALID_URL),
        ("http://a..org/", Outcome.INVALID_URL),
        ("http://[nonsense", Outcome.INVALID_URL),
        ("http://a.org/" + "x" * 9000, Outcome.INVALID_URL),
        ("file:///etc/passwd", Outcome.REFUSED_TARGET),
        ("data:image/png;base64,AAAA", Outcome.REFUSED_TARGET),
    ],
)
def test_bad_urls(text, outcome):
    with pytest.raises(BadURL) as found:
        parse_url(text)
    assert found.value.outcome is outcome


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/y", "http://a.org/y"),
        ("z?k=v", "http://a.org/d/z?k=v"),
        ("//b.org/y", "http://b.org/y"),
        ("", "http://a.org/d/x"),
    ],
)
def test_redirects(location, url):
    assert follow(parse_url("http://a.org/d/x"), location).url == url


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, None),
        (204, "empty_body"),
        (206, "bad_response"),
        (304, "bad_response"),
        (403, "http_4xx"),
        (404, "http_404"),
        (410, "http_410"),
        (429, "http_429"),
        (500, "http_5xx"),
        (599, "http_5xx"),
        (999, "bad_response"),
    ],
)
def test_statuses(status, outcome):
    assert refuse_status(status) == outcome


def test_retry_after_forms():
    assert parse_retry_after("120") == 120
    assert parse_retry_after(None) is None
    assert parse_retry_after("soon") is None
    assert parse_retry_after("-5") is None
    now = 1_700_000_000
    date, later = (email.utils.formatdate(now + n, usegmt=True) for n in (0, 90))
    assert parse_retry_after(later, date) == 90  # by the server's own clock, wrong as it may be
    assert parse_retry_after(date, later) == 0
    soon = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 55 < parse_retry_after(soon) <= 60


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.0.8",
        "198.18.0.1",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:db8::1",
        "fec0::1",
    ],
)
def test_inner_addresses_are_not_public(text):
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ["8.8.8.8", "193.166.3.2", "2a00:1450:4001::1", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_outer_addresses_are_public(text):
    assert is_public(ipaddress.ip_address(text))


def resolver(answer, allow=False, **changes):
    settings = NetworkSettings.model_validate({"allow_private_addresses": allow, **changes})
    return Resolver(settings, lambda host: answer)


def test_only_checked_addresses_are_given():
    assert resolver(["10.0.0.1", "8.8.8.8", "::1"]).addresses("a.org") == ["8.8.8.8"]
    with pytest.raises(TargetRefused, match=r"a\.org leads to 10\.0\.0\.1, which is not a public address"):
        resolver(["10.0.0.1"]).addresses("a.org")
    assert resolver(["10.0.0.1"], True).addresses("a.org") == ["10.0.0.1"]
    assert resolver(["10.0.0.1"], ("10.0.0.0/8",)).addresses("a.org") == ["10.0.0.1"]
    assert resolver(["10.0.0.1"], ("a.org",)).addresses("A.org") == ["10.0.0.1"]
    for allow in (("192.168.0.0/16",), ("b.org",)):
        with pytest.raises(TargetRefused):
            resolver(["10.0.0.1"], allow).addresses("a.org")


def test_lookup_that_hangs_is_cut_off_and_one_that_fails_is_remembered_briefly(monkeypatch):
    may_answer = threading.Event()
    slow = Resolver(NetworkSettings(), lambda host: may_answer.wait(600) and ["8.8.8.8"])
    with monkeypatch.context() as patched:
        patched.setattr(bounds, "CONNECT_SECONDS", 0.1)
        with pytest.raises(LookupFailed, match=r"no answer within 0\.1 s"):
            slow.addresses("a.org")
    may_answer.set()
    slow.close()
    asked = []

    def failing(host):
        asked.append(host)
        raise OSError(-2, "Name or service not known")

    broken = Resolver(NetworkSettings(), failing)
    for _ in range(3):
        with pytest.raises(LookupFailed, match="Name or service not known"):
            broken.addresses("a.org")
    assert asked == ["a.org"]
    broken.close()


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("X-Amz-Signature=5ec&X-Amz-Date=2026&w=640", "X-Amz-Signature=***&X-Amz-Date=***&w=640"),
        ("X-Goog-Credential=a%40b&alt=media", "X-Goog-Credential=***&alt=media"),
        ("sv=2024&sig=a%2Bb%3D", "sv=2024&sig=***"),
        ("Expires=17&Key-Pair-Id=APK&Policy=ab", "Expires=17&Key-Pair-Id=***&Policy=***"),
        ("accessToken=a&api_key=b&apikey=c&PASSWORD=d", "accessToken=***&api_key=***&apikey=***&PASSWORD=***"),
        ("u=eyJhbGciOi.eyJzdWIi.sig", "u=***"),
        ("v=Qm9v3kD9fLs02KxPz81nQwErTyUiOp5As7Df", "v=***"),
        ("Qm9v3kD9fLs02KxPz81nQwErTyUiOp5As7Df", "***"),
        ("keyword=rose&monkey=1&design=2", "keyword=rose&monkey=1&design=2"),
        ("id=550e8400-e29b-41d4-a716-446655440000", "id=550e8400-e29b-41d4-a716-446655440000"),
        ("hash=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b", "hash=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b"),
        ("f=IMG_20190412_123456_HDR_edited_final.jpg", "f=IMG_20190412_123456_HDR_edited_final.jpg"),
        ("token=&a&b=", "token=&a&b="),
    ],
)
def test_secrets_of_a_query_are_masked_and_identifiers_stay(query, shown):
    assert mask_secrets(query) == shown
    assert mask_secrets(shown) == shown
    target = parse_url(f"http://a.example/p.jpg?{query}")
    assert target.path == f"/p.jpg?{query}", "what is asked is whole"
    assert target.shown_url == f"http://a.example/p.jpg?{shown}"
    assert repr(target) == f"Target({target.shown_url})"
