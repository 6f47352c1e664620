"""An index over the vectors of `dalip embed`: the nearest of a million in a tenth of a second, none missed.

    INDEX/vectors.faiss   faiss: the vectors as float16, one after the other
    INDEX/names.parquet   the name of each vector, in the order of its number
    INDEX/index.json      fingerprint of the model, features, number of vectors, sha256 of the names; written last

A search compares the query with every vector, so it misses nothing. Time and memory grow with the number of vectors:
tests/benchmarks/results/training.md has both, and what other engines take. Gives up with ConfigError on tables that are
not of one model, and on a folder that is no index.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.errors import ConfigError, IntegrityError, words_of
from manifests.services.packages import require
from manifests.stores import storage
from training.data.vectors import METADATA_KEY

FORMAT = "dalip-index/1"
_RECORD, _VECTORS, _NAMES = "index.json", "vectors.faiss", "names.parquet"
_BLOCK_ROWS = 16_384

Vectors = NDArray[np.float32]


class Hit(NamedTuple):
    """A found vector: its name, and its inner product with the query (1: the same)."""

    name: str
    score: float


@dataclass(frozen=True)
class SearchIndex:
    """An index that is open: its record, the names of its vectors, and faiss's own object."""

    folder: str
    record: dict[str, Any]
    names: pa.ChunkedArray
    vectors: Any

    @classmethod
    def open(cls, folder: str) -> SearchIndex:
        """Read an index into memory.

        Raises: ConfigError for a folder that is no index; IntegrityError for one that is damaged.
        """
        faiss, path = _faiss(), Path(folder)
        if not (path / _RECORD).is_file():
            raise ConfigError(f"{folder}: no index here (no {_RECORD}); make one with `dalip index`")
        try:
            record = dict(json.loads((path / _RECORD).read_text(encoding="utf-8")))
            names = pq.read_table(path / _NAMES)["name"]
            vectors = faiss.read_index(str(path / _VECTORS))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, pa.ArrowInvalid) as error:
            raise IntegrityError(f"{folder}: the index cannot be read ({words_of(error)}); make it anew") from None
        whole = record.keys() >= {"model", "features", "source"} and record.get("format") == FORMAT
        written = record.get("names_sha256")  # an earlier version wrote none
        whole = whole and written in (None, storage.hash_file(str(path / _NAMES)).sha256)
        if not whole or not len(names) == vectors.ntotal == record.get("num_rows"):
            raise IntegrityError(f"{folder}: the parts of the index do not belong together; make it anew")
        return cls(folder, record, names, vectors)

    def search(self, query_C: Vectors, top: int) -> list[Hit]:
        """The `top` nearest vectors, the nearest first."""
        scores, numbers = self.vectors.search(query_C[None], min(top, self.record["num_rows"]))
        pairs = zip(numbers[0].tolist(), scores[0].tolist(), strict=True)
        return [Hit(self.names[number].as_py(), score) for number, score in pairs]


def build_index(tables: Sequence[str], folder: str) -> dict[str, Any]:
    """Index the vectors of tables of `dalip embed`; returns the record. Rows with an error are left out.

    Raises: ConfigError, also for a row without an error whose vector is none.
    """
    faiss, target = _faiss(), Path(folder)
    if storage.is_remote(folder) or target.exists():
        raise ConfigError(f"{folder}: an index is made in a new local folder; choose another place or remove it")
    models = [_metadata(path) for path in tables]
    places = list(dict.fromkeys(path for table in models for path in table.pop("places", ())))
    if any(other != models[0] for other in models):
        raise ConfigError(
            f"{tables[0]} and another table are of different models or features; an index is of one model"
        )
    index = faiss.index_factory(models[0]["width"], "SQfp16", faiss.METRIC_INNER_PRODUCT)
    names = []
    for block, vectors in _blocks(tables):
        index.add(vectors)
        names.append(block)
    if not index.ntotal:
        raise ConfigError(f"{tables[0]}: holds no vector")
    record = {"format": FORMAT, **models[0], "places": places, "num_rows": index.ntotal}
    private = Path(storage.temp_path(str(target)))
    storage.make_folder(str(private))
    try:
        faiss.write_index(index, str(private / _VECTORS))
        pq.write_table(pa.table({"name": pa.chunked_array(names, pa.string())}), private / _NAMES)
        record["names_sha256"] = storage.hash_file(str(private / _NAMES)).sha256
        storage.make_folder(str(target))
        for name in (_VECTORS, _NAMES):
            storage.publish(str(private / name), str(target / name))
        storage.publish_json(target / _RECORD, record)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return record


def _metadata(path: str) -> dict[str, Any]:
    try:
        metadata = pq.read_schema(path).metadata or {}
        said = dict(json.loads(metadata[METADATA_KEY]))
        said.pop("text_tower", None)  # earlier versions wrote none, and the model says it too
        return said
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowInvalid):
        raise ConfigError(f"{path}: no table of vectors here; `dalip embed` writes one") from None


def _blocks(tables: Sequence[str]) -> Iterator[tuple[pa.Array, Vectors]]:
    """Names and vectors (N, C) of the rows that have no error.

    Raises: ConfigError for null, and for numbers that are not finite: nothing is near to them, or all is.
    """
    for path in tables:
        wrong, first = 0, None
        with pq.ParquetFile(path) as source:
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


def _faiss() -> Any:
    """Raises: ConfigError where the extra is not installed."""
    require("an index", "faiss")
    import faiss

    return faiss
