"""HostGate with a clock of our own: spacing, connections, pauses, the breaker, leases of lost workers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetching import hosts
from pipeline.fetching.hosts import HostGate, HostReport
from pipeline.fetching.settings import NetworkSettings
from pipeline.fetching.tally import describe_given


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def gate(**settings):
    clock = Clock()
    return HostGate(NetworkSettings.model_validate(settings), clock, lambda: 0.5), clock


def ask(g, host="a", num=1):
    return g.exchange([], {host: num})[host]


def report(g, lease, result="answered", retry_after=None, host="a"):
    g.exchange([HostReport(host, lease, result, retry_after)], {})


def test_connections_are_never_exceeded_and_come_back_with_the_report():
    g, _ = gate(limits={"requests_per_second": None, "connections": 2})
    first = ask(g, num=5)
    assert [p.wait_seconds for p in first.permissions] == [0, 0]
    assert ask(g, num=5).permissions == ()
    report(g, first.permissions[0].lease)
    assert len(ask(g, num=5).permissions) == 1
    assert len(ask(g, "b", 5).permissions) == 2


def test_starts_are_spaced_and_the_gate_says_when_to_ask_again():
    g, clock = gate(limits={"requests_per_second": 4, "connections": 10})
    verdict = ask(g, num=5)
    assert [p.wait_seconds for p in verdict.permissions] == [0]
    assert verdict.ask_again_seconds == pytest.approx(0.15)
    clock.now += 0.15
    assert [p.wait_seconds for p in ask(g, num=5).permissions] == [pytest.approx(0.1)]


@pytest.mark.parametrize("wait", [3.0, 0.0, 7200.0])
def test_retry_after_pauses_the_host_and_no_other(wait):
    g, clock = gate(limits={"requests_per_second": None, "connections": 2})
    report(g, ask(g).permissions[0].lease, "busy", wait)
    if wait:
        verdict = ask(g)
        assert verdict.permissions == ()
        assert verdict.ask_again_seconds == wait
        assert verdict.closed_because == f"host asked to be left alone, for {wait:.0f} s more"
        assert ask(g, "b").permissions
    clock.now += wait
    assert ask(g).permissions


def test_busy_without_retry_after_doubles_the_pause_until_an_answer():
    g, clock = gate(limits={"requests_per_second": None, "connections": 2})
    pauses = []
    for result in ("busy", "busy", "busy", "answered", "busy"):
        report(g, ask(g).permissions[0].lease, result)
        verdict = ask(g)
        pauses.append(verdict.ask_again_seconds if verdict.closed_because else 0)
        for permission in verdict.permissions:
            report(g, permission.lease, "unused")
        clock.now += pauses[-1]
    assert pauses == [1, 2, 4, 0, 1]


def test_breaker_opens_after_failures_in_a_row_and_lets_one_probe_through():
    g, clock = gate(limits={"requests_per_second": None, "connections": 4})
    for result in (*["unreachable"] * 5, "answered", *["unreachable"] * 5):
        report(g, ask(g).permissions[0].lease, result)
    leases = ask(g, num=4).permissions
    assert len(leases) == 4
    report(g, leases[0].lease, "unreachable")
    verdict = ask(g)
    assert verdict.closed_because == "host cannot be reached, for 300 s more"
    for permission in leases[1:]:
        report(g, permission.lease, "unused")
    clock.now += 300
    probe = ask(g, num=4).permissions
    assert len(probe) == 1
    assert ask(g, num=4).permissions == ()
    report(g, probe[0].lease, "answered")
    assert len(ask(g, num=4).permissions) == 4


def test_lost_worker_does_not_hold_a_host_for_ever():
    g, clock = gate(total_timeout_seconds=60, limits={"requests_per_second": None, "connections": 1})
    ask(g)
    clock.now += 89
    assert ask(g).permissions == ()
    clock.now += 2
    assert ask(g).permissions


def test_a_gate_in_the_place_of_a_lost_one_waits_for_what_that_one_allowed():
    g, clock = gate(total_timeout_seconds=30.0)
    g.start_over()
    for host in ("a", "b"):
        verdict = ask(g, host)
        assert verdict.permissions == ()
        assert verdict.ask_again_seconds == pytest.approx(30.0)
    clock.now += 30.0
    assert len(ask(g).permissions) == 1
    assert len(ask(g, "c").permissions) == 1


def test_shared_override_counts_its_hosts_as_one():
    g, _ = gate(hosts=[{"pattern": "*.cdn.org", "connections": 3, "requests_per_second": None, "shared": True}])
    given_ = g.exchange([], {"a.cdn.org": 2, "b.cdn.org:8080": 2})
    assert sum(len(v.permissions) for v in given_.values()) == 3


def test_crawl_delay_slows_a_host_unless_the_config_names_it():
    g, _ = gate(
        limits={"requests_per_second": 10, "connections": 9},
        hosts=[{"pattern": "friend.org", "requests_per_second": 10, "connections": 9}],
    )
    for host, pause in (("slow.org", 4.9), ("friend.org", 0.0)):
        g.exchange([HostReport(host, 0, "unused", min_gap_seconds=5.0)], {})
        assert ask(g, host).ask_again_seconds == pytest.approx(pause, abs=0.02)


@pytest.mark.parametrize("delay", [121.0, 3600.0, 1e9, float("inf")])
def test_a_crawl_delay_beyond_the_patience_closes_the_host_after_one_request(delay):
    g, clock = gate(limits={"requests_per_second": 10, "connections": 9})
    g.exchange([HostReport("a", 0, "unused", min_gap_seconds=delay)], {})
    assert len(ask(g, num=5).permissions) == 1
    clock.now += 60
    verdict = ask(g, num=5)
    assert verdict.permissions == ()
    assert verdict.ask_again_seconds > 120
    assert verdict.closed_because == (f"host wants {delay:g} s between requests (Crawl-delay), the patience is 120 s")
    assert ask(g, "b").permissions


@pytest.mark.parametrize(
    ("delay", "changes"),
    [
        (119.0, {}),
        (3600.0, {"hosts": [{"pattern": "a", "requests_per_second": 10}]}),
        (None, {"limits": {"requests_per_second": 0.001, "connections": 1}}),
    ],
)
def test_pauses_within_the_patience_or_of_the_config_close_no_host(delay, changes):
    g, clock = gate(**changes)
    g.exchange([HostReport("a", 0, "unused", min_gap_seconds=delay)], {})
    report(g, ask(g).permissions[0].lease)
    clock.now += 0.01
    assert ask(g).closed_because is None


@given(
    rate=st.one_of(st.none(), st.floats(0.5, 50)),
    connections=st.integers(1, 5),
    steps=st.lists(
        st.tuples(st.floats(0, 0.7), st.integers(0, 6), st.sampled_from(["answered", "unused", "busy", "keep"])),
        max_size=60,
    ),
)
def test_whatever_workers_do_rate_and_connections_hold(rate, connections, steps):
    g, clock = gate(limits={"requests_per_second": rate, "connections": connections})
    held, starts = [], []
    for pause, wanted, result in steps:
        clock.now += pause
        reports = []
        if held and result != "keep":
            lease, start = held.pop(0)
            clock.now = max(clock.now, start)
            reports = [HostReport("a", lease, result)]
        for permission in g.exchange(reports, {"a": wanted})["a"].permissions:
            starts.append(clock.now + permission.wait_seconds)
            held.append((permission.lease, starts[-1]))
        assert len(held) <= connections
    if rate:
        assert all(b - a >= 1 / rate - 1e-6 for a, b in itertools.pairwise(starts))


# ---- several parts at one host


class Parts:
    """Parts at one host, each with as many requests under way as the gate lets it have, up to its demand."""

    def __init__(self, connections):
        self.gate, self.clock = gate(limits={"requests_per_second": None, "connections": connections})
        self.held = {}

    def round(self, demands):
        """Every part in turn ends its oldest request and asks for all that it may still want."""
        for part, demand in demands.items():
            held = self.held.setdefault(part, [])
            reports = [HostReport("a", held.pop(0), "answered")] if held else []
            verdict = self.gate.exchange(reports, {"a": demand - len(held)}, part)["a"]
            held += [permission.lease for permission in verdict.permissions]
            self.clock.now += 0.02

    def num_held(self):
        return {part: len(held) for part, held in self.held.items()}


def test_a_second_part_soon_has_half_of_the_connections():
    parts = Parts(16)
    parts.round({"first": 16})
    assert parts.num_held() == {"first": 16}
    for _ in range(10):
        parts.round({"first": 16, "second": 16})
    assert parts.num_held() == {"first": 8, "second": 8}
    parts.round({"first": 16, "second": 3})
    for _ in range(30):  # the second wants less than its share, and soon counts as one that has enough
        parts.round({"first": 16, "second": 3})
    assert parts.num_held() == {"first": 13, "second": 3}


def test_a_part_that_is_gone_keeps_no_place_free():
    parts = Parts(4)
    parts.round({"first": 4, "second": 4})
    parts.clock.now += hosts._WAITING_SECONDS
    for _ in range(4):
        parts.round({"first": 4})
    assert parts.num_held() == {"first": 4, "second": 0}


@given(connections=st.integers(1, 20), demands=st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_parts_share_the_connections_of_a_host_max_min_fair(connections, demands):
    parts, wanted = Parts(connections), dict(zip("abcdef", demands, strict=False))
    for _ in range(100):
        parts.round(wanted)
    held = parts.num_held()
    assert sum(held.values()) == min(connections, sum(demands)), "no connection stays unused"
    short = [held[part] for part in held if held[part] < wanted[part]]
    if short and connections >= len(demands):
        assert max(held.values()) <= min(short) + 1, "nobody has more than one that wants more"


# ---- profiles


@pytest.mark.parametrize(
    ("host", "rate", "connections"),
    [
        ("upload.wikimedia.org", 1, 2),
        ("api.gbif.org", 5, 1),
        ("content.eol.org", 1, 1),
        ("inaturalist-open-data.s3.amazonaws.com", 5, 2),
        ("inaturalist-open-data.s3.us-east-1.amazonaws.com:443", 5, 2),
        ("api.gbif.org.example.org", 5, 2),
    ],
)
def test_well_known_hosts_have_the_limits_of_their_operators(host, rate, connections):
    _, limits = NetworkSettings().limits_of(host)
    assert (limits.requests_per_second, limits.connections) == (rate, connections)


def test_a_users_own_limits_count_more_than_a_profile():
    mine = {"pattern": "*.wikimedia.org", "requests_per_second": 0.5, "connections": 1}
    settings = NetworkSettings.model_validate({"hosts": [mine]})
    assert settings.limits_of("upload.wikimedia.org")[1].requests_per_second == 0.5
    assert NetworkSettings.model_validate({"profiles": ["eol"]}).limits_of("api.gbif.org")[1].connections == 2
    assert NetworkSettings.model_validate({"profiles": []}).limits_of("eol.org")[1].requests_per_second == 5


def test_a_profile_does_not_put_a_crawl_delay_aside():
    g, _ = gate()
    g.exchange([HostReport("eol.org", 0, "unused", min_gap_seconds=10.0)], {})
    ask(g, "eol.org")
    assert ask(g, "eol.org").ask_again_seconds == pytest.approx(9.9)


def test_the_gate_says_what_each_host_gave():
    g, clock = gate(limits={"requests_per_second": 5, "connections": 4})
    for result, retry_after in (("answered", None), ("busy", 30.0), ("busy", None)):
        (permission,) = ask(g).permissions
        g.exchange([HostReport("a", permission.lease, result, retry_after)], {})
        clock.now += 60
    ask(g, "b")
    given = g.progress().given
    assert {name: describe_given(one) for name, one in given.items()} == {"a": "1 answers, 2 refusals (paused 32 s)"}
