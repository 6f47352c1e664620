"""An index over the vectors of `dalip embed`: the nearest of a million in milliseconds.

    INDEX/vectors.faiss   faiss: lists of float16 vectors around centres; of few vectors one list
    INDEX/names.parquet   the name of each vector, in the order of its number
    INDEX/index.json      the model's fingerprint, the features, and how many lists a search looks into; written last

A search looks into so many lists that it finds 95 % of the true ten nearest of vectors of the index itself, which is
measured when the index is made. Gives up with ConfigError on tables that are not of one model, on a folder that is no
index, and on a query by another model.
"""

from __future__ import annotations

import json
import math
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

from manifests import storage
from manifests.errors import ConfigError, IntegrityError
from training.evaluation.encoder import Encoder
from training.using.embed import METADATA_KEY

FORMAT = "dalip-index/1"
_RECORD, _VECTORS, _NAMES = "index.json", "vectors.faiss", "names.parquet"
_ONE_LIST_ROWS = 20_000  # below this a scan of all takes a millisecond
_TRAINED_PER_LIST = 64
_RECALL, _RECALL_TOP, _RECALL_QUERIES = 0.95, 10, 100
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
        """Raises: ConfigError for a folder that is no index; IntegrityError for one that is damaged."""
        faiss, place = _faiss(), Path(folder)
        if not (place / _RECORD).is_file():
            raise ConfigError(f"{folder}: no index here (no {_RECORD}); make one with `dalip index`")
        try:
            record = json.loads((place / _RECORD).read_text(encoding="utf-8"))
            names = pq.read_table(place / _NAMES)["name"]
            vectors = faiss.read_index(str(place / _VECTORS))
        except (OSError, ValueError, RuntimeError, pa.ArrowInvalid) as error:
            words = " ".join(str(error).split())[:200]
            raise IntegrityError(f"{folder}: the index cannot be read ({words}); make it anew") from None
        if record.get("format") != FORMAT or not len(names) == vectors.ntotal == record["num_rows"]:
            raise IntegrityError(f"{folder}: the parts of the index do not belong together; make it anew")
        return cls(folder, record, names, vectors)

    def require_model(self, encoder: Encoder) -> None:
        """Raises: ConfigError when the vectors are those of another model, whose numbers mean something else."""
        if encoder.fingerprint != self.record["model"]:
            raise ConfigError(
                f"{self.folder}: its vectors are of the model {self.record['model'][:12]} ({self.record['source']}), "
                f"not of {encoder.fingerprint[:12]} ({encoder.source}): give that model with --model, or embed "
                "and index anew with this one"
            )

    def search(self, query_C: Vectors, top: int, *, exact: bool = False) -> list[Hit]:
        """The `top` nearest vectors, the nearest first; `exact` looks into every list."""
        scores, numbers = _search(self.vectors, query_C[None], top, None if exact else self.record["probes"])
        found = [
            (int(number), float(score)) for number, score in zip(numbers[0], scores[0], strict=True) if number >= 0
        ]
        return [Hit(self.names[number].as_py(), score) for number, score in found]


