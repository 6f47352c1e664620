"""Names of a folder's pictures: by a table, by texts beside them, or by the names of their folders.

Finds the files that a table names; guesses for `init` what says what pictures show. Looks at names and at the first
rows of tables, at no picture.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import ConfigError
from manifests.names.species import ranks_of_folder
from manifests.samples.endings import PICTURE_SUFFIXES, is_picture
from manifests.stores import storage
from manifests.stores.inside import why_not_inside
from pipeline.judging.captions.patterns import BARE_NAME
from pipeline.sources.files import MAX_LISTED, walk_files
from pipeline.sources.kinds import Listing, Place
from pipeline.sources.table import first_values, guess_table
from pipeline.sources.tables.columns import describe_columns

Naming = Literal["text_file", "scientific_name", "ranks", "folder_name", "none"]
BY_FOLDER: tuple[Naming, ...] = ("scientific_name", "ranks", "folder_name")
_NO_WORDS = frozenset(
    {"", "train", "val", "valid", "validation", "test", "images", "image", "img", "pictures", "photos"}
)
_TWO_WORDS = re.compile(r"[A-Z][a-z-]+[ _](?:[x×][ _])?(?:[a-z-]{3,}|spp?\.?)(?:[ _].*)?")
_MOST = 0.6  # of the names of folders side by side: then they are names of taxa
_FIRST_FILES = 50  # of a table, that are looked for
SPELT = "with / for \\, in another case or in another Unicode form"


def name_folders(names: Sequence[str]) -> dict[str, Naming]:
    """For each folder with pictures, what says what they show. `names` are files; the folder `""` has no name."""
    files: dict[str, set[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        files.setdefault(folder, set()).add(file)
    pictures = {folder: {file for file in some if is_picture(file)} for folder, some in files.items()}
    shown = [folder for folder in files if pictures[folder]]
    last = {folder: PurePosixPath(folder).name for folder in shown}
    telling = [f for f in shown if last[f].lower() not in _NO_WORDS and re.search(r"[^\W\d_]{2,}", last[f])]
    taxa = with_taxa(telling)

    def naming(folder: str) -> Naming:
        with_text = sum(name.rpartition(".")[0] + ".txt" in files[folder] for name in pictures[folder])
        if 2 * with_text >= len(pictures[folder]):
            return "text_file"
        if folder not in telling:
            return "none"
        if ranks_of_folder(last[folder]):
            return "ranks"
        return "scientific_name" if folder in taxa else "folder_name"

    return {folder: naming(folder) for folder in shown}


def with_taxa(folders: Sequence[str]) -> set[str]:
    """Folders or classes named as taxa: with two words, as most beside them have, or with a Latin ending."""
    like = [folder for folder in folders if _TWO_WORDS.fullmatch(PurePosixPath(folder).name)]
    num_beside, num_like = (Counter(folder.rpartition("/")[0] for folder in some) for some in (folders, like))
    names = pa.array([PurePosixPath(folder).name.replace("_", " ") for folder in like], pa.string())
    latin = pc.match_substring_regex(names, BARE_NAME).to_pylist()
    return {
        folder
        for folder, is_latin in zip(like, latin, strict=True)
        if is_latin or num_like[above := folder.rpartition("/")[0]] >= _MOST * num_beside[above]
    }


def guess_without_table(listing: Listing) -> Place:
    """Pictures in a folder, by what says what most of them show."""
    pictures, namings = listing.ends(*PICTURE_SUFFIXES), name_folders(listing.names)
    of_folder = [namings[name.rpartition("/")[0]] for name in pictures]
    more = " or more" if len(listing.names) == MAX_LISTED else ""
    guess = Place({"path": listing.path}, f"{len(pictures):,}{more} pictures in a folder (sure)")
    guess.states_licence = False
    names = {folder: PurePosixPath(folder).name for folder, naming in namings.items() if naming in BY_FOLDER}
    if 2 * of_folder.count("text_file") >= len(pictures):
        guess.settings["captions"] = "text_file"
        guess.comments["captions"] = "sure: most of those looked at have a NAME.txt beside them"
    elif names:
        guess.settings["captions"] = "folder_name"
        guess.comments["captions"] = f"likely: names of folders, as {', '.join(sorted(set(names.values()))[:3])}"
        if all(namings[folder] == "scientific_name" for folder in names):
            guess.settings["folder_name_is"] = "scientific_name"
            guess.comments["folder_name_is"] = "likely: they look like genus and species"
            guess.has_taxa = True
        elif all(namings[folder] == "ranks" for folder in names):
            guess.settings["folder_name_is"] = "ranks"
            guess.comments["folder_name_is"] = "sure: each name has seven ranks, as those of iNaturalist 2021"
            guess.has_taxa = True
    else:
        guess.settings["captions"] = "none"
        guess.missing.append(
            f"captions of {listing.path}: no text file, no table and no telling folder names are there; "
            "add `defaults: {caption: ...}` or NAME.txt files"
        )
    return guess


def guess_with_table(table: str, folders: Iterable[str]) -> Place | None:
    """Return the first of some folders in which files lie that a table names.

    None where the table names none of them.
    """
    try:
        guesses, words, others = guess_table(table, of_files=True)
    except ConfigError:
        return None
    if "file" not in guesses:
        return None
    files = first_values(table)[1][guesses["file"].column][:_FIRST_FILES]
    for folder in folders:
        find = name_finder(folder)
        met = [(file, name) for file in files for name, size in [find(file)] if size is not None]
        if met:
            break
    else:
        return None
    is_remote = storage.is_remote(folder)
    inner = table.removeprefix(f"{folder.rstrip('/')}/") if is_remote else os.path.relpath(table, folder)
    settings = {"path": folder, "table": inner, "columns": {f: g.column for f, g in guesses.items()}}
    there = f"{len(met):,} of the first {len(files):,} files are there"
    guess = Place(settings, f"pictures in a folder, named by {inner} (sure: {words}, {there})", left_out=others)
    describe_columns(guess, guesses, table)
    if spelt := sum(is_respelt(file, name) for file, name in met):
        guess.comments["file"] += f"; {spelt:,} of the first {len(files):,} are met {SPELT}"
    return guess


# ---- files that a table names


def name_finder(folder: str, is_listed: bool = False) -> Callable[[str | None], tuple[str | None, int | str | None]]:
    """Return a function from a table's file name to the file below a folder and its `_size_of`.

    A file is met as it is written, else with / for \\ and the other case of its ending, as Windows takes them; else by
    its name in another Unicode form or case, where the folder has one such file.
    """
    fs, root = storage.filesystem(folder)
    listed = dict(walk_files(folder, hidden=True)) if is_listed and storage.is_remote(folder) else None

    def size_of(name: str) -> int | str | None:
        return _size_of(fs, folder, root, name) if listed is None else listed.get(name)

    @cache
    def by_folded() -> dict[str, list[tuple[str, int]]]:
        names: dict[str, list[tuple[str, int]]] = {}
        for name, size in walk_files(folder, hidden=True) if listed is None else listed.items():
            if size is not None:
                names.setdefault(_folded(name), []).append((name, size))
        return names

    def find(file: str | None) -> tuple[str | None, int | str | None]:
        slashed = (file or "").strip().replace("\\", "/")
        stem, dot, ending = slashed.rpartition(".")
        for spelling in (file, slashed, f"{stem}{dot}{ending.lower()}", f"{stem}{dot}{ending.upper()}"):
            if (name := _below(spelling, root)) and (size := size_of(name)) is not None:
                return name, size
        met = by_folded().get(_folded(_below(slashed, root) or ""), [])
        return met[0] if len(met) == 1 else (_below(file, root), None)

    return find


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def is_respelt(written: str, name: str | None) -> bool:
    """Return whether a file was met in another spelling than the table's."""
    return name is not None and not str(PurePosixPath(written.strip())).endswith(name)


def _below(file: str | None, root: str) -> str | None:
    """Return the path relative to the folder; None where there is none, or it leads out of the folder."""
    path = PurePosixPath((file or "").strip())
    if path.is_absolute() and path.is_relative_to(root):
        path = path.relative_to(root)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        return None
    return str(path)


def _size_of(fs: Any, folder: str, root: str, name: str) -> int | str | None:
    """Size of a file; None where it is not there, and in words why it is not read."""
    if not storage.is_remote(folder):
        try:
            size = Path(root, name).stat().st_size
        except (OSError, ValueError):  # not there, or no name that a file can have
            return None
        return why_not_inside(folder, name) or size
    try:
        info = fs.info(f"{root.rstrip('/')}/{name}")
    except (OSError, ValueError) as error:
        storage.check_passing(str(fs.unstrip_protocol(f"{root}/{name}")), error)
        return None
    return int(info["size"]) if info["type"] == "file" else None
