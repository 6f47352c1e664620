"""What bytes are before anything is decoded: kind by signature, sizes that must be known early.

Bytes in, small facts out. Gives up on nothing: what it does not know is None.
"""

from __future__ import annotations

import struct

_START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length

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
    """Name of the image format whose signature the bytes carry, readable or not; None for anything else."""
    for signature, kind in _SIGNATURES:
        if body.startswith(signature):
            return kind
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "WEBP"
    if body[4:8] == b"ftyp":
        return _BRANDS.get(body[8:12])
    return None


def other_kind(body: bytes) -> str:
    """A word for bytes that are no image: HTML, SVG, JSON, text, zip, bytes."""
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


def jpeg_obstacle(body: bytes) -> str | None:
    """Why Pillow cannot read a sound JPEG (12-bit, lossless), found in its frame header; None when it can."""
    at = 2
    while at + 9 < len(body):
        if body[at] != 0xFF:
            return None
        marker = body[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _STANDALONE:
            at += 2
            continue
        if marker in _START_OF_FRAME:
            bits = body[at + 4]
            if bits != 8:
                return f"{bits}-bit JPEG"
            return "lossless JPEG" if marker in _LOSSLESS else None
        if marker == 0xDA:
            return None
        at += 2 + int.from_bytes(body[at + 2 : at + 4], "big")
    return None


def webp_size(body: bytes) -> tuple[int, int] | None:
    """Canvas width and height in a WebP header: Pillow's decoder reserves memory for it when it opens one.

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
