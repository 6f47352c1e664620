"""Which files are pictures, tars and compressed tars, by their names. The one list of each.

A picture that this machine cannot decode is still a picture: it ends with that outcome. Gives up with ConfigError on a
compressed tar where samples are read in any order.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from manifests.errors import ConfigError
from manifests.masking import hide_secrets

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "tif", "tiff", "bmp", "avif", "heic", "jp2")
"""Endings of pictures. Of several pictures in one sample, the first in this order counts."""
PICTURE_SUFFIXES = tuple(f".{ending}" for ending in PICTURES)
COMPRESSED_TARS = {".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd"}
"""Endings of compressed tars that are read as they are, and how they are compressed."""
TARS = (".tar", *COMPRESSED_TARS)
OTHER_TARS = (".tar.bz2", ".tar.xz")
"""Endings of compressed tars that must be unpacked first."""
_UNPACKED_BY = {"gz": "gunzip -k", "tgz": "gunzip -k", "zst": "zstd -d", "bz2": "bunzip2 -k", "xz": "unxz -k"}
_BESIDE_PICTURES = (
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xml"),
    *(".md", ".html", ".log", ".yaml", ".yml"),
)


def is_picture(name: str) -> bool:
    """Return whether a file is a picture by its name, whatever the case of its ending."""
    return name.lower().endswith(PICTURE_SUFFIXES)


def is_tar(name: str) -> bool:
    """Return whether a file is a tar that is read, by its name, whatever the case of its ending."""
    return name.lower().endswith(TARS)


def stem_of_tar(name: str) -> str:
    """Return the name of a tar without its ending: the same for a tar and for that tar compressed."""
    ending = next((ending for ending in (*TARS, *OTHER_TARS) if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def plain_tars(names: Iterable[str]) -> list[str]:
    """Return the tars among some files whose samples can be read in any order.

    A compressed one may lie beside its plain one.

    Raises: ConfigError for a compressed tar alone, with the line that unpacks it.
    """
    named = list(names)
    tars = [name for name in named if name.lower().endswith(".tar")]
    for name in named:
        if name.lower().endswith((*COMPRESSED_TARS, *OTHER_TARS)) and stem_of_tar(name) + ".tar" not in tars:
            here = PurePosixPath(name).name if "://" in name else name
            command = f"{_UNPACKED_BY[name.lower().rpartition('.')[2]]} {shlex.quote(here)}"
            fetch = "fetch it, unpack it" if "://" in name else "unpack it"
            raise ConfigError(
                f"{hide_secrets(name)}: is a compressed tar, and its samples are needed in any order; {fetch} "
                f"(`{hide_secrets(command)}`), and name the .tar"
            )
    return tars


def not_read(names: Iterable[str], read: tuple[str, ...] = PICTURE_SUFFIXES) -> str | None:
    """Return a line on files whose suffixes are not `read`, but for texts and tables; None where there are none."""
    lowered = (name.lower() for name in names)
    endings = Counter(PurePosixPath(name).suffix for name in lowered if not name.endswith(read))
    others = {ending: num for ending, num in endings.items() if ending and ending not in _BESIDE_PICTURES}
    if not others:
        return None
    most = sorted(others.items(), key=lambda item: (-item[1], item[0]))[:5]
    listed = ", ".join(f"{num:,} {ending}" for ending, num in most)
    return f"{sum(others.values()):,} files are not read as pictures ({listed})"
