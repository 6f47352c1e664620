"""Input of strangers: JSON, XML, the members of a tar, and packed files.

No size is believed before it is checked. What a packed file holds is bounded by its own size: 36 kB of bz2 can say
one line 17 million times.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

import pyarrow as pa

from manifests.errors import IntegrityError, PlantMixError

MAX_TAR_HEADER_BYTES = 64 << 10  # of one extended header, which holds a path and a few numbers
MAX_TAR_NAME_BYTES = 4096  # the longest path that Linux takes
_MAX_PADDING_BYTES = 2 << 20  # zeros at the end of a tar: `tar` pads to 10 KiB, with larger blocks to 1 MiB
MAX_DEPTH = 64
"""Of lists and objects within one another in json."""
MAX_PACKING = 100
"""Bytes that one packed byte may stand for. Tables are packed 3 to 20 times, the most regular text about 50 times."""
FREE_BYTES = 64 << 20
"""What any packed file may hold, however small it is: half a million rows of a table, read in seconds."""
UNREADABLE = (
    *(OSError, ValueError, EOFError, RuntimeError, pa.ArrowException),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)
"""What parsers and unpackers raise at a bad file; a zip with a password gives a RuntimeError."""
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_EXTENDED = frozenset({*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK})
_PAX_RECORD = re.compile(rb"([0-9]{1,9}) ([^=\n]{1,200})=")
_SPARSE = "is stored as a sparse file"
_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|([\[{])|([\]}])', re.DOTALL)


def json_object(content: bytes | None) -> dict[str, Any]:
    """Return a JSON object; empty for anything else."""
    try:
        value = json.loads(content or b"")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def parse_json(text: bytes) -> dict[str, Any]:
    """Return the json object in a text.

    Raises: ValueError for anything else, and for lists and objects that are nested too deeply.
    """
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise ValueError(f"lists and objects are nested more than {MAX_DEPTH} deep")
    try:
        value = json.loads(text)
    except RecursionError:  # in UTF-16, where the brackets were not counted
        raise ValueError("lists and objects are nested too deeply") from None
    return json_object_of(value)


def json_object_of(value: Any) -> dict[str, Any]:
    """Return the value itself, where it is an object.

    Raises: ValueError.
    """
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(text):
        depth += (bracket[1] is not None) - (bracket[2] is not None)
        deepest = max(deepest, depth)
    return deepest


def read_object(path: Path, hint: str, kind: type[PlantMixError] = IntegrityError) -> dict[str, Any]:
    """Return the JSON object in a file; `hint` says what to do without it.

    Raises: an error of `kind`.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise kind(f"{path}: cannot be read: {error}; {hint}") from None
    return values


def check_packing(packed_bytes: int, unpacked_bytes: int, free_bytes: int = FREE_BYTES) -> None:
    """Raise ValueError where a file holds more than `free_bytes` and than MAX_PACKING times its own size.

    `zipfile` reads no more of a member than the directory of the zip says that it has.
    """
    if unpacked_bytes > max(free_bytes, MAX_PACKING * packed_bytes):
        raise ValueError(
            f"its {packed_bytes:,} bytes unpack to {unpacked_bytes:,} or more, over {MAX_PACKING} times as much; "
            "if that is right, give it unpacked, or in smaller files"
        )


def bounded(unpacked: Any, packed_bytes: int) -> io.BufferedReader:
    """Return a stream of unpacked bytes that raises `check_packing`'s ValueError where there are too many."""
    return io.BufferedReader(_Counted(unpacked, packed_bytes), 1 << 20)


class _Counted(io.RawIOBase):
    def __init__(self, unpacked: Any, packed_bytes: int) -> None:
        self._unpacked, self._packed_bytes, self._num_bytes = unpacked, packed_bytes, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._unpacked.read(len(buffer))
        self._num_bytes += len(content)
        check_packing(self._packed_bytes, self._num_bytes)
        buffer[: len(content)] = content
        return len(content)


class Member(NamedTuple):
    """A file in a tar: where its content lies. `fault` says why it must not be read; it costs this file alone."""

    name: str
    offset: int
    num_bytes: int
    fault: str | None = None
    begins: int = 0
    """Where its first header lies: a reading may go on there."""


class BrokenTarError(Exception):
    """A tar cannot be read from some byte on, where `member` begins. `behind_end`: no member before it is cut."""

    def __init__(self, message: str, member: str | None = None, behind_end: bool = False) -> None:
        super().__init__(message)
        self.member, self.behind_end = member, behind_end


class EndOfBytesError(BrokenTarError):
    """A stream has no further byte, and is whole."""


