"""The small files of a long job, each with its sha256: what a job takes up again is what it wrote.

A folder holds the files and `SHA256SUMS`, in the format of `sha256sum -c`, to which a line is appended after each file.
A file without its line, or with another content, does not count.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from manifests.stores import storage
from manifests.stores.storage import read_if_there

SUMS_FILE = "SHA256SUMS"


class SealedFiles:
    """The files of a folder, and what their sha256 was when they were written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _sums(self) -> dict[str, str]:
        """sha256 by name, the last line of a name. A line cut short names no file."""
        text = (read_if_there(str(self.folder / SUMS_FILE)) or b"").decode(errors="replace")
        lines = [line.split("  ", 1) for line in text.split("\n")[:-1]]
        return {line[1]: line[0] for line in lines if len(line) == 2}

    def is_whole(self, name: str) -> bool:
        """Return whether a file is there as it was written; every byte is read."""
        path = self.folder / name
        return path.is_file() and storage.hash_file(str(path)).sha256 == self._sums.get(name)

    def write(self, name: str, content: bytes) -> None:
        """Publish a file, then its line."""
        self.note(name, storage.publish_bytes(str(self.folder / name), content).sha256)

    def note(self, name: str, sha256: str) -> None:
        """Write the line of a file that is published already."""
        with (self.folder / SUMS_FILE).open("ab+") as stream:
            if stream.tell() and stream.seek(-1, 2) and stream.read() != b"\n":
                stream.write(b"\n")  # after a line that a kill cut short
            stream.write(f"{sha256}  {name}\n".encode())
        self._sums[name] = sha256
