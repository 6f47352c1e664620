"""What is no picture, what is a broken or hostile one, and odd but sound ones."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

from misbehaving.answers import encode, photo, pixels, send_picture, with_everything, with_orientation
from misbehaving.registry import behaviour, put
from PIL import Image

# ---- not quite pictures


put(
    "html_as_jpg",
    "not_an_image",
    "a login page as image/jpeg",
    lambda sock, _: send_picture(sock, b"<!DOCTYPE html><html><body>Please log in</body></html>"),
)
put(
    "jpeg_truncated",
    "corrupt_image",
    "the first two thirds of a JPEG",
    lambda sock, _: send_picture(sock, photo()[: len(photo()) * 2 // 3]),
)
put(
    "png_bomb",
    "too_many_pixels",
    "a PNG of 12,000 x 12,000 px in 20 kB",
    lambda sock, _: send_picture(sock, png_bomb_body(), "image/png"),
)
put(
    "jpeg_xl",
    "unsupported_image",
    "JPEG XL, which Pillow does not read",
    lambda sock, _: send_picture(sock, b"\x00\x00\x00\x0cJXL \r\n\x87\n" + b"\0" * 64, "image/jxl"),
)
put(
    "png_text_bomb",
    "corrupt_image",
    "a PNG whose text chunk unpacks to 100 MB",
    lambda sock, _: send_picture(sock, png_text_bomb_body(), "image/png"),
)
put(
    "one_pixel",
    "image_too_small",
    "a tracking pixel",
    lambda sock, _: send_picture(sock, encode(Image.new("RGB", (1, 1)), "GIF"), "image/gif"),
)
put("ruler", "aspect_too_extreme", "2,000 x 40 px", lambda sock, _: send_picture(sock, encode(pixels(2000, 40))))


@behaviour("too_costly")
def jpeg_scan_bomb(sock, request):
    """a progressive JPEG of 2,000 empty scans"""
    body = encode(pixels(), progressive=True)
    scan = body.rindex(b"\xff\xda")
    send_picture(sock, body[:scan] + body[scan:-2] * 2000 + body[-2:])


@lru_cache(maxsize=1)
def png_text_bomb_body() -> bytes:
    packed = b"note\0\0" + zlib.compress(b"a" * (100 << 20), 9)
    body = encode(pixels(), "PNG")
    chunk = struct.pack(">I", len(packed)) + b"zTXt" + packed + struct.pack(">I", zlib.crc32(b"zTXt" + packed))
    return body[:33] + chunk + body[33:]


@lru_cache(maxsize=1)
def png_bomb_body() -> bytes:
    return encode(Image.new("1", (12_000, 12_000)), "PNG")


# ---- odd but sound pictures


put("wrong_type", "ok", "a JPEG as text/html", lambda sock, _: send_picture(sock, content_type="text/html"))
put("jpeg_grey", "ok", "greyscale JPEG", lambda sock, _: send_picture(sock, encode(pixels().convert("L"))))
put("webp", "ok", "WebP", lambda sock, _: send_picture(sock, encode(pixels(), "WEBP"), "image/webp"))
put(
    "jpeg_with_gps",
    "ok",
    "JPEG with a camera's position, owner and thumbnail, a comment, and a film after its end",
    lambda sock, _: send_picture(sock, with_everything()),
)


@behaviour("ok")
def png_alpha(sock, request):
    """half transparent PNG"""
    image = pixels().convert("RGBA")
    image.putalpha(128)
    send_picture(sock, encode(image, "PNG"), "image/png")


@behaviour("ok")
def exif_6(sock, request):
    """JPEG with EXIF orientation 6"""
    send_picture(sock, with_orientation(6))