def tar_members(stream: Any, start: int = 0) -> Iterator[Member]:
    """Yield the files in a tar of a stranger, one at a time, from the header at byte `start` on.

    A second tar behind the first is read too, as `cat a.tar b.tar` makes them. Folders are left out.

    `tarfile` itself believes every size that a tar states. Here no header over 64 KiB is read, and no size is taken
    that the tar cannot hold.

    Raises: BrokenTarError where it cannot be told any more where the next member begins.
    """
    end = stream.seek(0, os.SEEK_END)
    offset = start
    for_all: dict[str, str] = {}  # what a pax header says of all that follow
    for_next: dict[str, str] = {}
    begins = start
    while (found := _next_header(stream, offset)) is not None:
        header, place = found
        if place > offset:
            offset, begins, for_all, for_next = place, place, {}, {}
        content = offset + tarfile.BLOCKSIZE
        if header.type in _EXTENDED:
            offset = _next_place(content, header.size, end, offset)
            header_fields = _extended(header.type, stream, content, header.size)
            if header.type == tarfile.XGLTYPE:
                for_all |= header_fields
            else:
                for_next |= header_fields
            continue
        extended = for_all | for_next
        for_next = {}
        if header.type == tarfile.GNUTYPE_SPARSE:
            extended["fault"] = _SPARSE
            content = _behind_sparse_map(stream, offset)
        size = int(extended.get("size", header.size))
        # of a link or a folder the size is not that of any content
        has_content = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
        name = extended.get("path", header.name)
        offset = _next_place(content, size if has_content else 0, end, offset, name)
        if not header.isdir():
            fault = extended.get("fault") if header.isreg() else "is no regular file"
            yield _member(name, content, size if has_content else 0, fault, begins)
        begins = offset


def _next_header(stream: Any, offset: int) -> tuple[tarfile.TarInfo, int] | None:
    """Return the header at a byte, or that of another tar behind the end mark there; where it lies.

    None where none is.
    """
    for begins in range(offset, offset + _MAX_PADDING_BYTES, tarfile.BLOCKSIZE):
        try:
            stream.seek(begins)
            block = stream.read(tarfile.BLOCKSIZE)
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape"), begins
        except tarfile.HeaderError:
            if len(block) == tarfile.BLOCKSIZE and not block.strip(b"\0"):
                continue
            if begins == offset:
                raise BrokenTarError(f"no tar member and no end mark at byte {offset:,}") from None
            return None
        except BrokenTarError as error:
            if begins > offset and isinstance(error, EndOfBytesError):
                return None
            raise BrokenTarError(str(error), behind_end=begins > offset) from None
    return None


def _next_place(content: int, size: int, end: int, offset: int, name: str | None = None) -> int:
    """Where the next header begins."""
    if not 0 <= size <= end - content:
        raise BrokenTarError(
            f"the member at byte {offset:,} says that it has {size:,} bytes, and {max(0, end - content):,} are left",
            name,
        )
    return content + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _extended(kind: bytes, stream: Any, content: int, size: int) -> dict[str, str]:
    """Read an extended header of the member behind it: `path`, `size`, and `fault` where it must not be read."""
    if size > MAX_TAR_HEADER_BYTES:
        return {"fault": f"has a header of {size:,} bytes, more than {MAX_TAR_HEADER_BYTES:,}"}
    stream.seek(content)
    text: bytes = stream.read(size)
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": text.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    if kind == tarfile.GNUTYPE_LONGLINK:
        return {}
    fields: dict[str, str] = {}
    position = 0
    while record := _PAX_RECORD.match(text, position):
        stop = record.start() + int(record[1])
        if stop <= record.end():
            return fields | {"fault": "has a header that cannot be read"}
        name, value = record[2], text[record.end() : stop - 1].decode("utf-8", "surrogateescape")
        if name == b"path":
            fields["path"] = value.rstrip("/")
        elif name == b"size":
            fields |= {"size": value} if re.fullmatch("[0-9]{1,20}", value) else {"fault": "has a size that is none"}
        elif name.startswith(b"GNU.sparse."):
            fields["fault"] = _SPARSE
        position = stop
    return fields


def _behind_sparse_map(stream: Any, offset: int) -> int:
    """Where the content of a sparse member begins: its map may go on in further blocks."""
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    offset += tarfile.BLOCKSIZE
    goes_on = block[482]
    while goes_on:
        block = stream.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise BrokenTarError(f"no tar member and no end mark at byte {offset:,}")
        offset += tarfile.BLOCKSIZE
        goes_on = block[504]
    return offset


def _member(name: str, offset: int, num_bytes: int, fault: str | None, begins: int) -> Member:
    if name.isascii() and len(name) <= MAX_TAR_NAME_BYTES:  # most names: no need to encode and decode them
        return Member(name, offset, num_bytes, fault, begins)
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > MAX_TAR_NAME_BYTES:
        fault = f"has a name of {len(encoded):,} bytes, more than {MAX_TAR_NAME_BYTES:,}"
        stem, dot, ending = encoded.rpartition(b".")  # with its ending it is still a member of a sample
        encoded = stem[:100] + (dot + ending)[:50]
    try:
        name = encoded.decode()
    except UnicodeDecodeError:
        name, fault = encoded.decode("utf-8", "backslashreplace"), fault or "has a name that is no UTF-8"
    return Member(name, offset, num_bytes, fault, begins)


def is_read_xml(
    content: bytes,
    start: Callable[[str, dict[str, str]], None],
    end: Callable[[str], None],
    text: Callable[[str], None],
) -> bool:
    """Hand the elements and texts of an XML document on; names are `NAMESPACE NAME`. False where it is broken.

    Broken is also one with a document type, since that can declare entities, and one that a handler refuses by a
    ValueError.
    """

    def refuse(*_: object) -> None:
        raise ValueError("a document type")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError):
        return False
    return True
