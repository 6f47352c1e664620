"""Tables of vectors, as a teacher leaves them: by `dalip embed`, or published as half floats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.contract.release import Release


def write_vectors(
    path: Path,
    vectors: Mapping[str, Sequence[float] | np.ndarray | None],
    *,
    ids: str = "sample_id",
    column: str = "vector",
    model: dict[str, Any] | None = None,
    kind: Any = None,
) -> Path:
    """A table with a vector by id; of half floats unless `kind` says another one."""
    kind = kind or pa.float16()
    rows = [None if v is None else np.asarray(v, kind.to_pandas_dtype()) for v in vectors.values()]
    metadata = {b"dalip": json.dumps(model).encode()} if model is not None else None
    schema = pa.schema([(ids, pa.string()), (column, pa.list_(kind))], metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table([list(vectors), pa.array(rows, pa.list_(kind))], schema=schema), path, row_group_size=20)
    return path


def random_vectors(release: str, width: int, splits: Sequence[str] = ("train", "heldout")) -> dict[str, np.ndarray]:
    """A vector for each sample of a release, longer than 1."""
    opened, random = Release.open(release), np.random.default_rng(0)
    ids = [
        value for split in splits if split in opened.splits for value in opened.samples(split)["sample_id"].to_pylist()
    ]
    return {value: random.normal(size=width) * 9 for value in ids}
