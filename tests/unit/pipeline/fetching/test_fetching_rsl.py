"""What RSL documents say of training, for which paths, and that hostile ones cannot be read."""

from __future__ import annotations

import time

import pytest

from pipeline.fetching.consent import rsl
from pipeline.fetching.urls import parse_url

SITE = parse_url("https://photos.example.org/")
PERMITS = '<permits type="usage">{}</permits>'
PROHIBITS = '<prohibits type="usage">{}</prohibits>'


def document(*contents, namespace="https://rslstandard.org/rsl"):
    return f'<?xml version="1.0"?>\n<rsl xmlns="{namespace}" max-age="7">{"".join(contents)}</rsl>'.encode()


def content(*licences, url="/", more=""):
    return f'<content url="{url}" {more}>{"".join(f"<license>{licence}</license>" for licence in licences)}</content>'


def refusal(body, path="/a.jpg"):
    return rsl.refusal(rsl.parse_rsl(body, SITE), path)


@pytest.mark.parametrize(
    ("licences", "words"),
    [
        ([], ""),
        ([""], ""),
        ([PERMITS.format("ai-train")], ""),
        ([PERMITS.format("train-ai")], ""),
        ([PERMITS.format("search AI-All")], ""),
        ([PERMITS.format("all")], ""),
        ([PERMITS.format("search,\n ai-train")], ""),
        ([PERMITS.format("search ai-input")], rsl.NOT_PERMITTED),
        ([PERMITS.format("")], rsl.NOT_PERMITTED),
        ([PROHIBITS.format("ai-train")], rsl.PROHIBITED),
        ([PROHIBITS.format("ai-all")], rsl.PROHIBITED),
        ([PROHIBITS.format("all")], rsl.PROHIBITED),
        ([PROHIBITS.format("search later-word")], ""),
        ([PERMITS.format("ai-train") + PROHIBITS.format("ai-all")], rsl.PROHIBITED),
        ([PERMITS.format("all") + '<payment type="free"/>'], ""),
        ([PERMITS.format("all") + '<payment type="attribution"><standard>x</standard></payment>'], ""),
        ([PERMITS.format("all") + "<payment><amount>0</amount></payment>"], ""),
        ([PERMITS.format("all") + '<payment type="training"/>'], rsl.FOR_PAY),
        (['<payment type="crawl"><amount currency="USD">0.01</amount></payment>'], rsl.FOR_PAY),
        (['<permits type="user">education</permits>' + PERMITS.format("all")], rsl.FOR_SOME),
        (['<prohibits type="geo">EU</prohibits>'], rsl.FOR_SOME),
        (["<permits>ai-train</permits>"], ""),
        # each licence is an offer
        ([PERMITS.format("all") + '<payment type="crawl"/>', PERMITS.format("ai-train")], ""),
        ([PERMITS.format("search"), PROHIBITS.format("ai-train")], rsl.NOT_PERMITTED),
    ],
)
def test_what_licences_say_of_training(licences, words):
    assert refusal(document(content(*licences))) == words


def test_a_licence_that_a_server_gives_is_one_that_we_do_not_have():
    free = PERMITS.format("all")
    assert refusal(document(content(free, more='server="https://api.example.org"'))) == rsl.FROM_SERVER
    assert refusal(document(content(free, more='server=""'))) == ""


def test_the_most_specific_content_counts_wherever_it_stands():
    no, yes = PROHIBITS.format("ai-train"), PERMITS.format("ai-train")
    body = document(
        content(no, url="/"),
        content(yes, url="/open/"),
        content(no, url="https://photos.example.org/open/not/*.jpg$"),
        content(yes, url="https://other.example.org/closed/"),
        content(no, url="/same/"),
        content(yes, url="/same/"),
    )
    paths = ("/a", "/open/a", "/open/not/a.jpg", "/open/not/a.png", "/closed/a", "/same/a")
    assert [bool(refusal(body, path)) for path in paths] == [True, False, True, False, True, True]
    assert refusal(document(content(no, url="/b*/")), "/a/b/") == ""
    assert refusal(document(content(no, url=""))) == rsl.PROHIBITED
    assert refusal(document(content(no, url="https://*.example.org:443/"))) == rsl.PROHIBITED
    assert refusal(document(content(no, url="HTTP://PHOTOS.example.org"))) == rsl.PROHIBITED


NO = content(PROHIBITS.format("ai-train"))
BOMB = '<!DOCTYPE rsl [<!ENTITY a "x"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff\xfe\x00",
        document(NO)[:-3],
        BOMB.encode() + f"<rsl>{NO}&b;</rsl>".encode(),
        f'<!DOCTYPE rsl SYSTEM "file:///etc/passwd"><rsl>{NO}</rsl>'.encode(),
        f"<rsl>{NO}&unknown;</rsl>".encode(),
        document(content(url="/x") * 10_001, NO),
        b"<rsl>" * 150_000,
    ],
    ids=range(9),
)
def test_a_document_that_is_no_xml_cannot_be_read(body):
    assert rsl.parse_rsl(body, SITE) is None


@pytest.mark.parametrize(
    "body",
    [document(NO, namespace="https://example.org/other"), b"<rsl><permits>ai-train</permits><license/></rsl>"],
)
def test_xml_without_a_licence_forbids_nothing(body):
    assert rsl.parse_rsl(body, SITE) == ()


def test_a_document_of_many_levels_or_stars_takes_no_time():
    began = time.thread_time()
    assert rsl.parse_rsl(b"<rsl>" * 150_000, SITE) is None
    assert refusal(document(content(PROHIBITS.format("all"), url="/" + "*a" * 5_000 + "$")), "/" + "a" * 4_000) == ""
    assert refusal(document(content(PROHIBITS.format("all"), url=f"https://{'*a' * 5_000}/"))) == ""
    assert time.thread_time() - began < 2


def test_without_a_namespace_it_is_read_all_the_same():
    assert refusal(f"<rsl>{NO}</rsl>".encode()) == rsl.PROHIBITED
    prefixed = NO.replace("</", "</r:").replace("<", "<r:").replace("<r:/r:", "</r:")
    assert refusal(f'<r:rsl xmlns:r="https://rslstandard.org/rsl">{prefixed}</r:rsl>'.encode()) == rsl.PROHIBITED
