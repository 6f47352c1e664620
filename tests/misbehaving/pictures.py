"""What is no picture, what is a broken or hostile one, and odd but sound ones."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

import numpy as np
from misbehaving.answers import encode, photo, pixels, send_picture, with_everything, with_orientation
from misbehaving.registry import BEHAVIOURS, Behaviour, behaviour, behaviours
from PIL import Image, ImageCms

# ---- not quite pictures


behaviours(
    {
        "html_as_jpg": (
            "not_an_image",
            "a login page as image/jpeg",
            lambda sock, _: send_picture(sock, b"<!DOCTYPE html><html><body>Please log in</body></html>"),
        ),
        "svg_as_jpg": (
            "not_an_image",
            "SVG as image/jpeg",
            lambda sock, _: send_picture(
                sock, b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
            ),
        ),
        "json_as_jpg": (
            "not_an_image",
            "an error message in JSON with status 200",
            lambda sock, _: send_picture(sock, b'{"error": "quota exceeded"}'),
        ),
        "pdf_as_jpg": ("not_an_image", "PDF as image/jpeg", lambda sock, _: send_picture(sock, b"%PDF-1.7 ...")),
        "noise": (
            "not_an_image",
            "random bytes",
            lambda sock, _: send_picture(sock, np.random.default_rng(1).bytes(4096)),
        ),
        "jpeg_truncated": (
            "corrupt_image",
            "the first two thirds of a JPEG",
            lambda sock, _: send_picture(sock, photo()[: len(photo()) * 2 // 3]),
        ),
        "jpeg_header_only": (
            "corrupt_image",
            "a JPEG that ends in its header",
            lambda sock, _: send_picture(sock, photo()[:40]),
        ),
        "png_bomb": (
            "too_many_pixels",
            "a PNG of 12,000 x 12,000 px in 20 kB",
            lambda sock, _: send_picture(sock, png_bomb_body(), "image/png"),
        ),
        "jpeg_xl": (
            "unsupported_image",
            "JPEG XL, which Pillow does not read",
            lambda sock, _: send_picture(sock, b"\x00\x00\x00\x0cJXL \r\n\x87\n" + b"\0" * 64, "image/jxl"),
        ),
        "png_text_bomb": (
            "corrupt_image",
            "a PNG whose text chunk unpacks to 100 MB",
            lambda sock, _: send_picture(sock, png_text_bomb_body(), "image/png"),
        ),
        "heic": (
            "unsupported_image",
            "HEIC, which Pillow reads only with a plugin",
            lambda sock, _: send_picture(sock, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64, "image/heic"),
        ),
        "one_pixel": (
            "image_too_small",
            "a tracking pixel",
            lambda sock, _: send_picture(sock, encode(Image.new("RGB", (1, 1)), "GIF"), "image/gif"),
        ),
        "ruler": ("aspect_too_extreme", "2,000 x 40 px", lambda sock, _: send_picture(sock, encode(pixels(2000, 40)))),
    }
)


@behaviour("corrupt_image")
def png_truncated(sock, request):
    """half a PNG"""
    body = encode(pixels(200, 200), "PNG")
    send_picture(sock, body[: len(body) // 2], "image/png")


@behaviour("too_many_pixels")
def webp_bomb(sock, request):
    """a WebP header that claims 16,384 x 16,384 px"""
    body = encode(pixels(), "WEBP", lossless=True)
    bits = struct.unpack("<I", body[21:25])[0] & ~0xFFFFFFF | 0x3FFF | 0x3FFF << 14
    send_picture(sock, body[:21] + struct.pack("<I", bits) + body[25:], "image/webp")


@behaviour("too_costly")
def jpeg_scan_bomb(sock, request):
    """a progressive JPEG of 2,000 empty scans"""
    body = encode(pixels(), progressive=True)
    scan = body.rindex(b"\xff\xda")
    send_picture(sock, body[:scan] + body[scan:-2] * 2000 + body[-2:])


@behaviour("unsupported_image")
def jpeg_12_bit(sock, request):
    """a JPEG of 12 bits a channel"""
    body = bytearray(photo())
    frame = body.index(b"\xff\xc0")
    body[frame + 4] = 12
    send_picture(sock, bytes(body))


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


behaviours(
    {
        "wrong_type": ("ok", "a JPEG as text/html", lambda sock, _: send_picture(sock, content_type="text/html")),
        "jpeg_progressive": (
            "ok",
            "progressive JPEG",
            lambda sock, _: send_picture(sock, encode(pixels(), progressive=True)),
        ),
        "jpeg_cmyk": ("ok", "CMYK JPEG", lambda sock, _: send_picture(sock, encode(pixels().convert("CMYK")))),
        "jpeg_grey": ("ok", "greyscale JPEG", lambda sock, _: send_picture(sock, encode(pixels().convert("L")))),
        "png_palette": (
            "ok",
            "palette PNG with a transparent colour",
            lambda sock, _: send_picture(sock, encode(pixels().quantize(16), "PNG", transparency=3), "image/png"),
        ),
        "webp": ("ok", "WebP", lambda sock, _: send_picture(sock, encode(pixels(), "WEBP"), "image/webp")),
        "avif": ("ok", "AVIF", lambda sock, _: send_picture(sock, encode(pixels(), "AVIF"), "image/avif")),
        "jpeg_with_profile": (
            "ok",
            "JPEG with a colour profile",
            lambda sock, _: send_picture(sock, encode(pixels(), icc_profile=_profile())),
        ),
        "jpeg_with_gps": (
            "ok",
            "JPEG with a camera's position, owner and thumbnail, a comment, and a film after its end",
            lambda sock, _: send_picture(sock, with_everything()),
        ),
        "tiff": ("ok", "TIFF", lambda sock, _: send_picture(sock, encode(pixels(), "TIFF"), "image/tiff")),
    }
)


@behaviour("ok")
def png_16_bit(sock, request):
    """16-bit grey PNG"""
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    send_picture(sock, encode(Image.fromarray(grey), "PNG"), "image/png")


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


@lru_cache(maxsize=1)
def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # holds the time it was made at


def _register_orientations() -> None:
    for orientation in range(1, 9):

        def act(sock, request, orientation=orientation):
            send_picture(sock, with_orientation(orientation))

        name = f"exif_{orientation}"
        BEHAVIOURS[name] = Behaviour(name, f"JPEG with EXIF orientation {orientation}", "ok", act)


_register_orientations()
