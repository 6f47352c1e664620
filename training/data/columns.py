"""Columns of the sample tables, in the row order of a pool, and the labels that tell which pairs are alike.

A label is an int64 hash, so that ranks exchange 8 bytes a pair. Samples with the same value of `loss.label_field` share
one. A sample without a value shares its label with no other sample. Reads releases; writes nothing. Gives up with
ConfigError on a field that no sample has.

Shape letters: `B` pairs of a batch, `L` token ids of a text, `N` rows of a pool.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from manifests.contract.release import Release
from manifests.contract.tables import TAXON_RANKS, kind_of, names_taxon
from manifests.errors import ConfigError
from manifests.stores.cache import ShardCache
from training.data.shards import SamplePool, ShardReader

_READ_ROWS = 256  # whose texts are read at a time
TEXT, TAXON = "text", "taxon"  # fields that follow the text that was drawn
_LABEL_FIELD = "loss.label_field"
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
        """The values of a column, or of `extra.KEY`.

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
        """The taxon columns of one row."""
        names = [*TAXON_COLUMNS, "taxon_vernacular_name"]
        there = self._table.select([name for name in names if name in self._table.column_names])
        row: dict[str, Any] = there.slice(number, 1).to_pylist()[0]
        return row


class ShardColumns(SampleColumns):
    """What is known of samples of shards that PlantMix did not build: domain, key, and the text that is read there."""

    def __init__(self, pool: SamplePool, setting: str, cache: ShardCache | None = None) -> None:
        self._table, self._pool, self._setting, self._cache = pool.table, pool, setting, cache

    def values(self, field: str) -> list[Any]:
        """The values of a column.

        Raises: ConfigError when there is no such column.
        """
        if field != TEXT:
            return super().values(field)
        reader, texts = ShardReader(self._pool, self._cache), list[str]()
        for start in range(0, len(self._pool), _READ_ROWS):
            rows = range(start, min(start + _READ_ROWS, len(self._pool)))
            texts += [content.decode("utf-8", "replace") for _, content, _ in reader.read(rows, with_texts=False)]
        return texts


