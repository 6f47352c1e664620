"""Vectors that a teacher gave, by the row of a pool: what a student learns from tables, while no teacher runs.

A table is Parquet with a column of ids and a column of lists of numbers: that of `dalip embed`, or one that somebody
published, over any number of files. The vectors of a pool are sorted once into CACHE/vectors/KEY/, a row a sample, as
half floats; what is half already is kept as it lies. A training maps that file, so its memory does not grow with it. A
row of zeros is a sample without a vector. Gives up with ConfigError on tables of several models, of lists of several
lengths, and on tables that know no sample of the pool.

Shape letters: `N` rows of a pool, `K` rows of a table that are wanted, `C` width of a vector.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from manifests.errors import ConfigError, words_of
from manifests.services.untrusted import read_object
from manifests.stores import stamps, storage
from manifests.stores.cache import local_folder, locked
from training.data.columns import Column, OutsideValues, Shown, columns_of
from training.data.shards import SamplePool

METADATA_KEY = b"dalip"  # in the schema of a table of `dalip embed`: which model it is of

_FORMAT = "dalip-vectors/1"
_MADE, _ROWS = "made.json", "rows.npy"
_BLOCK_ROWS = 16_384  # of a table, with their vectors
_POOL_ROWS = 1 << 20  # of a pool, whose ids become Python's for a moment
_IDS = {"sample_id": "sample_id", "name": "sample_id", "uuid": "record_key"}
"""Columns of ids, and the column of samples.parquet that they are compared with; `dalip embed` writes `name`."""


class Space(NamedTuple):
    """The space that vectors lie in: how many numbers each has, and what `dalip embed` says of its model."""

    width: int
    model: dict[str, Any]  # model, features, text_tower; empty where somebody else wrote the table


@dataclass(frozen=True)
class Vectors(Column):
    """float32 (B, C), each of length 1; zeros where the tables have no vector of a sample, or one that is not finite.

    `path` is a file, a folder of files or a pattern. Copies go below `cache_dir`.
    """

    path: str
    column: str
    cache_dir: str | None = None
    setting: str = "loss.teacher"

    @property
    def takes_long(self) -> bool:
        """The first time: it sorts."""
        return True

    @cached_property
    def files(self) -> list[str]:
        """The tables, sorted by name.

        Raises: ConfigError where there is none.
        """
        pattern = storage.join(self.path, "*.parquet") if storage.is_folder(self.path) else self.path
        if not (files := storage.find_matches(pattern)):
            raise ConfigError(f"{self.setting}.vectors: no Parquet file at {pattern}; `dalip embed` writes one")
        return files

    def space(self) -> Space:
        """Read the first vector.

        Raises: ConfigError for a table without ids, vectors or the column.
        """
        with self._opened(self.files[0]) as source:
            model, blocks = _model_of(source), source.iter_batches(_BLOCK_ROWS, columns=[self.column])
            width = next((len(item) for block in blocks for item in block[0] if item.is_valid and len(item)), None)
        if width is None:
            raise ConfigError(f"{self.setting}: {self.files[0]} has no vector in column '{self.column}'")
        return Space(width, model)

    def open(self, pool: SamplePool, members: Sequence[str]) -> SortedVectors:
        """As `Column.open`; the first process of a machine sorts, the others wait for it.

        Raises: ConfigError, also where no sample of the pool has a vector.
        """
        known = [stamps.look(path)[0] for path in self.files]
        if None in known:
            raise ConfigError(
                f"{self.setting}: {self.files[known.index(None)]}: its store does not tell when a file changed; copy "
                "the vectors to this machine"
            )
        identity = [_FORMAT, self.column, self.files, known, pool.fingerprints, pool.split]
        key = hashlib.sha256(json.dumps(identity).encode("utf-8")).hexdigest()[:32]
        folder = local_folder(self.cache_dir) / "vectors" / key
        storage.make_folder(str(folder))
        with locked(folder / "lock"):
            if not (folder / _MADE).is_file():
                storage.sweep(str(folder))
                self._sort(pool, folder)
        made = read_object(folder / _MADE, f"remove {folder}, and run the command again", ConfigError)
        without = len(pool) - made["num_found"]
        note = f"{self.setting}: {made['num_found']:,} of {len(pool):,} samples of split '{pool.split}' have a vector"
        if without:
            note += f"; the other {without:,} teach nothing of the teacher"
        return SortedVectors(note, made["sha256"], np.load(folder / _ROWS, mmap_mode="r"))

    def _sort(self, pool: SamplePool, folder: Path) -> None:
        """Write the vectors of the pool's samples in its order, then the record that says they are whole."""
        space, temp = self.space(), storage.temp_path(str(folder / _ROWS))
        rows_NC = np.lib.format.open_memmap(temp, "w+", np.float16, (len(pool), space.width))
        with Path(temp).open("r+b") as file:  # a disk that is full ends a process that writes into a map
            os.posix_fallocate(file.fileno(), 0, Path(temp).stat().st_size)
        found_N, ids = np.zeros(len(pool), bool), dict[str, _Ids]()
        for path in self.files:
            with self._opened(path) as source:
                if _model_of(source) != space.model:
                    raise ConfigError(
                        f"{self.setting}: {path} and {self.files[0]} are of different models or features; the vectors "
                        "of a teacher are of one model"
                    )
                column = next(name for name in _IDS if name in source.schema_arrow.names)
                if column not in ids:
                    ids[column] = _Ids.of_pool(pool, _IDS[column], self.setting)
                for block in source.iter_batches(_BLOCK_ROWS, columns=[column, self.column]):
                    block_K, rows = ids[column].find(block[column])
                    values_KC, good_K = _values(block[self.column].take(block_K), space.width, f"{path}: {self.column}")
                    rows_NC[rows[good_K]] = values_KC
                    found_N[rows[good_K]] = True
        if not found_N.any():
            raise ConfigError(
                f"{self.setting}: no sample of split '{pool.split}' has a vector in {self.path}; its ids must be those "
                "of the release: run `dalip embed` on the release itself, or name them sample_id, or uuid (record_key)"
            )
        rows_NC.flush()
        del rows_NC
        made = {"num_found": int(found_N.sum()), "sha256": storage.hash_file(temp).sha256}
        storage.publish(temp, str(folder / _ROWS))
        storage.publish_json(folder / _MADE, made)

    @contextmanager
    def _opened(self, path: str) -> Iterator[pq.ParquetFile]:
        fs, inner = storage.filesystem(path)
        try:
            with pq.ParquetFile(inner, filesystem=fs) as source:
                names = source.schema_arrow.names
                if self.column not in names or not set(_IDS) & set(names):
                    raise ConfigError(
                        f"{self.setting}: {path} needs a column '{self.column}' and one of {', '.join(_IDS)}; it has "
                        f"{', '.join(names)}"
                    )
                yield source
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"{self.setting}: {path} cannot be read: {words_of(error)}") from None


