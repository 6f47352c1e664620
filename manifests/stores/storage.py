"""Publish a file so that all of it is there or none of it: write it under a private name, fsync, hash, rename.

Works on local paths and on any fsspec address (s3://, gs://, memory://). No other module renames files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from manifests.errors import ConfigError, IntegrityError, NoRangesError
from manifests.stores import clients
from manifests.stores.clients import filesystem as filesystem
from manifests.stores.clients import is_remote as is_remote
from manifests.stores.faults import ask
from manifests.stores.faults import check_passing as check_passing

_CHUNK_BYTES = 4 << 20
_RANGE_BYTES = 32 << 20  # of an object store, in one request
_FICLONE = 0x40049409  # of Linux; no other system knows it
_PAST_THE_END = re.compile("InvalidRange|range (is )?not satisfiable", re.IGNORECASE)
TEMP_MARK = ".tmp-"
_TEMP_NAME = re.compile(r"\..+\.tmp-[0-9a-f]{12}", re.DOTALL)


@dataclass(frozen=True)
class WrittenFile:
    """A file as it was published: its path, size and content hash."""

    path: str
    num_bytes: int
    sha256: str
    since: ClassVar[str] = (
        "the release was sealed; take a whole copy, or see what differs with `plantmix verify --deep`"
    )

    def copy_to(self, local: str) -> None:
        """Copy it to a file of this machine, in one request.

        Raises: an error of the store.
        """
        get(self.path, local)

    def is_content_of(self, path: str) -> bool:
        """Return whether a local file holds what was recorded; every byte is read."""
        return hash_file(path).sha256 == self.sha256

    def require_content(self, path: str) -> None:
        """Compare a local file with the record.

        Raises: IntegrityError.
        """
        if not self.is_content_of(path):
            raise IntegrityError(f"{self.path} has other content than when {self.since}")


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Name the file in an error of the system, which a read or write does not do."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = path
        raise


def join(folder: str, *names: str) -> str:
    """Join names under a local folder or a remote address."""
    if is_remote(folder):
        return "/".join([folder.rstrip("/"), *names])
    return str(Path(folder.removeprefix("file://")).joinpath(*names))


def exists(path: str) -> bool:
    """Return whether a file or folder is there."""
    fs, inner = filesystem(path)
    return ask(path, lambda: bool(fs.exists(inner)))


def is_folder(path: str) -> bool:
    """Return whether a folder is there; a store has no empty ones."""
    fs, inner = filesystem(path)
    return ask(path, lambda: bool(fs.isdir(inner)))


def size_of(path: str) -> int:
    """Return how many bytes a file has. Raises: FileNotFoundError; an error of the disk or the store."""
    fs, inner = filesystem(path)
    return ask(path, lambda: int(fs.size(inner)))


def open_file(path: str, **options: Any) -> Any:
    """Open a file to read it; `options` are those of fsspec's `open`. Each piece is asked of a store patiently.

    Raises: FileNotFoundError; an error of the disk; AwayError, while it is read too.
    """
    fs, inner = filesystem(path)
    stream = ask(path, lambda: fs.open(inner, "rb", **options))
    cache = getattr(stream, "cache", None)
    if is_remote(path) and cache is not None and cache.fetcher is not None:
        fetch = cache.fetcher
        cache.fetcher = lambda start, end: ask(path, lambda: fetch(start, end))
    return stream


def sizes_below(folder: str) -> dict[str, int]:
    """Names and sizes of the files in a folder and below, as they are now; none for what is not there.

    A store answers one request for each thousand files.
    """
    fs, inner = filesystem(folder)
    fs.invalidate_cache()
    prefix = len(inner.rstrip("/")) + 1
    found = ask(folder, lambda: fs.find(inner, detail=True))
    return {str(path)[prefix:]: int(info["size"]) for path, info in sorted(found.items())}


def find_matches(pattern: str) -> list[str]:
    """Paths or addresses of what a glob names, sorted."""
    fs, inner = filesystem(pattern)
    found = sorted(ask(pattern, lambda: fs.glob(inner)))
    return [str(fs.unstrip_protocol(path)) if is_remote(pattern) else str(path) for path in found]


def files_in(path: str) -> list[str]:
    """Return the files that lie in a folder itself; none for what is no folder."""
    fs, inner = filesystem(path)
    listed = ask(path, lambda: fs.ls(inner, detail=True) if fs.isdir(inner) else [])
    return sorted(join(path, entry["name"].rpartition("/")[2]) for entry in listed if entry["type"] == "file")


def temp_path(path: str) -> str:
    """Return a private name beside `path`, for a file of a store one on this machine.

    It holds TEMP_MARK, by which `sweep`
    finds what a crash left.
    """
    folder, _, name = path.removeprefix("file://").rpartition("/")
    if is_remote(path):
        folder = tempfile.gettempdir()
    elif folder.startswith("~"):
        folder = str(Path(folder).expanduser())
    temp = f".{name}{TEMP_MARK}{uuid.uuid4().hex[:12]}"
    return f"{folder}/{temp}" if folder else temp


def is_private(path: str) -> bool:
    """Return whether this is the private name of a file that is being written, or was when its writer was killed."""
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
    return open_file(path)


def hash_file(path: str, copy: Any = None) -> WrittenFile:
    """Read a whole file, into the stream `copy` where there is one, and give its size and sha256."""
    digest, num_bytes = hashlib.sha256(), 0
    for chunk in read_chunks(path):
        digest.update(chunk)
        num_bytes += len(chunk)
        if copy is not None:
            copy.write(chunk)
    return WrittenFile(path, num_bytes, digest.hexdigest())


def read_chunks(path: str) -> Iterator[bytes]:
    """Yield the content of a file, in pieces; of an object store one request each, and none for its size.

    A web server that knows no ranges is read in one go.
    """
    fs, inner = filesystem(path)
    if not is_remote(path):
        with naming(path), fs.open(inner, "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
        return
    start = 0
    while True:
        try:
            chunk = ask(path, partial(_range_of, fs, inner, start, start + _RANGE_BYTES))
        except NoRangesError:
            with naming(path), fs.open(inner, "rb", block_size=0) as stream:
                while start > 0 and (known := stream.read(min(start, _CHUNK_BYTES))):
                    start -= len(known)
                while chunk := stream.read(_CHUNK_BYTES):
                    yield chunk
            return
        yield chunk
        start += len(chunk)
        if len(chunk) < _RANGE_BYTES:
            return


def _range_of(fs: Any, inner: str, start: int, end: int) -> bytes:
    """Return some bytes of a file of a store, none from its end on."""
    try:
        return bytes(fs.cat_file(inner, start=start, end=end))
    except FileNotFoundError:
        raise
    except Exception as error:
        if _PAST_THE_END.search(str(error)):
            return b""
        raise


def read_if_there(path: str) -> bytes | None:
    """Return the content of a small file; None where it is missing. Asks the store itself, not a listing from before.

    Raises: AwayError when the store does not answer after the last try.
    """
    try:
        return b"".join(read_chunks(path))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def download(path: str, local: str, sha256: str | None = None) -> WrittenFile:
    """Copy a file to a local path, hashed on the way.

    Raises: FileNotFoundError; IntegrityError when its content is not `sha256`; AwayError when the store does not give
        it now.
    """
    make_parent(local)
    temp = temp_path(local)
    try:
        with Path(temp).open("wb") as stream:
            written = hash_file(path, stream)
        if sha256 not in (None, written.sha256):
            raise IntegrityError(f"{path}: other content than recorded")
        Path(temp).replace(local)  # a copy: it need not outlive a power failure
    finally:
        Path(temp).unlink(missing_ok=True)
    return replace(written, path=local)


def get(path: str, local: str) -> None:
    """Copy a file to a local path, in one request; no byte is looked at.

    Raises: FileNotFoundError; an error of the store.
    """
    fs, inner = filesystem(path)
    options = {"max_concurrency": 1} if "s3" in fs.protocol else {}
    ask(path, lambda: fs.get_file(inner, local, **options))


def upload(local: str, path: str) -> None:
    """Put a finished local file into an object store. A reader sees all of it or what was there before.

    Raises: AwayError when the store does not take it now.
    """
    fs, inner = filesystem(path)
    ask(path, lambda: clients.put(fs, local, inner), "written")


def publish_bytes(path: str, content: bytes, is_secret: bool = False) -> WrittenFile:
    """Write `content` to `path`. A reader sees all of it or what was there before; others see no secret file."""
    if is_remote(path):  # one request, which a store does as a whole or not at all
        fs, inner = filesystem(path)
        ask(path, lambda: fs.pipe_file(inner, content), "written")
    else:
        temp = temp_path(path)
        try:
            with Path(temp).open("wb") as stream:
                if is_secret:
                    Path(temp).chmod(0o600)
                stream.write(content)
            publish(temp, path)
        finally:
            Path(temp).unlink(missing_ok=True)  # of a full disk
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
    """Rename a finished private file to its public name, or put it into a store. On a disk it is made durable first.

    Raises: as `publish_all`.
    """
    publish_all([(temp, path)])


def publish_all(files: Iterable[tuple[str, str]]) -> None:
    """Publish finished private files (private name, public name) together.

    Folders are made durable at the end, each once: the disk then writes down all renames at a time.

    Raises: IntegrityError when a private file is gone; on a disk none is published then. AwayError when a store does
        not take one now.
    """
    renamed: dict[str, str] = {}
    for temp, path in files:
        if not Path(temp).exists():
            raise IntegrityError(f"{temp}: the private file to publish is gone; something else removed it")
        if not is_remote(path):
            _sync(temp)
            renamed[temp] = filesystem(path)[1]
            continue
        try:
            upload(temp, path)
        finally:
            Path(temp).unlink()
    for temp, inner in renamed.items():
        Path(temp).replace(inner)
    for folder in dict.fromkeys(str(Path(inner).parent) for inner in renamed.values()):
        _sync(folder)


def link_or_copy(source: str, path: str) -> None:
    """As `copy`, by a hard link where the disk allows it: only where nobody writes into either file."""
    temp = temp_path(path)
    try:
        if is_remote(source) or is_remote(path):
            raise OSError("no links between object stores")
        os.link(filesystem(source)[1], temp)
    except OSError:
        copy(source, path)
    else:
        publish(temp, path)
        Path(temp).unlink(missing_ok=True)  # to rename a link to another link of the same file does nothing


def copy(source: str, path: str) -> None:
    """Publish the content of `source` as `path` too. A store copies its own files; a disk shares blocks if it can."""
    (fs, inner_source), (target, inner) = filesystem(source), filesystem(path)
    if is_remote(path) and not is_remote(source):
        upload(inner_source, path)
    elif is_remote(path) and fs is target:
        ask(path, lambda: fs.cp_file(inner_source, inner), "written")
    else:
        temp = temp_path(path)
        try:
            with fs.open(inner_source, "rb") as reader, Path(temp).open("wb") as writer:
                try:
                    fcntl.ioctl(writer, _FICLONE, reader.fileno())
                except OSError:  # between disks, on one that shares nothing, out of a store
                    shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
            publish(temp, path)
        finally:
            Path(temp).unlink(missing_ok=True)


def remove(path: str) -> None:
    """Delete one file."""
    fs, inner = filesystem(path)
    ask(path, lambda: fs.rm_file(inner), "removed")


def remove_if_there(path: str) -> None:
    """Delete one file, unless it is gone already."""
    with contextlib.suppress(FileNotFoundError):
        remove(path)


def sweep(folder: str) -> None:
    """Remove private files that a crash left in `folder` and below.

    Only the process that owns the folder may call this, and only before it starts workers.
    """
    fs, inner = filesystem(folder)
    for name in ask(folder, lambda: fs.find(inner)):
        if is_private(name):
            with contextlib.suppress(FileNotFoundError):  # a worker that is still running removed or published it
                fs.rm_file(name)


def _sync(path: str) -> None:
    """Make a file or a folder of a disk durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
