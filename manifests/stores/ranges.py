"""Some bytes of a file, here or in a store, without the rest of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manifests.stores.clients import filesystem, is_remote
from manifests.stores.faults import ask


def read_range(path: str, start: int, num_bytes: int) -> bytes:
    """Return some bytes of a file, in one read or request; fewer where it ends before.

    Raises: FileNotFoundError; an error of the disk; AwayError.
    """
    if is_remote(path):
        fs, inner = filesystem(path)
        return ask(path, lambda: bytes(fs.cat_file(inner, start=start, end=start + num_bytes)))
    with Path(path.removeprefix("file://")).open("rb", buffering=0) as stream:
        stream.seek(start)
        return stream.read(num_bytes)


def read_ranges(spans: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
    """Spans (address, start, stop) of files in stores, one request each, side by side; None where a file is gone.

    Raises: AwayError when a store does not give what it has.
    """
    contents: list[bytes | None] = [None] * len(spans)
    stores: dict[Any, dict[int, str]] = {}
    for number, (path, _, _) in enumerate(spans):
        fs, inner = filesystem(path)
        stores.setdefault(fs, {})[number] = inner
    for fs, paths in stores.items():
        starts, stops = ([spans[number][bound] for number in paths] for bound in (1, 2))
        answers = fs.cat_ranges(list(paths.values()), starts, stops, on_error="return")
        for number, answer in zip(paths, answers, strict=True):
            if not isinstance(answer, Exception):
                contents[number] = bytes(answer)
            elif not isinstance(answer, FileNotFoundError):
                path, start, stop = spans[number]
                contents[number] = read_range(path, start, stop - start)
    return contents
