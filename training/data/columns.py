"""Columns of the sample tables in the row order of a pool, and what a task asks of each pair of a batch.

A task (`training.tasks`) names `Labels`, `Numbers` or `Kinds`, or the `Vectors` of `training.data.vectors`;
`BatchColumns` gives their values of a batch. A label is an int64 hash, so that ranks exchange 8 bytes a pair. Samples
with equal texts in a field share one: those that `manifests.names.equal` calls equal. A sample without a value shares
its label with no other. Reads releases; writes nothing. Gives up with ConfigError on a field that no sample has.

Shape letters: `B` pairs of a batch, `N` rows of a pool.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from manifests.contract.release import Release
from manifests.contract.tables import TAXON_RANKS, kind_of, names_taxon
from manifests.errors import ConfigError
from manifests.names.equal import name_key
from manifests.stores.cache import ShardCache
from training.data.shards import SamplePool, ShardReader

_READ_ROWS = 256  # whose texts are read at a time
TEXT, TAXON = "text", "taxon"  # fields that follow the text that was drawn
TAXON_COLUMNS = tuple(f"taxon_{rank}" for rank in TAXON_RANKS)


class SampleColumns:
    """Columns of a split's sample table, in the row order of its pool, and the keys of its column `extra`.

    `setting` names the key that asked for them, in messages.
    """

    def __init__(
        self, release: Release, split: str, setting: str = "eval.zero_shot", columns: Sequence[str] | None = None
    ) -> None:
        try:
            table = release.samples(split, None if columns is None else ["shard", "position", *columns])
        except pa.ArrowInvalid:  # one of them is not there; a message lists those that are
            table = release.samples(split)
        self._table = table.sort_by([("shard", "ascending"), ("position", "ascending")])
        self._setting = setting

    def values(self, field: str) -> list[Any]:
        """Return the values of a column, or of `extra.KEY`.

        Raises: ConfigError when there is no such column or no row has the key.
        """
        if field.startswith("extra.") and "extra" in self._table.column_names:
            key = field.removeprefix("extra.")
            objects = [json.loads(value) if value else {} for value in self._table["extra"].to_pylist()]
            values = [item.get(key) for item in objects]
            if all(value is None for value in values):
                fields = ", ".join(f"extra.{name}" for name in sorted({name for item in objects for name in item}))
                raise ConfigError(
                    f"{self._setting}: no sample has {field}; write {fields or 'a column of samples.parquet'}, or take "
                    "it out"
                )
            return values
        if field not in self._table.column_names:
            raise ConfigError(
                f"{self._setting}: the release has no field '{field}'; it has extra.KEY and "
                f"{', '.join(self._table.column_names)}"
            )
        column: list[Any] = self._table[field].to_pylist()
        return column

    def column(self, field: str) -> pa.ChunkedArray:
        """`values` as text; empty text counts as null.

        Raises: ConfigError as `values`.
        """
        if field.startswith("extra.") or field not in self._table.column_names:
            texts = [None if value is None else str(value) for value in self.values(field)]
            column = pa.chunked_array([texts], pa.string())
        else:
            column = self._table[field].cast(pa.string())
        return pc.if_else(pc.equal(column, ""), None, column)

    def taxon_row(self, number: int) -> dict[str, Any]:
        """Return the taxon columns of one row."""
        names = [*TAXON_COLUMNS, "taxon_vernacular_name"]
        there = self._table.select([name for name in names if name in self._table.column_names])
        row: dict[str, Any] = there.slice(number, 1).to_pylist()[0]
        return row


class ShardColumns(SampleColumns):
    """The columns of samples in shards that PlantMix did not build: domain, key, and the text that is read there."""

    def __init__(self, pool: SamplePool, setting: str, cache: ShardCache | None = None) -> None:
        self._table, self._pool, self._setting, self._cache = pool.table, pool, setting, cache

    def values(self, field: str) -> list[Any]:
        """Return the values of a column.

        Raises: ConfigError when there is no such column.
        """
        if field != TEXT:
            return super().values(field)
        reader, texts = ShardReader(self._pool, self._cache), list[str]()
        for start in range(0, len(self._pool), _READ_ROWS):
            rows = range(start, min(start + _READ_ROWS, len(self._pool)))
            texts += [content.decode("utf-8", "replace") for _, content, _ in reader.read(rows, with_texts=False)]
        return texts


class Shown(NamedTuple):
    """The pairs of a batch: which samples, and which text of each."""

    rows: Tensor  # int64 (B,) rows of the pool
    members: Tensor  # int64 (B,) number of the text among `data.text.members`; -1: `txt`, for want of them
    texts: Tensor | None  # int64 (B,) `text_labels` of the texts; None where they are not known


Values = Callable[[Shown], Tensor]  # of a batch, (B,) or (B, width)


class Column(ABC):
    """One value of each pair, which a task asks for. `setting` names the key behind it, in messages."""

    setting: str

    @property
    def reads_text(self) -> bool:
        """Return whether it needs the text that was drawn."""
        return False

    @property
    def takes_long(self) -> bool:
        """Return whether it is opened once before processes wait for each other."""
        return False

    @abstractmethod
    def open(self, pool: SamplePool, members: Sequence[str]) -> Values:
        """Read it for a pool. `members` are `data.text.members`.

        Raises: ConfigError for samples that do not have it.
        """


@dataclass(frozen=True)
class OutsideValues(ABC):
    """Values that come from files beside the releases: a line that says what was found, and their sha256."""

    note: str
    content: str

    @abstractmethod
    def __call__(self, shown: Shown) -> Tensor:
        """As `Values`."""


@dataclass(frozen=True)
class Labels(Column):
    """int64 (B,): equal where a field of two samples holds equal texts.

    Fields: a column of samples.parquet; `extra.KEY`; a rank; `text`, the text drawn; `taxon`, the taxon that the text
    names, and of a caption its text.
    """

    field: str
    setting: str = "loss.form"

    @property
    def reads_text(self) -> bool:
        """A caption speaks for itself."""
        return self.field in (TEXT, TAXON)

    def open(self, pool: SamplePool, members: Sequence[str]) -> Values:
        """As `Column.open`."""
        if self.field == TEXT:
            return _texts_of
        labels_N = _field_labels(pool, self.field, self.setting)
        if self.field != TAXON:
            return _of_rows(labels_N)
        names = _of_text(pool, members, names_taxon, self.setting)
        return lambda shown: torch.where(names(shown).bool(), labels_N[shown.rows], _texts_of(shown))


@dataclass(frozen=True)
class Numbers(Column):
    """float32 (B,), or (B, width) of lists: a column of samples.parquet or `extra.KEY`. NaN where a sample has none."""

    field: str
    setting: str = "loss.form"

    def open(self, pool: SamplePool, members: Sequence[str]) -> Values:
        """As `Column.open`; all lists need one length."""
        tables = columns_of(pool, ["extra" if self.field.startswith("extra.") else self.field], self.setting)
        values = [value for table in tables for value in table.values(self.field)]
        if all(value is None for value in values):
            raise ConfigError(f"{self.setting}: no sample of split '{pool.split}' has a value of '{self.field}'")
        width = next((len(value) for value in values if isinstance(value, list)), None)
        none = math.nan if width is None else [math.nan] * width
        try:
            if wrong := next((value for value in values if isinstance(value, str)), None):  # NumPy reads "12"
                raise TypeError(f"it holds the text '{wrong}'")
            return _of_rows(torch.tensor([none if value is None else value for value in values], dtype=torch.float32))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.setting}: the field '{self.field}' holds no numbers: {error}") from None


@dataclass(frozen=True)
class Kinds(Column):
    """int64 (B,): the number of each pair's kind of text among `kinds`.

    A kind is the domain of the sample. Else it is the text's own, such as trait; else `taxon` or `caption`.
    """

    kinds: tuple[str, ...]
    setting: str = "model.projectors"

    def open(self, pool: SamplePool, members: Sequence[str]) -> Values:
        """As `Column.open`."""
        number = {kind: i for i, kind in enumerate(self.kinds)}

        def of_name(name: str) -> int:
            other = TAXON if names_taxon(name) else "caption"
            return number.get(kind_of(name), number.get(other, -1))

        domains = pool.table["domain"].to_pylist()
        domain_N = torch.tensor([number.get(domain, -1) for domain in domains])
        if (domain_N >= 0).all():
            return _of_rows(domain_N)
        by_text = _of_text(pool, members, of_name, self.setting)

        def of(shown: Shown) -> Tensor:
            return torch.where(domain_N[shown.rows] >= 0, domain_N[shown.rows], by_text(shown))

        rows = torch.arange(len(domains))
        for member in range(-1, len(members)):
            if (without := of(Shown(rows, torch.full_like(rows, member), None)) < 0).any():
                row = int(without.nonzero()[0])
                raise ConfigError(
                    f"{self.setting}: {int(without.sum()):,} of {len(rows):,} samples of split '{pool.split}' have "
                    f"none of the kinds {', '.join(self.kinds)}; first: {pool.names([row])[0]}, domain {domains[row]}; "
                    "add taxon, caption or the domain"
                )
        return of


class BatchColumns:
    """The columns that a task named, of every batch from one pool."""

    def __init__(self, pool: SamplePool, columns: Mapping[str, Column], members: Sequence[str]) -> None:
        """`members` are `data.text.members`.

        Raises: ConfigError for a column that samples do not have.
        """
        self._columns = {name: column.open(pool, members) for name, column in columns.items()}
        self.outside = {name: values for name, values in self._columns.items() if isinstance(values, OutsideValues)}

    def of(self, rows: Tensor, members: Tensor, texts: Tensor | None = None) -> dict[str, Tensor]:
        """Return the values of a batch by the task's names; the arguments are those of `Shown`."""
        return {name: values(Shown(rows, members, texts)) for name, values in self._columns.items()}


