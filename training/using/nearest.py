"""The nearest of the vectors of `dalip embed`: every one is compared, none is missed.

    VECTORS                 a table of `dalip embed`, or a folder of such tables
    VECTORS.search.arrow    beside it: name and vector (float16) of each row without an error; made by the first search

The file is mapped into memory and multiplied block by block, so a search needs 4 bytes a vector. A changed table makes
it anew. Time grows with the number of vectors: tests/benchmarks/results/training.md. Gives up with ConfigError on
tables that are not of one model, and on rows whose vector is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
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

from manifests.errors import ConfigError
from manifests.stores import stamps, storage
from training.data.vectors import METADATA_KEY

_BLOCK_ROWS = 16_384  # of the file
_PRODUCT_ROWS = 256  # in float32 they stay in a core's cache: 0.2 s a query of 1,000,000, 0.9 s by whole blocks

Vectors = NDArray[np.float32]


class Hit(NamedTuple):
    """A found vector: its name, and its inner product with the query (1: the same)."""

    name: str
    score: float


@dataclass(frozen=True)
class StoredVectors:
    """The vectors of `dalip embed` at `place`, mapped into memory; `record` says of which model they are."""

    place: str
    record: dict[str, Any]
    blocks: Sequence[pa.RecordBatch]

    @classmethod
    def open(cls, place: str) -> StoredVectors:
        """Open the file beside a table, or beside a folder of tables; make it where it is not of them.

        Raises: ConfigError for a place without tables, for tables of several models, and for a row without an error
            whose vector is none.
        """
        tables = _tables_at(place)
        record = _record_of(tables)
        about = {"tables": [[path.name, stamps.look(str(path))[0]] for path in tables]} | record
        file = Path(place).absolute()
        file = file.with_name(f"{file.name}.search.arrow")
        blocks = _open(file, about)
        if blocks is None:
            _write(file, about, tables)
            blocks = _open(file, about)
        if not blocks:
            raise ConfigError(f"{place}: holds no vector")
        return cls(place, record, blocks)

    @cached_property
    def names(self) -> pa.ChunkedArray:
        """The name of each vector."""
        return pa.chunked_array([block["name"] for block in self.blocks])

    def nearest(self, query_C: Vectors, top: int) -> list[Hit]:
        """Return the `top` nearest vectors, the nearest first; of equally near ones the first row."""
        scores_N = np.concatenate([_products(block, torch.from_numpy(query_C)) for block in self.blocks])
        least = np.partition(scores_N, -top)[-top] if top < len(scores_N) else -np.inf
        near = np.flatnonzero(scores_N >= least)
        best = near[np.lexsort((near, -scores_N[near]))][:top]
        return [Hit(self.names[number].as_py(), float(scores_N[number])) for number in best.tolist()]


def _products(block: pa.RecordBatch, query_C: torch.Tensor) -> Vectors:
    rows = block["vector"].values.to_numpy(zero_copy_only=True).reshape(len(block), -1)
    parts = [torch.tensor(rows[i : i + _PRODUCT_ROWS]).float() @ query_C for i in range(0, len(rows), _PRODUCT_ROWS)]
    return torch.cat(parts).numpy()


def _tables_at(place: str) -> list[Path]:
    path = Path(place)
    tables = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
    if not tables:
        raise ConfigError(
            f"{place}: no vectors here; name a table that `dalip embed` wrote, or a folder of them on this machine"
        )
    return tables


def _record_of(tables: Sequence[Path]) -> dict[str, Any]:
    """Return what the tables record of their model, and all places that their pictures came from."""
    models = [_metadata(path) for path in tables]
    places = list(dict.fromkeys(place for table in models for place in table.pop("places", ())))
    for path, other in zip(tables, models, strict=True):
        if other != models[0]:
            raise ConfigError(
                f"{tables[0]} and {path} are of different models or features; search them apart, or move one elsewhere"
            )
    return models[0] | {"places": places}


def _metadata(path: Path) -> dict[str, Any]:
    try:
        said = dict(json.loads((pq.read_schema(path).metadata or {})[METADATA_KEY]))
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowInvalid):
        raise ConfigError(f"{path}: is no table of `dalip embed`, which a search reads; embed the pictures") from None
    said.pop("text_tower", None)  # earlier versions wrote none, and the model says it too
    return said


def _open(file: Path, about: dict[str, Any]) -> list[pa.RecordBatch] | None:
    """Return the blocks of a file that is of these tables; None where it is not there, or damaged."""
    with suppress(OSError, ValueError, KeyError, pa.ArrowInvalid):
        source = pa.ipc.open_file(pa.memory_map(str(file)))
        if json.loads(source.schema.metadata[METADATA_KEY]) == about:
            return [source.get_batch(number) for number in range(source.num_record_batches)]
    return None


def _write(file: Path, about: dict[str, Any], tables: Sequence[Path]) -> None:
    vector = pa.list_(pa.float16(), about["width"])
    metadata = {METADATA_KEY: json.dumps(about).encode("utf-8")}
    schema = pa.schema([("name", pa.string()), ("vector", vector)], metadata)
    private = Path(storage.temp_path(str(file)))
    try:
        with pa.ipc.new_file(str(private), schema) as target:
            for names, vectors in _blocks(tables):
                halves = pa.array(vectors.astype(np.float16).reshape(-1))
                columns = [names, pa.FixedSizeListArray.from_arrays(halves, type=vector)]
                target.write_batch(pa.record_batch(columns, schema=schema))
        storage.publish(str(private), str(file))
    finally:
        private.unlink(missing_ok=True)


def _blocks(tables: Sequence[Path]) -> Iterator[tuple[pa.Array, Vectors]]:
    """Names and vectors (N, C) of the rows that have no error.

    Raises: ConfigError for null, and for numbers that are not finite: nothing is near to them, or all is.
    """
    for path in tables:
        wrong, first = 0, None
        with pq.ParquetFile(path, pre_buffer=False) as source:  # else it holds the whole table
            for batch in source.iter_batches(_BLOCK_ROWS):
                rows = batch.filter(pc.is_null(batch["error"]))
                sound = rows["vector"].is_valid().to_numpy(zero_copy_only=False)
                values = rows["vector"].filter(pa.array(sound)).flatten().to_numpy(zero_copy_only=False)
                vectors = values.reshape(int(sound.sum()), -1)
                sound[sound] = np.isfinite(vectors).all(axis=1)
                if not sound.all():
                    wrong, first = wrong + int((~sound).sum()), first or rows["name"][int(sound.argmin())].as_py()
                elif len(rows) and not wrong:
                    yield rows["name"], vectors
        if wrong:
            raise ConfigError(
                f"{path}: {wrong:,} rows say no error, and have a vector that is null or not finite; first: {first}. "
                "Embed them anew, or take the rows out"
            )
