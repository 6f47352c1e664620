"""Files of a source that are read in place: found in a fixed order, named relative to one root, read by locator.

A locator is `NAME@OFFSET+LENGTH`. NAME is relative to the source's root, so that a dataset may be moved; OFFSET is 0
for a whole file. Paths are local or fsspec addresses. Raises ConfigError when no file is there, and BytesUnreadable
(with an outcome and what was seen) for one picture.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from manifests.contract.outcomes import Outcome
from manifests.errors import ConfigError
from manifests.masking import hide_secrets
from manifests.samples.braces import expand, first_pattern, has_braces, split_paths
from manifests.samples.endings import is_picture, is_tar
from manifests.samples.unpacking import Unpacked, unpacked
from manifests.services.untrusted import UNREADABLE, BrokenTarError
from manifests.stores import stamps, storage
from pipeline.sources.limits import MAX_OPEN_FILES

_LOCATOR = re.compile(r"(.*)@(\d+)\+(\d+)", re.DOTALL)
MAX_LISTED = 2000  # files that are looked at to see what a folder holds
TABLE_NAME = re.compile(r"\.(parquet|pq|csv|tsv|json|jsonl|ndjson|xlsx|xlsm)(\.(gz|bz2|xz|zst|zip))?$")
WORKBOOKS = (".xls", ".xlsb", ".ods")
"""Workbooks that are not read."""
WORKBOOK_CURE = "save it as .xlsx and name that file"


class BytesUnreadable(Exception):  # noqa: N818
    """The bytes of one picture cannot be read."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


def check_store(path: str, error: Exception) -> None:
    """Tell a store's fault from a file that a parser cannot read: parsers raise an OSError without a number.

    Raises: RetryableError when it is the store's.
    """
    if not isinstance(error, gzip.BadGzipFile) and (type(error) is not OSError or error.errno is not None):
        storage.check_passing(path, error)


@contextmanager
def reading(what: str, path: str, kind: str = "") -> Iterator[None]:
    """Turn the error of a parser at a bad file into one line. `path` is the file that is read, or the folder around it.

    Raises: ConfigError that begins with `what`; RetryableError where a store does not give what it has.
    """
    try:
        yield
    except ConfigError:
        raise
    except UNREADABLE as error:
        check_store(path, error)
        text = " ".join(str(error).split())
        raise ConfigError(f"{what} cannot be read {kind}".rstrip() + f": {text:.300}") from None


def where_it_looked(path: str) -> str:
    """Explain a path that is not there: how it is written, or where it was looked for."""
    if "\\" in path:
        return f" (it is written as Windows writes paths; write {path.replace(chr(92), '/')} as this machine names it)"
    if storage.is_remote(path) or Path(path).is_absolute():
        return ""
    return f" (looked for at {Path(path).absolute()}; paths in a config begin at the config)"


def kind_of_place(path: str) -> str | None:
    """Return the kind of a path in the words of the config: folder, webdataset, dwca, table.

    None where it is not clear.
    """
    fs, inner = storage.filesystem(path)
    if not fs.exists(inner):
        return None
    names = [name for name, _ in islice(walk_files(path), MAX_LISTED)] if fs.isdir(inner) else [inner]
    lowered = [name.lower() for name in names]
    if any(name.rpartition("/")[2] == "meta.xml" for name in lowered):
        return "dwca"
    if any(map(is_tar, lowered)):
        return "webdataset"
    if any(map(is_picture, names)):
        return "folder"
    return "table" if any(map(is_table, lowered)) else None


def is_table(name: str) -> bool:
    """Return whether a file holds a table, by its name."""
    return TABLE_NAME.search(name.lower()) is not None and not is_lock(name)


def is_lock(name: str) -> bool:
    """Return whether a file only says that a workbook is open: Excel leaves it beside that."""
    return name.rpartition("/")[2].startswith("~$")


def sizes_in_zip(path: str) -> dict[str, int]:
    """Names of the files in a zip, and their sizes as they are unpacked. Raises: zipfile.BadZipFile."""
    with storage.open_file(path) as stream, zipfile.ZipFile(stream) as archive:
        return {member.filename: member.file_size for member in archive.infolist()}


def zip_fault(path: str) -> str:
    """Why a file cannot be opened as a zip."""
    with storage.open_file(path) as stream:
        begins_well = stream.read(4) == b"PK\x03\x04"
    if begins_well:
        return "is a zip that breaks off before its end; download it again (compare its size with the server's)"
    return "is no zip"


@dataclass(frozen=True)
class Shards:
    """Files of a source: `names` relative to `root`, in the order in which they are read."""

    root: str
    names: list[str]

    def path(self, name: str) -> str:
        """Return the whole path of one file."""
        return storage.join(self.root, name)


