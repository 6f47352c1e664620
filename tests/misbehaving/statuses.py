"""Statuses and redirects."""

from __future__ import annotations

import email.utils
import time

from misbehaving.answers import send, send_picture
from misbehaving.registry import answer, behaviour, put

# ---- statuses


for name, outcome, does, act in (
    ("not_found", "http_404", "404", answer("404 Not Found", body=b"gone fishing")),
    ("gone", "http_410", "410", answer("410 Gone")),
    ("forbidden", "http_4xx", "403", answer("403 Forbidden")),
    ("busy_for_hours", "http_429", "429 with Retry-After: 3600, longer than anyone's patience",
     answer("429 Too Many Requests", {"Retry-After": "3600"})),
    ("busy_always", "http_429", "429 without Retry-After, every time", answer("429 Too Many Requests")),
    ("server_error", "http_5xx", "500, every time", answer("500 Internal Server Error", body=b"oops")),
    ("no_content", "empty_body", "204", lambda sock, _: send(sock, "204 No Content", length=False)),
    ("not_modified", "bad_response", "304 to a request that was not conditional",
     lambda sock, _: send(sock, "304 Not Modified", length=False)),
    ("partial", "bad_response", "206 to a request for the whole",
     answer("206 Partial Content", {"Content-Range": "bytes 0-9/100"}, b"0123456789")),
):  # fmt: skip
    put(name, outcome, does, act)


def _in_a_second() -> dict[str, str]:
    now = time.time()
    return {
        "Retry-After": email.utils.formatdate(now + 1, usegmt=True),
        "Date": email.utils.formatdate(now, usegmt=True),
    }


for name, does, status, headers in (
    ("busy_seconds", "429 with Retry-After in seconds", "429 Too Many Requests", lambda: {"Retry-After": "1"}),
    ("busy_date", "429 with Retry-After as a date", "429 Too Many Requests", _in_a_second),
    ("unavailable_once", "503", "503 Service Unavailable", dict),
):
    act = lambda sock, request, status=status, headers=headers: (  # noqa: E731
        send(sock, status, headers()) if request.nth == 1 else send_picture(sock)
    )
    put(name, "ok", f"{does}, then the picture", act)


@behaviour("ok")
def early_hints(sock, request):
    """100 before the answer"""
    sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    send_picture(sock)


# ---- redirects


@behaviour("ok")
def redirect_chain(sock, request):
    """three relative redirects, then the picture"""
    step = int(request.path.rpartition("/")[2]) if request.path.count("/") > 1 else 0
    if step < 3:
        send(sock, "302 Found", {"Location": f"/redirect_chain/{step + 1}"})
    else:
        send_picture(sock)


@behaviour("too_many_redirects")
def redirect_endless(sock, request):
    """always on to a new place"""
    step = int(request.path.rpartition("/")[2]) if request.path.count("/") > 1 else 0
    send(sock, "301 Moved Permanently", {"Location": f"/redirect_endless/{step + 1}"})


put(
    "redirect_loop", "too_many_redirects", "to itself", answer("307 Temporary Redirect", {"Location": "/redirect_loop"})
)
put("redirect_to_nowhere", "bad_response", "302 without Location", answer("302 Found"))
for target, outcome, does, location in (
    ("file", "refused_target", "to file:///etc/passwd", "file:///etc/passwd"),
    ("private", "refused_target", "to http://10.0.0.1/", "http://10.0.0.1/photo.jpg"),
    ("metadata", "refused_target", "to a cloud's metadata address", "http://169.254.169.254/latest/meta-data/"),
    ("ipv6_loopback", "refused_target", "to http://[::1]/", "http://[::1]:80/photo.jpg"),
    ("private_name", "refused_target", "to a public name that leads to a private address",
     "http://intranet.example/photo.jpg"),
    ("nonsense", "bad_response", "to something that is no URL", "http://[nonsense"),
    ("disallowed", "robots_disallowed", "to a path that robots.txt forbids", "/private/photo.jpg"),
    ("no_such_host", "dns_failure", "to a name without an address", "http://no-such-host.invalid/photo.jpg"),
    ("not_found", "http_404", "to a 404", "/nothing_here"),
):  # fmt: skip
    put(f"redirect_to_{target}", outcome, does, answer("302 Found", {"Location": location}))


@behaviour("ok")
def redirect_to_other_host(sock, request):
    """to the picture on another host"""
    port = request.host.partition(":")[2]
    send(sock, "308 Permanent Redirect", {"Location": f"http://elsewhere.test:{port}/early_hints"})


@behaviour("ok")
def redirect_signed(sock, request):
    """to a signed link, whose signature is sent and never stored"""
    if "X-Amz-Signature=" in request.path:
        send_picture(sock)
    else:
        query = "w=640&X-Amz-Credential=AKIA%2Feu&X-Amz-Signature=5ec7e7"
        send(sock, "302 Found", {"Location": f"/redirect_signed?{query}"})