def txt_columns(pool: SamplePool, columns: Mapping[str, Column]) -> dict[str, Tensor]:
    """Return the values of every row of a pool, where each sample is shown with its `txt`.

    Raises: ConfigError as `BatchColumns`.
    """
    rows, reads_text = torch.arange(len(pool)), [column for column in columns.values() if column.reads_text]
    texts = _field_labels(pool, TEXT, reads_text[0].setting) if reads_text else None
    return BatchColumns(pool, columns, ("txt",)).of(rows, torch.zeros_like(rows), texts)


def text_labels(texts: Sequence[str]) -> Tensor:
    """Return the label of each text, (B,)."""
    return torch.tensor([_hash(text) for text in texts], dtype=torch.int64)


def _texts_of(shown: Shown) -> Tensor:
    assert shown.texts is not None, "a batch with such columns has them"
    return shown.texts


def _of_rows(values_N: Tensor) -> Values:
    return lambda shown: values_N[shown.rows]


def _of_text(pool: SamplePool, members: Sequence[str], value: Callable[[str], int], setting: str) -> Values:
    """Return a value of the text that was drawn for each of some rows, by the name of the text.

    Raises: ConfigError for a release that does not say what each `txt` is.
    """
    columns = [columns.column("text_type") for columns in columns_of(pool, ["text_type"], setting)]
    names = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
    coded = pc.fill_null(names, "caption").combine_chunks().dictionary_encode()
    of_name = np.array([value(name) for name in coded.dictionary.to_pylist()], np.int64)
    txt_N = torch.from_numpy(of_name[coded.indices.to_numpy()])
    is_txt = torch.tensor([member == "txt" for member in members] + [True])
    of_member = torch.tensor([value(member) for member in members] + [0])
    return lambda shown: torch.where(is_txt[shown.members], txt_N[shown.rows], of_member[shown.members])


