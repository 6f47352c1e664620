"""X-Robots-Tag in all its forms, robots.txt by RFC 9309."""

from __future__ import annotations

import pytest

from pipeline.fetching.consent import ALLOW_ALL, opted_out, parse_robots
from pipeline.fetching.settings import DEFAULT_X_ROBOTS


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], None),
        (["all"], None),
        (["nofollow, noarchive"], None),
        (["noai"], "noai"),
        (["NoAI, NoImageAI"], "noai"),
        (["nofollow", "noml"], "noml"),
        (["plantmix: noimageindex"], "noimageindex"),
        (["PlantMix/2.0: noimageindex"], "noimageindex"),
        (["*: noindex"], "noindex"),
        (["otherbot: noai, noindex"], None),
        (["otherbot: noai", "noindex"], "noindex"),
        (["noindex, otherbot: nofollow"], "noindex"),
        (["otherbot: nofollow, plantmix: noai"], "noai"),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], "noai"),
        (["unavailable_after: Tue, 25 Jun 2030 15:00:00 PST", "none"], "none"),
        (["max-snippet: 20, max-image-preview: none"], None),
        ([" : , ,,:noai"], None),
    ],
)
def test_opt_out_headers(headers, found):
    assert opted_out(headers, "plantmix", DEFAULT_X_ROBOTS) == found


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
