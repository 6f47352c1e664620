"""Open a name only where it leads to a regular file below a folder. No link is followed, no pipe or device opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePath

from manifests.stores.clients import is_remote


def why_not_inside(folder: str | Path, name: str) -> str | None:
    """None for a regular file of this name below a folder that no link leads to; else what it is, in words.

    The folder itself may be reached by a link. Object stores have no links: all is well there.
    """
    if is_remote(str(folder)):
        return None
    parts = PurePath(name).parts
    if "\0" in name:  # no file can have such a name
        return "is not there"
    if not parts or PurePath(name).is_absolute() or ".." in parts:
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