def find_files(path: str, where: str, *suffixes: str) -> Shards:
    """Return the files that `path` names.

    One, a folder's (and its sub-folders'), a glob's, or those of braces and `::`.

    A file of a folder, a glob or a range may be a link to another file of that folder, and to nothing else.

    Raises: ConfigError when there are none, for one that is no regular file of the folder, and for an address of the
    web with a query.
    """
    if path.startswith(("http://", "https://")) and "?" in path:
        raise ConfigError(
            f"{where}: {hide_secrets(path)}: the text behind the ? may be a token, and would stand in every table and "
            "release; download the file and name the local one, or give an address without a query"
        )
    is_here = not storage.is_remote(path) and Path(path.removeprefix("file://")).exists()
    fs, inner = storage.filesystem(split_paths(path)[0] if not is_here else path)
    inner = inner.rstrip("/") or "/"
    if not is_here and re.search(r"[*?\[{]|::", path):
        root, names = _files_of_pattern(path, where)
    elif not _is_web_file(path, suffixes) and fs.isdir(inner):
        root = inner
        listed = [name for name, _ in walk_files(path)]
        if linked := [name for name in listed if name.endswith("/")]:
            raise ConfigError(
                f"{where}: {path}: {linked[0]} is a link to a folder, and no link is followed; give the folder itself"
            )
        names = sorted(f"{inner.rstrip('/')}/{name}" for name in listed if name.endswith(suffixes))
    else:
        root = inner.rpartition("/")[0]
        names = [inner] if fs.exists(inner) else []
    checked = [] if storage.is_remote(path) or names == [inner] else names  # object stores have no links
    if bad := [name for name in checked if not is_file_of(root, name)]:
        raise ConfigError(
            f"{where}: {path}: {bad[0]} is no regular file of {root or '.'} ({len(bad)} of {len(names)} files); a link "
            "may lead to another file of that folder only. Put the files themselves there, or give a file alone as path"
        )
    if not names:
        raise ConfigError(
            f"{where}: {path}: no {suffixes[0]} file is there; give a file, a folder, a glob or a brace range"
            f"{where_it_looked(path)}"
        )
    prefix = len(root.rstrip("/")) + 1 if root else 0
    whole_root = str(fs.unstrip_protocol(root)) if storage.is_remote(path) else root or "."
    return Shards(whole_root, [name[prefix:] for name in names])


def _files_of_pattern(path: str, where: str) -> tuple[str, list[str]]:
    """Return the folder around the files of wildcards, braces and `::`, and their paths; one named twice counts once.

    Raises: ConfigError for files of braces that are not there.
    """
    stores = [storage.filesystem(part) for part in split_paths(path)]
    fs = stores[0][0]
    if any(other is not fs for other, _ in stores):
        raise ConfigError(f"{where}: {path}: lies in several stores; make a source of each")
    folders = [f"{first_pattern(inner).rpartition('/')[0]}/" for _, inner in stores]
    names: list[str] = []
    try:
        for name in expand("::".join(inner for _, inner in stores)):
            names += map(str, sorted(fs.glob(name))) if re.search(r"[*?\[]", name) else [name]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    names = list(dict.fromkeys(names))
    missing = [name for name in names if not fs.exists(name)] if has_braces(path) else []
    if missing:
        raise ConfigError(
            f"{where}: {path}: {len(missing)} of {len(names)} files are missing, the first is {missing[0]}"
        )
    shared = os.path.commonprefix(folders)  # noqa: RUF071  (commonpath would fold the // of an address)
    return shared.rpartition("/")[0], names