def _field_labels(pool: SamplePool, field: str, setting: str) -> Tensor:
    """Return the label of each row by a field, (N,)."""
    rank = field.removeprefix("taxon_")
    of_taxon = field == TAXON or rank in TAXON_RANKS
    needed = TAXON_COLUMNS if of_taxon else ("extra" if field.startswith("extra.") else field,)
    parts = []
    for columns in columns_of(pool, needed, setting):
        column = _taxa(columns, rank) if of_taxon else columns.column(field)
        parts += column.chunks
    column = pa.chunked_array(parts, pa.string())
    if column.null_count == len(column):
        raise ConfigError(f"{setting}: no sample of split '{pool.split}' has a value of '{field}'; name another field")
    coded = column.combine_chunks().dictionary_encode()
    hashes = np.array([_hash(value) for value in coded.dictionary.to_pylist()], np.int64)
    codes = pc.fill_null(coded.indices, -1).to_numpy()
    alone = -1 - np.arange(len(codes), dtype=np.int64)  # the row: two ranks that draw it agree
    return torch.from_numpy(np.where(codes >= 0, hashes[codes], alone))


def columns_of(pool: SamplePool, names: Sequence[str], setting: str) -> Sequence[SampleColumns]:
    """Return the named columns of each release of a pool."""
    if any(pool.members):
        return [ShardColumns(pool, setting)]
    return [SampleColumns(Release.open(path), pool.split, setting, names) for path in pool.paths]


def _taxa(columns: SampleColumns, rank: str) -> pa.ChunkedArray:
    """Return the name of each row's taxon at a rank, or at its deepest rank."""
    ranks = {name: columns.column(f"taxon_{name}") for name in TAXON_RANKS}
    if rank in ranks:
        return ranks[rank]
    named = [pc.binary_join_element_wise(name, ranks[name], " ") for name in reversed(TAXON_RANKS)]
    return pc.coalesce(*named)


def _hash(text: str) -> int:
    key = name_key(text).encode("utf-8")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big", signed=True)
