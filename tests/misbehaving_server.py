"""A web server on the loopback that misbehaves in every way it has a name for, and keeps a log of who asked when.

Each behaviour is a function that gets an open connection and a parsed request and does harm. Its name is the
first piece of the path; its host name is free (tests map all names to 127.0.0.1), so that what one behaviour
does to a host's reputation never touches another. `BEHAVIOURS` also says how a row of it must end.
"""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import io
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from manifests.outcomes import Outcome

CERTIFICATE = Path(__file__).with_name("self_signed.pem")


class Request(NamedTuple):
    """One line of the log: when it came (time.monotonic), for whom, for what."""

    seconds: float
    host: str
    path: str
    headers: dict[str, str]
    nth: int  # how often this host and path have been asked, this time included


class Behaviour(NamedTuple):
    """What the server does under a name, and how a fetched row must end."""

    name: str
    does: str
    outcome: str
    act: Callable[[socket.socket, Request], None]
    url: str = "http://{host}:{port}/{name}"


BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(outcome: str, url: str = "http://{host}:{port}/{name}"):
    """Register a function under its own name; its docstring says what it does."""

    def register(act: Callable[[socket.socket, Request], None]):
        BEHAVIOURS[act.__name__] = Behaviour(act.__name__, (act.__doc__ or "").strip(), outcome, act, url)
        return act

    return register


# ---- answers


def send(sock, status: str = "200 OK", headers: dict | None = None, body: bytes = b"", *, length=True) -> None:
    lines = [f"HTTP/1.1 {status}"]
    items = list((headers or {}).items()) if not isinstance(headers, list) else headers
    if length:
        items.append(("Content-Length", str(len(body))))
    lines += [f"{key}: {value}" for key, value in items]
    sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def send_picture(sock, body: bytes | None = None, content_type: str = "image/jpeg", headers=()) -> None:
    send(sock, headers=[("Content-Type", content_type), *headers], body=photo() if body is None else body)


def hang_up(sock) -> None:
    """Close after what was sent has gone out."""
    sock.shutdown(socket.SHUT_RDWR)


