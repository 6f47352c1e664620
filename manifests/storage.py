"""Publish a file so that all of it is there or none of it: write it under a private name, fsync, hash, rename.

Works on local paths and on any fsspec address (s3://, gs://, memory://). No other module renames files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from manifests.errors import ConfigError, IntegrityError, RetryableError

_CHUNK_BYTES = 4 << 20
TEMP_MARK = ".tmp-"
_CLIENT_LIBRARIES = {
    "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "httpx2", "requests", "urllib3",
}  # fmt: skip
_TEMP_NAME = re.compile(r"\..+\.tmp-[0-9a-f]{12}(\.spool)?", re.DOTALL)


@dataclass(frozen=True)
class WrittenFile:
    """A file as it was published: its path, size and content hash."""

    path: str
    num_bytes: int
    sha256: str


def is_remote(path: str) -> bool:
    """True for an fsspec address with a scheme, false for a local path."""
    return "://" in path and not path.startswith("file://")


def is_storage_error(error: Exception) -> bool:
    """True for an error of the operating system, or of a library that talks to an object store.

    Those libraries have errors that are no OSError, for a connection that was reset for instance.
    """
    libraries = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or not _CLIENT_LIBRARIES.isdisjoint(libraries)


def check_passing(path: str, error: Exception) -> None:
    """Tell a fault of an object store from a file that is not there; call it where reading `path` raised `error`.

    Raises: RetryableError when the store does not give what it has: that says nothing about the file.
    """
    if is_remote(path) and is_storage_error(error) and not isinstance(error, FileNotFoundError):
        text = " ".join(str(error).split())
        raise RetryableError(f"{path} cannot be read now ({type(error).__name__}: {text:.300})") from None


def join(folder: str, *names: str) -> str:
    """Join names under a local folder or a remote address."""
    if is_remote(folder):
        return "/".join([folder.rstrip("/"), *names])
    return str(Path(folder.removeprefix("file://")).joinpath(*names))


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of `path`, and the path within it."""
    fs, inner = fsspec.core.url_to_fs(path)
    return fs, str(inner)


def temp_path(path: str) -> str:
    """A private name beside `path`. It holds TEMP_MARK, by which `sweep` finds what a crash left."""
    folder, _, name = path.rpartition("/")
    temp = f".{name}{TEMP_MARK}{uuid.uuid4().hex[:12]}"
    return f"{folder}/{temp}" if folder else temp


def is_private(path: str) -> bool:
    """Whether this is the private name of a file that is being written, or was when its writer was killed."""
    return _TEMP_NAME.fullmatch(path.rpartition("/")[2]) is not None


def make_folder(path: str) -> None:
    """Create a folder and its parents.

    Raises: ConfigError when the place is not writable.
    """
    fs, inner = filesystem(path)
    try:
        fs.makedirs(inner, exist_ok=True)
        if not is_remote(path) and not os.access(inner, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable", inner)
    except OSError as error:
        raise ConfigError(
            f"{path}: the folder cannot be written ({error.strerror or error}); "
            "choose another place or change its permissions"
        ) from None


def make_parent(path: str) -> None:
    """Create the folder that a file is to lie in.

    Raises: ConfigError when the place is not writable.
    """
    folder, slash, _ = path.rpartition("/")
    make_folder(folder or slash or ".")


def open_unbuffered(path: str) -> Any:
    """Open a file to read ranges of it. From a local file only the bytes that are asked for are read.

    Raises: FileNotFoundError.
    """
    if not is_remote(path):
        return Path(path.removeprefix("file://")).open("rb", buffering=0)
    fs, inner = filesystem(path)
    return fs.open(inner, "rb")


def hash_file(path: str) -> WrittenFile:
    """Read a whole file and give its size and sha256."""
    fs, inner = filesystem(path)
    digest = hashlib.sha256()
    num_bytes = 0
    with fs.open(inner, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
    return WrittenFile(path, num_bytes, digest.hexdigest())


def publish_bytes(path: str, content: bytes) -> WrittenFile:
    """Write `content` to `path`. A reader sees all of it or what was there before."""
    temp = temp_path(path)
    fs, inner = filesystem(temp)
    with fs.open(inner, "wb") as stream:
        stream.write(content)
        _sync(stream)
    publish(temp, path)
    return WrittenFile(path, len(content), hashlib.sha256(content).hexdigest())


def publish_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as JSON that people read, as `publish_bytes` does."""
    publish_bytes(str(path), (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def write_file(path: str, content: bytes) -> None:
    """Publish a small file that a user named, and make its folder where there is none.

    Raises: ConfigError when the place cannot be written.
    """
    make_parent(path)
    try:
        publish_bytes(path, content)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None


def publish(temp: str, path: str) -> None:
    """Rename a finished private file to its public name. On a local disk it is made durable first.

    Raises: IntegrityError when the private file is gone.
    """
    fs, inner_temp = filesystem(temp)
    _, inner = filesystem(path)
    if is_remote(path):
        if not fs.exists(inner_temp):
            raise IntegrityError(f"{temp}: the private file to publish is gone; something else removed it")
        fs.mv(inner_temp, inner)
        return
    try:
        descriptor = os.open(inner_temp, os.O_RDONLY)
    except FileNotFoundError:
        raise IntegrityError(f"{temp}: the private file to publish is gone; something else removed it") from None
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    Path(inner_temp).replace(inner)
    folder = os.open(str(Path(inner).parent), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def link_or_copy(source: str, path: str) -> None:
    """Publish the content of `source` as `path` too: as a hard link where the disk allows it, else as a copy."""
    temp = temp_path(path)
    fs, inner_source = filesystem(source)
    _, inner_temp = filesystem(temp)
    try:
        if is_remote(source) or is_remote(path):
            raise OSError("no links between object stores")
        os.link(inner_source, inner_temp)
    except OSError:
        target, inner_temp = filesystem(temp)
        with fs.open(inner_source, "rb") as reader, target.open(inner_temp, "wb") as writer:
            shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
    publish(temp, path)


def remove(path: str) -> None:
    """Delete one file."""
    fs, inner = filesystem(path)
    fs.rm_file(inner)


def sweep(folder: str) -> int:
    """Remove private files that a crash left in `folder` and below. Returns how many.

    Only the process that owns the folder may call this, and only before it starts workers.
    """
    fs, inner = filesystem(folder)
    if not fs.exists(inner):
        return 0
    gone = 0
    for name in fs.find(inner):
        if is_private(name):
            with contextlib.suppress(FileNotFoundError):  # a worker that is still running removed or published it
                fs.rm_file(name)
                gone += 1
    return gone


def _sync(stream: Any) -> None:
    stream.flush()
    try:
        os.fsync(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return  # not a local file: durability is the object store's promise
