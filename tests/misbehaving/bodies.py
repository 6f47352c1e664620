"""Bodies that drip, end early, never end, or come packed."""

from __future__ import annotations

import gzip
import time
import zlib
from functools import lru_cache

from misbehaving.answers import hang_up, photo, send, send_picture
from misbehaving.registry import behaviour, put


@behaviour("deadline_exceeded")
def drip_fed_body(sock, request):
    """one byte every 0.1 s, for ever"""
    send(sock, headers={"Content-Length": "100000"}, length=False)
    while True:
        sock.sendall(b"\xff")
        time.sleep(0.1)


@behaviour("read_timeout")
def silent_body(sock, request):
    """headers, half a body, then nothing"""
    send(sock, headers={"Content-Length": str(len(photo()))}, body=photo()[:500], length=False)
    time.sleep(5)


@behaviour("body_too_large")
def endless_chunks(sock, request):
    """a chunked body without end"""
    send(sock, headers={"Transfer-Encoding": "chunked"}, length=False)
    while True:
        sock.sendall(b"10000\r\n" + b"\0" * 0x10000 + b"\r\n")


@behaviour("body_too_large")
def endless_stream(sock, request):
    """a body without length and without end"""
    send(sock, length=False)
    while True:
        sock.sendall(b"\0" * 0x10000)


@behaviour("body_too_large")
def declared_too_large(sock, request):
    """Content-Length of 1 TB"""
    send(sock, headers={"Content-Length": str(10**12)}, body=b"\xff\xd8\xff", length=False)
    time.sleep(0.5)


@behaviour("body_truncated")
def length_too_long(sock, request):
    """Content-Length larger than the body"""
    send(sock, headers={"Content-Length": str(len(photo()) + 1000)}, body=photo(), length=False)
    hang_up(sock)


def _encoded(sock, encoding, body):
    send(sock, headers={"Content-Encoding": encoding}, body=body)


put(
    "length_too_short",
    "corrupt_image",
    "Content-Length smaller than the body",
    lambda sock, _: send(sock, headers={"Content-Length": str(len(photo()) - 1000)}, body=photo(), length=False),
)
put(
    "gzip_bomb",
    "body_too_large",
    "200 MB of zeros in 200 kB of gzip",
    lambda sock, _: _encoded(sock, "gzip", bomb()),
)
put(
    "deflate_bomb",
    "body_too_large",
    "200 MB of zeros as deflate",
    lambda sock, _: _encoded(sock, "deflate", deflate_bomb_body()),
)
put(
    "gzip_unasked",
    "ok",
    "the picture in gzip, though nobody asked for it",
    lambda sock, _: _encoded(sock, "gzip", gzip.compress(photo())),
)
put(
    "gzip_in_name_only",
    "ok",
    "Content-Encoding: gzip on a plain picture",
    lambda sock, _: _encoded(sock, "gzip", photo()),
)
put(
    "encoding_unknown",
    "bad_response",
    "Content-Encoding: br",
    lambda sock, _: _encoded(sock, "br", photo()),
)
put("zero_bytes", "empty_body", "200 with nothing", lambda sock, _: send_picture(sock, b""))


@behaviour("ok")
def length_missing(sock, request):
    """no Content-Length, the end of the connection ends the body"""
    send(sock, body=photo(), length=False)
    hang_up(sock)


@behaviour("bad_response")
def length_nonsense(sock, request):
    """Content-Length that is no number (RFC 9112, 6.3: an unrecoverable error)"""
    send(sock, headers={"Content-Length": "many"}, body=photo(), length=False)
    hang_up(sock)


@behaviour("bad_response")
def length_twice(sock, request):
    """two Content-Length headers that disagree"""
    headers = [("Content-Length", "10"), ("Content-Length", str(len(photo())))]
    send(sock, headers=headers, body=photo(), length=False)


@behaviour("ok")
def http_1_0(sock, request):
    """HTTP/1.0, the end of the connection ends the body"""
    sock.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + photo())
    hang_up(sock)


@behaviour("body_truncated")
def chunks_cut_off(sock, request):
    """the connection ends in a chunk"""
    send(sock, headers={"Transfer-Encoding": "chunked"}, body=b"1000\r\n" + photo()[:100], length=False)
    hang_up(sock)


@behaviour("bad_response")
def chunks_nonsense(sock, request):
    """a chunk length that is no number"""
    send(sock, headers={"Transfer-Encoding": "chunked"}, body=b"xyz\r\n" + photo(), length=False)
    hang_up(sock)


@behaviour("ok")
def chunks(sock, request):
    """a sound chunked body"""
    body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (photo()[:1000], photo()[1000:])) + b"0\r\n\r\n"
    send(sock, headers={"Transfer-Encoding": "chunked"}, body=body, length=False)


@behaviour("body_truncated")
def gzip_cut_off(sock, request):
    """half a gzip body, its length right"""
    packed = gzip.compress(photo())
    _encoded(sock, "gzip", packed[: len(packed) // 2])


@behaviour("bad_response")
def gzip_broken(sock, request):
    """gzip with a hole"""
    packed = gzip.compress(photo())
    _encoded(sock, "gzip", packed[:200] + b"\xff" * 100 + packed[300:])


@lru_cache(maxsize=1)
def deflate_bomb_body() -> bytes:
    return zlib.compress(b"\0" * (200 << 20), 9)


@lru_cache(maxsize=1)
def bomb() -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    block = b"\0" * (1 << 20)
    return b"".join(packer.compress(block) for _ in range(200)) + packer.flush()
