"""Opt-out headers of every form, and robots.txt."""

from __future__ import annotations

import functools

from misbehaving.answers import send, send_picture, stay_silent
from misbehaving.owners import mining, with_xmp, xmp
from misbehaving.registry import answer, put

# ---- X-Robots-Tag


def _picture_with(headers, sock, _):
    send_picture(sock, headers=headers)


for name, *headers in (
    ("noai", ("X-Robots-Tag", "noai")),
    ("noml", ("X-Robots-Tag", "noml")),
    ("for_us", ("X-Robots-Tag", "plantmix: noai")),
    ("second_header", ("X-Robots-Tag", "max-image-preview: large"), ("X-Robots-Tag", "noai")),
    ("semicolons", ("X-Robots-Tag", "noindex;noai;noimageai")),
    ("odd_spelling", ("X-ROBOTS-TAG", " NoFollow ,\tNOAI ")),
    ("content_usage", ("Content-Usage", "search=y, train-ai=n")),
    ("tdm_reservation", ("TDM-Reservation", "1"), ("tdm-policy", "https://example.org/policy.json")),
):
    does = "; ".join(f"`{key}: {value}`" for key, value in headers)
    put(f"opt_out_{name}", "opted_out", does, functools.partial(_picture_with, headers))
put(
    "opt_out_after_redirect", "opted_out", "redirects to a picture with `X-Robots-Tag: noml`",
    answer("302 Found", {"Location": "/opt_out_noml"}),
)  # fmt: skip
put(
    "opt_out_of_a_redirect", "opted_out", "a redirect with `X-Robots-Tag: noai`, to a picture that says nothing",
    answer("302 Found", {"Location": "/wrong_type", "X-Robots-Tag": "noai"}),
)  # fmt: skip
put(
    "opt_out_of_nothing", "ok", "`X-Robots-Tag: all, max-image-preview: large, nofollow`",
    functools.partial(_picture_with, [("X-Robots-Tag", "all, max-image-preview: large, nofollow")]),
)  # fmt: skip
put(
    "content_usage_allows", "ok", "`Content-Usage: train-ai=y, search=n`; `tdm-reservation: 0`",
    functools.partial(_picture_with, [("Content-Usage", "train-ai=y, search=n"), ("tdm-reservation", "0")]),
)  # fmt: skip


# ---- robots.txt


def _never(sock, _):
    stay_silent(sock)


def _endless(sock, _):
    send(sock, headers={"Content-Type": "text/plain"}, length=False)
    while True:
        sock.sendall(b"# and more\n" * 1000)


put("robots_txt", "robots_disallowed", "a path that robots.txt forbids", url="http://{host}:{port}/private/{name}")
for form, outcome, does, robots in (
    ("missing", "ok", "robots.txt answers 404", answer("404 Not Found")),
    ("broken", "host_unavailable", "robots.txt answers 503, every time", answer("503 Service Unavailable")),
    ("silent", "read_timeout", "robots.txt never answers", _never),
    ("endless", "ok", "robots.txt without end", _endless),
    ("large", "robots_disallowed", "a robots.txt of 1.5 MB that forbids in its first lines",
     answer(body=b"User-agent: *\nDisallow: /\n" + b"# and more\n" * 140_000)),
    ("packed", "host_unavailable", "robots.txt in an encoding that was not asked for",
     answer(headers={"Content-Encoding": "br"}, body=b"\x0b\x02\x80")),
    ("looping", "host_unavailable", "robots.txt redirects to itself",
     answer("302 Found", {"Location": "/robots.txt"})),
    ("led_inside", "host_unavailable", "robots.txt redirects to an address that is refused",
     answer("302 Found", {"Location": "http://10.0.0.1/robots.txt"})),
    ("page", "ok", "an HTML page in the place of robots.txt",
     answer(body=b"<!DOCTYPE html>\n<pre>\nUser-agent: *\nDisallow: /\n</pre>\n")),
    ("empty", "ok", "robots.txt without a byte", answer(body=b"")),
    ("forbidden", "ok", "robots.txt answers 403, as stores do", answer("403 Forbidden")),
    ("busy", "host_unavailable", "robots.txt answers 429, every time", answer("429 Too Many Requests")),
    ("names_itself", "host_unavailable", "robots.txt names itself as its licence",
     answer(body=b"User-agent: *\nAllow: /\n\nLicense: /robots.txt\n")),
    ("commented", "opted_out", "a comment with a colon between two agents, then `Content-Usage: train-ai=n`",
     answer(body=b"User-agent: *\n# note: our own\nUser-agent: PlantMix\nContent-Usage: train-ai=n\nAllow: /\n")),
    ("redirected", "robots_disallowed", "robots.txt lies elsewhere, and forbids",
     answer("301 Moved Permanently", {"Location": "/robots_txt_elsewhere"})),
    ("for_us", "robots_disallowed", "`User-agent: PlantMix` forbids, `User-agent: *` allows",
     answer(body=b"User-agent: *\nAllow: /\n\nUser-agent: PlantMix\nDisallow: /\n")),
    ("usage", "opted_out", "`Content-Usage: train-ai=n` for all",
     answer(body=b"User-agent: *\nAllow: /\nContent-Usage: train-ai=n\n")),
):  # fmt: skip
    put(f"robots_txt_{form}", outcome, does, robots=robots)


