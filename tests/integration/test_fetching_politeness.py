"""Politeness, proven from the server's own log: rate, connections, pauses, dead and slow hosts."""

from __future__ import annotations

import collections
import socket
from pathlib import Path

import pytest
from fetched import fetch_rows
from misbehaving.answers import send, send_picture
from misbehaving.server import SITE_FILES, MisbehavingServer
from waiting import be_slow, wait_until

from pipeline.fetching import settings as bounds
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.http import HttpClient
from pipeline.fetching.settings import FetchSettings, NetworkSettings


def lookup(host: str) -> list[str]:
    return ["127.0.0.1"]


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    """Only what fails on purpose does so soon: whatever else happens may take a slow machine's time."""
    monkeypatch.setattr(bounds, "CONNECT_SECONDS", 300.0)
    monkeypatch.setattr(bounds, "READ_SECONDS", 300.0)
    monkeypatch.setattr(bounds, "BACKOFF_SECONDS", 0.05)


def network(**changes) -> NetworkSettings:
    values = {
        "threads": 8,
        "total_timeout_seconds": 300.0,
        "retries": 1,
        "limits": {"requests_per_second": None, "connections": 4},
        "contact": "tests@example.org",
        "allow_private_addresses": True,
        **changes,
    }
    return NetworkSettings.model_validate(values)


class NotingClient(HttpClient):
    """Notes whose requests ended, in their order."""

    def __init__(self, *given):
        super().__init__(*given)
        self.ended = []

    def send(self, target, max_body_bytes, max_seconds, done, **options):
        def ends(end):
            self.ended.append(target.hostname)
            done(end)

        super().send(target, max_body_bytes, max_seconds, ends, **options)


def fetch(urls, settings, pool, gate=None, ended=None):
    """`ended` is filled with the hosts of requests, in the order in which those ended."""
    rows = [(f"{n:032x}", url) for n, url in enumerate(urls)]
    with NotingClient(settings, lookup) as client:
        client.ended = [] if ended is None else ended
        table = fetch_rows(rows, FetchSettings(network=settings), gate or HostGate(settings), pool, client)
    return table.to_pylist()


def photo_now(sock, request):
    send_picture(sock)


@pytest.mark.parametrize("robots", [True, False])
def test_dead_host_slows_nobody_and_is_soon_left_alone(tmp_path, monkeypatch, robots):
    monkeypatch.setattr(bounds, "BREAKER_FAILURES", 4)
    monkeypatch.setattr(bounds, "CONNECT_SECONDS", 3.0)
    ended = []
    settings = network(threads=6, robots_txt=robots, retries=1)
    with MisbehavingServer(extra={"photo": photo_now}) as server:
        dead = [server.url("never_accepts", "dead.test") + f"/{n}" for n in range(60)]
        good = [server.url("photo", "good.test") + f"/{n}" for n in range(60)]
        facts = fetch(
            [url for pair in zip(dead, good, strict=True) for url in pair], settings, tmp_path / "p", None, ended
        )
    outcomes = collections.Counter(fact["outcome"] for fact in facts)
    assert outcomes["ok"] == 60
    last_answer = max(place for place, host in enumerate(ended) if host == "good.test")
    assert ended[:last_answer].count("dead.test") < 84, "60 rows that are each tried twice end in 120 time-outs"
    if robots:
        assert outcomes["connect_timeout"] == 60  # one robots.txt, twice, speaks for all
    else:
        assert outcomes["host_unavailable"] + outcomes["connect_timeout"] == 60
        assert outcomes["host_unavailable"] >= 50


@pytest.mark.slow
def test_host_limited_to_a_trickle_slows_nobody(tmp_path, monkeypatch):
    settings = network(threads=4, hosts=[{"pattern": "trickle.test", "requests_per_second": 2, "connections": 1}])

    def photo(sock, request):
        if request.host.startswith("trickle.test"):  # meanwhile the other host is done with
            wait_until(lambda: len(server.asked("good.test")) == 30)
        send_picture(sock)

    with MisbehavingServer(extra={"photo": photo}) as server:
        slow = [server.url("photo", "trickle.test") + f"/{n}" for n in range(16)]
        good = [server.url("photo", "good.test") + f"/{n}" for n in range(30)]
        facts = fetch(slow + good, settings, tmp_path / "p")
        trickle, quick = ([r.seconds for r in server.asked(host)] for host in ("trickle.test", "good.test"))
    assert {fact["outcome"] for fact in facts} == {"ok"}
    assert max(quick) < max(trickle)
    # the second is sent after the first has come, and from then on none comes before it may be sent
    assert max(trickle) - min(trickle) > 15 / 2 - 0.5


def test_busy_host_is_given_up_after_the_patience(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "HOST_PATIENCE_SECONDS", 1.0)
    settings = network()

    def busy(sock, request):
        send(sock, "503 Service Unavailable", {"Retry-After": "120"})

    with MisbehavingServer(extra={"photo": busy}) as server:
        facts = fetch([server.url("photo", "busy.test") + f"/{n}" for n in range(50)], settings, tmp_path / "p")
        num_asked = len(server.asked("busy.test"))
    assert num_asked <= 4
    outcomes = collections.Counter(fact["outcome"] for fact in facts)
    assert outcomes == {"http_5xx": num_asked, "host_unavailable": 50 - num_asked}


