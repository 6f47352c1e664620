"""The segments of a JPEG: a copy without what camera and owner wrote into it, and why Pillow cannot read one.

Bytes in, bytes or a word out. Pure. Gives None for a structure that it cannot follow.
"""

from __future__ import annotations

import re

_KEPT_APPLICATION = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}  # both define the colour space
_JFIF_BYTES = 14  # of the segment's content without a thumbnail
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
# In coded data 0 or a restart marker follows 0xFF. Anything else begins the next segment.
NEXT_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")


def without_metadata(body: bytes) -> bytes | None:
    """Return the same picture without metadata and without the bytes behind its end; its coded pixels stay as they are.

    Left out are EXIF (position, owner, thumbnail), XMP, IPTC, colour profile and comments. Gives `body` itself when it
    holds nothing of this, and None for a structure that cannot be followed: the caller then encodes the picture anew.

    Source: ITU-T T.81, annex B (segments); JFIF 1.02.
    """
    if body[:2] != b"\xff\xd8":
        return None
    kept = [body[:2]]
    at = 2
    while True:
        if body[at : at + 1] != b"\xff":
            return None
        start = at
        while body[at + 1 : at + 2] == b"\xff":  # fill bytes
            at += 1
        marker = body[at + 1] if at + 1 < len(body) else -1
        if marker == 0xD9:
            kept.append(b"\xff\xd9")
            break
        if marker in _STANDALONE or at + 4 > len(body):
            return None
        end = at + 2 + int.from_bytes(body[at + 2 : at + 4], "big")
        if end < at + 4 or end > len(body):
            return None
        if marker == 0xDA:  # a scan: its coded data reaches to the next marker
            match = NEXT_MARKER.search(body, end)
            if match is None:
                return None
            end = match.start()
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            kept.append(_shortened(marker, body[at + 4 : end]))
        else:
            kept.append(body[start:end])
        at = end
    stripped = b"".join(kept)
    return body if stripped == body else stripped


def _shortened(marker: int, content: bytes) -> bytes:
    """Return the kept part of an application segment or comment: the one that defines the colour space, or nothing."""
    signature = _KEPT_APPLICATION.get(marker)
    if signature is None or not content.startswith(signature):
        return b""
    if marker == 0xE0:
        content = content[: _JFIF_BYTES - 2] + b"\0\0" if len(content) >= _JFIF_BYTES else content
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def jpeg_obstacle(body: bytes) -> str | None:
    """Why Pillow cannot read an intact JPEG (12-bit, lossless), from its frame header; None when it can."""
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
        if marker in START_OF_FRAME:
            bits = body[at + 4]
            if bits != 8:
                return f"{bits}-bit JPEG"
            return "lossless JPEG" if marker in _LOSSLESS else None
        if marker == 0xDA:
            return None
        at += 2 + int.from_bytes(body[at + 2 : at + 4], "big")
    return None