def _of_text(
    pool: SamplePool, members: Sequence[str], value: Callable[[str], int], setting: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """A value of the text that was drawn for each of some rows, which follows from its name."""
    txt_N = torch.from_numpy(_of_txt(pool, value, setting))
    is_txt = torch.tensor([member == "txt" for member in members] + [True])
    of_member = torch.tensor([value(member) for member in members] + [0])
    return lambda rows, members: torch.where(is_txt[members], txt_N[rows], of_member[members])


class BatchLabels:
    """The label of every pair of a training batch, by `loss.label_field` and the text that was drawn."""

    def __init__(self, pool: SamplePool, field: str, members: Sequence[str]) -> None:
        """`members` are `data.text.members`.

        Raises: ConfigError for a field that no sample has.
        """
        self._labels_N = None if field == TEXT else torch.from_numpy(_field_labels(pool, field))
        self._names_taxon = _of_text(pool, members, names_taxon, _LABEL_FIELD) if field == TAXON else None

    def is_single(self, rows: NDArray[np.int64]) -> bool:
        """Whether these rows of the pool share one label whatever text is drawn."""
        return (
            self._labels_N is not None
            and self._names_taxon is None
            and len(np.unique(self._labels_N.numpy()[rows])) == 1
        )

    def of(self, tokens: Tensor, rows: Tensor, members: Tensor) -> Tensor:
        """Labels (B,) of token ids (B, L), rows of the pool, and numbers of the drawn members."""
        if self._labels_N is None:
            return hash_rows(tokens)
        if self._names_taxon is None:
            return self._labels_N[rows % len(self._labels_N)]  # of streamed shards a row of the pool is a shard
        return torch.where(self._names_taxon(rows, members).bool(), self._labels_N[rows], hash_rows(tokens))


class BatchKinds:
    """Which of `model.projectors` every pair of a batch has: its domain, else that of the drawn text.

    That is the text's own kind, such as trait, where it has a projector; else `taxon` or `caption`.
    """

    def __init__(self, pool: SamplePool, kinds: Sequence[str], members: Sequence[str]) -> None:
        """`members` are `data.text.members`.

        Raises: ConfigError for samples of no kind.
        """
        number = {kind: i for i, kind in enumerate(kinds)}

        def of_name(name: str) -> int:
            other = TAXON if names_taxon(name) else "caption"
            return number.get(kind_of(name), number.get(other, -1))

        domains = pool.table["domain"].to_pylist()
        self._domain_N = torch.tensor([number.get(domain, -1) for domain in domains])
        every_domain = bool((self._domain_N >= 0).all())
        self._by_text = None if every_domain else _of_text(pool, members, of_name, "model.projectors")
        rows = torch.arange(len(domains))
        for member in range(-1, len(members)):
            if (without := self.of(rows, torch.full_like(rows, member)) < 0).any():
                row = int(without.nonzero()[0])
                raise ConfigError(
                    f"model.projectors: {int(without.sum()):,} of {len(rows):,} samples of split '{pool.split}' have "
                    f"none of the kinds {', '.join(kinds)}; first: {pool.names([row])[0]}, domain {domains[row]}; add "
                    "taxon, caption or the domain"
                )

    def of(self, rows: Tensor, members: Tensor) -> Tensor:
        """Numbers of the kinds (B,), of rows of the pool and numbers of the drawn members."""
        if self._by_text is None:
            return self._domain_N[rows % len(self._domain_N)]
        return torch.where(self._domain_N[rows] >= 0, self._domain_N[rows], self._by_text(rows, members))


def txt_labels(pool: SamplePool, field: str) -> Tensor:
    """The label of every row of a pool, (N,), where each sample is shown with its `txt`.

    Raises: ConfigError for a field that no sample has.
    """
    labels = _field_labels(pool, field)
    if field == TAXON:
        labels = np.where(_of_txt(pool, names_taxon, _LABEL_FIELD), labels, _field_labels(pool, TEXT))
    return torch.from_numpy(labels)


def txt_kinds(pool: SamplePool, kinds: Sequence[str]) -> Tensor:
    """As `BatchKinds`, of every row of a pool, (N,), where each sample is shown with its `txt`.

    Raises: ConfigError for samples of no kind.
    """
    rows = torch.arange(len(pool))
    return BatchKinds(pool, kinds, ("txt",)).of(rows, torch.zeros_like(rows))


def _of_txt(pool: SamplePool, value: Callable[[str], int], setting: str) -> NDArray[np.int64]:
    """A value of the `txt` of each row, by the name of the text that it is, (N,); `setting` is what asks.

    Raises: ConfigError for a release that does not say.
    """
    columns = [columns.column("text_type") for columns in _columns_of(pool, ["text_type"], setting)]
    names = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
    coded = pc.fill_null(names, "caption").combine_chunks().dictionary_encode()
    values = np.array([value(name) for name in coded.dictionary.to_pylist()], np.int64)
    rows: NDArray[np.int64] = values[coded.indices.to_numpy()]
    return rows


def hash_rows(tokens_BL: Tensor) -> Tensor:
    """One int64 of each row of token ids, (B,): equal for equal rows.

    Products with odd 64-bit numbers, which overflow on purpose. Two texts share one with a probability below 2^-46.
    """
    generator = torch.Generator().manual_seed(0x6C6162656C)
    high, low = (torch.randint(2**31, (tokens_BL.shape[1],), generator=generator) for _ in range(2))
    return (tokens_BL * ((high << 32) | (low << 1) | 1)).sum(dim=1)


def _field_labels(pool: SamplePool, field: str) -> NDArray[np.int64]:
    """The label of each row by a field, (N,)."""
    rank = field.removeprefix("taxon_")
    of_taxon = field == TAXON or rank in TAXON_RANKS
    needed = TAXON_COLUMNS if of_taxon else ("extra" if field.startswith("extra.") else field,)
    parts = []
    for columns in _columns_of(pool, needed):
        column = _taxa(columns, rank) if of_taxon else columns.column(field)
        parts += column.chunks
    column = pa.chunked_array(parts, pa.string())
    if column.null_count == len(column):
        raise ConfigError(
            f"{_LABEL_FIELD}: no sample of split '{pool.split}' has a value of '{field}'; name another field, or set "
            "loss.same_label: negative"
        )
    coded = column.combine_chunks().dictionary_encode()
    hashes = np.array([_hash(value) for value in coded.dictionary.to_pylist()], np.int64)
    codes = pc.fill_null(coded.indices, -1).to_numpy()
    alone = -1 - np.arange(len(codes), dtype=np.int64)  # the row: two ranks that draw it agree
    return np.where(codes >= 0, hashes[codes], alone)


def _columns_of(pool: SamplePool, names: Sequence[str], setting: str = _LABEL_FIELD) -> Sequence[SampleColumns]:
    if any(pool.members):
        return [ShardColumns(pool, setting)]
    return [SampleColumns(Release.open(path), pool.split, setting, names) for path in pool.paths]


def _taxa(columns: SampleColumns, rank: str) -> pa.ChunkedArray:
    """The name of each row's taxon at a rank, or at its deepest rank."""
    ranks = {name: columns.column(f"taxon_{name}") for name in TAXON_RANKS}
    if rank in ranks:
        return ranks[rank]
    named = [pc.binary_join_element_wise(name, ranks[name], " ") for name in reversed(TAXON_RANKS)]
    return pc.coalesce(*named)


def _hash(value: str) -> int:
    return int.from_bytes(hashlib.blake2b(value.encode("utf-8"), digest_size=8).digest(), "big", signed=True)
