"""The objects of a json array or of lines of json, row by row, so that a broken one costs itself alone.

Reads a stream that can be opened twice. Raises ValueError for an array that is no json.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.services.untrusted import MAX_DEPTH, json_object_of, parse_json
from pipeline.sources.limits import MAX_COLUMNS, MAX_RECORD_BYTES
from pipeline.sources.rows import as_text, check_unicode, in_batches
from pipeline.sources.tables.delimited import MAX_SHOWN_CHARS, Broken, RawBatch, read_lines

JSON_HEAD_ROWS = 10_000  # objects whose keys are looked at: a key may be missing from most of them
Opener = Callable[[], AbstractContextManager[Any]]


def read_json(open_file: Opener, form: str, columns: list[str]) -> Iterator[RawBatch]:
    """Yield the objects of a file in batches, as texts; what is no object, or cannot be read, is malformed."""
    for items in in_batches(_json_items(open_file, form)):
        rows: list[list[str | None]] = []
        numbers: list[int] = []
        malformed: list[tuple[int, str]] = []
        for number, item in items:
            try:
                values = _object_of(item)
                row = [as_text(values.get(name)) for name in columns]
                check_unicode(row)
            except ValueError:
                shown = _shown(item)[:MAX_SHOWN_CHARS]
                malformed.append((number, shown.decode("utf-8", "replace").strip()))
            else:
                rows.append(row)
                numbers.append(number)
        table = pa.table({name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate(columns)})
        yield RawBatch(table, np.array(numbers, np.int64), malformed)


def json_keys(open_file: Opener, form: str) -> list[str]:
    """Keys of the first objects. One broken line is counted later; a file that holds only broken lines is no json.

    Raises: ValueError.
    """
    keys: dict[str, None] = {}
    error = ValueError("the file is empty")
    readable = False
    for _, item in islice(_json_items(open_file, form), JSON_HEAD_ROWS):
        try:
            keys |= dict.fromkeys(_object_of(item))
            readable = True
        except ValueError as fault:
            error = fault
        if len(keys) > MAX_COLUMNS:
            raise ValueError(f"its objects have more than {MAX_COLUMNS:,} keys")
    if not readable:
        raise error
    return list(keys)


def _json_items(open_file: Opener, form: str) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each item of an array; where there is no array, number and bytes of each line.

    An item or a line that is too deep or too long is `Broken`.

    Raises: ValueError where an array is no json.
    """
    with open_file() as stream:
        head = stream.read(4096)
    mark = codecs.BOM_UTF8 if head.startswith(codecs.BOM_UTF8) else b""
    is_array = form == "json" and head.removeprefix(mark).lstrip().startswith(b"[")
    with open_file() as stream:
        stream.read(len(mark))
        if not is_array:
            lines = enumerate(read_lines(stream))
            yield from ((number, line) for number, line in lines if isinstance(line, Broken) or line.strip())
            return
        yield from enumerate(_array_items(stream))


def _array_items(stream: Any) -> Iterator[Any]:
    """Yield the items of a json array; one that is nested too deeply is `Broken`, and is not held in memory.

    Raises: ValueError where the text is no json, or an item too long.
    """
    import ijson  # its backend loads a C library

    metered = _Metered(stream)
    depth, deepest = -1, 0  # of lists and objects within an item
    builder = ijson.ObjectBuilder()
    try:
        for event, value in ijson.basic_parse(metered, use_float=True):
            depth += event in ("start_map", "start_array")
            deepest = max(deepest, depth)
            of_item = depth > 0 or not event.endswith("_array")
            if of_item and depth <= MAX_DEPTH:
                builder.event(event, value)
            depth -= event in ("end_map", "end_array")
            if of_item and depth == 0:
                yield builder.value if deepest <= MAX_DEPTH else Broken(f"nested more than {MAX_DEPTH} deep".encode())
                builder, deepest, metered.num_bytes = ijson.ObjectBuilder(), 0, 0
    except ijson.JSONError as error:
        raise ValueError(str(error)) from None


class _Metered:
    """A stream that counts the bytes of the item that is being read.

    Raises: ValueError, from `read`, for an item that is too long.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        if self.num_bytes > MAX_RECORD_BYTES:
            raise ValueError(f"an item of more than {MAX_RECORD_BYTES:,} bytes")
        content: bytes = self._stream.read(size)
        self.num_bytes += len(content)
        return content


def _object_of(item: Any) -> dict[str, Any]:
    if isinstance(item, Broken):
        raise ValueError("too deep or too long")
    return parse_json(item) if isinstance(item, bytes) else json_object_of(item)


def _shown(item: Any) -> bytes:
    if isinstance(item, Broken):
        return item.text
    return item if isinstance(item, bytes) else ascii(item).encode()
