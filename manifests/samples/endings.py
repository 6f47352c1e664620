"""Which files are pictures, and which are compressed tars, by their names. The one list of both.

A picture that this machine cannot decode is still a picture: it ends with that outcome.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "tif", "tiff", "bmp", "avif", "heic", "jp2")
"""Endings of pictures. Of several pictures in one sample, the first in this order counts."""
PICTURE_SUFFIXES = tuple(f".{ending}" for ending in PICTURES)
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
_BESIDE_PICTURES = (
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xml"),
    *(".md", ".html", ".log", ".yaml", ".yml"),
)


def is_picture(name: str) -> bool:
    """Whether a file is a picture by its name, whatever the case of its ending."""
    return name.lower().endswith(PICTURE_SUFFIXES)


def not_read(names: Iterable[str], read: tuple[str, ...] = PICTURE_SUFFIXES) -> str | None:
    """A line on files whose suffixes are not `read`, but for texts and tables; None where there are none."""
    lowered = (name.lower() for name in names)
    endings = Counter(PurePosixPath(name).suffix for name in lowered if not name.endswith(read))
    others = {ending: num for ending, num in endings.items() if ending and ending not in _BESIDE_PICTURES}
    if not others:
        return None
    most = sorted(others.items(), key=lambda item: (-item[1], item[0]))[:5]
    listed = ", ".join(f"{num:,} {ending}" for ending, num in most)
    return f"{sum(others.values()):,} files are not read as pictures ({listed})"
