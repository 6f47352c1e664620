"""Guess the settings of a source from a place that a user names. Each kind of source is asked in turn.

Looks at names, heads and the first rows. Asks nothing over the network, and writes nothing.
Raises ConfigError, with the cure, for what cannot be a source.
"""

from __future__ import annotations

import re
import zipfile
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from manifests.errors import ConfigError
from manifests.samples.endings import PICTURE_SUFFIXES
from manifests.stores import storage
from pipeline.sources.files import (
    MAX_LISTED,
    WORKBOOK_CURE,
    WORKBOOKS,
    is_table,
    sizes_in_zip,
    walk_files,
    where_it_looked,
    zip_fault,
)
from pipeline.sources.kinds import Listing, Place
from pipeline.sources.settings import KINDS


def look_at(path: str) -> Place:
    """Find out what lies at a path or behind a glob.

    Raises: ConfigError that says what it is instead, and what to do.
    """
    listing = list_place(path)
    for name in sorted(KINDS, key=lambda name: KINDS[name].init_order):
        guess = KINDS[name].guess(listing)
        if guess is not None:
            guess.kind = name
            return guess
    raise ConfigError(f"{path}{what_it_is(listing)}")


def list_place(path: str) -> Listing:
    """List the names at a path or behind a glob."""
    if re.search(r"[*?\[{]", path):
        return Listing(path, "pattern", [path])
    if not storage.exists(path):
        raise ConfigError(f"{path}: nothing is there{where_it_looked(path)}")
    if storage.is_folder(path):
        return Listing(path, "folder", [name for name, _ in islice(walk_files(path), MAX_LISTED)])
    if not path.lower().endswith(".zip") or is_table(path):
        return Listing(path, "file", [path])
    try:
        return Listing(path, "zip", [name for name in sizes_in_zip(path) if not name.endswith("/")])
    except zipfile.BadZipFile:
        raise ConfigError(f"{path} {zip_fault(path)}") from None


def what_it_is(listing: Listing) -> str:
    """Describe a path that no kind takes."""
    pictures, names = listing.ends(*PICTURE_SUFFIXES), listing.names
    if listing.form == "folder":
        seen = sorted({PurePosixPath(name).suffix or name for name in names})
        return f": holds no pictures, tables, tars or archives (its files end in {', '.join(seen[:8]) or 'nothing'})"
    if listing.form == "zip":
        if len(names) == 1 and is_table(names[0]):
            return f": a zip of one table; name it {names[0]}.zip, or unpack it"
        what = "pictures" if pictures else f"{len(names)} files"
        return f": a zip of {what}, without a meta.xml; unpack it and name the folder"
    if listing.ends(*WORKBOOKS):
        return f" is a workbook that is not read; {WORKBOOK_CURE}"
    if pictures:
        return ": one picture; name its folder"
    return ": a compressed tar; unpack it, since pictures are read in place"


def keys_of(guess: Place) -> dict[str, Any]:
    """Return the keys of a source in YAML that name the place."""
    keys = guess.settings if KINDS[guess.kind].is_flat else {guess.kind: guess.settings}
    joined = {"join": guess.join, "captions": guess.captions}
    return keys | {name: entries for name, entries in joined.items() if entries}
