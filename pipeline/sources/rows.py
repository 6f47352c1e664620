"""Output of every reader for ingest: rows in the columns of the contract, and rows that ended in the reader.

Also how a config maps the columns of a source to those of the contract, and what fills their gaps.

Pure: tables in, tables out. No row disappears: a row that a reader leaves out stands in `lost`, with a reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from manifests.contract.settings import Settings
from manifests.masking import MAY_HOLD_SECRETS, hide_in_address, hide_secrets
from manifests.names.species import species_of
from pipeline.sources.limits import MAX_ROW_BYTES
from pipeline.store.writing import text_bytes

BATCH_ROWS = 20_000
MAX_VALUE_CHARS = 200

Scratch = Callable[[], AbstractContextManager[Any]]
"""Opens an in-memory DuckDB that spills to disk, for a reader that has to join."""


LOST = pa.schema(
    [
        ("row_number", pa.int64()),
        ("record_key", pa.string()),
        ("url", pa.string()),
        ("reason", pa.string()),
        ("value", pa.string()),
    ]
)

Item = TypeVar("Item")


class RowFields(Settings):
    """Fields of the contract that any source may fill: from a column that it names, or with one value for all rows."""

    taxon_kingdom: str | None = None
    """The kingdom of the taxon."""
    taxon_phylum: str | None = None
    """The phylum of the taxon."""
    taxon_class: str | None = None
    """The class of the taxon."""
    taxon_order: str | None = None
    """The order of the taxon."""
    taxon_family: str | None = None
    """The family of the taxon."""
    taxon_genus: str | None = None
    """The genus of the taxon."""
    taxon_species: str | None = None
    """The species of the taxon."""
    taxon_scientific_name: str | None = None
    """The scientific name, with or without authors."""
    taxon_vernacular_name: str | None = None
    """The common name."""
    licence: str | None = None
    """Name or address of the licence in any usual spelling, and nothing else beside it."""
    licence_url: str | None = None
    """Address of the licence."""
    rights_holder: str | None = None
    """Who owns the picture."""
    creator: str | None = None
    """Who made the picture."""
    reference_url: str | None = None
    """The page that shows the picture."""


PLAIN_COLUMNS = tuple(RowFields.model_fields)
LICENCE_PAIR = ("licence", "licence_url")
ROWS = pa.schema(
    [(name, pa.string()) for name in ("record_key", "group_id", "url", "locator", "caption", *PLAIN_COLUMNS, "extra")]
)


class RowColumns(RowFields):
    """Which column (or field) of a source fills which column of the contract; `extra` holds any others."""

    record_key: str | None = None
    """The source's own key."""
    group: str | None = None
    """What pictures of one thing share; it is kept together."""
    caption: str | list[str] | None = None
    """One column, or several joined with a space; of a list in it the first text."""
    extra: list[str] = Field(default_factory=list)
    """Columns kept as json beside the sample."""

    def names(self) -> list[str]:
        """Every column that is mapped, each once; the column of the address comes first."""
        values = self.model_dump()
        names: list[str] = []
        for name in sorted(values, key=lambda name: name not in ("file", "url")):
            names.extend([values[name]] if isinstance(values[name], str) else values[name] or [])
        return list(dict.fromkeys(names))

    def fills(self) -> set[str]:
        """Return the columns of ROWS that a row may have of these, but for `extra`."""
        filled = {"group_id" if name == "group" else name for name, value in self.model_dump().items() if value}
        return filled & set(ROWS.names) - {"extra"}


