"""Regular files below a folder that a stranger may have filled: no link is followed, no pipe or device opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePath

from manifests import storage


def why_not_inside(folder: str | Path, name: str) -> str | None:
    """None for a regular file of this name below a folder that no link leads to; else what it is, in words.

    The folder itself may be reached by a link. Object stores have no links: all is well there.
    """
    if storage.is_remote(str(folder)):
        return None
    parts = PurePath(name).parts
    if not parts or PurePath(name).is_absolute() or ".." in parts or "\0" in name:
        return "lies outside the folder"
    path = Path(folder)
    for part in parts:
        path = path / part
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            return "is not there"
        if stat.S_ISLNK(mode):
            return "is a link" if path.name == parts[-1] else f"lies behind the link {part}"
    return None if stat.S_ISREG(mode) else "is no regular file"
