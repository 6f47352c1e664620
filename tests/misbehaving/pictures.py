"""What is no picture, what is a broken or hostile one, and odd but sound ones."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

from misbehaving.answers import encode, photo, pixels, send_picture, with_everything, with_orientation
from misbehaving.registry import put
from PIL import Image


@lru_cache(maxsize=1)
def png_text_bomb_body() -> bytes:
    packed = b"note\0\0" + zlib.compress(b"a" * (100 << 20), 9)
    body = encode(pixels(), "PNG")
    chunk = struct.pack(">I", len(packed)) + b"zTXt" + packed + struct.pack(">I", zlib.crc32(b"zTXt" + packed))
    return body[:33] + chunk + body[33:]


@lru_cache(maxsize=1)
def png_bomb_body() -> bytes:
    return encode(Image.new("1", (12_000, 12_000)), "PNG")


def _scan_bomb() -> bytes:
    body = encode(pixels(), progressive=True)
    scan = body.rindex(b"\xff\xda")
    return body[:scan] + body[scan:-2] * 2000 + body[-2:]


def _half_transparent() -> bytes:
    image = pixels().convert("RGBA")
    image.putalpha(128)
    return encode(image, "PNG")


for name, outcome, does, body_of, content_type in (
    ("html_as_jpg", "not_an_image", "a login page as image/jpeg",
     lambda: b"<!DOCTYPE html><html><body>Please log in</body></html>", "image/jpeg"),
    ("jpeg_truncated", "corrupt_image", "the first two thirds of a JPEG",
     lambda: photo()[: len(photo()) * 2 // 3], "image/jpeg"),
    ("png_bomb", "too_many_pixels", "a PNG of 12,000 x 12,000 px in 20 kB", png_bomb_body, "image/png"),
    ("jpeg_xl", "unsupported_image", "JPEG XL, which Pillow does not read",
     lambda: b"\x00\x00\x00\x0cJXL \r\n\x87\n" + b"\0" * 64, "image/jxl"),
    ("png_text_bomb", "corrupt_image", "a PNG whose text chunk unpacks to 100 MB", png_text_bomb_body, "image/png"),
    ("one_pixel", "image_too_small", "a tracking pixel", lambda: encode(Image.new("RGB", (1, 1)), "GIF"), "image/gif"),
    ("ruler", "aspect_too_extreme", "2,000 x 40 px", lambda: encode(pixels(2000, 40)), "image/jpeg"),
    ("jpeg_scan_bomb", "too_costly", "a progressive JPEG of 2,000 empty scans", _scan_bomb, "image/jpeg"),
    # odd, but sound
    ("wrong_type", "ok", "a JPEG as text/html", photo, "text/html"),
    ("jpeg_grey", "ok", "greyscale JPEG", lambda: encode(pixels().convert("L")), "image/jpeg"),
    ("webp", "ok", "WebP", lambda: encode(pixels(), "WEBP"), "image/webp"),
    ("jpeg_with_gps", "ok", "JPEG with a camera's position, owner and thumbnail, a comment, and a film after its end",
     with_everything, "image/jpeg"),
    ("png_alpha", "ok", "half transparent PNG", _half_transparent, "image/png"),
    ("exif_6", "ok", "JPEG with EXIF orientation 6", lambda: with_orientation(6), "image/jpeg"),
):  # fmt: skip
    act = lambda sock, _, body_of=body_of, kind=content_type: send_picture(sock, body_of(), kind)  # noqa: E731
    put(name, outcome, does, act)
