"""The kind `folder`, pictures in a folder: named by a table beside them, by their folders, or by texts beside each.

Reads names and sizes, and texts; the pictures themselves are read once, in fetch, which knows them by their content.
Memory: the names of one folder at a time, or those that the table names.
Only regular files within the folder are read: a link, a pipe or a device ends as a row `no_regular_file`.
Raises ConfigError for a folder that is missing or holds no picture.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from fsspec.utils import glob_translate
from pydantic import field_validator, model_validator

from manifests.contract.settings import ConfigPath, Settings
from manifests.contract.tables import TAXON_RANKS
from manifests.errors import ConfigError
from manifests.names.species import ranks_of_folder
from manifests.samples.endings import PICTURE_SUFFIXES, PICTURES, not_read
from manifests.samples.tars import MAX_TEXT_BYTES
from manifests.stores import storage
from manifests.stores.inside import why_not_inside
from pipeline.sources.files import (
    is_table,
    kind_of_place,
    make_locator,
    walk_files,
    where_it_looked,
)
from pipeline.sources.folder_names import SPELT, guess_with_table, guess_without_table, is_respelt, name_finder
from pipeline.sources.kinds import FirstRows, Listing, Place, Reader
from pipeline.sources.rows import Batch, Lost, RowColumns, Scratch, in_batches, make_batch, malformed_rows, map_columns
from pipeline.sources.table import SheetOfTable, TableFormat, TableReader

_TEXT_ENDING = ".txt"
_COLUMNS_OF_WORDS = {
    "caption": ["caption"],
    "scientific_name": ["taxon_scientific_name"],
    "vernacular_name": ["taxon_vernacular_name"],
    "ranks": [f"taxon_{rank}" for rank in TAXON_RANKS],
}


class FileColumns(RowColumns):
    """Columns of a table beside a folder of pictures; the file's path is the key when `record_key` is absent."""

    file: str
    """Path of the picture, relative to the folder."""
    url: str | None = None
    """Where the picture came from; it is never requested."""