def test_robots_txt_is_asked_once_a_host_and_its_crawl_delay_kept(tmp_path):
    settings = network()

    def robots(sock, request):
        send(sock, body=b"User-agent: plantmix\nCrawl-delay: 0.2\nDisallow: /secret\n\nUser-agent: *\nDisallow: /\n")

    with MisbehavingServer(extra={"photo": photo_now, "secret": photo_now}, robots=robots) as server:
        urls = [server.url("photo", "a.test") + f"/{n}" for n in range(6)] + [server.url("secret", "a.test")]
        with HttpClient(settings, lookup) as client:
            gate = HostGate(settings)
            for part in range(2):
                rows = [(f"{n:032x}", url) for n, url in enumerate(urls)]
                table = fetch_rows(rows, FetchSettings(network=settings), gate, tmp_path / str(part), client)
                assert table["outcome"].to_pylist() == ["ok"] * 6 + ["robots_disallowed"]
        assert sum(r.path == "/robots.txt" for r in server.log) == 1
        (asked,) = (r.seconds for r in server.log if r.path == "/robots.txt")
        times = sorted(r.seconds - asked for r in server.asked("a.test"))
    assert len(times) == 12
    # none comes before it may be sent, and the first one is sent after robots.txt; a slow machine's come later
    assert [place for place, seconds in enumerate(times) if seconds < place * 0.2] == []


def test_crawl_delay_longer_than_the_patience_stalls_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "HOST_PATIENCE_SECONDS", 2.0)
    settings = network()

    def robots(sock, request):
        send(sock, body=b"User-agent: *\nCrawl-delay: 3600\n" if request.host.startswith("slow.test") else b"")

    with MisbehavingServer(extra={"photo": photo_now}, robots=robots) as server:
        urls = [server.url("photo", host) + f"/{n}" for host in ("slow.test", "good.test") for n in range(4)]
        facts = fetch(urls, settings, tmp_path / "p")
        pictures = [r for r in server.asked("slow.test") if r.path not in SITE_FILES]
    assert len(pictures) == 1
    assert [fact["outcome"] for fact in facts[4:]] == ["ok"] * 4
    assert sorted(fact["outcome"] for fact in facts[:4]) == ["host_unavailable"] * 3 + ["ok"]
    assert {fact["detail"] for fact in facts[:4] if fact["outcome"] != "ok"} == {
        "host wants 3600 s between requests (Crawl-delay), the patience is 2 s"
    }


def test_connections_are_used_again(tmp_path):
    settings = network(limits={"requests_per_second": None, "connections": 2})
    with MisbehavingServer(extra={"photo": photo_now}) as server:
        facts = fetch([server.url("photo", "a.test") + f"/{n}" for n in range(40)], settings, tmp_path / "p")
        assert server.num_connections <= 3
    assert {fact["outcome"] for fact in facts} == {"ok"}


def test_kept_connection_closed_by_the_server_costs_no_row(tmp_path):
    settings = network(retries=0, limits={"requests_per_second": 20, "connections": 1})

    def last_words(sock, request):
        send_picture(sock)
        sock.shutdown(socket.SHUT_RDWR)

    with MisbehavingServer(extra={"photo": last_words}) as server:
        facts = fetch([server.url("photo", "a.test") + f"/{n}" for n in range(12)], settings, tmp_path / "p")
    assert {fact["outcome"] for fact in facts} == {"ok"}


def test_tls_with_a_trusted_certificate_and_its_deadline(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(Path(__file__).parents[1] / "self_signed.pem"))
    settings = network(retries=0)

    def drip(sock, request):
        send(sock, headers={"Content-Length": "100000"}, length=False)
        while True:
            sock.sendall(b"x")
            be_slow(0.1)

    with MisbehavingServer(extra={"photo": photo_now, "drip": drip}) as server:
        urls = [f"https://{name}.test:{server.tls_port}/photo/{n}" for n in range(6) for name in ("a", "b")]
        urls += [f"https://other.example:{server.tls_port}/photo"]
        facts = fetch(urls, settings, tmp_path / "p")
        assert server.num_connections <= 12  # kept: four a host at most
        settings = network(retries=0, total_timeout_seconds=3)
        (late,) = fetch([f"https://c.test:{server.tls_port}/drip"], settings, tmp_path / "q")
    assert [fact["outcome"] for fact in facts] == ["ok"] * 12 + ["tls_failure"]
    assert late["outcome"] == "deadline_exceeded"
    assert "name matches target hostname 'other.example'" in facts[-1]["detail"]


def test_gate_that_is_gone_ends_the_part_instead_of_hanging_it(tmp_path):
    class LostGate:
        exchange_interval_seconds = 0.0

        def check_in(self, part, tally, ended=False):
            return False

        def exchange(self, reports, wanted, part=""):
            raise ConnectionError("the gate is gone")

    settings = network()
    with pytest.raises(ConnectionError, match="the gate is gone"):
        fetch(["http://a.test/1"], settings, tmp_path / "p", LostGate())
    assert not list(tmp_path.iterdir())
