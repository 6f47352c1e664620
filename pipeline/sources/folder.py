"""Pictures in a folder: a table beside them, or class names as folder names, or a text file beside each.

Reads names and sizes, and texts; the pictures themselves are read once, in fetch. A picture is known by its path in
the folder and its size, as one of the web is by its URL. Memory: the names of one folder at a time.
Gives up with ConfigError for a folder that is not there or holds no picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from manifests import storage
from manifests.errors import ConfigError
from pipeline.sources import table
from pipeline.sources.files import make_locator, walk_files
from pipeline.sources.rows import BATCH_ROWS, Batch, Lost, Scratch, lost_table, make_batch, map_columns
from pipeline.sources.settings import ColumnMap, FileColumns, FolderSettings, NestedTable, Origin

MAX_TEXT_BYTES = 1 << 20


def check_source(source: Origin) -> None:
    """See that the folder is there and holds a picture, and that its table has the mapped columns.

    Raises: ConfigError.
    """
    settings = _settings(source)
    fs, inner = storage.filesystem(settings.path)
    if not fs.isdir(inner):
        raise ConfigError(f"{source.where}: {settings.path}: no such folder")
    if settings.table is not None:
        table.check_source(_inner_table(source))
    elif next(_pictures(settings), None) is None:
        raise ConfigError(f"{source.where}: {settings.path} holds no picture ({', '.join(settings.suffixes)})")


def digest_inputs(source: Origin, hash_file: Callable[[str], str]) -> list[str]:
    """What the rows depend on: names and sizes of the pictures, and the content of every text that is read."""
    settings = _settings(source)
    digest = hashlib.sha256()
    for name, size in _pictures(settings):
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        if settings.captions == "text_file":
            digest.update(hashlib.sha256(_beside(settings, name) or b"").digest())
    tables = table.digest_inputs(_inner_table(source), hash_file) if settings.table is not None else []
    return [digest.hexdigest(), *tables]


def root_of(source: Origin) -> str:
    """The folder that locators are relative to."""
    return _settings(source).path


def read_rows(source: Origin, scratch: Scratch) -> Iterator[Batch]:
    """Every picture of the folder in name order, or every row of its table."""
    settings = _settings(source)
    if settings.table is not None:
        yield from _table_rows(source)
        return
    first_row = 0
    for some in _in_batches(_pictures(settings)):
        yield _picture_batch(settings, some, first_row)
        first_row += len(some)


def _picture_batch(settings: FolderSettings, some: list[tuple[str, int]], first_row: int) -> Batch:
    lost: list[Lost] = []
    kept: list[tuple[int, str, int, str]] = []  # place, name, size, words
    for place, (name, size) in enumerate(some):
        try:
            name.encode()
            kept.append((first_row + place, name, size, _words(settings, name)))
        except UnicodeError as error:
            lost.append(Lost(first_row + place, "malformed_row", f"{name!a}: {type(error).__name__}"))
    column = {"caption": "caption", "scientific_name": "taxon_scientific_name"}.get(
        settings.folder_name_is, "taxon_vernacular_name"
    )
    names = [name for _, name, _, _ in kept]
    columns = {
        "record_key": pa.array(names, pa.string()),
        "locator": pa.array([make_locator(name, 0, size) for _, name, size, _ in kept], pa.string()),
        column: pa.array([words for *_, words in kept], pa.string()),
        "extra": pa.array([json.dumps({"folder": name.rpartition("/")[0]}) for name in names], pa.string()),
    }
    return make_batch(columns, [number for number, *_ in kept], lost)


def _words(settings: FolderSettings, name: str) -> str:
    """What is said of one picture.

    Raises: UnicodeError for a text that is no UTF-8.
    """
    if settings.captions == "text_file":
        return (_beside(settings, name) or b"").decode("utf-8-sig")
    folder = PurePosixPath(name).parent.name if settings.captions in (None, "folder_name") else ""
    return " ".join(folder.replace("_", " ").split())


def _beside(settings: FolderSettings, name: str) -> bytes | None:
    fs, inner = storage.filesystem(storage.join(settings.path, name.rpartition(".")[0] + ".txt"))
    try:
        with fs.open(inner, "rb") as stream:
            content: bytes = stream.read(MAX_TEXT_BYTES)
            return content
    except FileNotFoundError:
        return None


def _pictures(settings: FolderSettings) -> Iterator[tuple[str, int]]:
    endings = tuple(f".{suffix.lower().lstrip('.')}" for suffix in settings.suffixes)
    for name, size in walk_files(settings.path):
        if name.lower().endswith(endings):
            yield name, size


def _table_rows(source: Origin) -> Iterator[Batch]:
    settings = _settings(source)
    columns = settings.columns
    assert columns is not None
    fs, root = storage.filesystem(settings.path)
    for raw in table.read_batches(_inner_table(source)):
        files = raw.rows[columns.file].to_pylist()
        numbers = raw.numbers.tolist()
        lost = [Lost(number, "malformed_row", text) for number, text in raw.malformed]
        locators: list[str] = []
        good: list[int] = []
        for place, file in enumerate(files):
            name = _below(file, root)
            size = _size_of(fs, root, name) if name else None
            if name is None or size is None:
                reason = "missing_file" if name or not file else "file_outside_folder"
                lost.append(Lost(numbers[place], reason, file, record_key=file))
            else:
                locators.append(make_locator(name, 0, size))
                good.append(place)
        rows = raw.rows.take(pa.array(good, pa.int64()))
        found = map_columns(rows, columns) | {"locator": pa.array(locators, pa.string())}
        found.setdefault("record_key", rows[columns.file])
        if columns.url is not None:
            found["url"] = rows[columns.url]
        batch = make_batch(found, raw.numbers[np.array(good, np.int64)])
        yield Batch(batch.rows, batch.numbers, lost_table(lost))


def _below(file: str | None, root: str) -> str | None:
    """The path relative to the folder; None where there is none, or it leads out of the folder."""
    path = PurePosixPath((file or "").strip())
    if path.is_absolute() and path.is_relative_to(root):
        path = path.relative_to(root)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        return None
    return str(path)


def _size_of(fs: Any, root: str, name: str) -> int | None:
    try:
        info = fs.info(f"{root.rstrip('/')}/{name}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return int(info["size"]) if info["type"] == "file" else None


def _inner_table(source: Origin) -> Origin:
    """The table beside the pictures, as the table reader takes it."""
    settings = _settings(source)
    columns = settings.columns
    assert columns is not None
    assert settings.table is not None
    path = settings.table if _is_whole(settings.table) else storage.join(settings.path, settings.table)
    return NestedTable(
        name=source.name,
        said_as=source.where,
        table=path,
        format=settings.format,
        columns=ColumnMap(url=columns.file, caption=columns.caption or [], extra=_others(columns)),
    )


def _others(columns: FileColumns) -> list[str]:
    return [name for name in columns.names() if name != columns.file]


def _is_whole(path: str) -> bool:
    return storage.is_remote(path) or PurePosixPath(path).is_absolute()


def _settings(source: Origin) -> FolderSettings:
    assert source.folder is not None
    return source.folder


def _in_batches(pictures: Iterable[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    rest = iter(pictures)
    while some := list(islice(rest, BATCH_ROWS)):
        yield some
