"""Heads, connections, TLS, names and addresses."""

from __future__ import annotations

from misbehaving.answers import hang_up, photo, reset, send, send_picture, stay_silent
from misbehaving.registry import behaviour, put
from waiting import be_slow


@behaviour("deadline_exceeded")
def slow_headers(sock, request):
    """headers one byte every 0.1 s"""
    sock.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        sock.sendall(b"a")
        be_slow(0.1)


@behaviour("read_timeout")
def silent(sock, request):
    """takes the request and says nothing"""
    stay_silent(sock)


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


put("closes_at_once", "connection_reset", "closes without an answer", lambda sock, _: hang_up(sock))
put("resets_at_once", "connection_reset", "resets without an answer", lambda sock, _: reset(sock))


@behaviour("connection_reset")
def resets_in_body(sock, request):
    """resets in the middle of the body"""
    send(sock, headers={"Content-Length": "100000"}, body=photo()[:500], length=False)
    be_slow(0.2)
    reset(sock)


for name, outcome, does, url in (  # whose answer, if one is asked for, would be a picture
    ("tls_self_signed", "tls_failure", "a certificate nobody vouches for", "https://{host}:{tls_port}/{name}"),
    ("tls_is_plain", "tls_failure", "plain HTTP where TLS is expected", "https://{host}:{port}/{name}"),
    ("port_closed", "connect_failed", "nobody listens", "http://{host}:{closed_port}/{name}"),
    ("never_accepts", "connect_timeout", "listens, but takes no connection", "http://{host}:{full_port}/{name}"),
    ("no_such_host", "dns_failure", "a name without an address", "http://no-such-host.invalid/{name}"),
    ("private_name", "refused_target", "a name that leads to 192.168.0.1", "http://intranet.example/{name}"),
    ("private_in_hex", "refused_target", "10.0.0.1 written as a hexadecimal number", "http://0x0a000001/{name}"),
    ("wrong_scheme", "refused_target", "ftp", "ftp://{host}/{name}"),
    ("no_host", "invalid_url", "a URL without a host", "http:///{name}"),
    ("no_scheme", "invalid_url", "a URL without a scheme", "{host}/{name}.jpg"),
):
    put(name, outcome, does, url=url)


@behaviour("ok", url="http://someone:secret@{host}:{port}/{name}")
def credentials(sock, request):
    """wants the name and password that stand in the URL"""
    if request.headers.get("authorization") == "Basic c29tZW9uZTpzZWNyZXQ=":
        send_picture(sock)
    else:
        send(sock, "401 Unauthorized")
