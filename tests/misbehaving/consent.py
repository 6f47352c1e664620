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
        "noml": [("X-Robots-Tag", "noml")],
        "for_us": [("X-Robots-Tag", "plantmix: noai")],
        "second_header": [("X-Robots-Tag", "max-image-preview: large"), ("X-Robots-Tag", "noai")],
        "odd_spelling": [("X-ROBOTS-TAG", " NoFollow ,\tNOAI ")],
        "content_usage": [("Content-Usage", "search=y, train-ai=n")],
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
        "broken": (
            "robots.txt answers 503, every time",
            "host_unavailable",
            robots_answer("", status="503 Service Unavailable"),
        ),
        "silent": ("robots.txt never answers", "read_timeout", lambda sock, request: time.sleep(5)),
        "endless": ("robots.txt without end", "ok", _endless_robots),
        "redirected": ("robots.txt lies elsewhere, and forbids", "robots_disallowed", _redirected_robots),
        "for_us": (
            "`User-agent: PlantMix` forbids, `User-agent: *` allows",
            "robots_disallowed",
            robots_answer("User-agent: *\nAllow: /\n\nUser-agent: PlantMix\nDisallow: /\n"),
        ),
        "usage": (
            "`Content-Usage: train-ai=n` for all",
            "opted_out",
            robots_answer("User-agent: *\nAllow: /\nContent-Usage: train-ai=n\n"),
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
        "c2pa": ("a JPEG whose signed C2PA manifest says `cawg.ai_training: notAllowed`", "opted_out"),
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
        "endless": ("tdmrep.json without end", "ok", _endless_robots),
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


def licence(uses: str, url: str = "/") -> str:
    """A document that says one thing of some paths."""
    return (
        f'<?xml version="1.0"?>\n<rsl xmlns="https://rslstandard.org/rsl"><content url="{url}"><license>{uses}'
        "</license></content></rsl>"
    )


def _named_elsewhere(sock, request):
    port = request.host.partition(":")[2]
    send(sock, body=NAMED.format(f"http://rsl-prohibits.test:{port}/licence.xml").encode())


def _register_rsl() -> None:
    no, yes = '<prohibits type="usage">ai-train</prohibits>', '<permits type="usage">search ai-train</permits>'
    forms = {
        "prohibits": ("an RSL licence prohibits ai-train", "opted_out", robots_answer(licence(no))),
        "permits": ("an RSL licence permits ai-train", "ok", robots_answer(licence(yes))),
        "for_pay": (
            "an RSL licence permits ai-train for payment",
            "opted_out",
            robots_answer(licence(yes + '<payment type="crawl"/>')),
        ),
        "missing": ("the licence that robots.txt names is not there", "ok", robots_answer("", status="404 Not Found")),
        "failing": (
            "the licence that robots.txt names answers 500, every time",
            "host_unavailable",
            robots_answer("", status="500 Internal Server Error"),
        ),
        "silent": ("the licence never comes", "host_unavailable", lambda sock, request: time.sleep(5)),
        "endless": ("a licence without end", "ok", _endless_robots),
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
        "private": ("robots.txt names a private address", "ok", NAMED.format("http://10.0.0.1/licence.xml")),
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
