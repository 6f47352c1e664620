"""Tell what bytes are before anything is decoded: their kind by signature, and sizes that must be known early.

Pure functions.
"""

from __future__ import annotations

import struct

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"BM", "BMP"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
)
_TEXTS = (
    (b"<svg", "SVG"),
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<head", "HTML"),
    (b"<body", "HTML"),
    (b"<?xml", "XML"),
    (b"%pdf", "PDF"),
    (b"{", "JSON"),
    (b"[", "JSON"),
)
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"hevc": "HEIC",
    b"heim": "HEIC",
    b"heis": "HEIC",
    b"mif1": "HEIC",
    b"msf1": "HEIC",
}


def image_kind(body: bytes) -> str | None:
    """Return the image format whose signature the bytes begin with, decodable or not; None for anything else."""
    for signature, kind in _SIGNATURES:
        if body.startswith(signature):
            return kind
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "WEBP"
    if body[4:8] == b"ftyp":
        return _BRANDS.get(body[8:12])
    return None


def other_kind(body: bytes) -> str:
    """One word for bytes that are not an image: HTML, SVG, XML, PDF, JSON, zip, gzip, text or bytes."""
    head = body[:2048].lstrip(b"\xef\xbb\xbf \t\r\n\x00").lower()
    if b"<svg" in head:
        return "SVG"
    for start, kind in _TEXTS:
        if head.startswith(start):
            return kind
    if b"<html" in head:
        return "HTML"
    if head.startswith(b"pk\x03\x04"):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:256])
    return "text" if head and printable >= 0.95 * len(head[:256]) else "bytes"


def webp_size(body: bytes) -> tuple[int, int] | None:
    """Canvas width and height in a WebP header, or None. Pillow allocates the canvas as soon as it opens a WebP.

    Source: RFC 9649, sections 2.5 to 2.7.
    """
    chunk, data = body[12:16], body[20:30]
    if len(data) < 10:
        return None
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if chunk == b"VP8L" and data[0] == 0x2F:
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[6:10])
        return width & 0x3FFF, height & 0x3FFF
    return None
