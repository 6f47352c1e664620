"""Opt-out headers of every form, and robots.txt."""

from __future__ import annotations

import time
from functools import cache

from misbehaving.answers import send, send_picture
from misbehaving.owners import mining, signed, with_xmp, xmp
from misbehaving.registry import BEHAVIOURS, Behaviour, behaviour, behaviours

# ---- X-Robots-Tag


def _register_opt_outs() -> None:
    said = {
        "noai": [("X-Robots-Tag", "noai")],
        "noimageai": [("X-Robots-Tag", "NoImageAI")],
        "noindex": [("x-robots-tag", "nofollow, noindex")],
        "noimageindex": [("X-Robots-Tag", "noimageindex")],
        "noml": [("X-Robots-Tag", "noml")],
        "none": [("X-Robots-Tag", "none")],
        "for_us": [("X-Robots-Tag", "plantmix: noai")],
        "for_all": [("X-Robots-Tag", "*: noai")],
        "for_us_after_others": [("X-Robots-Tag", "otherbot: noindex, plantmix: noai")],
        "second_header": [("X-Robots-Tag", "max-image-preview: large"), ("X-Robots-Tag", "noai")],
        "for_us_with_version": [("X-Robots-Tag", "PlantMix/0.1: noindex")],
        "for_all_before_others": [("X-Robots-Tag", "noai, otherbot: all")],
        "odd_spelling": [("X-ROBOTS-TAG", " NoFollow ,\tNOAI ")],
        "after_date": [("X-Robots-Tag", "unavailable_after: 25 Jun 2030 15:00:00 PST, noai")],
        "content_usage": [("Content-Usage", "search=y, train-ai=n")],
        "content_usage_bots": [("content-usage", "bots=n;why=rights")],
        "tdm_reservation": [("TDM-Reservation", "1"), ("tdm-policy", "https://example.org/policy.json")],
    }
    for name, headers in said.items():

        def act(sock, request, headers=headers):
            send_picture(sock, headers=headers)

        does = "; ".join(f"`{key}: {value}`" for key, value in headers)
        BEHAVIOURS[f"opt_out_{name}"] = Behaviour(f"opt_out_{name}", does, "opted_out", act)


_register_opt_outs()


behaviours(
    {
        "opt_out_after_redirect": (
            "opted_out",
            "redirects to a picture with `X-Robots-Tag: noml`",
            lambda sock, _: send(sock, "302 Found", {"Location": "/opt_out_noml"}),
        ),
        "opt_out_of_nothing": (
            "ok",
            "`X-Robots-Tag: all, max-image-preview: large, nofollow`",
            lambda sock, _: send_picture(sock, headers=[("X-Robots-Tag", "all, max-image-preview: large, nofollow")]),
        ),
        "opt_out_for_others": (
            "ok",
            "`X-Robots-Tag: otherbot: noai, noindex`",
            lambda sock, _: send_picture(sock, headers=[("X-Robots-Tag", "otherbot: noai, noindex")]),
        ),
        "content_usage_allows": (
            "ok",
            "`Content-Usage: train-ai=y, search=n`; `tdm-reservation: 0`",
            lambda sock, _: send_picture(
                sock, headers=[("Content-Usage", "train-ai=y, search=n"), ("tdm-reservation", "0")]
            ),
        ),
    }
)


# ---- robots.txt


@behaviour("robots_disallowed", "http://{host}:{port}/private/{name}")
def robots_txt(sock, request):
    """a path that robots.txt forbids"""
    send_picture(sock)


def robots_answer(text: str, **options):
    def act(sock, request):
        send(sock, body=text.encode(), **options)

    return act


