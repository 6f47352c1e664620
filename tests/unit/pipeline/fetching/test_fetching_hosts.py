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


# ---- adaptive hosts


def simulate(minutes, host, limits, demand=10_000):
    """A host that answers as `host(rate over the last second, requests under way)` says: seconds, or None for 429.

    Gives (time, was refused) of each request, from the start.
    """
    g, clock = gate(limits={"adaptive": True, **limits})
    began, under_way, starts, ended = clock.now, [], [], []
    while clock.now - began < 60 * minutes:
        due = [item for item in under_way if item[0] <= clock.now]
        under_way = [item for item in under_way if item[0] > clock.now]
        reports = [
            HostReport("a", lease, "busy" if seconds is None else "answered", None, seconds=seconds or 0.01)
            for _, lease, seconds in due
        ]
        for permission in g.exchange(reports, {"a": demand})["a"].permissions:
            start = clock.now + permission.wait_seconds
            starts.append(start)
            lately = sum(start - each <= 1.0 for each in starts[-400:])
            seconds = host(lately, len(under_way) + 1)
            under_way.append((start + (seconds or 0.01), permission.lease, seconds))
            ended.append((start - began, seconds is None))
        clock.now += 0.02
    return ended


def rate_within(ended, first, last):
    return sum(first <= at < last for at, _ in ended) / (last - first)


def test_an_adaptive_host_is_asked_faster_until_it_refuses_and_then_stays_below():
    ended = simulate(10, lambda lately, _: None if lately > 20 else 0.1, {"requests_per_second": 5, "connections": 10})
    assert rate_within(ended, 0, 10) == pytest.approx(5, abs=0.6)
    refused = [at for at, was_refused in ended if was_refused]
    assert 1 <= len(refused) <= 3, "it is refused at one time, and never again"
    assert refused[-1] - refused[0] < 2
    assert 15 <= rate_within(ended, 540, 600) <= 20


def test_an_adaptive_host_that_slows_down_is_asked_less():
    slow = simulate(10, lambda lately, _: 0.05 if lately <= 15 else 0.2, {"requests_per_second": 5, "connections": 10})
    assert 12 <= rate_within(slow, 540, 600) <= 15.5


def test_a_host_that_is_slow_for_all_is_asked_at_the_first_rate_and_no_slower():
    calls = itertools.count()
    ended = simulate(5, lambda *_: 0.1 if next(calls) < 60 else 0.5, {"requests_per_second": 5, "connections": 10})
    assert rate_within(ended, 240, 300) == pytest.approx(5, abs=0.6)


def test_a_host_that_refuses_the_first_rate_is_asked_slower_than_that():
    ended = simulate(10, lambda lately, _: None if lately > 2 else 0.1, {"requests_per_second": 5, "connections": 4})
    assert rate_within(ended, 540, 600) <= 2.1
    assert sum(was_refused for at, was_refused in ended if at > 300) == 0


def test_connections_grow_where_they_are_the_bound():
    ended = simulate(10, lambda *_: 1.0, {"requests_per_second": 5, "connections": 1})
    assert rate_within(ended, 0, 10) == pytest.approx(1, abs=0.2)
    assert rate_within(ended, 540, 600) >= 6


def test_an_adaptive_host_is_never_asked_more_than_eight_times_as_fast():
    ended = simulate(8, lambda *_: 0.02, {"requests_per_second": 2, "connections": 4})
    assert max(rate_within(ended, at, at + 10) for at in range(0, 480, 10)) <= 16.1
    assert rate_within(ended, 420, 480) >= 14


def paces(results):
    """The rate of a host after each answer, with one answer in its own time at the rate that holds."""
    g, clock = gate(limits={"requests_per_second": 5, "connections": 4, "adaptive": True})
    rates = []
    for result in results:
        verdict = ask(g)
        while not verdict.permissions:
            clock.now += verdict.ask_again_seconds
            verdict = ask(g)
        (permission,) = verdict.permissions
        clock.now += permission.wait_seconds
        g.exchange([HostReport("a", permission.lease, result, None, seconds=0.1)], {})
        rates.append(g.progress().given["a"]["adaptive"]["rate"])
    return rates


CALM = ["answered"] * 8_500  # until the rate has grown to its bound


@pytest.mark.parametrize("refusal", ["busy", "forbidden"])
def test_a_rate_halves_at_the_first_refusal_and_keeps_its_bounds(refusal):
    rates = paces([*CALM, *[refusal] * 120])
    up, down = rates[: len(CALM)], rates[len(CALM) :]
    assert up == sorted(up), "while all is well it only grows"
    assert (up[0], up[-1]) == (5, 40)
    assert down[0] == 20
    assert down == sorted(down, reverse=True)
    assert down[-1] == 5 / 8


def test_pictures_that_nobody_may_see_do_not_take_the_first_rate():
    rates = paces((["answered"] * 100 + ["forbidden"]) * 20)
    assert min(rates) == 5, "a single 403 may be about its picture alone"
    assert max(rates) > 5
    assert paces([*CALM, "forbidden", *CALM])[-1] == 40, "and it may go up again"


def test_nothing_grows_while_little_is_asked():
    g, clock = gate(limits={"requests_per_second": 5, "connections": 4, "adaptive": True})
    for _ in range(100):
        (permission,) = ask(g).permissions
        report_of = HostReport("a", permission.lease, "answered", None, seconds=0.1)
        g.exchange([report_of], {})
        clock.now += 1.0
    starts = [ask(g, num=1).permissions, ask(g, num=1)]
    assert starts[0][0].wait_seconds == 0
    assert starts[1].ask_again_seconds == pytest.approx(0.1), "0.2 s apart, as at first"


def test_a_crawl_delay_binds_an_adaptive_host():
    g, _ = gate(limits={"requests_per_second": 5, "connections": 4, "adaptive": True})
    g.exchange([HostReport("a", 0, "unused", min_gap_seconds=5.0)], {})
    (permission,) = ask(g).permissions
    g.exchange([HostReport("a", permission.lease, "answered", None, seconds=0.1)], {})
    assert ask(g).ask_again_seconds == pytest.approx(4.9)


def test_adaptive_needs_a_rate():
    with pytest.raises(ValueError, match="adaptive needs requests_per_second"):
        NetworkSettings.model_validate({"limits": {"requests_per_second": None, "adaptive": True}})


# ---- profiles


@pytest.mark.parametrize(
    ("host", "rate", "connections"),
    [
        ("upload.wikimedia.org", 1, 2),
        ("api.gbif.org", 5, 1),
        ("content.eol.org", 1, 1),
        ("inaturalist-open-data.s3.amazonaws.com", 5, 3),
        ("inaturalist-open-data.s3.us-east-1.amazonaws.com:443", 5, 3),
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
    g, clock = gate(limits={"requests_per_second": 5, "connections": 4, "adaptive": True})
    for result, retry_after in (("answered", None), ("busy", 30.0), ("busy", None)):
        (permission,) = ask(g).permissions
        g.exchange([HostReport("a", permission.lease, result, retry_after, seconds=0.1)], {})
        clock.now += 60
    ask(g, "b")
    given = g.progress().given
    assert {name: describe_given(one) for name, one in given.items()} == {
        "a": "1 answers, 2 refusals (paused 32 s), 1.2 requests/s now, 0 at most, 2 slow-downs"
    }
