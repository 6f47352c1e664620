"""Bodies that drip, end early, never end, or come packed."""

from __future__ import annotations

import functools
import gzip
import zlib

from misbehaving.answers import hang_up, photo, send, send_picture, stay_silent
from misbehaving.registry import behaviour, put
from waiting import be_slow

CHUNKED = {"Transfer-Encoding": "chunked"}


@behaviour("deadline_exceeded")
def drip_fed_body(sock, request):
    """one byte every 0.1 s, for ever"""
    send(sock, headers={"Content-Length": "100000"}, length=False)
    while True:
        sock.sendall(b"\xff")
        be_slow(0.1)


def _endless(headers, more, sock, _):
    send(sock, headers=headers, length=False)
    while True:
        sock.sendall(more)


put(
    "endless_chunks", "body_too_large", "a chunked body without end",
    functools.partial(_endless, CHUNKED, b"10000\r\n" + b"\0" * 0x10000 + b"\r\n"),
)  # fmt: skip
put(
    "endless_stream", "body_too_large", "a body without length and without end",
    functools.partial(_endless, {}, b"\0" * 0x10000),
)  # fmt: skip


# ---- lengths and chunks


def _as_it_is(headers, body, then, sock, _):
    """Headers and body as they are given; then silence, or the end of the connection."""
    send(sock, headers=headers, body=body, length=False)
    if then == "end":
        hang_up(sock)
    elif then == "silence":
        stay_silent(sock)


def _length(num):
    return {"Content-Length": str(num)}


_NUM = len(photo())
_SOUND = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (photo()[:1000], photo()[1000:])) + b"0\r\n\r\n"
for name, outcome, does, headers, body, then in (
    ("silent_body", "read_timeout", "headers, half a body, then nothing", _length(_NUM), photo()[:500], "silence"),
    ("declared_too_large", "body_too_large", "Content-Length of 1 TB", _length(10**12), b"\xff\xd8\xff", "silence"),
    ("length_too_long", "body_truncated", "Content-Length larger than the body", _length(_NUM + 1000), photo(), "end"),
    ("length_too_short", "corrupt_image", "Content-Length smaller than the body", _length(_NUM - 1000), photo(), None),
    ("length_missing", "ok", "no Content-Length, the end of the connection ends the body", {}, photo(), "end"),
    ("length_nonsense", "bad_response", "Content-Length that is no number (RFC 9112, 6.3: an unrecoverable error)",
     _length("many"), photo(), "end"),
    ("length_twice", "bad_response", "two Content-Length headers that disagree",
     [*_length(10).items(), *_length(_NUM).items()], photo(), None),
    ("chunks_cut_off", "body_truncated", "the connection ends in a chunk", CHUNKED, b"1000\r\n" + photo()[:100], "end"),
    ("chunks_nonsense", "bad_response", "a chunk length that is no number", CHUNKED, b"xyz\r\n" + photo(), "end"),
    ("chunks", "ok", "a sound chunked body", CHUNKED, _SOUND, None),
):  # fmt: skip
    put(name, outcome, does, functools.partial(_as_it_is, headers, body, then))
put("zero_bytes", "empty_body", "200 with nothing", lambda sock, _: send_picture(sock, b""))


@behaviour("ok")
def http_1_0(sock, request):
    """HTTP/1.0, the end of the connection ends the body"""
    sock.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + photo())
    hang_up(sock)


# ---- packed


@functools.cache
def deflate_bomb_body() -> bytes:
    return zlib.compress(b"\0" * (200 << 20), 9)


@functools.cache
def bomb() -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    block = b"\0" * (1 << 20)
    return b"".join(packer.compress(block) for _ in range(200)) + packer.flush()


_PACKED = gzip.compress(photo(), mtime=0)
for name, outcome, does, encoding, body_of in (
    ("gzip_bomb", "body_too_large", "200 MB of zeros in 200 kB of gzip", "gzip", bomb),
    ("deflate_bomb", "body_too_large", "200 MB of zeros as deflate", "deflate", deflate_bomb_body),
    ("gzip_unasked", "ok", "the picture in gzip, though nobody asked for it", "gzip", lambda: _PACKED),
    ("gzip_in_name_only", "ok", "Content-Encoding: gzip on a plain picture", "gzip", photo),
    ("gzip_cut_off", "body_truncated", "half a gzip body, its length right", "gzip",
     lambda: _PACKED[: len(_PACKED) // 2]),
    ("gzip_broken", "bad_response", "gzip with a hole", "gzip", lambda: _PACKED[:200] + b"\xff" * 100 + _PACKED[300:]),
    ("encoding_unknown", "bad_response", "Content-Encoding: br", "br", photo),
):  # fmt: skip
    act = lambda sock, _, encoding=encoding, body_of=body_of: send(  # noqa: E731
        sock, headers={"Content-Encoding": encoding}, body=body_of()
    )
    put(name, outcome, does, act)
