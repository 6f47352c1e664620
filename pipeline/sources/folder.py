"""Pictures in a folder: named by a table beside them, by the names of their folders, or by a text file beside each.

Reads names and sizes, and texts; the pictures themselves are read once, in fetch, which knows them by their content.
Memory: the names of one folder at a time, or those that the table names.
Only regular files within the folder are read: a link, a pipe or a device ends as a row `no_regular_file`.
Raises ConfigError for a folder that is missing or holds no picture.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from manifests import storage
from manifests.errors import ConfigError
from manifests.inside import why_not_inside
from pipeline.sources import table
from pipeline.sources.files import kind_of_place, make_locator, walk_files, walk_versions, where_it_looked
from pipeline.sources.limits import MAX_TEXT_BYTES
from pipeline.sources.rows import BATCH_ROWS, Batch, Lost, Scratch, in_batches, make_batch, malformed_rows, map_columns
from pipeline.sources.settings import FolderSettings, NestedTable, Origin, given

_TEXT_ENDING = ".txt"
_COLUMN_OF_WORDS = {
    "caption": "caption",
    "scientific_name": "taxon_scientific_name",
    "vernacular_name": "taxon_vernacular_name",
}


def check_source(source: Origin) -> None:
    """Check that the folder is there and holds a picture, and that its table has the mapped columns.

    Raises: ConfigError.
    """
    settings = given(source.folder)
    fs, inner = storage.filesystem(settings.path)
    if not fs.isdir(inner):
        if fs.exists(inner):
            cure = "write `table:` with it instead" if kind_of_place(settings.path) == "table" else "give its folder"
            raise ConfigError(f"{source.where}: {settings.path} is a file, not a folder; {cure}")
        raise ConfigError(f"{source.where}: {settings.path}: no such folder{where_it_looked(settings.path)}")
    if settings.table is not None:
        table.check_source(_inner_table(source))
    elif next(_pictures(settings), None) is None:
        raise ConfigError(f"{source.where}: {settings.path} holds no picture ({', '.join(settings.suffixes)})")


def digest_inputs(source: Origin, hash_file: Callable[[str], str]) -> list[str]:
    """What the rows depend on: names and sizes of the pictures, and the content of every text that is read.

    Of texts in an object store the version that its listing names: reading them is left to `read_rows`.
    With a table they are the files that it names, whatever their ending, and also those that are not there.
    """
    settings = given(source.folder)
    digest = hashlib.sha256()
    if settings.table is not None:
        for name, size in sorted(_named_files(source).items()):
            digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        return [digest.hexdigest(), *table.digest_inputs(_inner_table(source), hash_file)]
    reads_texts = settings.captions == "text_file"
    for name, size, version in walk_versions(settings.path):
        if name.lower().endswith(_endings(settings)):
            digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
            if reads_texts and size is not None and version is None:
                digest.update(hashlib.sha256(_beside(settings, name) or b"").digest())
        elif reads_texts and version is not None and name.endswith(_TEXT_ENDING):
            digest.update(f"{name}\0{version}\n".encode("utf-8", "surrogateescape"))
    return [digest.hexdigest()]


def names_of_pictures(source: Origin) -> list[str]:
    """The pictures, relative to the folder."""
    settings = given(source.folder)
    if settings.table is not None:
        return [name for name, size in _named_files(source).items() if isinstance(size, int)]
    return [name for name, _ in _pictures(settings)]


def root_of(source: Origin) -> str:
    """The folder that locators are relative to."""
    return given(source.folder).path


def read_rows(source: Origin, scratch: Scratch) -> Iterator[Batch]:
    """Every picture of the folder in name order, or every row of its table."""
    settings = given(source.folder)
    if settings.table is not None:
        yield from _table_rows(source)
        return
    skipped: list[str] = []
    num_pictures = 0
    for some in in_batches(enumerate(_pictures(settings, skipped)), BATCH_ROWS):
        num_pictures = some[-1][0] + 1
        yield _picture_batch(settings, some)
    for names in in_batches(enumerate(skipped, num_pictures), BATCH_ROWS):
        yield make_batch({}, [], [_no_regular_file(number, name) for number, name in names])


# ---- pictures without a table


def _picture_batch(settings: FolderSettings, some: list[tuple[int, tuple[str, int]]]) -> Batch:
    lost: list[Lost] = []
    kept: list[tuple[int, str, int, str]] = []  # row number, name, size, words
    for number, (name, size) in some:
        try:
            name.encode()
            words = _words(settings, name)
            if words is None:
                lost.append(_no_regular_file(number, _text_file(name)))
            else:
                kept.append((number, name, size, words))
        except UnicodeError as error:
            lost.append(Lost(number, "malformed_row", f"{name!a}: {type(error).__name__}"))
    names = [name for _, name, _, _ in kept]
    columns = {
        "record_key": pa.array(names, pa.string()),
        "locator": pa.array([make_locator(name, 0, size) for _, name, size, _ in kept], pa.string()),
        _COLUMN_OF_WORDS[settings.folder_name_is]: pa.array([words for *_, words in kept], pa.string()),
        "extra": pa.array([json.dumps({"folder": name.rpartition("/")[0]}) for name in names], pa.string()),
    }
    return make_batch(columns, [number for number, *_ in kept], lost)


def _no_regular_file(number: int, name: str) -> Lost:
    shown = name.encode("utf-8", "backslashreplace").decode()
    return Lost(number, "no_regular_file", shown, record_key=shown)


def _words(settings: FolderSettings, name: str) -> str | None:
    """The words beside one picture; None where they would have to be read through a link, a pipe or the like.

    Raises: UnicodeError for a text that is no UTF-8.
    """
    if settings.captions == "text_file":
        content = _beside(settings, name)
        return None if content is None else content.decode("utf-8-sig")
    folder = PurePosixPath(name).parent.name if settings.captions in (None, "folder_name") else ""
    return " ".join(folder.replace("_", " ").split())


def _text_file(name: str) -> str:
    return name.rpartition(".")[0] + _TEXT_ENDING


def _beside(settings: FolderSettings, name: str) -> bytes | None:
    """Content of the text file beside a picture; empty where there is none, None where it is no regular file."""
    path = storage.join(settings.path, _text_file(name))
    fs, inner = storage.filesystem(path)
    if not storage.is_remote(path) and os.path.lexists(inner) and why_not_inside(settings.path, _text_file(name)):
        return None
    try:
        content: bytes = fs.cat_file(inner, end=MAX_TEXT_BYTES)  # one request; opening it would ask for its size too
        return content
    except Exception as error:  # the client libraries of object stores have errors of their own
        storage.check_passing(path, error)
        if isinstance(error, OSError):
            return b""
        raise


def _pictures(settings: FolderSettings, skipped: list[str] | None = None) -> Iterator[tuple[str, int]]:
    """Name and size of every picture; names of what is no regular file go into `skipped`."""
    for name, size in _entries(settings):
        if size is not None:
            yield name, size
        elif skipped is not None:
            skipped.append(name)


def _entries(settings: FolderSettings) -> Iterator[tuple[str, int | None]]:
    """Everything that is named like a picture, and linked folders, which may hold some; no size: no regular file."""
    endings = _endings(settings)
    return ((name, size) for name, size in walk_files(settings.path) if name.lower().endswith(endings))


def _endings(settings: FolderSettings) -> tuple[str, ...]:
    return "/", *(f".{suffix.lower().lstrip('.')}" for suffix in settings.suffixes)


# ---- pictures with a table


def _table_rows(source: Origin) -> Iterator[Batch]:
    settings = given(source.folder)
    columns = given(settings.columns)
    fs, root = storage.filesystem(settings.path)
    for raw in table.read_batches(_inner_table(source)):
        lost = malformed_rows(raw.malformed)
        locators: list[str] = []
        good: list[int] = []
        for place, file in enumerate(raw.rows[columns.file].to_pylist()):
            name = _below(file, root)
            size = _size_of(fs, settings.path, root, name) if name else None
            if isinstance(size, str):
                lost.append(Lost(int(raw.numbers[place]), "no_regular_file", f"{file} {size}", record_key=file))
            elif name is None or size is None:
                reason = "missing_file" if name or not file else "file_outside_folder"
                lost.append(Lost(int(raw.numbers[place]), reason, file, record_key=file))
            else:
                locators.append(make_locator(name, 0, size))
                good.append(place)
        rows = raw.rows.take(pa.array(good, pa.int64()))
        found = {"record_key": rows[columns.file]} | map_columns(rows, columns)
        found["locator"] = pa.array(locators, pa.string())
        if columns.url is not None:
            found["url"] = rows[columns.url]
        yield make_batch(found, raw.numbers[np.array(good, np.int64)], lost)


def _below(file: str | None, root: str) -> str | None:
    """The path relative to the folder; None where there is none, or it leads out of the folder."""
    path = PurePosixPath((file or "").strip())
    if path.is_absolute() and path.is_relative_to(root):
        path = path.relative_to(root)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        return None
    return str(path)


def _named_files(source: Origin) -> dict[str, int | str | None]:
    """The files that the table names, with what `_size_of` gives. A store is listed, not asked for each of them."""
    settings = given(source.folder)
    fs, root = storage.filesystem(settings.path)
    column, names = given(settings.columns).file, dict[str, None]()
    for raw in table.read_batches(_inner_table(source)):
        names |= dict.fromkeys(name for file in raw.rows[column].to_pylist() if (name := _below(file, root)))
    if storage.is_remote(settings.path):
        sizes = {name: size for name, size, _ in walk_versions(settings.path, hidden=True)}
        return {name: sizes.get(name) for name in names}
    return {name: _size_of(fs, settings.path, root, name) for name in names}


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


def _inner_table(source: Origin) -> Origin:
    """The table beside the pictures, as the table reader takes it."""
    settings = given(source.folder)
    path = given(settings.table)
    if not storage.is_remote(path) and not PurePosixPath(path).is_absolute():
        why_not = why_not_inside(settings.path, path)
        if why_not and "link" in why_not:
            raise ConfigError(f"{source.where}: {path} {why_not}; put the table itself into {settings.path}")
        path = storage.join(settings.path, path)
    return NestedTable.of(source, path, given(settings.columns).names(), settings.format)
