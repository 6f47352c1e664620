"""The kind `table`: URLs in parquet, csv, tsv, json, jsonl or xlsx; a file, a folder or a glob; local or fsspec.

Rows are streamed as Arrow batches of strings, so memory does not grow with the table. A row that cannot be read is
given back as malformed. Raises ConfigError, which names the file, for a table that cannot be read at all.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow.parquet as pq
from pydantic import Field

from manifests.contract.settings import ConfigPath, Settings
from manifests.errors import ConfigError
from manifests.samples.endings import OTHER_TARS, PICTURE_SUFFIXES, TARS
from manifests.stores import storage
from pipeline.sources.files import (
    WORKBOOK_CURE,
    WORKBOOKS,
    is_lock,
    is_table,
    kind_of_place,
    reading,
    where_it_looked,
)
from pipeline.sources.kinds import Listing, Place, Reader
from pipeline.sources.rows import (
    Batch,
    RowColumns,
    Scratch,
    make_batch,
    malformed_rows,
    map_columns,
)
from pipeline.sources.tables.columns import ColumnGuess, describe_columns, guess_columns, left_out
from pipeline.sources.tables.delimited import RawBatch
from pipeline.sources.tables.formats import (
    COMPRESSIONS,
    URL_OF_LINE,
    TableFile,
    bytes_in,
    is_list_of_addresses,
)

_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
}

MAX_COUNTED_BYTES = 200_000_000  # larger texts are not read through only to count their lines
_SAMPLED_ROWS = 500
_INIT = "sources.init"
_NO_TABLES = (
    *(*TARS, *OTHER_TARS, ".zip"),
    *WORKBOOKS,
    *PICTURE_SUFFIXES,
)
TableFormat = Literal["auto", "parquet", "csv", "tsv", "json", "jsonl", "urls", "xlsx"]
SheetOfTable = str | Annotated[int, Field(ge=1)] | None


class ColumnMap(RowColumns):
    """Columns of a table of URLs; the URL is the key when `record_key` is absent."""

    url: str
    """The column of the addresses."""
    caption: str | list[str]
    """One column, or several joined with a space."""


class TableSettings(Settings):
    """A table of URLs, by keys of the source itself."""

    table: ConfigPath | None = None
    """parquet, csv, tsv, json, jsonl or xlsx file, a folder of them, or a glob."""
    format: TableFormat = "auto"
    """Of the table; auto: by its ending; urls: an address a line, in a column `url`."""
    sheet: SheetOfTable = None
    """Of a workbook: name or number of the sheet, from 1; null: the first one with rows."""
    columns: ColumnMap | None = None
    """For a table: which column holds what."""


class TableReader(Reader[TableSettings]):
    """A table of URLs. Other kinds read their tables with it too."""

    settings_type = TableSettings
    is_flat = True
    takes_folders = False
    init_order = 6

    def __init__(self, settings: TableSettings, where: str) -> None:
        super().__init__(settings, where)
        assert settings.table is not None, "checked with the keys"
        assert settings.columns is not None, "checked with the keys"
        self._table, self.mapped = settings.table, settings.columns
        self.columns = settings.columns.names()

    @classmethod
    def of(
        cls,
        where: str,
        path: str,
        columns: Sequence[str],
        form: TableFormat = "auto",
        sheet: SheetOfTable = None,
    ) -> Self:
        """Return a table that is part of another source: the one at `path`, of which `columns` are read."""
        mapped = ColumnMap(url=columns[0], caption=[], extra=list(columns[1:]))
        return cls(TableSettings(table=path, format=form, sheet=sheet, columns=mapped), where)

    @classmethod
    def check_keys(cls, keys: Any, chosen: str) -> None:
        """Columns go with a table."""
        if chosen == "table" and keys.columns is None:
            raise ValueError("columns is needed with table: name at least the columns of the url and the caption")
        if chosen != "table" and (keys.columns is not None or keys.format != "auto" or keys.sheet is not None):
            raise ValueError(f"columns, format and sheet at this level belong to table, not to {chosen}")

    @property
    def path(self) -> str:
        """The table, or a folder or glob of tables."""
        return self._table

    def mapping(self) -> ColumnMap:
        """Return the columns."""
        return self.mapped

    def identity(self) -> dict[str, Any]:
        """Return how the columns are read."""
        columns = self.mapped.model_dump(mode="json", exclude_none=True)
        sheet = {} if self.settings.sheet is None else {"sheet": self.settings.sheet}
        return {"table": None, "format": self.settings.format, "columns": columns} | sheet

    @classmethod
    def guess(cls, listing: Listing) -> Place | None:
        """Return a table of addresses, by its names and first values."""
        if (there := first_columns(listing)) is None:
            return None
        if listing.form == "file" and is_list_of_addresses(listing.path):
            settings: dict[str, Any] = {"table": listing.path, "format": "urls", "columns": {"url": there[0]}}
            found = describe_columns(Place(settings, "addresses, one a line (sure)"), {}, listing.path)
            no_texts = f"captions of {listing.path}: a list of addresses has none; add `defaults: {{caption: TEXT}}`"
            return replace(found, missing=[f"{no_texts}, or join a table of texts with `--captions`"])
        guesses, words, others = guess_table(listing.path)
        if "file" in guesses:
            raise ConfigError(
                f"{listing.path}: its column '{guesses['file'].column}' names files; name the folder of the pictures, "
                "with the table in it, instead of the table"
            )
        columns = {field: guess.column for field, guess in guesses.items()}
        settings = {"table": listing.path, "columns": columns}
        found = Place(settings, f"table of addresses (sure: {words})", left_out=others, could_keep=list(others))
        return describe_columns(found, guesses, listing.path)

    def check(self) -> None:
        """Check that every file has the mapped columns; of one that is missing the nearest there is named."""
        for file in self.files():
            there = self.columns_of(file)
            missing = [column for column in self.columns if column not in there]
            if missing:
                by_lower = {name.lower(): name for name in there}
                near = difflib.get_close_matches(missing[0].lower(), by_lower, n=1, cutoff=0.4)
                hint = f" (did you mean '{by_lower[near[0]]}'?)" if near else ""
                raise ConfigError(
                    f"{self.where}: {file} has no column {', '.join(repr(column) for column in missing)}{hint}; "
                    f"it has {', '.join(there)}"
                )

    def digest(self, hash_file: Callable[[str], str]) -> list[str]:
        """Hashes of the files that the rows are read from."""
        return [hash_file(file) for file in self.files()]

    def rows(self, scratch: Scratch) -> Iterator[Batch]:
        """Every row of the table, its columns mapped; rows that cannot be read are `malformed_row`."""
        for raw in self.batches():
            yield map_batch(raw, self.mapped)

    def most_rows(self) -> int | None:
        """Rows of Parquet, lines of small texts. A text of several lines in quotes counts by its lines."""
        total = 0
        for file in self.files():
            if file.lower().endswith((".parquet", ".pq")):
                with storage.open_file(file) as stream:
                    total += pq.ParquetFile(stream).metadata.num_rows
            elif (
                file.lower().endswith((".csv", ".tsv", ".jsonl", ".ndjson"))
                and storage.size_of(file) <= MAX_COUNTED_BYTES
            ):
                with storage.open_file(file) as stream:
                    total += sum(1 for line in stream if line.strip())
            else:
                return None
        return total

    def first_values(self, *columns: str) -> tuple[list[str | None], ...]:
        """Return the first values of some columns."""
        raw = next(self.batches(), None)
        return tuple([] if raw is None else raw.rows[column].to_pylist() for column in columns)

    def files(self) -> list[str]:
        """Return the files in name order.

        Raises: ConfigError when there are none.
        """
        path = self._table
        fs, inner = storage.filesystem(path)
        if any(sign in path for sign in "*?[") and (storage.is_remote(path) or not fs.exists(inner)):
            names = sorted(name for name in fs.glob(inner) if not is_lock(str(name)))
        elif fs.isdir(inner):
            listed = (str(name) for name in fs.ls(inner, detail=False))
            names = sorted(name for name in listed if self._format_of(name) and not is_lock(name))
            # beside tables of another kind a json file is a side file, as img2dataset's 00000_stats.json
            names = [name for name in names if self._format_of(name) != "json"] or names
        else:
            names = [inner] if fs.exists(inner) else []
        if not names:
            raise ConfigError(f"{self.where}: {path}: {_no_table(path)}")
        if not storage.is_remote(path) and (odd := [name for name in names if not Path(name).is_file()]):
            raise ConfigError(f"{self.where}: {odd[0]} is no regular file; give a file, a folder or a glob of tables")
        return [str(fs.unstrip_protocol(name)) if storage.is_remote(path) else str(name) for name in names]

    def remarks(self) -> list[str]:
        """Return remarks on workbooks.

        Which of several sheets is read, and how many errors of formulas count as empty.
        """
        remarks = []
        for table in map(self.open, self.files()):
            if table.form != "xlsx":
                continue
            with self._reading(table.path):
                sheet = table.open_sheet()
            if sheet.others and self.settings.sheet is None:
                others = ", ".join(map(repr, sheet.others))
                remarks.append(f"{table.path}: its sheet {sheet.name!r} is read; {others} hold rows too (`sheet`)")
            if num := sheet.num_errors:
                remarks.append(f"{table.path}: {num:,} cells of {sheet.name!r} hold an error such as #N/A: empty")
        return remarks

    def columns_of(self, file: str) -> list[str]:
        """Names of the columns of one file.

        Raises: ConfigError when the file cannot be read as what it should be, or names a column twice.
        """
        table = self.open(file)
        with self._reading(file):
            names = table.columns()
        twice = sorted(name for name, num in Counter(names).items() if name and num > 1)
        if twice:
            raise ConfigError(f"{self.where}: {file} names the column {', '.join(map(repr, twice))} twice; rename one")
        return names

    def batches(self) -> Iterator[RawBatch]:
        """Every row, mapped columns only, in file and row order.

        Raises: ConfigError when a file breaks off or is not what it should be.
        """
        first_row = 0
        for file in self.files():
            table, end = self.open(file), first_row
            with self._reading(file):
                for batch in table.rows(self.columns):
                    batch.numbers = batch.numbers + first_row
                    batch.malformed = [(number + first_row, text) for number, text in batch.malformed]
                    end = max(end, batch.end)
                    yield batch
            first_row = end

    def _format_of(self, file: str) -> str | None:
        if self.settings.format != "auto":
            return self.settings.format
        name = file.rpartition("/")[2].lower()
        for suffix in COMPRESSIONS:
            name = name.removesuffix(suffix)
        return next((form for suffix, form in _SUFFIXES.items() if name.endswith(suffix)), None)

    def open(self, file: str) -> TableFile:
        """Return a file of the table with its format. Raises: ConfigError where nothing tells that."""
        form = self._format_of(file)
        if form is None:
            if file.lower().endswith(WORKBOOKS):
                raise ConfigError(f"{self.where}: {file} is a workbook that is not read; {WORKBOOK_CURE}")
            other = kind_of_place(file)
            if other in ("webdataset", "folder"):
                raise ConfigError(f"{self.where}: {file} is no table; {_CURE_OF_KIND[other]}")
            raise ConfigError(
                f"{self.where}: {file}: the name does not tell the format; "
                "set `format` to parquet, csv, tsv, json, jsonl, xlsx, or urls (an address a line)"
            )
        if self.settings.sheet is not None and form != "xlsx":
            raise ConfigError(f"{self.where}: {file} is no workbook, so it has no sheet; leave `sheet` out")
        return TableFile(file, form, self.settings.sheet)

    def _reading(self, file: str) -> AbstractContextManager[None]:
        return reading(f"{self.where}: {file}", file, f"as {self._format_of(file)}")


_CURE_OF_KIND = {
    "webdataset": "write `webdataset: {path: ...}` in place of `table` and `columns`",
    "folder": "for pictures write `folder: {path: ...}` with their folder, in place of `table` and `columns`",
}


def _no_table(path: str) -> str:
    kind = kind_of_place(path)
    there = {"folder": "pictures and no table", "webdataset": "tars and no table", "dwca": "a Darwin Core Archive"}
    if kind in there:
        return f"holds {there[kind]}; write `{kind}: {{path: {path}}}` in place of `table` and `columns`"
    return f"no such table; give a file, a folder or a glob{where_it_looked(path)}"


# ---- what init sees


def first_columns(listing: Listing) -> list[str] | None:
    """Columns of the first table at a place; None where there is none."""
    tables = [name for name in listing.names if is_table(name)]
    may_be_one = {
        "pattern": True,
        "folder": any("/" not in name for name in tables),
        "zip": False,
        "file": bool(tables) or not listing.ends(*_NO_TABLES),
    }
    if not may_be_one[listing.form]:
        return None
    if listing.form == "file" and is_list_of_addresses(listing.path):
        return [URL_OF_LINE]
    return _head(listing.path)[1]


def first_values(path: str) -> tuple[str, dict[str, list[str]]]:
    """Return the first table at `path`, and by column what its first rows hold but for empty values.

    Raises: ConfigError.
    """
    file, names = _head(path)
    of_bytes = bytes_in(file)
    named = [name for name in names if name and name not in of_bytes]
    columns = TableReader.of(_INIT, file, named).first_values(*named)
    some = (column[:_SAMPLED_ROWS] for column in columns)
    return file, {
        name: [text for text in texts if text and text.strip()] for name, texts in zip(named, some, strict=True)
    }


def guess_table(path: str, of_files: bool = False) -> tuple[dict[str, ColumnGuess], str, dict[str, str]]:
    """Guesses for the first table at `path`, from its header and first rows, words on them, and the columns left out.

    Raises: ConfigError.
    """
    file, values = first_values(path)
    named = list(values)
    try:
        guesses = guess_columns(named, values, of_files)
    except ConfigError as error:
        if columns := bytes_in(file):
            raise ConfigError(
                f"{file}: {', '.join(columns)} holds bytes that are no pictures (those inside Parquet are the kind "
                f"`parquet`). Beside them it has {', '.join(sorted(set(values) - set(columns))) or 'nothing'}, no "
                "addresses or file names of pictures"
            ) from None
        raise ConfigError(f"{file}: {error}") from None
    words = f"{len(named)} columns{TableReader.of(_INIT, file, named).open(file).how_written()}"
    words += ", the first rows were read"
    return guesses, words, left_out(named, values, guesses)


def _head(path: str) -> tuple[str, list[str]]:
    table = TableReader.of(_INIT, path, [""])
    try:
        file = table.files()[0]
        return file, table.columns_of(file)
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix(f"{_INIT}: ")) from None


# ---- rows


def map_batch(raw: RawBatch, columns: ColumnMap) -> Batch:
    """Return a raw batch with our column names. The URL is the key of a row, unless another column is mapped to it."""
    url = raw.rows[columns.url]
    named = {"record_key": url, "url": url} | map_columns(raw.rows, columns)
    return make_batch(named, raw.numbers, malformed_rows(raw.malformed))