def _register_robots() -> None:
    forms = {
        "missing": ("robots.txt answers 404", "ok", robots_answer("", status="404 Not Found")),
        "forbidden": ("robots.txt answers 403: no rules (RFC 9309)", "ok", robots_answer("", status="403 Forbidden")),
        "broken": (
            "robots.txt answers 503, every time",
            "host_unavailable",
            robots_answer("", status="503 Service Unavailable"),
        ),
        "silent": ("robots.txt never answers", "read_timeout", lambda sock, request: time.sleep(5)),
        "html": ("robots.txt is a web page", "ok", robots_answer("<!DOCTYPE html><html>Disallow: /</html>")),
        "endless": ("robots.txt without end", "ok", _endless_robots),
        "redirected": ("robots.txt lies elsewhere, and forbids", "robots_disallowed", _redirected_robots),
        "for_us": (
            "`User-agent: PlantMix` forbids, `User-agent: *` allows",
            "robots_disallowed",
            robots_answer("User-agent: *\nAllow: /\n\nUser-agent: PlantMix\nDisallow: /\n"),
        ),
        "for_others": (
            "`User-agent: GPTBot` forbids, nothing else is said",
            "ok",
            robots_answer("User-agent: GPTBot\nDisallow: /\n"),
        ),
        "we_may": (
            "`User-agent: *` forbids, `User-agent: plantmix/2.0` allows",
            "ok",
            robots_answer("User-agent: *\nDisallow: /\n\nUser-agent: plantmix/2.0\nDisallow:\n"),
        ),
        "group": (
            "one rule for several agents, us among them",
            "robots_disallowed",
            robots_answer("User-agent: GPTBot\nUser-agent: PlantMix\nDisallow: /\n"),
        ),
        "wildcard": (
            "`Disallow: /*wildcard$`",
            "robots_disallowed",
            robots_answer("User-agent: *\nDisallow: /*wildcard$\n"),
        ),
        "allow_longer": (
            "`Disallow: /` and `Allow: /robots_txt_allow`: the longer rule counts",
            "ok",
            robots_answer("User-agent: *\nDisallow: /\nAllow: /robots_txt_allow\n"),
        ),
        "usage": (
            "`Content-Usage: train-ai=n` for all",
            "opted_out",
            robots_answer("User-agent: *\nAllow: /\nContent-Usage: train-ai=n\n"),
        ),
        "usage_here_not": (
            "`Content-Usage: train-ai=n`, and for this path `train-ai=y`",
            "ok",
            robots_answer("User-agent: *\nContent-Usage: train-ai=n\nContent-Usage: /robots_txt train-ai=y\n"),
        ),
        "odd_spelling": (
            "byte order mark, CRLF, odd capitals, comments, percent-encoding",
            "robots_disallowed",
            robots_answer("\ufeffUSER-AGENT : *  # all\r\ndisAllow: /robots%5Ftxt%5Fodd\r\n"),
        ),
    }
    for form, (does, outcome, robots) in forms.items():
        name = f"robots_txt_{form}"
        BEHAVIOURS[name] = Behaviour(name, does, outcome, lambda sock, request: send_picture(sock), robots=robots)


def _endless_robots(sock, request):
    send(sock, headers={"Content-Type": "text/plain"}, length=False)
    while True:
        sock.sendall(b"# and more\n" * 1000)


def _redirected_robots(sock, request):
    send(sock, "301 Moved Permanently", {"Location": "/robots_txt_elsewhere"})


_register_robots()


@behaviour("not_an_image")
def robots_txt_elsewhere(sock, request):
    """a robots.txt in the place of a picture"""
    send(sock, body=b"User-agent: *\nDisallow: /\n")


# ---- in the picture itself


@cache
def owners() -> dict[str, bytes]:
    """Pictures that say themselves what they may be used for."""
    return {
        "xmp": with_xmp(mining("DMI-PROHIBITED-AIMLTRAINING")),
        "xmp_png": with_xmp(mining("DMI-PROHIBITED"), "PNG"),
        "xmp_allows": with_xmp(mining("DMI-ALLOWED")),
        "xmp_entities": with_xmp(xmp("&a;", before='<!DOCTYPE x [<!ENTITY a "DataMining">]>')),
        "c2pa": signed({"cawg.ai_training": {"use": "notAllowed"}}),
        "c2pa_allows": signed({"cawg.ai_training": {"use": "allowed"}}),
    }


def _register_owners() -> None:
    said = {
        "xmp": ("a JPEG whose XMP says `plus:DataMining` `DMI-PROHIBITED-AIMLTRAINING`", "opted_out"),
        "xmp_png": ("a PNG whose packed XMP says `DMI-PROHIBITED`", "opted_out"),
        "xmp_allows": ("a JPEG whose XMP says `DMI-ALLOWED`", "ok"),
        "xmp_entities": ("a JPEG whose XMP declares an entity", "ok"),
        "c2pa": ("a JPEG whose signed C2PA manifest says `cawg.ai_training: notAllowed`", "opted_out"),
        "c2pa_allows": ("a JPEG whose signed C2PA manifest says `cawg.ai_training: allowed`", "ok"),
    }
    for form, (does, outcome) in said.items():

        def act(sock, request, form=form):
            send_picture(sock, owners()[form])

        BEHAVIOURS[f"owner_{form}"] = Behaviour(f"owner_{form}", does, outcome, act)


_register_owners()


# ---- tdmrep.json


def _register_tdmrep() -> None:
    everywhere = '[{"location": "/", "tdm-reservation": 1, "tdm-policy": "https://example.org/policy.json"}]'
    forms = {
        "all": ("`location: /`, `tdm-reservation: 1`", "opted_out", robots_answer(everywhere)),
        "pattern": (
            "`location: /*_pattern$`, reserved",
            "opted_out",
            robots_answer('[{"location": "/*_pattern$", "tdm-reservation": 1}]'),
        ),
        "elsewhere": (
            "another path is reserved",
            "ok",
            robots_answer('[{"location": "/other/", "tdm-reservation": 1}]'),
        ),
        "first_rule": (
            "this path is free, then all are reserved: the first rule that fits counts",
            "ok",
            robots_answer(f'[{{"location": "/tdmrep", "tdm-reservation": 0}}, {everywhere[1:]}'),
        ),
        "redirected": (
            "tdmrep.json lies elsewhere, and reserves",
            "opted_out",
            lambda sock, request: send(sock, "302 Found", {"Location": "/tdmrep_moved"}),
        ),
        "broken": (
            "tdmrep.json answers 503: the host does not take part",
            "ok",
            robots_answer("", status="503 Service Unavailable"),
        ),
        "silent": ("tdmrep.json never answers", "ok", lambda sock, request: time.sleep(5)),
        "html": ("tdmrep.json is a web page", "ok", robots_answer("<!DOCTYPE html><html></html>")),
        "endless": ("tdmrep.json without end", "ok", _endless_robots),
        "deep": ("tdmrep.json of 500,000 brackets", "ok", robots_answer("[" * 500_000)),
    }
    for form, (does, outcome, tdmrep) in forms.items():
        name = f"tdmrep_{form}"
        BEHAVIOURS[name] = Behaviour(name, does, outcome, lambda sock, request: send_picture(sock), tdmrep=tdmrep)


