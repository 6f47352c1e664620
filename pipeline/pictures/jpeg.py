"""A JPEG without what its camera and its owner wrote into it, pixel data untouched.

Bytes in, bytes out. Pure. Gives up with None on a structure it does not follow: the picture is then encoded anew.
"""

from __future__ import annotations

import re

_KEPT_APPLICATION = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}  # both say which colours the numbers mean
_JFIF_BYTES = 14  # of the segment's content without a thumbnail
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
# In coded data 0xFF is followed by 0 or a restart marker; what follows otherwise is the next segment.
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")


def without_metadata(body: bytes) -> bytes | None:
    """The same picture less EXIF (position, owner, thumbnail), XMP, IPTC, colour profile, comments and what follows
    its end. `body` itself when there is nothing to leave out.

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
            found = _NEXT_MARKER.search(body, end)
            if found is None:
                return None
            end = found.start()
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            kept.append(_shortened(marker, body[at + 4 : end]))
        else:
            kept.append(body[start:end])
        at = end
    stripped = b"".join(kept)
    return body if stripped == body else stripped


def _shortened(marker: int, content: bytes) -> bytes:
    """What stays of an application segment or comment: its marker and the part that tells colours, or nothing."""
    signature = _KEPT_APPLICATION.get(marker)
    if signature is None or not content.startswith(signature):
        return b""
    if marker == 0xE0:
        content = content[: _JFIF_BYTES - 2] + b"\0\0" if len(content) >= _JFIF_BYTES else content
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content
