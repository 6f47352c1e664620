"""A byte-reproducible webdataset tar: fixed member order, mode and time; offsets of every member. Pure."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass

BLOCK_BYTES = 512
RECORD_BYTES = 10_240  # GNU tar's default record: an archive is padded to a whole number of them


@dataclass(frozen=True)
class Member:
    """Where a member's content lies in the archive."""

    name: str
    offset: int
    length: int


def member_bytes(name: str, content: bytes) -> bytes:
    """Header, content and padding of one member (ustar, mode 644, owner 0, time 0).

    Raises: ValueError for a name over 100 characters, which ustar cannot hold in one field.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), 0o644, 0
    padding = -len(content) % BLOCK_BYTES
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict") + content + b"\0" * padding


def end_of_archive(num_bytes: int) -> bytes:
    """Two zero blocks, then zeros up to a whole record, for an archive of `num_bytes` so far."""
    return b"\0" * (2 * BLOCK_BYTES + -(num_bytes + 2 * BLOCK_BYTES) % RECORD_BYTES)


def append_sample(start: int, key: str, members: Sequence[tuple[str, bytes]]) -> tuple[bytes, list[Member]]:
    """Bytes of one sample's members at offset `start` of an archive, and where their contents lie."""
    blocks: list[bytes] = []
    placed: list[Member] = []
    position = start
    for extension, content in members:
        block = member_bytes(f"{key}.{extension}", content)
        placed.append(Member(extension, position + BLOCK_BYTES, len(content)))
        blocks.append(block)
        position += len(block)
    return b"".join(blocks), placed
