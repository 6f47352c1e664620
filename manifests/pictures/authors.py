"""Who made a picture and whose it is, as its file says: XMP, IPTC and EXIF, read before metadata is removed.

An open picture in, short texts out; no file, no network. Of the three places the first that says something counts: XMP
is Unicode, and what editing tools write last. Broken or hostile metadata says nothing, and costs no picture.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, NamedTuple

from PIL import ImageFile
from PIL.IptcImagePlugin import getiptcinfo

from manifests.masking import hide_secrets
from manifests.pictures.opening import exif_of
from manifests.pictures.xmp import values_in

MAX_CHARS = 200
_CREATOR, _RIGHTS = (f"http://purl.org/dc/elements/1.1/ {name}" for name in ("creator", "rights"))
# Source: Exif 3.0, and Microsoft's XPAuthor in UTF-16; IPTC-IIM 4.2, records 2:80 and 2:116.
_ARTIST, _COPYRIGHT, _XP_AUTHOR = 0x013B, 0x8298, 0x9C9D
_BYLINE, _NOTICE = (2, 80), (2, 116)
_IPTC_OF_TIFF, _MAX_BYTES = 33723, 1 << 16  # a JPEG holds no more in one segment
_BEFORE_HOLDER = re.compile(r"(?i)^(?:(?:copyright\b|©|\(c\)|(?:19|20)\d\d(?:\s*[-–]\s*\d{2,4})?\b|by\b)[\s,:.;]*)+")
_BEHIND_HOLDER = re.compile(r"(?i)[\s,.;–-]*(?:all rights reserved|(?<=\s)(?:19|20)\d\d)[\s.]*$")


class Authors(NamedTuple):
    """Texts as the file has them, "" where it says nothing; `rights` is whom a copyright notice names."""

    creator: str = ""
    rights: str = ""


def authors_of(image: ImageFile.ImageFile) -> Authors:
    """Read from an open picture who made it; several creators are parted by `; `."""
    stated = [_in_xmp(image)]
    for read in (_in_iptc, _in_exif):
        with suppress(Exception):  # Pillow names no errors of its own for broken metadata
            stated.append(read(image))
    creators = (tidy(creator) for creator, _ in stated)
    notices = (holder_in(tidy(notice)) for _, notice in stated)
    return Authors(next(filter(None, creators), ""), next(filter(None, notices), ""))


def holder_in(notice: str) -> str:
    """Whom a notice names: "© 2019-2021 Ann Field. All rights reserved." gives Ann Field."""
    return _BEHIND_HOLDER.sub("", _BEFORE_HOLDER.sub("", notice)).strip(" ,;")


def tidy(text: str) -> str:
    """One line of visible characters that UTF-8 can hold, without secrets of addresses, of at most MAX_CHARS."""
    words = "".join(sign if sign.isprintable() else " " for sign in text[: 4 * MAX_CHARS]).split()
    return hide_secrets(" ".join(words))[:MAX_CHARS].strip()


def _in_xmp(image: ImageFile.ImageFile) -> tuple[str, str]:
    creators, notices = values_in(image.info.get("xmp"), (_CREATOR, _RIGHTS)).values()
    return "; ".join(creators), next(iter(notices), "")


def _in_iptc(image: ImageFile.ImageFile) -> tuple[str, str]:
    if len(getattr(image, "tag_v2", {}).get(_IPTC_OF_TIFF, b"")) > _MAX_BYTES:
        return "", ""
    records: dict[Any, Any] = getiptcinfo(image) or {}
    values = (records.get(kind, []) for kind in (_BYLINE, _NOTICE))
    bylines, notices = (map(_decoded, value if isinstance(value, list) else [value]) for value in values)
    return "; ".join(bylines), next(notices, "")


def _in_exif(image: ImageFile.ImageFile) -> tuple[str, str]:
    exif = exif_of(image)
    artist, notice, author = (exif.get(tag) for tag in (_ARTIST, _COPYRIGHT, _XP_AUTHOR))
    wide = author.decode("utf-16-le", "ignore") if isinstance(author, bytes) else ""
    return _decoded(artist) or wide, _decoded(notice)


def _decoded(text: Any) -> str:
    """Return a text of EXIF or IPTC.

    UTF-8 where it is, as most tools write it, else Latin-1, as which Pillow reads EXIF.
    """
    content = text.encode("latin-1", "replace") if isinstance(text, str) else text
    if not isinstance(content, bytes):
        return ""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")