put(
    "robots_txt_elsewhere", "not_an_image", "a robots.txt in the place of a picture",
    answer(body=b"User-agent: *\nDisallow: /\n"),
)  # fmt: skip


# ---- in the picture itself


@functools.cache
def owners() -> dict[str, bytes]:
    """Pictures that say themselves what they may be used for."""
    return {
        "xmp": with_xmp(mining("DMI-PROHIBITED-AIMLTRAINING")),
        "xmp_png": with_xmp(mining("DMI-PROHIBITED"), "PNG"),
        "xmp_allows": with_xmp(mining("DMI-ALLOWED")),
        "xmp_entities": with_xmp(xmp("&a;", before='<!DOCTYPE x [<!ENTITY a "DataMining">]>')),
    }


for form, does in (
    ("xmp", "a JPEG whose XMP says `plus:DataMining` `DMI-PROHIBITED-AIMLTRAINING`"),
    ("xmp_png", "a PNG whose packed XMP says `DMI-PROHIBITED`"),
):
    put(f"owner_{form}", "opted_out", does, lambda sock, _, form=form: send_picture(sock, owners()[form]))


# ---- tdmrep.json


_EVERYWHERE = b'[{"location": "/", "tdm-reservation": 1, "tdm-policy": "https://example.org/policy.json"}]'
for form, outcome, does, tdmrep in (
    ("all", "opted_out", "`location: /`, `tdm-reservation: 1`", answer(body=_EVERYWHERE)),
    ("pattern", "opted_out", "`location: /*_pattern$`, reserved",
     answer(body=b'[{"location": "/*_pattern$", "tdm-reservation": 1}]')),
    ("redirected", "opted_out", "tdmrep.json lies elsewhere, and reserves",
     answer("302 Found", {"Location": "/tdmrep_moved"})),
    ("broken", "host_unavailable", "tdmrep.json answers 503, every time", answer("503 Service Unavailable")),
    ("silent", "host_unavailable", "tdmrep.json never answers", _never),
    ("endless", "ok", "a tdmrep.json without end that is no JSON", _endless),
    ("large", "host_unavailable", "a tdmrep.json of 1.5 MB",
     answer(body=b"[" + b'{"location": "/a", "tdm-reservation": 0}, ' * 38_000 + _EVERYWHERE[1:])),
    ("packed", "host_unavailable", "tdmrep.json in an encoding that was not asked for",
     answer(headers={"Content-Encoding": "br"}, body=_EVERYWHERE)),
    ("looping", "host_unavailable", "tdmrep.json redirects to itself",
     answer("302 Found", {"Location": "/.well-known/tdmrep.json"})),
    ("page", "ok", "an HTML page in the place of tdmrep.json", answer(body=b"<!DOCTYPE html><p>Not found</p>")),
):  # fmt: skip
    put(f"tdmrep_{form}", outcome, does, tdmrep=tdmrep)
put(
    "tdmrep_moved", "not_an_image", "a tdmrep.json in the place of a picture",
    answer(body=b'[{"location": "/", "tdm-reservation": 1}]'),
)  # fmt: skip


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


_NO, _YES = '<prohibits type="usage">ai-train</prohibits>', '<permits type="usage">search ai-train</permits>'
for form, outcome, does, act in (
    ("prohibits", "opted_out", "an RSL licence prohibits ai-train", answer(body=licence(_NO).encode())),
    ("permits", "ok", "an RSL licence permits ai-train", answer(body=licence(_YES).encode())),
    ("for_pay", "opted_out", "an RSL licence permits ai-train for payment",
     answer(body=licence(_YES + '<payment type="crawl"/>').encode())),
    ("missing", "host_unavailable", "the licence that robots.txt names is not there", answer("404 Not Found")),
    ("page", "host_unavailable", "an HTML page in the place of a licence", answer(body=b"<!DOCTYPE html><p>Hello</p>")),
    ("large", "host_unavailable", "a licence of 1.5 MB",
     answer(body=licence(_YES).replace("<content", " " * 1_500_000 + "<content").encode())),
    ("empty", "host_unavailable", "a licence without a byte", answer(body=b"")),
    ("failing", "host_unavailable", "the licence that robots.txt names answers 500, every time",
     answer("500 Internal Server Error")),
    ("silent", "host_unavailable", "the licence never comes", _never),
    ("endless", "host_unavailable", "a licence without end", _endless),
    ("redirected", "opted_out", "the licence lies elsewhere, and prohibits",
     answer("302 Found", {"Location": "/rsl_moved"})),
):  # fmt: skip
    put(f"rsl_{form}", outcome, does, robots=answer(body=NAMED.format("/licence.xml").encode()), licence=act)
put(
    "rsl_private", "host_unavailable", "robots.txt names a licence at a private address",
    robots=answer(body=NAMED.format("http://10.0.0.1/licence.xml").encode()),
    licence=answer(body=licence(_NO).encode()),
)  # fmt: skip
put(
    "rsl_elsewhere", "opted_out", "robots.txt names a licence of another host, which prohibits",
    robots=_named_elsewhere,
)  # fmt: skip
put(
    "rsl_moved", "not_an_image", "a licence in the place of a picture",
    answer(body=licence('<prohibits type="usage">all</prohibits>').encode()),
)  # fmt: skip
