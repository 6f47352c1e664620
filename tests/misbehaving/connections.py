"""Heads, connections, TLS, names and addresses."""

from __future__ import annotations

import time

from misbehaving.answers import hang_up, photo, reset, send, send_picture
from misbehaving.registry import behaviour, behaviours


@behaviour("deadline_exceeded")
def slow_headers(sock, request):
    """headers one byte every 0.1 s"""
    sock.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        sock.sendall(b"a")
        time.sleep(0.1)


@behaviour("read_timeout")
def silent(sock, request):
    """takes the request and says nothing"""
    time.sleep(5)


@behaviour("bad_response")
def huge_header(sock, request):
    """one header of 1 MB"""
    sock.sendall(b"HTTP/1.1 200 OK\r\nX-Huge: " + b"a" * (1 << 20) + b"\r\n\r\n")


@behaviour("bad_response")
def endless_headers(sock, request):
    """headers without end"""
    sock.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        sock.sendall(b"X-More: and more\r\n" * 100)


@behaviour("bad_response")
def garbage(sock, request):
    """bytes that are no HTTP"""
    sock.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
    hang_up(sock)


@behaviour("bad_response")
def endless_continue(sock, request):
    """100 Continue, again and again"""
    while True:
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


behaviours(
    {
        "closes_at_once": ("connection_reset", "closes without an answer", lambda sock, _: hang_up(sock)),
        "resets_at_once": ("connection_reset", "resets without an answer", lambda sock, _: reset(sock)),
    }
)


@behaviour("connection_reset")
def resets_in_body(sock, request):
    """resets in the middle of the body"""
    send(sock, headers={"Content-Length": "100000"}, body=photo()[:500], length=False)
    time.sleep(0.2)
    reset(sock)


@behaviour("tls_failure", "https://{host}:{tls_port}/{name}")
def tls_self_signed(sock, request):
    """a certificate nobody vouches for"""
    send_picture(sock)


@behaviour("tls_failure", "https://{host}:{port}/{name}")
def tls_is_plain(sock, request):
    """plain HTTP where TLS is expected"""
    send_picture(sock)


@behaviour("connect_failed", "http://{host}:{closed_port}/{name}")
def port_closed(sock, request):
    """nobody listens"""


@behaviour("connect_timeout", "http://{host}:{full_port}/{name}")
def never_accepts(sock, request):
    """listens, but takes no connection"""


@behaviour("dns_failure", "http://no-such-host.invalid/{name}")
def no_such_host(sock, request):
    """a name without an address"""


@behaviour("refused_target", "http://intranet.example/{name}")
def private_name(sock, request):
    """a name that leads to 192.168.0.1"""


@behaviour("refused_target", "http://0x0a000001/{name}")
def private_in_hex(sock, request):
    """10.0.0.1 written as a hexadecimal number"""


@behaviour("refused_target", "ftp://{host}/{name}")
def wrong_scheme(sock, request):
    """ftp"""


@behaviour("invalid_url", "http:///{name}")
def no_host(sock, request):
    """a URL without a host"""


@behaviour("invalid_url", "{host}/{name}.jpg")
def no_scheme(sock, request):
    """a URL without a scheme"""


@behaviour("ok", "http://someone:secret@{host}:{port}/{name}")
def credentials(sock, request):
    """wants the name and password that stand in the URL"""
    if request.headers.get("authorization") == "Basic c29tZW9uZTpzZWNyZXQ=":
        send_picture(sock)
    else:
        send(sock, "401 Unauthorized")
