"""The kind `parquet`: tables with the pictures in a column, as `datasets` and the Hub keep them.

A build reads each file once, by row group, in pieces (tars/picture_rows.py); `rows` then takes what was kept. Where
nothing was read yet (estimate, preview, a set for evaluation), `rows` reads the mapped columns alone: locators have the
mean length of a picture, and a null among plain bytes shows when it is read. A row without a picture costs itself
alone. A file that cannot be read gets one row `broken_shard`. Raises ConfigError for a first file that cannot be read,
lacks a column, or has no column of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.contract.settings import ConfigPath, Settings
from manifests.errors import ConfigError
from manifests.pictures.sniff import image_kind
from manifests.samples.tars import Sample
from manifests.services.untrusted import BrokenTarError
from manifests.stores import storage
from pipeline.sources.files import Shards, find_files, make_locator, reading
from pipeline.sources.folder_names import with_taxa
from pipeline.sources.kinds import HEAD_ROWS, FirstRows, Listing, Place, Reader
from pipeline.sources.limits import MAX_BATCH_BYTES, MAX_RECORD_BYTES
from pipeline.sources.rows import Batch, Lost, RowColumns, Scratch, in_batches, make_batch, map_columns
from pipeline.sources.tables.columns import ColumnGuess, describe_columns, guess_columns, left_out
from pipeline.sources.tars.front_to_back import RANGE_BYTES
from pipeline.sources.tars.picture_rows import (
    IS_LIST,
    PictureFile,
    RowReader,
    StoredRows,
    bodies_in,
    breaking_off,
    holds_pictures,
    require_names,
)
from pipeline.store.foreign import Rows, read_long_rows, read_rows

SUFFIX = ".parquet"
_LOCATOR = "@"  # beside the columns of a row
_LOOKED_AT = 500  # rows, by init


class PictureColumns(RowColumns):
    """Columns of a Parquet file with pictures: any column, and IMAGE.path, the name that `datasets` keeps."""

    image: str = "image"
    """The column of the pictures: bytes, or a struct with `bytes` and `path`."""
    url: str | None = None
    """Where the picture came from; it is never requested."""

    def texts(self) -> list[str]:
        """Return the columns that are mapped, but for the pictures."""
        return [name for name in self.names() if name != self.image]


class ParquetSettings(Settings):
    """Parquet files with the pictures inside. A number that `datasets` names (ClassLabel) is read as its name."""

    path: ConfigPath
    """A file, a folder of them, a glob, braces such as {000..040}.parquet, or several of these with `::` between."""
    columns: PictureColumns = PictureColumns()
    """Which column holds what; the key is FILE/ROW unless `record_key` is mapped."""


class ParquetReader(Reader[ParquetSettings]):
    """Parquet files with pictures."""

    settings_type = ParquetSettings
    on_disk = in_shards = True
    takes_folders = False
    init_order = 3
    caption_cures = ("parquet: {columns: {caption: COLUMN}}", "defaults: {caption: TEXT}")

    @property
    def _image(self) -> str:
        return self.settings.columns.image

    def extra_names(self) -> list[str]:
        """Return the columns that are kept beside the sample."""
        return self.settings.columns.extra

    def check(self) -> None:
        """Check that the files are there, that the first has the columns, and that one of them holds pictures."""
        files = self._files()
        path = files.path(files.names[0])
        with reading(f"{self.where}: {path}", path, "as Parquet"), storage.open_file(path) as stream:
            file = PictureFile(stream)
        try:
            require_names(file, self._image, self.settings.columns.texts())
        except ValueError as error:
            raise ConfigError(f"{self.where}: {path} {error}") from None
        if fault := _no_pictures(file, self._image):
            raise ConfigError(f"{self.where}: {path}: {fault}")

    def digest(self, hash_file: Callable[[str], str]) -> list[str]:
        """Hashes of the files."""
        files = self._files()
        return [f"{name}:{hash_file(files.path(name))}" for name in files.names]

    def root(self) -> str:
        """Return the folder of the files."""
        return self._files().root

    def pictures(self) -> RowReader:
        """Open pictures by the numbers of their rows."""
        return RowReader(self.root(), self._image)

    def tars(self) -> StoredRows:
        """Every file is read once."""
        files, texts = self._files(), tuple(sorted(self.settings.columns.texts()))
        return StoredRows(files.root, tuple(files.names), (self._image,), texts, self._key_of)

    def rows(self, scratch: Scratch) -> Iterator[Batch]:
        """Every row of every file, in order."""
        return self._batches(enumerate(self._samples()))

    def first_rows(self, scratch: Scratch) -> FirstRows:
        """Return the first thousand; of a disk the others too, in batches behind them."""
        rows = enumerate(self._samples())
        first = list(islice(rows, HEAD_ROWS))
        if storage.is_remote(self.path):
            return FirstRows(self._batches(iter(first)), is_part=next(rows, None) is not None)
        return FirstRows(chain(self._batches(iter(first)), self._batches(rows)))

    def _samples(self) -> Iterator[tuple[str, Sample] | Lost]:
        files = self._files()
        for name in files.names:
            try:
                yield from (
                    item if isinstance(item, Lost) else (name, item)
                    for item in (self.kept_samples and self.kept_samples(name)) or self._listed(name, files.path(name))
                )
            except BrokenTarError as error:
                yield Lost(-1, "broken_shard", f"{name}: {error}")

    def _listed(self, name: str, path: str) -> Iterator[Sample | Lost]:
        """Yield the rows of a file by its mapped columns; no picture is read. Raises: BrokenTarError."""
        image, texts = self._image, self.settings.columns.texts()
        with breaking_off(path), storage.open_file(path) as stream:
            file = PictureFile(stream)
            require_names(file, image, texts)
            columns = [column for column in file.names(image) if column in texts or column == f"{image}.path"]
            without = Rows(pa.RecordBatch.from_pylist([]), np.arange(file.starts[-1]), [], 0)
            limits = HEAD_ROWS, MAX_BATCH_BYTES, MAX_RECORD_BYTES
            for some in read_rows(stream, columns, *limits) if columns else [without]:
                for row, num_bytes in some.too_long:
                    yield Lost(-1, "malformed_row", f"a row of {num_bytes:,} bytes", f"{_stem(name)}/{row}")
                numbers, lengths = some.numbers.tolist(), list[int | None]()
                nulls = some.rows[image].is_null().to_pylist() if image in some.rows.schema.names else repeat(False)
                for row, is_null in zip(numbers, nulls, strict=False):
                    lengths.append(None if is_null or file.is_listed(image) else file.mean_bytes(image, row))
                yield from file.samples(image, numbers, some.rows, lengths)

    def _batches(self, rows: Iterator[tuple[int, tuple[str, Sample] | Lost]]) -> Iterator[Batch]:
        columns = self.settings.columns
        for some in in_batches(rows):
            good: dict[int, dict[str, str | None]] = {}
            lost: list[Lost] = []
            for number, row in some:
                read = row if isinstance(row, Lost) else self._row(*row)
                if isinstance(read, Lost):
                    lost.append(replace(read, row_number=number))
                else:
                    good[number] = read
            names = ["", *columns.texts(), _LOCATOR]
            texts = pa.table({name: pa.array([row[name] for row in good.values()], pa.string()) for name in names})
            named = {"record_key": texts[""], "locator": texts[_LOCATOR]} | map_columns(texts, columns)
            yield make_batch(named | ({"url": texts[columns.url]} if columns.url else {}), list(good), lost)

    def _row(self, name: str, sample: Sample) -> dict[str, str | None] | Lost:
        """Return the mapped texts of a row, its key under "" and its locator; or why it is none."""
        key, texts = f"{_stem(name)}/{sample.key}", self.settings.columns.texts()
        if self._image not in sample.pictures:
            return Lost(-1, "no_image", f"{self._image} {sample.faults.get(self._image, 'is null')}", key)
        if faults := [f"{column} {fault}" for column, fault in sample.faults.items() if column in texts]:
            return Lost(-1, "malformed_row", faults[0], key)
        try:
            row = {column: sample.texts[column].decode() if column in sample.texts else None for column in texts}
        except UnicodeDecodeError as error:
            return Lost(-1, "malformed_row", f"a text is no UTF-8: {error}", key)
        return {**row, "": key, _LOCATOR: make_locator(name, *sample.pictures[self._image])}

    def _key_of(self, name: str, sample: Sample) -> str | None:
        if (column := self.settings.columns.record_key) is None:
            return f"{_stem(name)}/{sample.key}"
        with suppress(KeyError, UnicodeDecodeError):
            return sample.texts[column].decode()
        return None

    def _files(self) -> Shards:
        return find_files(self.path, self.where, SUFFIX)

    # ---- what init sees

    @classmethod
    def guess(cls, listing: Listing) -> Place | None:
        """Parquet files of which the first has a column of pictures; other columns by their names and first values."""
        if listing.form == "zip" or not listing.ends(SUFFIX):
            return None
        files = find_files(listing.path, listing.path, SUFFIX)
        first = files.path(files.names[0])
        with reading(first, first, "as Parquet"), storage.open_file(first) as stream:
            file = PictureFile(stream)
            image = _column_of_pictures(file, stream)
        if image is None:
            return None
        if fault := f"{image} {IS_LIST}" if file.is_listed(image) else _no_pictures(file, image):
            raise ConfigError(f"{first}: {fault}")
        names = [*file.texts(image), *file.names(image)[len(file.schema.names) :]]
        reader = cls(ParquetSettings(path=first, columns=PictureColumns(image=image, extra=names)), first)
        some = [item[1] for item in islice(reader._samples(), _LOOKED_AT) if not isinstance(item, Lost)]
        texts = {name: [it.texts.get(name, b"").decode(errors="replace") for it in some] for name in names}
        values = {name: [text for text in texts[name] if text.strip()] for name in names}
        guesses = guess_columns(names, values, image=ColumnGuess(image, "sure", "its pictures"))
        numbers = {it.name for it in file.schema if pa.types.is_integer(it.type)}
        guesses = _with_classes(guesses, {name: it for name, it in file.class_names.items() if name in numbers})
        columns = {field: guess.column for field, guess in guesses.items()}
        words = f"Parquet with pictures, {len(files.names):,} files (sure: the first one was opened)"
        others = left_out(names, values, guesses)
        found = Place({"path": listing.path, "columns": columns}, words, left_out=others, could_keep=list(others))
        return describe_columns(found, guesses, listing.path)


def _with_classes(guesses: dict[str, ColumnGuess], classes: dict[str, list[str]]) -> dict[str, ColumnGuess]:
    """Return the finest classes of `datasets` as taxa where they are named so, else as the missing caption."""
    for column, names in sorted(classes.items(), key=lambda item: -len(item[1])):
        field = "taxon_scientific_name" if 2 * len(with_taxa(names)) > len(names) else "caption"
        others = {name: guess for name, guess in guesses.items() if guess.column != column}
        if field not in others and guesses.keys() - others.keys() <= {"caption"}:
            guesses = others | {field: ColumnGuess(column, "likely", "the names of its classes")}
    return guesses


def _stem(name: str) -> str:
    return name.removesuffix(SUFFIX)


def _no_pictures(file: PictureFile, image: str) -> str | None:
    """Why a column holds no pictures, and the cure; None where it may."""
    kind = file.kind_of(image)
    kind = kind.value_type if file.is_listed(image) else kind
    if not holds_pictures(kind):
        cure = "for addresses write `table:`, for names of files `folder: {path: FOLDER, table: FILE}`"
        return f"the column {image!r} holds {kind}, no bytes of pictures; {cure}"
    if file.has_paths_alone(image):
        cure = "for files in a folder write `folder: {path: FOLDER, table: FILE}`, for addresses `table:`"
        return f"has no pictures: {image}.bytes is empty in each row, and {image}.path names files; {cure}"
    return None


def _column_of_pictures(file: PictureFile, stream: Any) -> str | None:
    """Return the first column that holds pictures.

    A struct of `datasets` by its type, bytes by those of the first rows.
    """
    names: list[str] = file.schema.names
    for name in names:
        kind = file.kind_of(name)
        kind = kind.value_type if file.is_listed(name) else kind
        if not holds_pictures(kind):
            continue
        if pa.types.is_struct(kind) or file.is_listed(name):
            return name
        _, rows = next(read_long_rows(stream, [name], 0, RANGE_BYTES), (0, None))
        if isinstance(rows, pa.RecordBatch) and any(image_kind(body) for body in bodies_in(rows[name]) if body):
            return name
    return None
