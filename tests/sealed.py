"""One sealed work folder for many tests: made once a session, lent as a copy that costs no bytes, hashed at the end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_WRITTEN_IN_PLACE = ("catalog.", "status.json")  # DuckDB and the journal; all else is replaced as a whole


def lend(master: Path, copy: Path) -> Path:
    """A work folder as its own copy: catalogue and small files copied, pool, tables and releases by hard links.

    `part` a link before you damage a file.
    """
    for folder, _, names in os.walk(master):
        place = copy / Path(folder).relative_to(master)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name.startswith(_WRITTEN_IN_PLACE):
                shutil.copy2(Path(folder, name), place / name)
            else:
                os.link(Path(folder, name), place / name)
    return copy


def part(path: Path) -> Path:
    """Break the hard link of a file, so that what is written to it reaches no other folder; its times stay."""
    copy = path.with_name(f"{path.name}.parted")
    shutil.copy2(path, copy)
    copy.replace(path)
    return path
