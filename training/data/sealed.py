"""The small files of a long job, each with its sha256: what a job takes up again is what it wrote.

A folder holds the files and `SHA256SUMS`, in the format of `sha256sum -c`, to which a line is appended after each file.
A file without its line, or with another content, does not count. A folder that an earlier version filled has no list:
its files are taken as they are, once.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from manifests.stores import storage

SUMS_FILE = "SHA256SUMS"


class SealedFiles:
    """The files of a folder, and what their sha256 was when they were written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _sums(self) -> dict[str, str] | None:
        """sha256 by name, the last line of a name; None where there is no list. A line cut short names no file."""
        try:
            text = (self.folder / SUMS_FILE).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        lines = [line.split("  ", 1) for line in text.split("\n")[:-1]]
        return {line[1]: line[0] for line in lines if len(line) == 2}

    def is_whole(self, name: str) -> bool:
        """Whether a file is there as it was written; every byte is read."""
        path = self.folder / name
        return path.is_file() and (self._sums is None or storage.hash_file(str(path)).sha256 == self._sums.get(name))

    def write(self, name: str, content: bytes) -> None:
        """Publish a file, then its line."""
        self._note([(name, storage.publish_bytes(str(self.folder / name), content).sha256)])

    def adopt(self, names: Iterable[str]) -> None:
        """Begin the list with the files of an earlier version, which wrote none."""
        if self._sums is None:
            there = [name for name in names if (self.folder / name).is_file()]
            self._note([(name, storage.hash_file(str(self.folder / name)).sha256) for name in there])

    def _note(self, lines: list[tuple[str, str]]) -> None:
        sums = self._sums or {}
        with (self.folder / SUMS_FILE).open("ab+") as stream:
            if stream.tell() and stream.seek(-1, 2) and stream.read() != b"\n":
                stream.write(b"\n")  # after a line that a kill cut short
            stream.write("".join(f"{sha256}  {name}\n" for name, sha256 in lines).encode())
        self.__dict__["_sums"] = sums | dict(lines)
