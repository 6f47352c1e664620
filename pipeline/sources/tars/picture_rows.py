"""Rows of Parquet that hold pictures, as samples: each file is read once, row group by row group.

A picture is a value of a column of bytes, or of a struct with a field `bytes`, as `datasets` writes it (beside it the
field `path`, its name). The key of a sample is the number of its row, from 0; every other column is a text. A number
that the metadata of `datasets` gives a name (ClassLabel) is that name. A locator is `FILE@ROW+LENGTH`; there the rows
count from 1.

Of a row group that is damaged the rows from there on have no picture; the next one is read. Memory: that of
`read_long_rows` (store/foreign.py). Raises BrokenTarError for a file that cannot be read at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.contract.outcomes import Outcome
from manifests.errors import PlantMixError, words_of
from manifests.samples.tars import MAX_TEXT_BYTES, Sample
from manifests.services.untrusted import UNREADABLE, BrokenTarError
from manifests.stores import storage
from pipeline.sources.files import BytesUnreadable, LocalReader, check_store, split_locator
from pipeline.sources.tables.formats import as_strings
from pipeline.sources.tars.front_to_back import RANGE_BYTES, InAnyOrder, Ranges
from pipeline.sources.tars.samples import PassedSample, StoredTars
from pipeline.store.foreign import read_long_rows

_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
IS_LIST = "holds lists of pictures, and a row is one picture: write a row for each picture"


def holds_bytes(kind: pa.DataType) -> bool:
    """Return whether values are bytes, alone or in a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(is_bytes(kind) for is_bytes in _BYTES)


def holds_pictures(kind: pa.DataType) -> bool:
    """Return whether values may be pictures: bytes, or a struct of `datasets`."""
    return holds_bytes(kind) or any(it.name == "bytes" and holds_bytes(it.type) for it in _fields_of(kind))


def _fields_of(kind: pa.DataType) -> list[pa.Field]:
    return list(kind) if pa.types.is_struct(kind) else []


