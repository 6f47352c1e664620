"""Statuses and redirects."""

from __future__ import annotations

import email.utils
import time

from misbehaving.answers import send, send_picture
from misbehaving.registry import behaviour

# ---- statuses


@behaviour("http_404")
def not_found(sock, request):
    """404"""
    send(sock, "404 Not Found", body=b"gone fishing")


@behaviour("http_410")
def gone(sock, request):
    """410"""
    send(sock, "410 Gone")


@behaviour("http_4xx")
def forbidden(sock, request):
    """403"""
    send(sock, "403 Forbidden")


@behaviour("http_4xx")
def legal_reasons(sock, request):
    """451"""
    send(sock, "451 Unavailable For Legal Reasons")


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


@behaviour("http_429")
def busy_for_hours(sock, request):
    """429 with Retry-After: 3600, longer than anyone's patience"""
    send(sock, "429 Too Many Requests", {"Retry-After": "3600"})


@behaviour("http_429")
def busy_always(sock, request):
    """429 without Retry-After, every time"""
    send(sock, "429 Too Many Requests")


@behaviour("http_5xx")
def server_error(sock, request):
    """500, every time"""
    send(sock, "500 Internal Server Error", body=b"oops")


@behaviour("ok")
def unavailable_once(sock, request):
    """503, then the picture"""
    if request.nth == 1:
        send(sock, "503 Service Unavailable")
    else:
        send_picture(sock)


@behaviour("http_5xx")
def bad_gateway(sock, request):
    """502, every time"""
    send(sock, "502 Bad Gateway")


@behaviour("empty_body")
def no_content(sock, request):
    """204"""
    send(sock, "204 No Content", length=False)


@behaviour("bad_response")
def not_modified(sock, request):
    """304 to a request that was not conditional"""
    send(sock, "304 Not Modified", length=False)


@behaviour("bad_response")
def partial(sock, request):
    """206 to a request for the whole"""
    send(sock, "206 Partial Content", {"Content-Range": "bytes 0-9/100"}, b"0123456789")


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


@behaviour("too_many_redirects")
def redirect_loop(sock, request):
    """to itself"""
    send(sock, "307 Temporary Redirect", {"Location": "/redirect_loop"})


@behaviour("refused_target")
def redirect_to_file(sock, request):
    """to file:///etc/passwd"""
    send(sock, "302 Found", {"Location": "file:///etc/passwd"})


@behaviour("refused_target")
def redirect_to_private(sock, request):
    """to http://10.0.0.1/"""
    send(sock, "302 Found", {"Location": "http://10.0.0.1/photo.jpg"})


@behaviour("refused_target")
def redirect_to_metadata(sock, request):
    """to a cloud's metadata address"""
    send(sock, "302 Found", {"Location": "http://169.254.169.254/latest/meta-data/"})


@behaviour("refused_target")
def redirect_to_ipv6_loopback(sock, request):
    """to http://[::1]/"""
    send(sock, "302 Found", {"Location": "http://[::1]:80/photo.jpg"})


@behaviour("refused_target")
def redirect_to_private_name(sock, request):
    """to a public name that leads to a private address"""
    send(sock, "302 Found", {"Location": "http://intranet.example/photo.jpg"})


@behaviour("bad_response")
def redirect_to_nowhere(sock, request):
    """302 without Location"""
    send(sock, "302 Found")


@behaviour("bad_response")
def redirect_to_nonsense(sock, request):
    """to something that is no URL"""
    send(sock, "302 Found", {"Location": "http://[nonsense"})


@behaviour("robots_disallowed")
def redirect_to_disallowed(sock, request):
    """to a path that robots.txt forbids"""
    send(sock, "302 Found", {"Location": "/private/photo.jpg"})


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


@behaviour("dns_failure")
def redirect_to_no_such_host(sock, request):
    """to a name without an address"""
    send(sock, "302 Found", {"Location": "http://no-such-host.invalid/photo.jpg"})


@behaviour("http_404")
def redirect_to_not_found(sock, request):
    """to a 404"""
    send(sock, "302 Found", {"Location": "/nothing_here"})
