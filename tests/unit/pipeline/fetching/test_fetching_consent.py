"""X-Robots-Tag in all its forms, robots.txt by RFC 9309."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from pipeline.fetching.consent.statements import (
    ALLOW_ALL,
    HEADERS,
    Consent,
    no_training,
    parse_robots,
    parse_tdmrep,
    statements_of,
)
from pipeline.fetching.settings import DEFAULT_X_ROBOTS

COUNTING = Consent("plantmix", False, tuple(sorted(DEFAULT_X_ROBOTS)), ("tdm_reservation",))


def refusal_by(headers):
    """The statement of headers that counts."""
    found = COUNTING.refusal({HEADERS: statements_of(headers)})
    return found and found[1]


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], None),
        (["all"], None),
        (["nofollow, noarchive"], None),
        (["noai"], "noai"),
        (["NoAI, NoImageAI"], "noai"),
        (["nofollow", "noml"], "noml"),
        (["plantmix: noimageindex"], "plantmix: noimageindex"),
        (["PlantMix/2.0: noimageindex"], "plantmix: noimageindex"),
        (["*: noindex"], "noindex"),
        (["otherbot: noai, noindex"], None),
        (["otherbot: noai", "noindex"], "noindex"),
        (["noindex, otherbot: nofollow"], "noindex"),
        (["otherbot: nofollow, plantmix: noai"], "plantmix: noai"),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], "noai"),
        (["unavailable_after: Tue, 25 Jun 2030 15:00:00 PST", "none"], "none"),
        (["max-snippet: 20, max-image-preview: none"], None),
        ([" : , ,,:noai"], None),
    ],
)
def test_opt_out_headers(headers, found):
    assert refusal_by({"x-robots-tag": headers}) == (found and f"X-Robots-Tag: {found}")


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        ("", None),
        ("train-ai=n", "train-ai=n"),
        ("Train-AI = N", "train-ai=n"),
        ("search=n, train-ai=y", None),
        ("search=n", None),
        ("bots=n", "bots=n"),
        ("bots=n, train-ai=y", None),
        ("train-ai=y, train-ai=n", "train-ai=n"),
        ("train-ai=n;exceptions=(a b), search=y", "train-ai=n"),
        ("train-ai", None),
        ("ai-use=n", None),
        ("later-word=n, train-ai=n", "train-ai=n"),
        ("no-train-ai=n", None),
        (",,==;\x00", None),
    ],
)
def test_content_usage(usage, found):
    assert no_training(usage) == found


def test_content_usage_in_robots_txt_follows_groups_and_paths():
    text = b"""User-agent: PlantMix
Disallow: /secret
Content-Usage: /art/ train-ai=n
Content-Usage: /art/open/ train-ai=y
Content-Usage: /search search=n

User-agent: *
Content-Usage: train-ai=n
"""
    ours, others = parse_robots(text, "plantmix"), parse_robots(text, "otherbot")
    paths = ("/", "/secret", "/art/1.jpg", "/art/open/1.jpg", "/search?q=1")
    assert [ours.allows_training(path) for path in paths] == [True, True, False, True, True]
    assert not any(others.allows_training(path) for path in paths)
    assert [ours.allows(path) for path in paths] == [True, False, True, True, True]
    assert all(ALLOW_ALL.allows_training(path) for path in paths)
    same_path = parse_robots(
        b"User-agent: *\nContent-Usage: / train-ai=y\nContent-Usage: / train-ai=n\nContent-Usage: / search=y\n", "x"
    )
    assert not same_path.allows_training("/a"), "of statements about the same path the one that forbids counts"
    unknown = parse_robots(b"User-agent: *\nContent-Usage: / train-ai=n, ai-use=y, later-word=y\n", "x")
    assert not unknown.allows_training("/a"), "unknown labels are ignored"
    named_without_usage = b"User-agent: plantmix\nDisallow: /x\n\nUser-agent: *\nContent-Usage: train-ai=n\n"
    assert parse_robots(named_without_usage, "plantmix").allows_training("/")


@pytest.mark.parametrize(
    ("headers", "found"), [([], False), (["0"], False), (["1"], True), (["0", " 1 "], True), (["11"], False)]
)
def test_tdm_reservation(headers, found):
    assert (refusal_by({"tdm-reservation": headers}) == "tdm-reservation: 1") is found


ROBOTS = b"""\xef\xbb\xbf# a comment
User-agent: otherbot
Disallow: /

