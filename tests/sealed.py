"""One sealed work folder for many tests: made once a session, lent as a copy that costs no bytes, hashed at the end."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from building import hash_tree

_LINKED = (".tar", ".parquet")  # nearly all of the bytes; builds replace them as a whole and never write into them


def lend(master: Path, copy: Path) -> Path:
    """A copy of a work folder, or of a folder around it: pool, tables and shards by hard links, all else copied.

    `part` a link before you write into a file.
    """
    for folder, _, names in os.walk(master):
        place = copy / Path(folder).relative_to(master)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            bring = os.link if name.endswith(_LINKED) else shutil.copy2
            bring(Path(folder, name), place / name)
    return copy


@contextmanager
def unwritten(folder: Path) -> Iterator[Path]:
    """A folder that all tests of a file share: at the end it is as it was."""
    before = hash_tree(folder)
    yield folder
    assert hash_tree(folder) == before, "a test wrote into the folder that all tests share"


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that one of the workers of a run makes, and all of them read."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, made = base / name, base / f"{name}.made"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that was killed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def flip_byte(path: Path, place: int | None = None) -> None:
    """Spoil a byte of a file, in its middle where no place is said. Other links to it keep the sound ones."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 0xFF
    part(path).write_bytes(content)


def part(path: Path) -> Path:
    """Break the hard link of a file, so that what is written to it reaches no other folder; its times stay."""
    copy = path.with_name(f"{path.name}.parted")
    shutil.copy2(path, copy)
    copy.replace(path)
    return path