def reset(sock) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def pixels(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@lru_cache(maxsize=1)
def photo() -> bytes:
    return encode(pixels(320, 240), quality=90)


def with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(pixels(), exif=exif.tobytes(), quality=95)


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


# ---- bodies


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


@behaviour("corrupt_image")
def length_too_short(sock, request):
    """Content-Length smaller than the body"""
    send(sock, headers={"Content-Length": str(len(photo()) - 1000)}, body=photo(), length=False)


@behaviour("ok")
def length_missing(sock, request):
    """no Content-Length, the end of the connection ends the body"""
    send(sock, body=photo(), length=False)
    hang_up(sock)


@behaviour("ok")
def length_nonsense(sock, request):
    """Content-Length that is no number"""
    send(sock, headers={"Content-Length": "many"}, body=photo(), length=False)
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


@behaviour("body_too_large")
def gzip_bomb(sock, request):
    """200 MB of zeros in 200 kB of gzip"""
    send(sock, headers={"Content-Encoding": "gzip"}, body=_bomb())


@behaviour("ok")
def gzip_unasked(sock, request):
    """the picture in gzip, though nobody asked for it"""
    send(sock, headers={"Content-Encoding": "gzip"}, body=gzip.compress(photo()))


@behaviour("bad_response")
def gzip_broken(sock, request):
    """gzip with a hole"""
    packed = gzip.compress(photo())
    send(sock, headers={"Content-Encoding": "gzip"}, body=packed[:200] + b"\xff" * 100 + packed[300:])


@behaviour("ok")
def gzip_in_name_only(sock, request):
    """Content-Encoding: gzip on a plain picture"""
    send(sock, headers={"Content-Encoding": "gzip"}, body=photo())


@behaviour("bad_response")
def encoding_unknown(sock, request):
    """Content-Encoding: br"""
    send(sock, headers={"Content-Encoding": "br"}, body=photo())


@behaviour("empty_body")
def zero_bytes(sock, request):
    """200 with nothing"""
    send_picture(sock, b"")


@lru_cache(maxsize=1)
def _bomb() -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    block = b"\0" * (1 << 20)
    return b"".join(packer.compress(block) for _ in range(200)) + packer.flush()


# ---- heads and connections


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


@behaviour("connection_reset")
def closes_at_once(sock, request):
    """closes without an answer"""
    hang_up(sock)


@behaviour("connection_reset")
def resets_at_once(sock, request):
    """resets without an answer"""
    reset(sock)


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


# ---- not quite pictures


@behaviour("not_an_image")
def html_as_jpg(sock, request):
    """a login page as image/jpeg"""
    send_picture(sock, b"<!DOCTYPE html><html><body>Please log in</body></html>")


@behaviour("not_an_image")
def svg_as_jpg(sock, request):
    """SVG as image/jpeg"""
    send_picture(sock, b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')


@behaviour("not_an_image")
def json_as_jpg(sock, request):
    """an error message in JSON with status 200"""
    send_picture(sock, b'{"error": "quota exceeded"}')


@behaviour("not_an_image")
def pdf_as_jpg(sock, request):
    """PDF as image/jpeg"""
    send_picture(sock, b"%PDF-1.7 ...")


@behaviour("not_an_image")
def noise(sock, request):
    """random bytes"""
    send_picture(sock, np.random.default_rng(1).bytes(4096))


@behaviour("corrupt_image")
def jpeg_truncated(sock, request):
    """the first two thirds of a JPEG"""
    send_picture(sock, photo()[: len(photo()) * 2 // 3])


@behaviour("corrupt_image")
def jpeg_header_only(sock, request):
    """a JPEG that ends in its header"""
    send_picture(sock, photo()[:40])


@behaviour("corrupt_image")
def png_truncated(sock, request):
    """half a PNG"""
    body = encode(pixels(200, 200), "PNG")
    send_picture(sock, body[: len(body) // 2], "image/png")


@behaviour("too_many_pixels")
def png_bomb(sock, request):
    """a PNG of 12,000 x 12,000 px in 20 kB"""
    send_picture(sock, _png_bomb(), "image/png")


@behaviour("too_many_pixels")
def webp_bomb(sock, request):
    """a WebP header that claims 16,384 x 16,384 px"""
    body = encode(pixels(), "WEBP", lossless=True)
    bits = struct.unpack("<I", body[21:25])[0] & ~0xFFFFFFF | 0x3FFF | 0x3FFF << 14
    send_picture(sock, body[:21] + struct.pack("<I", bits) + body[25:], "image/webp")


@behaviour("unsupported_image")
def jpeg_12_bit(sock, request):
    """a JPEG of 12 bits a channel"""
    body = bytearray(photo())
    frame = body.index(b"\xff\xc0")
    body[frame + 4] = 12
    send_picture(sock, bytes(body))


@behaviour("unsupported_image")
def jpeg_xl(sock, request):
    """JPEG XL, which Pillow does not read"""
    send_picture(sock, b"\x00\x00\x00\x0cJXL \r\n\x87\n" + b"\0" * 64, "image/jxl")


@behaviour("image_too_small")
def one_pixel(sock, request):
    """a tracking pixel"""
    send_picture(sock, encode(Image.new("RGB", (1, 1)), "GIF"), "image/gif")


@behaviour("aspect_too_extreme")
def ruler(sock, request):
    """2,000 x 40 px"""
    send_picture(sock, encode(pixels(2000, 40)))


@lru_cache(maxsize=1)
def _png_bomb() -> bytes:
    return encode(Image.new("1", (12_000, 12_000)), "PNG")


# ---- odd but sound pictures


@behaviour("ok")
def wrong_type(sock, request):
    """a JPEG as text/html"""
    send_picture(sock, content_type="text/html")


@behaviour("ok")
def jpeg_progressive(sock, request):
    """progressive JPEG"""
    send_picture(sock, encode(pixels(), progressive=True))


@behaviour("ok")
def jpeg_cmyk(sock, request):
    """CMYK JPEG"""
    send_picture(sock, encode(pixels().convert("CMYK")))


@behaviour("ok")
def jpeg_grey(sock, request):
    """greyscale JPEG"""
    send_picture(sock, encode(pixels().convert("L")))


@behaviour("ok")
def png_16_bit(sock, request):
    """16-bit grey PNG"""
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    send_picture(sock, encode(Image.fromarray(grey), "PNG"), "image/png")


@behaviour("ok")
def png_palette(sock, request):
    """palette PNG with a transparent colour"""
    send_picture(sock, encode(pixels().quantize(16), "PNG", transparency=3), "image/png")


@behaviour("ok")
def png_alpha(sock, request):
    """half transparent PNG"""
    image = pixels().convert("RGBA")
    image.putalpha(128)
    send_picture(sock, encode(image, "PNG"), "image/png")


@behaviour("ok")
def webp_animated(sock, request):
    """animated WebP"""
    frames = [pixels(seed=n) for n in range(3)]
    send_picture(sock, encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "image/webp")


@behaviour("ok")
def gif_animated(sock, request):
    """animated GIF"""
    frames = [pixels(seed=n) for n in range(3)]
    send_picture(sock, encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), "image/gif")


@behaviour("ok")
def tiff(sock, request):
    """TIFF"""
    send_picture(sock, encode(pixels(), "TIFF"), "image/tiff")


def _register_orientations() -> None:
    for orientation in range(1, 9):

        def act(sock, request, orientation=orientation):
            send_picture(sock, with_orientation(orientation))

        name = f"exif_{orientation}"
        BEHAVIOURS[name] = Behaviour(name, f"JPEG with EXIF orientation {orientation}", "ok", act)


_register_orientations()

# ---- consent


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
        "after_date": [("X-Robots-Tag", "unavailable_after: 25 Jun 2030 15:00:00 PST, noai")],
    }
    for name, headers in said.items():

        def act(sock, request, headers=headers):
            send_picture(sock, headers=headers)

        does = "; ".join(f"`{key}: {value}`" for key, value in headers)
        BEHAVIOURS[f"opt_out_{name}"] = Behaviour(f"opt_out_{name}", does, "opted_out", act)


_register_opt_outs()


@behaviour("ok")
def opt_out_for_others(sock, request):
    """`X-Robots-Tag: otherbot: noai, noindex`"""
    send_picture(sock, headers=[("X-Robots-Tag", "otherbot: noai, noindex")])


@behaviour("robots_disallowed", "http://{host}:{port}/private/{name}")
def robots_txt(sock, request):
    """a path that robots.txt forbids"""
    send_picture(sock)


@behaviour("host_unavailable")
def robots_txt_broken(sock, request):
    """robots.txt answers 503, every time"""
    send_picture(sock)


@behaviour("ok")
def robots_txt_missing(sock, request):
    """robots.txt answers 404"""
    send_picture(sock)


def documented_table() -> str:
    """What the README of the fetching room says about these behaviours."""
    lines = ["| behaviour | the server | outcome | `retry` takes it up |", "|---|---|---|---|"]
    for known in BEHAVIOURS.values():
        again = "yes" if Outcome(known.outcome).passing else ""
        lines.append(f"| {known.name} | {known.does} | {known.outcome} | {again} |")
    return "\n".join(lines)


ROBOTS = b"User-agent: *\nDisallow: /private/\n"


# ---- the server


@dataclass
class MisbehavingServer:
    """Listens on ephemeral ports of 127.0.0.1 while its context lasts; `log` holds every request."""

    extra: dict[str, Callable[[socket.socket, Request], None]] = field(default_factory=dict)
    """More behaviours, by first piece of the path, for one test."""
    robots: Callable[[socket.socket, Request], None] | None = None
    log: list[Request] = field(default_factory=list)
    num_connections: int = 0
    open_now: dict[str, int] = field(default_factory=dict)
    most_open: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> MisbehavingServer:
        _bomb(), _png_bomb()  # made before anyone waits for them
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}
        self._sockets: list[socket.socket] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(CERTIFICATE)
        self.port = self._listen(tls=False)
        self.tls_port = self._listen(tls=True)
        self.closed_port = self._bound().getsockname()[1]  # bound, never listening
        full = self._bound()
        full.listen(0)
        self.full_port = full.getsockname()[1]
        for _ in range(3):  # fill its queue
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.full_port))
            self._sockets.append(filler)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with self._lock:
            for sock in self._sockets:
                sock.close()

    def url(self, name: str, host: str | None = None) -> str:
        known = BEHAVIOURS.get(name)
        return (known.url if known else "http://{host}:{port}/{name}").format(
            host=host or f"{name.partition('/')[0]}.test".replace("_", "-"),
            name=name,
            port=self.port,
            tls_port=self.tls_port,
            closed_port=self.closed_port,
            full_port=self.full_port,
        )

    def asked(self, host: str) -> list[Request]:
        """The log of one host name (without port), robots.txt left out."""
        return [r for r in self.log if r.host.partition(":")[0] == host and r.path != "/robots.txt"]

    def _bound(self) -> socket.socket:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self._sockets.append(sock)
        return sock

    def _listen(self, *, tls: bool) -> int:
        sock = self._bound()
        sock.listen(256)
        sock.settimeout(0.1)
        threading.Thread(target=self._accept, args=(sock, tls), daemon=True).start()
        return sock.getsockname()[1]

    def _accept(self, listener: socket.socket, tls: bool) -> None:
        while not self._stop.is_set():
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self.num_connections += 1
            threading.Thread(target=self._serve, args=(sock, tls), daemon=True).start()

    def _serve(self, sock: socket.socket, tls: bool) -> None:
        try:
            sock.settimeout(10)
            with contextlib.ExitStack() as closing:
                closing.enter_context(sock)
                if tls:
                    sock = closing.enter_context(self._context.wrap_socket(sock, server_side=True))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while not self._stop.is_set() and (request := self._read(sock)):
                    self._answer(sock, request)
        except (OSError, ValueError):
            return  # the client had enough

    def _read(self, sock: socket.socket) -> Request | None:
        head = b""
        while b"\r\n\r\n" not in head:
            more = sock.recv(8192)
            if not more:
                return None
            head += more
            if head[:1] == b"\x16":  # a TLS greeting where plain HTTP is spoken
                send(sock, "400 Bad Request")
                return None
        lines = head.decode("latin-1").split("\r\n")
        path = lines[0].split(" ")[1]
        pairs = (line.partition(":") for line in lines[1:] if line)
        headers = {key.lower(): value.strip() for key, _, value in pairs}
        host = headers.get("host", "")
        with self._lock:
            nth = self._counts[host, path] = self._counts.get((host, path), 0) + 1
            request = Request(time.monotonic(), host, path, headers, nth)
            self.log.append(request)
            self.open_now[host] = self.open_now.get(host, 0) + 1
            self.most_open[host] = max(self.most_open.get(host, 0), self.open_now[host])
        return request

    def _answer(self, sock: socket.socket, request: Request) -> None:
        try:
            name = request.path.strip("/").split("/")[0]
            if request.path == "/robots.txt":
                self._answer_robots(sock, request)
            elif name in self.extra:
                self.extra[name](sock, request)
            elif name in BEHAVIOURS:
                BEHAVIOURS[name].act(sock, request)
            else:
                send(sock, "404 Not Found")
        finally:
            with self._lock:
                self.open_now[request.host] -= 1

    def _answer_robots(self, sock: socket.socket, request: Request) -> None:
        if self.robots:
            self.robots(sock, request)
        elif request.host.startswith("robots-txt-broken"):
            send(sock, "503 Service Unavailable")
        elif request.host.startswith("robots-txt-missing"):
            send(sock, "404 Not Found")
        else:
            send(sock, headers={"Content-Type": "text/plain"}, body=ROBOTS)


if __name__ == "__main__":
    print(documented_table())