def build_index(tables: Sequence[str], folder: str) -> dict[str, Any]:
    """Index the vectors of tables of `dalip embed`; returns the record. Rows without a vector are left out.

    Raises: ConfigError.
    """
    faiss, target = _faiss(), Path(folder)
    if storage.is_remote(folder) or target.exists():
        raise ConfigError(f"{folder}: an index is made in a new local folder; choose another place or remove it")
    known = [_metadata(path) for path in tables]
    if any(other != known[0] for other in known):
        raise ConfigError(f"{tables[0]} and another table are of other models or features; an index is of one model")
    num_rows = sum(len(names) for names, _ in _blocks(tables, with_vectors=False))
    if not num_rows:
        raise ConfigError(f"{tables[0]}: holds no vector")
    num_lists = 1 if num_rows < _ONE_LIST_ROWS else round(math.sqrt(num_rows))
    kind = "SQfp16" if num_lists == 1 else f"IVF{num_lists},SQfp16"
    index = faiss.index_factory(known[0]["width"], kind, faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(0)
    if not index.is_trained:
        index.train(_sample(tables, num_rows, _TRAINED_PER_LIST * num_lists, rng))
    names = []
    for own, vectors in _blocks(tables):
        index.add(vectors)
        names.append(own)
    probes, recall = (1, 1.0) if num_lists == 1 else _probes(index, _sample(tables, num_rows, _RECALL_QUERIES, rng))
    record = {
        "format": FORMAT, **known[0], "num_rows": num_rows, "lists": num_lists, "probes": probes, "recall": recall
    }  # fmt: skip
    private = Path(storage.temp_path(str(target)))
    storage.make_folder(str(private))
    try:
        faiss.write_index(index, str(private / _VECTORS))
        pq.write_table(pa.table({"name": pa.chunked_array(names, pa.string())}), private / _NAMES)
        storage.make_folder(str(target))
        for name in (_VECTORS, _NAMES):
            storage.publish(str(private / name), str(target / name))
        storage.publish_bytes(str(target / _RECORD), (json.dumps(record, indent=2) + "\n").encode("utf-8"))
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return record


def _probes(index: Any, queries: Vectors) -> tuple[int, float]:
    """How many lists to look into, and the share of the true ten nearest that are then found."""
    wanted = _search(index, queries, _RECALL_TOP, None)[1]
    probes = 1
    while True:
        found = _search(index, queries, _RECALL_TOP, probes)[1]
        hits = sum(len(set(row) & set(right)) for row, right in zip(found.tolist(), wanted.tolist(), strict=True))
        if hits >= _RECALL * wanted.size or probes >= index.nlist:
            return min(probes, index.nlist), hits / wanted.size
        probes *= 2


def _search(index: Any, queries: Vectors, top: int, probes: int | None) -> tuple[Any, Any]:
    faiss = _faiss()
    if not hasattr(index, "nlist"):
        return tuple(index.search(queries, top))
    parameters = faiss.SearchParametersIVF(nprobe=probes or index.nlist)
    return tuple(index.search(queries, top, params=parameters))


def _metadata(path: str) -> dict[str, Any]:
    try:
        metadata = pq.read_schema(path).metadata or {}
        return dict(json.loads(metadata[METADATA_KEY]))
    except (OSError, KeyError, ValueError, pa.ArrowInvalid):
        raise ConfigError(f"{path}: no table of vectors here; `dalip embed` writes one") from None


def _blocks(tables: Sequence[str], *, with_vectors: bool = True) -> Iterator[tuple[pa.Array, Vectors]]:
    """Names and vectors (N, C) of the rows that have one."""
    for path in tables:
        columns = ["name", "error", "vector"] if with_vectors else ["name", "error"]
        with pq.ParquetFile(path) as source:
            for batch in source.iter_batches(_BLOCK_ROWS, columns=columns):
                rows = batch.filter(pc.is_null(batch["error"]))
                values = rows["vector"].flatten().to_numpy() if with_vectors else np.zeros(0, np.float32)
                yield rows["name"], values.reshape(len(rows), -1) if len(rows) else values.reshape(0, 1)


def _sample(tables: Sequence[str], num_rows: int, wanted: int, rng: np.random.Generator) -> Vectors:
    """Some vectors, drawn without replacement."""
    chosen = np.sort(rng.permutation(num_rows)[:wanted])
    found, start = [], 0
    for names, vectors in _blocks(tables):
        own = chosen[(chosen >= start) & (chosen < start + len(names))] - start
        found.append(vectors[own])
        start += len(names)
    return np.concatenate([part for part in found if len(part)])


def _faiss() -> Any:
    """Raises: ConfigError where the extra is not installed."""
    try:
        import faiss
    except ImportError:
        raise ConfigError('faiss is not installed, which an index needs: pip install "plantmix[search]"') from None
    return faiss
