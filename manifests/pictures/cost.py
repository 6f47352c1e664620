"""Pictures that cost far more to decode than their bytes suggest, known before they are decoded.

Bytes in, words out; None for nearly all pictures. Pure. An ordinary JPEG takes 3 us.
"""

from __future__ import annotations

import struct

from manifests.pictures.bounds import (
    MOST_BLOCKS,
    MOST_CHUNKS,
    MOST_COMMENTS,
    MOST_DRAWN,
    MOST_SCANS,
    MOST_SEGMENTS,
    MOST_STRIPS,
)
from manifests.pictures.jpeg import NEXT_MARKER, START_OF_FRAME

_SOS = b"\xff\xda"
# Markers that neither Pillow nor libjpeg takes a length for, in a header.
_WITHOUT_LENGTH = frozenset({0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
_ONE_SCAN = frozenset({0xC0, 0xC1, 0xC9})  # sequential
_STRIP_TAGS = (273, 324)  # offsets of strips, of tiles


def too_costly(body: bytes, kind: str | None, max_pixels: int) -> str | None:
    """Why a picture of this kind (`sniff.image_kind`) is not decoded."""
    if kind == "JPEG":
        return _costly_jpeg(body, max_pixels)
    if kind == "PNG" and _num_chunks(body) > MOST_CHUNKS:
        return f"PNG of more than {MOST_CHUNKS:,} chunks"
    if kind == "GIF" and _has_more_blocks(body):
        return f"GIF of more than {MOST_BLOCKS:,} blocks before its first picture"
    if kind == "TIFF" and (num := _num_strips(body)) > MOST_STRIPS:
        return f"TIFF of {num:,} strips or tiles, allowed {MOST_STRIPS:,}"
    if body[:2] in (b"P1", b"P2", b"P3") and (num := body.count(b"#")) > MOST_COMMENTS:
        return f"PPM with {num:,} comments, allowed {MOST_COMMENTS}"
    return None


def _costly_jpeg(body: bytes, max_pixels: int) -> str | None:
    """Source: ITU-T T.81, annex B."""
    at, frame = 2, b""
    for _ in range(MOST_SEGMENTS):
        if body[at : at + 1] != b"\xff" or body[at + 1 : at + 2] in (b"\xff", b"\0"):
            if at >= len(body):
                return None  # no scan
            at += 1  # Pillow skips it too, a byte at a time
            continue
        marker = body[at + 1] if at + 1 < len(body) else 0x01
        if marker == 0xDA:
            break
        if marker in START_OF_FRAME:
            frame = body[at + 1 : at + 10]
        at += 2 if marker in _WITHOUT_LENGTH else 2 + int.from_bytes(body[at + 2 : at + 4], "big")
    else:
        return f"JPEG of more than {MOST_SEGMENTS:,} segments before its first scan"
    if len(frame) < 9 or (frame[0] in _ONE_SCAN and body[at + 4 : at + 5] == frame[8:9]):
        return None  # all colours in one scan: libjpeg reads no second one
    height, width = struct.unpack(">HH", frame[4:8])
    most = min(MOST_SCANS, MOST_DRAWN * max_pixels // max(1, height * width))
    num = body.count(_SOS, at)
    if num > most and _has_more_scans(body, at, most):
        return f"JPEG of {width} x {height} px in more than {most} scans"
    return None


def _has_more_scans(body: bytes, at: int, most: int) -> bool:
    """Return whether a JPEG whose first scan begins at `at` has more than `most`.

    Behind its end there may be other files.
    """
    num = 0
    for _ in range(MOST_SEGMENTS):
        match = NEXT_MARKER.search(body, at)
        if match is None or body[match.end() - 1] == 0xD9:
            return False
        marker, at = body[match.end() - 1], match.end()
        num += marker == 0xDA
        if num > most or marker < 0xC0 or marker in _WITHOUT_LENGTH:  # the last two no encoder writes
            return True
        at += int.from_bytes(body[at : at + 2], "big")
    return True


def _num_chunks(body: bytes) -> int:
    """Chunks up to the end of a PNG, counted to MOST_CHUNKS and one."""
    at, num = 8, 0
    while at + 8 <= len(body) and num <= MOST_CHUNKS and body[at + 4 : at + 8] != b"IEND":
        at += 12 + int.from_bytes(body[at : at + 4], "big")
        num += 1
    return num


def _has_more_blocks(body: bytes) -> bool:
    """Return whether a GIF has more than MOST_BLOCKS before its first picture. Source: GIF89a, sections 15 to 26."""
    flags = body[10] if len(body) > 10 else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    in_extension = False
    for _ in range(MOST_BLOCKS):
        if at >= len(body) or (not in_extension and body[at] in b",;"):
            return False
        if in_extension:
            in_extension = body[at] > 0
            at += 1 + body[at]
        elif body[at] == 0x21:
            in_extension, at = True, at + 2
        else:
            at += 1  # Pillow skips it too
    return True


def _num_strips(body: bytes) -> int:
    """Count strips or tiles of the first picture of a TIFF. Source: TIFF 6.0, section 2; BigTIFF (LibTIFF 4)."""
    order = "<" if body[:2] == b"II" else ">"
    big = body[2:4] in (b"+\0", b"\0+")
    try:
        (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", body, 8 if big else 4)
        (num_tags,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", body, start)
        entries = body[start + (8 if big else 2) :][: min(num_tags, 1 << 16) * (20 if big else 12)]
        tags = struct.iter_unpack(f"{order}{'HHQ8x' if big else 'HHI4x'}", entries)
        return max((count for tag, _, count in tags if tag in _STRIP_TAGS), default=0)
    except struct.error:
        return 0