def _is_web_file(path: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether an address names a file.

    Asked whether it is a folder, fsspec would read all of it to look for links.
    """
    return path.startswith(("http://", "https://")) and urlsplit(path).path.endswith(suffixes)


def is_file_of(root: str, path: str) -> bool:
    """Return whether a local path is a regular file that lies in `root` when links are followed."""
    real = Path(path).resolve()
    return real.is_file() and real.is_relative_to(Path(root or ".").resolve())


def walk_files(root: str, hidden: bool = False) -> Iterator[tuple[str, int | None]]:
    """(name relative to root, size in bytes) of every file below a folder, in name order, one folder at a time.

    No link is followed. Links, pipes, devices and sockets have the size None; the name of a link to a folder ends in /.

    Raises: ConfigError for a folder that may not be read; RetryableError where a store refuses it now.
    """
    return ((name, size) for name, size, _ in _walk_entries(root, hidden))


def look_at(root: str, names: Sequence[str]) -> list[str | None]:
    """Stamps (manifests/stores/stamps.py) of files below a folder, None for one that is not there.

    A store is listed once.

    Raises: as `walk_files`.
    """
    if not names:
        return []
    if not storage.is_remote(root):
        folder = storage.filesystem(root)[1]
        return [_stamp_of(f"{folder}/{name}") for name in names]
    listed = {name: entry for name, size, entry in _walk_entries(root, hidden=True) if size is not None}
    return [stamps.of_entry(listed[name]) if name in listed else None for name in names]


def _stamp_of(path: str) -> str | None:
    try:
        return stamps.to_keep(path)
    except (OSError, ValueError):
        return None


def _walk_entries(root: str, hidden: bool = False) -> Iterator[tuple[str, int | None, Mapping[str, Any]]]:
    fs, inner = storage.filesystem(root)
    inner = inner.rstrip("/") or "/"
    yield from _walk(fs, inner, len(inner.rstrip("/")) + 1, hidden)


def _walk(fs: Any, folder: str, prefix: int, hidden: bool) -> Iterator[tuple[str, int | None, Mapping[str, Any]]]:
    try:
        entries = sorted(fs.ls(folder, detail=True), key=lambda entry: str(entry["name"]))
    except PermissionError as error:
        storage.check_passing(str(fs.unstrip_protocol(folder)), error)
        raise ConfigError(
            f"{folder}: this folder may not be read (permission denied); change its permissions, or take it out of "
            "the source's folder"
        ) from None
    for entry in entries:
        name = str(entry["name"]).rstrip("/")
        if name.rpartition("/")[2].startswith(".") and not hidden:
            continue
        if entry.get("islink"):
            yield name[prefix:] + ("/" if fs.isdir(name) else ""), None, {}
        elif entry["type"] == "directory":
            yield from _walk(fs, name, prefix, hidden)
        else:
            yield name[prefix:], int(entry["size"]) if entry["type"] == "file" else None, entry


def make_locator(name: str, offset: int, length: int) -> str:
    """Where the bytes of one picture lie."""
    return f"{name}@{offset}+{length}"


def split_locator(locator: str) -> tuple[str, int, int]:
    """Name, offset and length of a locator.

    Raises: ValueError for a text that is no locator.
    """
    match = _LOCATOR.fullmatch(locator)
    if match is None:
        raise ValueError(f"not a locator: {locator[:200]}")
    return match[1], int(match[2]), int(match[3])


def address_of(locator: str, sha256: str) -> str:
    """Return the address of a picture that was read, as a download has a URL.

    Its locator, and the content of its file.
    """
    return f"{locator}#{sha256}"


class LocalReader(AbstractContextManager["LocalReader"]):
    """Reads pictures by locator below one root, a few files open at a time; a context manager.

    A compressed tar is unpacked up to the picture: quick where pictures are asked for in the order in which they lie.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._open: dict[str, Any] = {}

    def __exit__(self, *_: object) -> None:
        for stream in self._open.values():
            stream.close()
        self._open.clear()

    def read(self, locator: str, max_bytes: int) -> bytes:
        """Return the bytes of one picture.

        Raises: BytesUnreadable, with the outcome that the row ends in. RetryableError where an object store does not
            give what it has: that says nothing about the picture.
        """
        name, offset, length = split_locator(locator)
        if length > max_bytes:
            raise BytesUnreadable(Outcome.BODY_TOO_LARGE, f"{length} bytes, allowed {max_bytes}")
        try:
            stream = self._stream(name, offset)
            stream.seek(offset)
            body: bytes = stream.read(length if offset else length + 1)
        except FileNotFoundError:
            raise BytesUnreadable(Outcome.FILE_MISSING, f"{name} is not there") from None
        except BrokenTarError as error:
            raise BytesUnreadable(Outcome.FILE_CHANGED, f"{name}: {error}") from None
        except OSError as error:
            self._forget(name, error)
            raise BytesUnreadable(Outcome.FILE_UNREADABLE, f"{name}: {error.strerror or error}") from None
        except Exception as error:  # the client libraries of object stores have errors of their own
            self._forget(name, error)
            raise
        if len(body) != length:
            seen = "longer" if len(body) > length else f"only {len(body)} bytes there"
            raise BytesUnreadable(
                Outcome.FILE_CHANGED, f"{name} had {length} bytes at {offset} when it was listed; {seen}"
            )
        return body

    def _forget(self, name: str, error: Exception) -> None:
        """Forget the open store, so that the next try opens it anew. Raises: RetryableError for a fault of a store."""
        self._open.pop(name, None)
        storage.check_passing(storage.join(self._root, name), error)

    def _stream(self, name: str, offset: int) -> Any:
        stream = self._open.get(name)
        if isinstance(stream, Unpacked) and offset < stream.kept_from:
            self._open.pop(name).close()
            stream = None
        if stream is None:
            if len(self._open) >= MAX_OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            path = storage.join(self._root, name)
            fs, inner = storage.filesystem(path)
            if not storage.is_remote(path) and not stat.S_ISREG(Path(inner).stat().st_mode):
                raise BytesUnreadable(Outcome.FILE_UNREADABLE, f"{name}: no regular file")
            stream = self._open[name] = unpacked(fs.open(inner, "rb"), name)
        return stream