User-agent: PlantMix/9 # us
User-Agent: friendbot
Disallow: /photos/
Allow: /photos/open/
Disallow: /*.gif$
Disallow: /search*sort=
Disallow: /caf%C3%A9/
Disallow:
Crawl-delay: 2.5
Sitemap: https://example.org/sitemap.xml

User-agent: *
Disallow: /
"""


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", True),
        ("/robots.txt", True),
        ("/photos/1.jpg", False),
        ("/photos/open/1.jpg", True),
        ("/a/b.gif", False),
        ("/a/b.gif?x=1", True),
        ("/search?q=a&sort=up", False),
        ("/search?q=a", True),
        ("/caf%c3%a9/1.jpg", False),
        ("/café/1.jpg", False),
    ],
)
def test_robots_rules_for_us(path, allowed):
    assert parse_robots(ROBOTS, "plantmix").allows(path) is allowed


def test_robots_rules_for_others_and_delay():
    assert parse_robots(ROBOTS, "plantmix").crawl_delay_seconds == 2.5
    assert not parse_robots(ROBOTS, "nobody").allows("/a")
    assert not parse_robots(ROBOTS, "otherbot").allows("/a")
    assert parse_robots(ROBOTS, "friendbot").allows("/a")


@pytest.mark.parametrize("body", [b"", b"<html>no robots here</html>", b"Disallow: /", b"\xff\xfe\x00", b"User-agent"])
def test_senseless_robots_txt_forbids_nothing(body):
    assert parse_robots(body, "plantmix").allows("/a")


def test_groups_of_one_agent_are_joined_and_ties_allow():
    rules = parse_robots(b"User-agent: *\nDisallow: /a\n\nUser-agent: *\nDisallow: /b\nAllow: /b\n", "plantmix")
    assert not rules.allows("/a")
    assert rules.allows("/b")
    assert ALLOW_ALL.allows("/a")


def test_names_are_compared_whole():
    body = b"User-agent: plant\nUser-agent: plantmix-images\nAllow: /\n\nUser-agent: *\nDisallow: /\n"
    assert not parse_robots(body, "plantmix").allows("/a")
    assert parse_robots(body, "plant").allows("/a")


def test_path_that_begins_with_two_slashes_is_a_path():
    rules = parse_robots(b"User-agent: *\nDisallow: //x\n", "plantmix")
    assert not rules.allows("//x.jpg")
    assert rules.allows("/x.jpg")


def test_many_stars_stay_fast():
    rules = parse_robots(b"User-agent: *\nDisallow: /" + b"*a" * 2000 + b"b$", "plantmix")
    assert rules.allows("/" + "a" * 50_000)


# ---- tdmrep.json


def reserves(rules, path):
    return replace(ALLOW_ALL, tdm=parse_tdmrep(json.dumps(rules).encode())).reserves(path)


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/", "/a.jpg", True),
        ("/a", "/abc/d.jpg", True),
        ("/a", "/b/a", False),
        ("/A", "/a", False),
        ("/a.jpg$", "/a.jpg", True),
        ("/a.jpg$", "/a.jpg?b=1", False),
        ("/*.jpg", "/x/y.jpg?size=1", True),
        ("/*.jpg$", "/x/y.jpg", True),
        ("/*.jpg$", "/x/y.png", False),
        ("/a*b*c$", "/a-b-b-c", True),
        ("/a*bc*c$", "/abc", False),  # the last piece may not begin within the piece before
        ("/a*", "/a", True),
        ("*", "/anything", True),
        ("/b%61r", "/bar", True),
        ("/bar", "/b%61r", True),
        ("/a%2fb", "/a%2Fb", True),
        ("/a/b", "/a%2Fb", False),  # reserved characters stay as they are
        ("/p-%24", "/p-$", True),
        ("/p-%2A", "/p-*", True),
        ("/p-%24$", "/p-$x", False),
        ("", "/a", True),
    ],
)
def test_patterns_of_tdmrep(pattern, path, fits):
    assert reserves([{"location": pattern, "tdm-reservation": 1}], path) is fits


def test_the_first_rule_of_tdmrep_that_fits_counts():
    # the example of the specification, with the last two rules the other way round
    rules = [
        {"location": "/directory-a/", "tdm-reservation": 1},
        {"location": "/directory-b/images/*.jpg", "tdm-reservation": 0},
        {
            "location": "/directory-b/",
            "tdm-reservation": "1",
            "tdm-policy": "https://provider.com/policies/policy.json",
        },
    ]
    found = [reserves(rules, path) for path in ("/directory-a/x", "/directory-b/images/x.jpg", "/directory-b/x", "/c")]
    assert found == [True, False, True, False]


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"null", b'"x"', b"[1, null, []]", b"[" * 200_000, b"\xff\xfe", b'[{"location": "/"}]',
     b'[{"location": 1, "tdm-reservation": 1}]', b'[{"location": "/", "tdm-reservation": 2}]',
     b'[{"location": "/", "tdm-reservation": true}]'],
)  # fmt: skip
def test_what_is_no_rule_of_tdmrep_reserves_nothing(body):
    assert parse_tdmrep(body) == ()


def test_a_pattern_of_many_stars_takes_no_time():
    began = time.thread_time()
    assert not reserves([{"location": "/" + "*a" * 5_000 + "$", "tdm-reservation": 1}], "/" + "a" * 4_000 + "b")
    assert time.thread_time() - began < 1


def test_a_refusal_names_its_signal():
    rules = replace(parse_robots(b"User-agent: *\nDisallow: /private/\nContent-Usage: /art train-ai=n", "plantmix"),
                    tdm=(("/tdm", True),))  # fmt: skip
    consent = Consent("plantmix", True, (), ("content_usage", "tdmrep_file"))

    def refusal(path, consent=consent):
        return consent.refusal(rules.statements(path, consent))

    assert refusal("/private/a") == ("robots_disallowed", "robots.txt")
    assert refusal("/art/a") == ("opted_out", "robots.txt: Content-Usage")
    assert refusal("/tdm/a") == ("opted_out", "tdmrep.json: tdm-reservation")
    assert refusal("/tdm/a", replace(consent, signals=("content_usage",))) is None
    assert refusal("/free") is None


def test_what_must_be_looked_at_when_other_things_count():
    loose, strict = Consent("plantmix", False, (), ()), Consent("plantmix", True, ("noai",), ())
    assert strict.unread(loose) == ("headers", "robots.txt plantmix")
    assert loose.unread(strict) == strict.unread(strict) == ()
    assert replace(strict, agent_token="other").unread(strict) == ("headers", "robots.txt other")


@pytest.mark.parametrize(
    ("text", "licences"),
    [
        ("License: https://a.org/l.xml", ("https://a.org/l.xml",)),
        ("User-agent: *\nAllow: /\n\nLICENSE : /l.xml # ours", ("/l.xml",)),
        ("User-agent: other\nLicense: /other.xml", ()),
        ("User-agent: other\nLicense: /other.xml\n\nLicense: /all.xml", ("/all.xml",)),
        ("User-agent: *\nLicense: /star.xml\n\nUser-agent: PlantMix/3\nLicense: /us.xml", ("/us.xml",)),
        ("License: /1\nLicense: /1\nLicense: /2\nLicense: /3\nLicense: /4", ("/1", "/2", "/3", "/4")),
        ("License:", ()),
    ],
)
def test_the_licences_that_robots_txt_names(text, licences):
    assert parse_robots(text.encode(), "plantmix").licences == licences


def test_many_or_long_statements_are_cut():
    said = statements_of({"x-robots-tag": [", ".join(f"word{n}" for n in range(500)), "x" * 1000]})
    assert len(said) == 100
    assert max(map(len, said)) < 100