_register_tdmrep()


@behaviour("not_an_image")
def tdmrep_moved(sock, request):
    """a tdmrep.json in the place of a picture"""
    send(sock, body=b'[{"location": "/", "tdm-reservation": 1}]')


# ---- RSL licences

NAMED = "User-agent: *\nAllow: /\n\nLicense: {}\n"


def licence(uses: str, url: str = "/", before: str = "") -> str:
    """A document that says one thing of some paths."""
    return (
        f'<?xml version="1.0"?>\n{before}<rsl xmlns="https://rslstandard.org/rsl"><content url="{url}"><license>{uses}'
        "</license></content></rsl>"
    )


def _named_elsewhere(sock, request):
    port = request.host.partition(":")[2]
    send(sock, body=NAMED.format(f"http://rsl-prohibits.test:{port}/licence.xml").encode())


def _register_rsl() -> None:
    no, yes = '<prohibits type="usage">ai-train</prohibits>', '<permits type="usage">search ai-train</permits>'
    bomb = '<!DOCTYPE rsl [<!ENTITY a "ai-train"><!ENTITY b "&a;&a;&a;&a;">]>'
    forms = {
        "prohibits": ("an RSL licence prohibits ai-train", "opted_out", robots_answer(licence(no))),
        "permits": ("an RSL licence permits ai-train", "ok", robots_answer(licence(yes))),
        "leaves_out": (
            "an RSL licence permits search alone",
            "opted_out",
            robots_answer(licence('<permits type="usage">search</permits>')),
        ),
        "for_pay": (
            "an RSL licence permits ai-train for payment",
            "opted_out",
            robots_answer(licence(yes + '<payment type="crawl"/>')),
        ),
        "other_path": ("an RSL licence prohibits it for another path", "ok", robots_answer(licence(no, "/other/"))),
        "missing": ("the licence that robots.txt names is not there", "ok", robots_answer("", status="404 Not Found")),
        "failing": (
            "the licence that robots.txt names answers 500, every time",
            "host_unavailable",
            robots_answer("", status="500 Internal Server Error"),
        ),
        "silent": ("the licence never comes", "host_unavailable", lambda sock, request: time.sleep(5)),
        "endless": ("a licence without end", "ok", _endless_robots),
        "html": ("the licence is a web page", "ok", robots_answer("<!DOCTYPE html><html></html>")),
        "entities": (
            "a licence that declares entities",
            "ok",
            robots_answer(licence(no.replace("ai-train", "&b;"), before=bomb)),
        ),
        "deep": ("a licence of 150,000 levels", "ok", robots_answer("<rsl>" * 150_000)),
        "redirected": (
            "the licence lies elsewhere, and prohibits",
            "opted_out",
            lambda sock, request: send(sock, "302 Found", {"Location": "/rsl_moved"}),
        ),
    }
    for form, (does, outcome, act) in forms.items():
        name, robots = f"rsl_{form}", robots_answer(NAMED.format("/licence.xml"))
        BEHAVIOURS[name] = Behaviour(
            name, does, outcome, lambda sock, request: send_picture(sock), robots=robots, licence=act
        )
    named = {
        "for_others": ("robots.txt names it to another agent", "ok", "User-agent: GPTBot\nLicense: /licence.xml\n"),
        "private": ("robots.txt names a private address", "ok", NAMED.format("http://10.0.0.1/licence.xml")),
        "no_address": ("robots.txt names what is no address", "ok", NAMED.format("http://[/")),
    }
    for form, (does, outcome, text) in named.items():
        name = f"rsl_{form}"
        BEHAVIOURS[name] = Behaviour(
            name,
            does,
            outcome,
            lambda sock, request: send_picture(sock),
            robots=robots_answer(text),
            licence=robots_answer(licence(no)),
        )
    BEHAVIOURS["rsl_elsewhere"] = Behaviour(
        "rsl_elsewhere",
        "robots.txt names a licence of another host, which prohibits",
        "opted_out",
        lambda sock, request: send_picture(sock),
        robots=_named_elsewhere,
    )


_register_rsl()


@behaviour("not_an_image")
def rsl_moved(sock, request):
    """a licence in the place of a picture"""
    send(sock, body=licence('<prohibits type="usage">all</prohibits>').encode())