class RowDefaults(RowFields):
    """Values of a row where its source has none."""

    caption: str | None = None
    """For rows whose own is empty."""

    def values(self) -> dict[str, str]:
        """Return the values that are set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}

    def fill(self, rows: pa.Table) -> pa.Table:
        """Return rows with these values where their own are empty.

        A licence and its address fill a row that has neither, so that a default never contradicts what a row states.
        """
        given, empty = rows, {}
        for name, value in self.values().items():
            for column in LICENCE_PAIR if name in LICENCE_PAIR else (name,):
                empty[column] = pc.equal(pc.fill_null(pc.utf8_trim_whitespace(given[column]), ""), "")
            missing = pc.and_(*(empty[column] for column in LICENCE_PAIR)) if name in LICENCE_PAIR else empty[name]
            rows = rows.set_column(rows.column_names.index(name), name, pc.if_else(missing, value, given[name]))
        return rows


@dataclass
class Batch:
    """Rows of a source.

    `rows` has the columns of ROWS. `numbers` int64 (rows,) holds the row number in the source of each, from 0. `lost`
    has the columns of LOST: the rows that are not among `rows`, and why.
    """

    rows: pa.Table
    numbers: np.ndarray
    lost: pa.Table


@dataclass(frozen=True)
class Lost:
    """A row that ends in the reader."""

    row_number: int
    reason: str
    value: str | None = None
    record_key: str | None = None
    url: str | None = None


def make_batch(columns: Mapping[str, Any], numbers: Sequence[int] | np.ndarray, lost: Sequence[Lost] = ()) -> Batch:
    """Return a batch with the columns that are given, the others null; values of lost rows are cut to 200 characters.

    A row whose texts are too long together is lost as malformed.
    """
    num_rows = len(numbers)
    rows = pa.table(
        [columns[name] if name in columns else pa.nulls(num_rows, pa.string()) for name in ROWS.names], ROWS.names
    ).cast(ROWS)
    numbers = np.asarray(numbers, np.int64)
    if rows.nbytes > MAX_ROW_BYTES:
        lengths = text_bytes(rows)
        short = lengths <= MAX_ROW_BYTES
        too_long = zip(numbers[~short].tolist(), lengths[~short].tolist(), strict=True)
        lost = [*lost, *malformed_rows((number, f"a row of {num_bytes:,} bytes") for number, num_bytes in too_long)]
        rows, numbers = rows.filter(pa.array(short)), numbers[short]
    ended = {name: [getattr(row, name) for row in lost] for name in LOST.names}
    ended["value"] = [value and value[:MAX_VALUE_CHARS] for value in ended["value"]]
    return Batch(rows, numbers, pa.table(ended, schema=LOST))


def malformed_rows(malformed: Iterable[tuple[int, str]], file: str = "") -> list[Lost]:
    """Rows that could not be read, given by number and text; `file` is named in front of the text."""
    return [Lost(number, "malformed_row", f"{file}: {text}" if file else text) for number, text in malformed]


def map_columns(rows: pa.Table, columns: RowColumns) -> dict[str, Any]:
    """Contract columns out of a table of strings, as the config maps them; what is not mapped is left out."""
    mapped: dict[str, Any] = {
        name: rows[column] for name in (*PLAIN_COLUMNS, "record_key") if (column := getattr(columns, name)) is not None
    }
    if columns.group:
        mapped["group_id"] = rows[columns.group]
    if columns.caption:
        mapped["caption"] = _caption(rows, columns.caption)
    if columns.extra:
        mapped["extra"] = pa.array([extra_json(row) for row in rows.select(columns.extra).to_pylist()], pa.string())
    return mapped


def binomials(rows: Any) -> Any:
    """Return the species of rows as binomials; the scientific name may state the genus of an epithet."""
    stated = pc.extract_regex(rows["taxon_scientific_name"], r"^\s*(?P<genus>\p{Lu}[\p{L}-]+) (?P<epithet>[\p{L}-]+)")
    of_epithet = pc.equal(pc.struct_field(stated, "epithet"), pc.utf8_trim_whitespace(rows["taxon_species"]))
    genus = pc.if_else(of_epithet, pc.struct_field(stated, "genus"), None)
    given = pc.utf8_trim_whitespace(rows["taxon_genus"])
    return species_of(pc.coalesce(pc.if_else(pc.equal(given, ""), None, given), genus), rows["taxon_species"])


def without_secrets(texts: pa.ChunkedArray, is_address: bool = False) -> pa.ChunkedArray:
    """Return a column of texts without passwords, tokens and signatures in their URLs.

    Looks at few rows in most sources. In a column of addresses (`is_address`) every text is one, with a scheme or not.
    """
    may_hold, hide = ("[@?#]", hide_in_address) if is_address else (MAY_HOLD_SECRETS, hide_secrets)
    if texts.null_count == len(texts) or not pc.any(pc.match_substring_regex(texts, may_hold)).as_py():
        return texts
    return pa.chunked_array([pa.array([text and hide(text) for text in texts.to_pylist()], pa.string())])


def extra_json(values: Mapping[str, str | None]) -> str:
    """Return the json object of the column `extra`."""
    return json.dumps(values, sort_keys=True, ensure_ascii=False)


def as_text(value: Any) -> str | None:
    """Return a value of a json object or of Parquet as text: strings and null as they are, the rest as json."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def check_unicode(values: Iterable[str | None]) -> None:
    """Raise ValueError for half a surrogate pair, which json can hold and UTF-8 cannot."""
    "".join(value for value in values if value).encode()


def in_batches(items: Iterable[Item], size: int = BATCH_ROWS) -> Iterator[list[Item]]:
    """Yield the items, `size` at a time."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def texts_of(value: str) -> list[str] | None:
    """Return the texts of a list as json writes it; of all else the value itself.

    None where an object is, or is in a list.
    """
    if value.lstrip()[:1] not in ("[", "{"):
        return [value]
    try:
        held = json.loads(value)
    except (ValueError, RecursionError):
        return [value]
    items = held if isinstance(held, list) else [held]
    if any(isinstance(item, dict | list) for item in items):
        return None
    texts = [item for item in items if isinstance(item, str) and item.strip()]
    return texts if all(item is None or isinstance(item, str) for item in items) else [value]


def first_texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of captions, where the first text of a list stands for it. One that has an object in it stays."""
    listed = pc.fill_null(pc.match_substring_regex(values, r"^\s*\["), False)
    if not pc.any(listed).as_py():
        return values
    return pa.chunked_array([pa.array([value and first_text(value) for value in values.to_pylist()], pa.string())])


def first_text(value: str) -> str:
    """Return the first text of a list as json writes it, "" of one without; else the value itself."""
    texts = texts_of(value)
    return value if texts is None else next(iter(texts), "")


def hold_objects(captions: pa.ChunkedArray) -> pa.Array:
    """Which captions are objects as json writes them, or lists of them: nobody can say which value is meant."""
    nested = pc.fill_null(pc.match_substring_regex(captions, r"^\s*[\[{]"), False)
    if not pc.any(nested).as_py():
        return nested
    return pa.array([bool(value) and texts_of(value) is None for value in captions.to_pylist()])


def _caption(rows: pa.Table, columns: str | list[str]) -> pa.ChunkedArray:
    if isinstance(columns, str):
        return rows[columns]
    # the empty text in front: without it pyarrow 26 leaves rows of nulls alone out of its answer
    texts = (first_texts(rows[name]) for name in columns)
    joined = pc.binary_join_element_wise("", *texts, " ", null_handling="skip")
    return pc.utf8_slice_codeunits(joined, 1)