class FolderSettings(Settings):
    """Pictures in a folder and its sub-folders."""

    path: ConfigPath
    """The folder."""
    captions: Literal["folder_name", "text_file", "none"] | None = None
    """folder_name: of the innermost folder; text_file: NAME.txt beside NAME.jpg; not with a table."""
    folder_name_is: Literal["caption", "scientific_name", "vernacular_name", "ranks"] = "caption"
    """What a folder's name says: a caption, or the name of a taxon; ranks: all seven, as iNaturalist 2021 writes them,
    NUMBER_KINGDOM_PHYLUM_CLASS_ORDER_FAMILY_GENUS_SPECIES."""
    suffixes: tuple[str, ...] = PICTURES
    """Which files are pictures."""
    exclude: tuple[str, ...] | None = None
    """Globs of paths below the folder to leave out, such as `**/thumbs/**`, where ** stands for any folders."""
    table: str | None = None
    """Table of the pictures, relative to the folder or an address."""
    format: TableFormat = "auto"
    """Of the table; auto: by its ending."""
    sheet: SheetOfTable = None
    """Of a workbook: as for a table of addresses."""
    columns: FileColumns | None = None

    @field_validator("exclude")
    @classmethod
    def _are_globs(cls, patterns: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for pattern in patterns or ():
            glob_translate(pattern)  # raises ValueError, as for `a**`
        return patterns

    @model_validator(mode="after")
    def _one_way(self) -> FolderSettings:
        if (self.table is None) != (self.columns is None):
            raise ValueError("give both table and columns, or neither")
        if self.table is not None and self.captions is not None:
            raise ValueError("captions come from the table's columns, or by `captions`, not both")
        if self.table is not None and self.exclude is not None:
            raise ValueError("exclude is for a folder without a table: a picture that no row names is not read")
        if self.folder_name_is != "caption" and self.captions != "folder_name":
            raise ValueError("folder_name_is needs captions: folder_name")
        return self


class FolderReader(Reader[FolderSettings]):
    """Pictures in a folder, with or without a table of them."""

    settings_type = FolderSettings
    on_disk = True
    takes_folders = False
    init_order = 4
    caption_cures = ("folder: {captions: folder_name}", "folder: {captions: text_file}", "defaults: {caption: TEXT}")

    @property
    def folders_are_classes(self) -> bool:
        """Return whether captions come from the names of folders."""
        return self.settings.table is None and self.settings.captions in (None, "folder_name")

    def mapping(self) -> RowColumns:
        """Return the columns of the table; without one the folder's name is kept, and names each picture."""
        words = dict.fromkeys(_COLUMNS_OF_WORDS[self.settings.folder_name_is], "folder")
        return self.settings.columns or RowColumns.model_validate({**words, "extra": ["folder"]})

    def identity(self) -> dict[str, Any]:
        """Return the settings without the folder and the place of the table."""
        return super().identity() | ({"table": None} if self.settings.table else {})

    def check(self) -> None:
        """Check that the folder is there and holds a picture, and that its table has the mapped columns."""
        fs, inner = storage.filesystem(self.path)
        if not fs.isdir(inner):
            if fs.exists(inner):
                cure = "write `table:` with it instead" if kind_of_place(self.path) == "table" else "give its folder"
                raise ConfigError(f"{self.where}: {self.path} is a file, not a folder; {cure}")
            raise ConfigError(f"{self.where}: {self.path}: no such folder{where_it_looked(self.path)}")
        if self.settings.table is not None:
            self._table().check()
        elif next(_pictures(self.settings), None) is None:
            raise ConfigError(f"{self.where}: {self.path} holds no picture ({', '.join(self.settings.suffixes)})")

    def digest(self, hash_file: Callable[[str], str]) -> list[str]:
        """Names and sizes of the pictures, and the content of every text that is read from a disk.

        With a table they are the files that it names, whatever their ending, and also those that are not there.
        """
        settings, digest = self.settings, hashlib.sha256()
        if settings.table is not None:
            for name, size in sorted(self._named_files().items()):
                digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
            return [digest.hexdigest(), *self._table().digest(hash_file)]
        reads_texts = settings.captions == "text_file"
        on_disk = not storage.is_remote(settings.path)
        for name, size in _files(settings):
            if name.lower().endswith(("/", *_endings(settings))):
                digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
                if reads_texts and size is not None and on_disk:
                    with suppress(ValueError):
                        digest.update(hashlib.sha256(_beside(settings, name) or b"").digest())
        return [digest.hexdigest()]

    def picture_files(self) -> list[str]:
        """Return the pictures, relative to the folder."""
        if self.settings.table is not None:
            return [name for name, size in self._named_files().items() if isinstance(size, int)]
        return [name for name, _ in _pictures(self.settings)]

    def text_files(self) -> list[str]:
        """Return the texts of a folder in an object store: each costs a request, so they are hashed by their stamps."""
        if self.settings.captions != "text_file" or not storage.is_remote(self.path):
            return []
        return [name for name, _ in walk_files(self.path) if name.endswith(_TEXT_ENDING)]

    def rows(self, scratch: Scratch) -> Iterator[Batch]:
        """Every picture of the folder in name order, or every row of its table."""
        if self.settings.table is not None:
            yield from self._table_rows()
            return
        skipped: list[str] = []
        num_pictures = 0
        for some in in_batches(enumerate(_pictures(self.settings, skipped))):
            num_pictures = some[-1][0] + 1
            yield _picture_batch(self.settings, some)
        for names in in_batches(enumerate(skipped, num_pictures)):
            yield make_batch({}, [], [_no_regular_file(number, name) for number, name in names])

    def first_rows(self, scratch: Scratch) -> FirstRows:
        """All rows; in an object store without their texts, which cost a request each."""
        if self.settings.captions != "text_file" or not storage.is_remote(self.path):
            return super().first_rows(scratch)
        bare = FolderReader(self.settings.model_copy(update={"captions": "none"}), self.where)
        return FirstRows(bare.rows(scratch), has_captions=False)

    def most_rows(self) -> int | None:
        """Return the pictures of a folder without a table."""
        if self.settings.table is not None:
            return None
        return sum(name.lower().endswith(_endings(self.settings)) for name, _ in _files(self.settings))

    def remarks(self) -> list[str]:
        """Names of the table that are met in another spelling, and files that no suffix names but for usual ones."""
        if self.settings.table is not None:
            found = self._files_of_table(1).items()
            met = [file for file, (name, size) in found if size is not None and is_respelt(file, name)]
            first = f"{len(met):,} of the first {len(found):,} names of {self.settings.table}"
            return [*self._table().remarks(), *([f"{first} are met {SPELT}, such as {met[0]}"] if met else [])]
        others = not_read((name for name, _ in _files(self.settings)), _endings(self.settings))
        return [f"{others}; convert them, or name endings that this machine can decode in `suffixes`"] if others else []

    @classmethod
    def guess(cls, listing: Listing) -> Place | None:
        """Pictures in a folder: with a table of their names, texts beside them, or telling names of folders."""
        if listing.form != "folder" or not listing.ends(*PICTURE_SUFFIXES):
            return None
        for name in (name for name in listing.names if "/" not in name and is_table(name)):
            if found := guess_with_table(storage.join(listing.path, name), [listing.path]):
                return found
        return guess_without_table(listing)

    def _table(self) -> TableReader:
        settings, path = self.settings, self.settings.table
        assert path is not None, "checked with the settings"
        assert settings.columns is not None, "checked with the settings"
        if not storage.is_remote(path) and not PurePosixPath(path).is_absolute():
            why_not = why_not_inside(settings.path, path)
            if why_not and "link" in why_not:
                raise ConfigError(f"{self.where}: {path} {why_not}; put the table itself into {settings.path}")
            path = storage.join(settings.path, path)
        return TableReader.of(self.where, path, settings.columns.names(), settings.format, settings.sheet)

    def _named_files(self) -> dict[str, int | str | None]:
        """Return the files that the table names, below the folder, with what `_size_of` gives."""
        return {name: size for name, size in self._files_of_table().values() if name}

    def _files_of_table(self, num_batches: int | None = None) -> dict[str, tuple[str | None, int | str | None]]:
        """Map the names in the table to the files that they meet. A store is listed, not asked for each of them."""
        table, find = self._table(), name_finder(self.path, is_listed=True)
        written = dict[str, None]()
        for raw in islice(table.batches(), num_batches):  # its first column is that of the files
            written |= dict.fromkeys(file for file in raw.rows[table.columns[0]].to_pylist() if file)
        return {file: find(file) for file in written}

    def _table_rows(self) -> Iterator[Batch]:
        columns = self.settings.columns
        assert columns is not None, "checked with the settings"
        find = name_finder(self.path)
        for raw in self._table().batches():
            lost = malformed_rows(raw.malformed)
            locators: list[str] = []
            good: list[int] = []
            for index, file in enumerate(raw.rows[columns.file].to_pylist()):
                name, size = find(file)
                if isinstance(size, str):
                    lost.append(Lost(int(raw.numbers[index]), "no_regular_file", f"{file} {size}", record_key=file))
                elif name is None or size is None:
                    reason = "missing_file" if name or not file else "file_outside_folder"
                    lost.append(Lost(int(raw.numbers[index]), reason, file, record_key=file))
                else:
                    locators.append(make_locator(name, 0, size))
                    good.append(index)
            rows = raw.rows.take(pa.array(good, pa.int64()))
            mapped = {"record_key": rows[columns.file]} | map_columns(rows, columns)
            mapped["locator"] = pa.array(locators, pa.string())
            if columns.url is not None:
                mapped["url"] = rows[columns.url]
            yield make_batch(mapped, raw.numbers[np.array(good, np.int64)], lost)


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
        except ValueError as error:
            lost.append(Lost(number, "malformed_row", str(error), record_key=name))
    names = [name for _, name, _, _ in kept]
    columns = {
        "record_key": pa.array(names, pa.string()),
        "locator": pa.array([make_locator(name, 0, size) for _, name, size, _ in kept], pa.string()),
        **_said_by_words(settings, [words for *_, words in kept]),
        "extra": pa.array([json.dumps({"folder": name.rpartition("/")[0]}) for name in names], pa.string()),
    }
    return make_batch(columns, [number for number, *_ in kept], lost)


def _said_by_words(settings: FolderSettings, words: list[str]) -> dict[str, pa.Array]:
    """Columns of the words of pictures; ranks are empty where a folder is named in another way."""
    columns = _COLUMNS_OF_WORDS[settings.folder_name_is]
    if settings.folder_name_is != "ranks":
        return {columns[0]: pa.array(words, pa.string())}
    found = [ranks_of_folder("_".join(folder.split())) or [None] * len(columns) for folder in words]
    return {name: pa.array([ranks[at] for ranks in found], pa.string()) for at, name in enumerate(columns)}


def _no_regular_file(number: int, name: str) -> Lost:
    shown = name.encode("utf-8", "backslashreplace").decode()
    return Lost(number, "no_regular_file", shown, record_key=shown)


def _words(settings: FolderSettings, name: str) -> str | None:
    """Return the words beside one picture; None where they would have to be read through a link, a pipe or the like.

    Raises: UnicodeError for a text that is no UTF-8, ValueError for one that cannot be read.
    """
    if settings.captions == "text_file":
        content = _beside(settings, name)
        return None if content is None else content.decode("utf-8-sig")
    folder = PurePosixPath(name).parent.name if settings.captions in (None, "folder_name") else ""
    return " ".join(folder.replace("_", " ").split())


def _text_file(name: str) -> str:
    return name.rpartition(".")[0] + _TEXT_ENDING


def _beside(settings: FolderSettings, name: str) -> bytes | None:
    """Content of the text file beside a picture; empty where there is none, None where it is no regular file.

    Raises: ValueError for a file that cannot be read.
    """
    path = storage.join(settings.path, _text_file(name))
    fs, inner = storage.filesystem(path)
    if not storage.is_remote(path) and os.path.lexists(inner) and why_not_inside(settings.path, _text_file(name)):
        return None
    try:
        content: bytes = fs.cat_file(inner, end=MAX_TEXT_BYTES)  # one request; opening it would ask for its size too
        return content
    except Exception as error:  # the client libraries of object stores have errors of their own
        storage.check_passing(path, error)
        if isinstance(error, OSError) and (storage.is_remote(path) or isinstance(error, FileNotFoundError)):
            return b""  # a store may refuse what is not there
        if isinstance(error, OSError):
            raise ValueError(f"{_text_file(name)}: cannot be read: {error.strerror or error}") from None
        raise


def _pictures(settings: FolderSettings, skipped: list[str] | None = None) -> Iterator[tuple[str, int]]:
    """Name and size of every picture; names of what is no regular file go into `skipped`."""
    endings = _endings(settings)
    for name, size in _files(settings):
        if size is not None and name.lower().endswith(endings):
            yield name, size
        elif skipped is not None and name.lower().endswith(("/", *endings)):  # a linked folder may hold some
            skipped.append(name)


def _files(settings: FolderSettings) -> Iterator[tuple[str, int | None]]:
    """Return the files of the folder but for those that are left out, as `walk_files` gives them."""
    left_out = [re.compile(glob_translate(pattern)) for pattern in settings.exclude or ()]
    return (entry for entry in walk_files(settings.path) if not any(pattern.match(entry[0]) for pattern in left_out))


def _endings(settings: FolderSettings) -> tuple[str, ...]:
    return tuple(f".{suffix.lower().lstrip('.')}" for suffix in settings.suffixes)
