"""Statuses and redirects."""

from __future__ import annotations

import email.utils
import time

from misbehaving.answers import send, send_picture
from misbehaving.registry import Act, answer, behaviour, put


def _found_at(location: str) -> Act:
    """A redirect to `location`."""
    return answer("302 Found", {"Location": location})


# ---- statuses


put("not_found", "http_404", "404", answer("404 Not Found", body=b"gone fishing"))
put("gone", "http_410", "410", answer("410 Gone"))
put("forbidden", "http_4xx", "403", answer("403 Forbidden"))
put(
    "busy_for_hours",
    "http_429",
    "429 with Retry-After: 3600, longer than anyone's patience",
    answer("429 Too Many Requests", {"Retry-After": "3600"}),
)
put("busy_always", "http_429", "429 without Retry-After, every time", answer("429 Too Many Requests"))
put("server_error", "http_5xx", "500, every time", answer("500 Internal Server Error", body=b"oops"))
put("no_content", "empty_body", "204", lambda sock, _: send(sock, "204 No Content", length=False))
put(
    "not_modified",
    "bad_response",
    "304 to a request that was not conditional",
    lambda sock, _: send(sock, "304 Not Modified", length=False),
)
put(
    "partial",
    "bad_response",
    "206 to a request for the whole",
    answer("206 Partial Content", {"Content-Range": "bytes 0-9/100"}, b"0123456789"),
)


@behaviour("ok")
def busy_seconds(sock, request):
    """429 with Retry-After in seconds, then the picture"""
    if request.nth == 1:
        send(sock, "429 Too Many Requests", {"Retry-After": "1"})
    else:
        send_picture(sock)


@behaviour("ok")
def busy_date(sock, request):
    """429 with Retry-After as a date, then the picture"""
    if request.nth == 1:
        now = time.time()
        date, until = (email.utils.formatdate(when, usegmt=True) for when in (now, now + 1))
        send(sock, "429 Too Many Requests", {"Retry-After": until, "Date": date})
    else:
        send_picture(sock)


@behaviour("ok")
def unavailable_once(sock, request):
    """503, then the picture"""
    if request.nth == 1:
        send(sock, "503 Service Unavailable")
    else:
        send_picture(sock)


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
put("redirect_to_file", "refused_target", "to file:///etc/passwd", _found_at("file:///etc/passwd"))
put("redirect_to_private", "refused_target", "to http://10.0.0.1/", _found_at("http://10.0.0.1/photo.jpg"))
put(
    "redirect_to_metadata",
    "refused_target",
    "to a cloud's metadata address",
    _found_at("http://169.254.169.254/latest/meta-data/"),
)
put("redirect_to_ipv6_loopback", "refused_target", "to http://[::1]/", _found_at("http://[::1]:80/photo.jpg"))
put(
    "redirect_to_private_name",
    "refused_target",
    "to a public name that leads to a private address",
    _found_at("http://intranet.example/photo.jpg"),
)
put("redirect_to_nowhere", "bad_response", "302 without Location", answer("302 Found"))
put("redirect_to_nonsense", "bad_response", "to something that is no URL", _found_at("http://[nonsense"))
put("redirect_to_disallowed", "robots_disallowed", "to a path that robots.txt forbids", _found_at("/private/photo.jpg"))
put(
    "redirect_to_no_such_host",
    "dns_failure",
    "to a name without an address",
    _found_at("http://no-such-host.invalid/photo.jpg"),
)
put("redirect_to_not_found", "http_404", "to a 404", _found_at("/nothing_here"))


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
