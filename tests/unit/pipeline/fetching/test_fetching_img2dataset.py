"""The engine img2dataset: what it refuses to promise, and what its messages mean."""

from __future__ import annotations

import sys

import pytest
from fetched import fetch_rows

from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError, RunError
from pipeline.fetching import img2dataset_engine
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.img2dataset_engine import explain_message
from pipeline.fetching.settings import FetchSettings

FREE = {
    "robots_txt": False,
    "consent_signals": [],
    "profiles": [],
    "allow_private_addresses": True,
    "limits": {"requests_per_second": None, "connections": 32},
}


def settings_of(**network) -> FetchSettings:
    return parse_settings({"engine": "img2dataset", "network": {**FREE, **network}}, FetchSettings, "config")


def fetch(rows, pool, settings=None):
    settings = settings or settings_of()
    return fetch_rows(rows, settings, HostGate(settings.network), pool)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"robots_txt": True}, "robots_txt: false (it reads no robots.txt)"),
        ({"consent_signals": ["content_usage"]}, "consent_signals: [] (it reads none of them)"),
        ({"profiles": ["gbif"]}, "profiles: [] (it knows no limits of single hosts)"),
        ({"allow_private_addresses": False}, "allow_private_addresses: true (it checks no address)"),
        ({"allow_private_addresses": ["10.0.0.0/8"]}, "allow_private_addresses: true (it checks no address)"),
        ({"limits": {"connections": 32}}, "limits.requests_per_second: null (it keeps no rate)"),
        ({"limits": {"requests_per_second": None, "connections": 31}}, "limits.connections: 32 or more"),
        ({"hosts": [{"pattern": "a.org"}]}, "no hosts (it knows no limits of single hosts)"),
    ],
)
def test_each_protection_must_be_given_up_by_name(network, message):
    with pytest.raises(ConfigError) as found:
        settings_of(**network)
    assert str(found.value).endswith(f"what it cannot do: {message}") or message + " (each worker" in str(found.value)


def test_all_that_is_needed_is_said_at_once_and_our_own_engine_needs_none_of_it():
    with pytest.raises(ConfigError) as found:
        parse_settings({"engine": "img2dataset"}, FetchSettings, "config")
    for key in ("robots_txt: false", "allow_private_addresses: true", "requests_per_second: null", "connections: 32"):
        assert key in str(found.value)
    assert FetchSettings().engine == "plantmix"


def test_engine_is_no_part_of_the_recipe():
    with_it = settings_of()
    assert with_it.identity() == FetchSettings(network=with_it.network).identity()


def test_foreign_host_needs_a_contact_with_this_engine_too(tmp_path):
    with pytest.raises(ConfigError, match=r"contact is not set, and example\.org is not this machine"):
        fetch([("a" * 32, "http://example.org/a.jpg")], tmp_path / "p.tar")


def test_only_http_is_handed_over(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"\xff\xd8\xff")
    facts = fetch([("a" * 32, secret.as_uri()), ("b" * 32, "no address")], tmp_path / "p.tar").to_pylist()
    assert [fact["outcome"] for fact in facts] == ["refused_target", "invalid_url"]


def test_missing_package_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "img2dataset.downloader", None)
    with pytest.raises(ConfigError, match=r"img2dataset, which cannot be imported .*pip install .*\[img2dataset\]"):
        fetch([("a" * 32, "http://127.0.0.1:1/")], tmp_path / "p.tar")
    assert list(tmp_path.iterdir()) == []


def test_row_that_its_loop_loses_ends_the_part(tmp_path, monkeypatch):
    class Forgetful:
        def __init__(self, **_):
            pass

        def download_shard(self, row):
            assert row[0] == 0

    monkeypatch.setattr(img2dataset_engine, "_downloader_class", lambda: Forgetful)
    with pytest.raises(RunError, match=f"1 of 1 rows ended without a fact, the first is {'a' * 32}"):
        fetch([("a" * 32, "http://127.0.0.1:1/")], tmp_path / "p.tar")


@pytest.mark.parametrize(
    ("message", "outcome", "http_status"),
    [
        ("HTTP Error 404: Not Found", "http_404", 404),
        ("HTTP Error 410: Gone", "http_410", 410),
        ("HTTP Error 418: I'm a teapot, timed out", "http_4xx", 418),
        ("HTTP Error 429: Too Many Requests", "http_429", 429),
        ("HTTP Error 503: <urlopen error timed out>", "http_5xx", 503),
        ("HTTP Error 304: Not Modified", "bad_response", 304),
        ("HTTP Error 302: ... would lead to an infinite loop.\nThe last ...", "too_many_redirects", 302),
        ("HTTP Error 302: Found - Redirection to url 'file:///x?token=1' is not allowed", "refused_target", 302),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "dns_failure", None),
        ("<urlopen error [Errno 111] Connection refused>", "connect_failed", None),
        ("<urlopen error [Errno 104] Connection reset by peer>", "connection_reset", None),
        ("<urlopen error timed out>", "connect_timeout", None),
        ("<urlopen error _ssl.c:1000: The handshake operation timed out>", "connect_timeout", None),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] self-signed (_ssl.c:1006)>", "tls_failure", None),
        ("<urlopen error [SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred>", "connection_reset", None),
        ("The read operation timed out", "read_timeout", None),
        ("timed out", "read_timeout", None),
        ("[Errno 104] Connection reset by peer", "connection_reset", None),
        ("Remote end closed connection without response", "connection_reset", None),
        ("IncompleteRead(10 bytes read, 5 more expected)", "body_truncated", None),
        ("Use of image disallowed by X-Robots-Tag directive", "opted_out", None),
        ("nonnumeric port: 'password@example.org'", "bad_response", None),
        ("", "bad_response", None),
    ],
)
def test_messages_become_outcomes_and_are_not_quoted(message, outcome, http_status):
    found, detail, status = explain_message(message)
    assert (found.value, status) == (outcome, http_status)
    assert detail
    assert not any(word in detail for word in ("password", "token", "file:"))
