"""What the misbehaving server sends: heads, bodies, small pictures."""

from __future__ import annotations

import io
import socket
import struct
from functools import lru_cache

import numpy as np
from PIL import Image


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


def stay_silent(sock) -> None:
    """Until the client has left, however long it waits."""
    while sock.recv(1 << 16):
        pass


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


def with_everything() -> bytes:
    """A JPEG as a phone writes it: GPS, owner, comment, thumbnail in EXIF, XMP, and a film behind the picture."""
    exif = Image.Exif()
    exif[0x013B] = "Somebody Private"
    exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 22.0, 30.0), 3: "E", 4: (8.0, 32.0, 30.0)})
    body = encode(pixels(), exif=exif.tobytes(), comment=b"at home", xmp=b"<x:xmpmeta>Somebody Private</x:xmpmeta>")
    return body + b"\0\0\0\x18ftypmp42 Somebody Private"