@dataclass(frozen=True)
class SortedVectors(OutsideValues):
    """The vectors of a pool, half floats (N, C) mapped into memory."""

    rows: NDArray[np.float16]

    def __call__(self, shown: Shown) -> Tensor:
        """Return the vectors of a batch."""
        return normalize(torch.from_numpy(self.rows[shown.rows.numpy()].astype(np.float32)), dim=1)


@dataclass(frozen=True)
class _Ids:
    """The ids of a pool in their order, and the row of each; a sample that is there twice has two rows."""

    ordered: NDArray[np.bytes_]
    rows: NDArray[np.int64]

    @classmethod
    def of_pool(cls, pool: SamplePool, field: str, setting: str) -> _Ids:
        columns = [pool.table[field]] if field in pool.table.column_names else [
            table.column(field) for table in columns_of(pool, [field], setting)
        ]  # fmt: skip
        tables = [pa.table([column], names=["id"]) for column in columns]
        ids = np.concatenate([_as_bytes(part[0]) for table in tables for part in table.to_batches(_POOL_ROWS)])
        order = np.argsort(ids, kind="stable")
        return cls(ids[order], order)

    def find(self, ids: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
        """Positions of the ids that the pool has, and the row of each."""
        width = self.ordered.dtype.itemsize
        lengths = pc.fill_null(pc.binary_length(ids.cast(pa.string()).cast(pa.binary())), 0)
        fits = pc.is_in(lengths, pa.array(range(1, width + 1), lengths.type))
        positions = np.flatnonzero(fits.to_numpy(zero_copy_only=False))
        asked = _as_bytes(ids.take(pa.array(positions))).astype(self.ordered.dtype)
        start, stop = (np.searchsorted(self.ordered, asked, side) for side in ("left", "right"))
        nums = stop - start
        within = np.arange(nums.sum()) - np.repeat(np.cumsum(nums) - nums, nums)
        return pa.array(np.repeat(positions, nums)), self.rows[np.repeat(start, nums) + within]


def _as_bytes(ids: pa.Array) -> NDArray[np.bytes_]:
    return np.array(ids.cast(pa.string()).cast(pa.binary()).fill_null(b"").to_pylist(), dtype=np.bytes_)


def _values(vectors: pa.Array, width: int, where: str) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Half floats (K, C) of the good ones, and which are good: not null, finite, and not zero.

    Raises: ConfigError for a list of another length, and for what is no list of numbers.
    """
    valid_K = vectors.is_valid().to_numpy(zero_copy_only=False)
    there = vectors.filter(pa.array(valid_K))
    if (lengths := pc.unique(pc.list_value_length(there)).to_pylist()) not in ([], [width]):
        raise ConfigError(f"{where} holds vectors of {' and '.join(map(str, sorted(lengths)))} numbers, not of {width}")
    values_KC = there.flatten().to_numpy(zero_copy_only=False).reshape(len(there), -1 if len(there) else width)
    norms_K = np.linalg.norm(values_KC.astype(np.float32), axis=1)
    good_K = np.isfinite(norms_K) & (norms_K > 0)
    values_KC, norms_K = values_KC[good_K], norms_K[good_K]
    if values_KC.dtype != np.float16:  # of length 1 they keep their digits
        values_KC = values_KC / norms_K[:, None]
    valid_K[valid_K] = good_K
    return values_KC.astype(np.float16), valid_K


def _model_of(source: pq.ParquetFile) -> dict[str, Any]:
    """Return what a table of `dalip embed` records of its model."""
    said = json.loads((source.schema_arrow.metadata or {}).get(METADATA_KEY, b"{}"))
    return {name: said[name] for name in ("model", "features", "text_tower") if name in said}