class PictureFile:
    """Rows and columns of a Parquet file, from its footer."""

    def __init__(self, stream: Any) -> None:
        """Raise ValueError for a file without a footer; errors of the store."""
        try:
            file = pq.ParquetFile(pa.PythonFile(stream, mode="r"))
        except pa.ArrowException as error:
            cure = "it is cut short, or is another kind of file; download it again"
            raise ValueError(f"has no footer that Parquet ends with ({words_of(error)}): {cure}") from None
        self.schema, metadata = file.schema_arrow, file.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        self._chunks = [[group.column(number) for number in range(group.num_columns)] for group in groups]
        self.starts: list[int] = list(accumulate((group.num_rows for group in groups), initial=0))
        """The first row of each row group, and the number of all rows."""
        sizes = (sum(chunk.total_compressed_size for chunk in chunks) for chunks in self._chunks)
        self._positions: list[int] = list(accumulate(sizes, initial=0))
        if self._positions[-1] > stream.seek(0, os.SEEK_END) - metadata.serialized_size:
            raise ValueError("is shorter than its footer says: a part of it is missing; download it again")

    def group_of(self, row: int) -> int:
        """Return the row group that holds a row."""
        return bisect_right(self.starts, row) - 1

    def position_of(self, row: int) -> int | None:
        """Return the bytes before a row, as the footer lets reckon; None behind the last row.

        Small rows may share one.
        """
        if row >= self.starts[-1]:
            return None
        group = self.group_of(row)
        num_rows, num_bytes = (it[group + 1] - it[group] for it in (self.starts, self._positions))
        return self._positions[group] + num_bytes * (row - self.starts[group]) // num_rows

    def row_at(self, position: int) -> int:
        """Return the first row that has a position, or one behind it."""
        group = min(bisect_right(self._positions, position), len(self._chunks)) - 1
        if group < 0:
            return 0
        num_rows, num_bytes = (it[group + 1] - it[group] for it in (self.starts, self._positions))
        return self.starts[group] - (self._positions[group] - position) * num_rows // max(1, num_bytes)

    def mean_bytes(self, image: str, row: int) -> int:
        """Return how many bytes a picture has on average, in the row group of a row."""
        group = self.group_of(row)
        chunks = (chunk for chunk in self._chunks[group] if f"{chunk.path_in_schema}.".startswith(f"{image}."))
        num_bytes: int = sum(chunk.total_uncompressed_size for chunk in chunks)
        return max(1, num_bytes // (self.starts[group + 1] - self.starts[group]))

    def has_paths_alone(self, image: str) -> bool:
        """Return whether there are rows, and the footer says that none has bytes."""
        chunks = [chunk for some in self._chunks for chunk in some if chunk.path_in_schema == f"{image}.bytes"]
        nulls = [chunk.statistics.null_count if chunk.is_stats_set else None for chunk in chunks]
        return self.starts[-1] > 0 and bool(chunks) and nulls == [chunk.num_values for chunk in chunks]

    def names(self, image: str) -> list[str]:
        """Return the names that `columns` may hold: the columns, and IMAGE.path."""
        names: list[str] = self.schema.names
        has_path = image in names and any(field.name == "path" for field in _fields_of(self.kind_of(image)))
        return [*names, f"{image}.path"] if has_path else names

    def texts(self, image: str, mapped: Collection[str] = ()) -> list[str]:
        """Columns that are kept as texts, since a config may name them later; lists, structs and bytes where mapped."""
        return [
            field.name
            for field in self.schema
            if field.name != image
            and (field.name in mapped or not (pa.types.is_nested(field.type) or holds_bytes(field.type)))
        ]

    def texts_in(self, batch: pa.RecordBatch, column: str) -> list[bytes | None]:
        """Return the values of a column as UTF-8, or what stands for it."""
        values, names = batch[column], self.class_names.get(column)
        values = _named(values, names) if names else values
        values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
        return list((values if holds_bytes(values.type) else as_strings(values).cast(pa.binary())).to_pylist())

    @cached_property
    def class_names(self) -> dict[str, list[str]]:
        """The names of the classes of each column, of numbers or of lists of them, for which `datasets` notes them."""
        try:
            features = json.loads((self.schema.metadata or {})[b"huggingface"])["info"]["features"]
            kinds = {name: it.get("feature", it) for name, it in features.items() if isinstance(it, dict)}
            labels = {name: it["names"] for name, it in kinds.items() if it.get("_type") == "ClassLabel"}
            return {name: list(map(str, names)) for name, names in labels.items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            return {}

    def kind_of(self, column: str) -> pa.DataType:
        """Return the type of a column."""
        return self.schema.field(column).type

    def is_listed(self, image: str) -> bool:
        """Return whether each row holds a list of pictures."""
        return any(is_one(self.kind_of(image)) for is_one in _LISTS)

    def samples(
        self, image: str, rows: Sequence[int], batch: pa.RecordBatch, lengths: Sequence[int | None]
    ) -> Iterator[Sample]:
        """Yield the rows of a batch with these numbers, whose pictures have these lengths; None: there is none."""
        texts = {name: self.texts_in(batch, name) for name in batch.schema.names if name != image}
        if image in batch.schema.names and f"{image}.path" in self.names(image):
            texts[f"{image}.path"] = [path and path.encode() for path in _fields(batch[image], "path")]
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            named = {name: some[number] for name, some in texts.items()}
            sample = Sample(str(row), begins=self.position_of(row) or 0, stop=self.position_of(row + 1))
            sample.texts = {name: text for name, text in named.items() if text is not None}
            for name in [name for name, text in sample.texts.items() if len(text) > MAX_TEXT_BYTES]:
                sample.faults[name] = f"has {len(sample.texts.pop(name)):,} bytes, more than {MAX_TEXT_BYTES:,}"
            if length is not None:
                sample.pictures[image] = row + 1, length
            elif self.is_listed(image):
                sample.faults[image] = IS_LIST
            else:
                path = sample.texts.get(f"{image}.path", b"").decode(errors="replace")
                sample.faults[image] = f"has no bytes, only the path {path}" if path else "is null"
            yield sample


def _named(values: pa.Array, names: Sequence[str]) -> pa.Array:
    """Numbers of classes, or lists of them, as names; -1 says that there is no label."""

    def name_of(number: Any) -> Any:
        if isinstance(number, list):
            return [name_of(one) for one in number]
        return names[number] if number is not None and 0 <= number < len(names) else None

    is_list = any(is_one(values.type) for is_one in _LISTS)
    if not pa.types.is_integer(values.type.value_type if is_list else values.type):
        return values
    return pa.array(map(name_of, values.to_pylist()), pa.list_(pa.string()) if is_list else pa.string())


def picture_columns(path: str) -> list[str]:
    """Return the columns of a file that may hold pictures. Raises: BrokenTarError."""
    with breaking_off(path), storage.open_file(path) as stream:
        file = PictureFile(stream)
    return [name for name in file.schema.names if holds_pictures(file.kind_of(name))]


def bodies_in(pictures: pa.Array) -> list[bytes | None]:
    """Return the bytes of each picture."""
    return _fields(pictures, "bytes") if pa.types.is_struct(pictures.type) else list(pictures.to_pylist())


def _fields(pictures: pa.Array, name: str) -> list[Any]:
    return [None if value is None else value.get(name) for value in pictures.to_pylist()]


# ---- each row once


@dataclass(frozen=True)
class StoredRows(StoredTars):
    """Parquet files of a source. `suffixes` holds the column of the pictures, `texts` the mapped columns."""

    @property
    def members(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The column of the pictures, and those of the mapped ones that are not always kept."""
        with storage.open_file(storage.join(self.root, self.names[0])) as stream:
            always = PictureFile(stream).texts(*self.suffixes)
        return self.suffixes, tuple(name for name in self.texts if name not in always)

    @contextmanager
    def passing(
        self, path: str, stamp: str | None, num_bytes: int, start: int, max_body_bytes: int
    ) -> Iterator[tuple[Ranges, Iterator[PassedSample]]]:
        """Yield the file and its rows from a position on."""
        with InAnyOrder(path, stamp, num_bytes) as stream:
            yield stream, self._pass(path, stream, start, max_body_bytes)

    def end_of(self, offset: int, length: int) -> int:
        """Before the pictures are read, a locator has their mean length."""
        return offset * length

    def _pass(self, path: str, stream: InAnyOrder, start: int, max_body_bytes: int) -> Iterator[PassedSample]:
        (image,) = self.suffixes
        with breaking_off(path):
            file = PictureFile(stream)
            require_names(file, image, self.texts)
            columns = file.texts(image, self.texts) + ([] if file.is_listed(image) else [image])
            for row, batch in read_long_rows(stream, columns, file.row_at(start), RANGE_BYTES):
                if isinstance(batch, Exception):
                    yield from _damaged(file, image, row, batch)
                    continue
                bodies = bodies_in(batch[image]) if image in columns else [None] * batch.num_rows
                rows = range(row, row + batch.num_rows)
                lengths = [None if body is None else len(body) for body in bodies]
                for sample, body in zip(file.samples(image, rows, batch, lengths), bodies, strict=True):
                    sha256 = None if body is None else hashlib.sha256(body).hexdigest()
                    is_short = body is not None and len(body) <= max_body_bytes
                    yield PassedSample(sample, _digest(sample, sha256), sha256, body if is_short else None)


def _digest(sample: Sample, sha256: str | None) -> bytes:
    digest = hashlib.sha256(f"{sha256}\n".encode())
    for name, text in sorted(sample.texts.items()):
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.digest()


def _damaged(file: PictureFile, image: str, first: int, error: Exception) -> Iterator[PassedSample]:
    """Yield the remaining rows of a row group that cannot be read."""
    for row in range(first, file.starts[file.group_of(first) + 1]):
        sample = Sample(str(row), begins=file.position_of(row) or 0, stop=file.position_of(row + 1))
        sample.faults[image] = f"cannot be read, since its row group is damaged ({words_of(error)})"
        yield PassedSample(sample, hashlib.sha256(b"damaged").digest(), None, None)


@contextmanager
def breaking_off(path: str) -> Iterator[None]:
    """Turn what parsers raise at a file into BrokenTarError; faults of its store stay what they are."""
    try:
        yield
    except (PlantMixError, BrokenTarError):
        raise
    except UNREADABLE as error:
        check_store(path, error)
        raise BrokenTarError(str(error) if type(error) is ValueError else words_of(error)) from None


def require_names(file: PictureFile, image: str, mapped: Collection[str]) -> None:
    """Raise ValueError for columns that a file lacks."""
    there = file.names(image)
    if missing := [name for name in (image, *mapped) if name not in there]:
        raise ValueError(f"has no column {', '.join(map(repr, missing))}; it has {', '.join(there)}")


# ---- pictures by their locators


class RowReader(LocalReader):
    """Reads pictures of Parquet files: quick where they are asked for in the order of their rows."""

    def __init__(self, root: str, image: str) -> None:
        super().__init__(root)
        self._image = image

    def read(self, locator: str, max_bytes: int) -> bytes:
        """Return the bytes of one picture. Raises: as LocalReader."""
        name, row, _ = split_locator(locator)
        try:
            if name not in self._open:
                self._open[name] = _OpenRows(storage.join(self._root, name), self._image)
            rows: _OpenRows = self._open[name]
            body = rows.picture(row - 1)
        except FileNotFoundError:
            raise BytesUnreadable(Outcome.FILE_MISSING, f"{name} is not there") from None
        except PlantMixError:
            raise
        except UNREADABLE as error:
            self._forget(name, error)
            raise BytesUnreadable(Outcome.FILE_UNREADABLE, f"{name}: {words_of(error)}") from None
        if body is None:
            raise BytesUnreadable(Outcome.FILE_UNREADABLE, f"{name}: {self._image} is null in row {row}")
        if len(body) > max_bytes:
            raise BytesUnreadable(Outcome.BODY_TOO_LARGE, f"{len(body)} bytes, allowed {max_bytes}")
        return body


class _OpenRows:
    """The pictures of one file, a few at a time."""

    def __init__(self, path: str, image: str) -> None:
        self._stream, self._image = InAnyOrder(path, None, storage.size_of(path)), image
        try:
            self._file = PictureFile(self._stream)
        except BaseException:
            self.close()
            raise
        self._first, self._bodies = 0, list[bytes | None]()
        self._batches = self._from(0)

    def picture(self, row: int) -> bytes | None:
        """Return the picture of a row. Raises: ValueError for a row that is not there; what parsers raise."""
        if row >= self._file.starts[-1]:
            raise ValueError(f"has {self._file.starts[-1]:,} rows, no {row + 1}")
        behind = self._first + len(self._bodies)
        if row < self._first or self._file.starts[self._file.group_of(row)] > behind:
            self._first, self._bodies, self._batches = row, [], self._from(row)
        while row >= self._first + len(self._bodies):
            self._first, batch = next(self._batches)
            if isinstance(batch, Exception):
                raise batch
            self._bodies = bodies_in(batch[self._image])
        return self._bodies[row - self._first]

    def close(self) -> None:
        """Close the file."""
        self._stream.__exit__()

    def _from(self, row: int) -> Iterator[tuple[int, pa.RecordBatch | Exception]]:
        return read_long_rows(self._stream, [self._image], row, RANGE_BYTES)
