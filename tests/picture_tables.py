"""Parquet files with pictures inside, for tests: as `datasets` writes them, and as others may."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from foreign_tars import picture

NAMES = ["Rosa canina", "Quercus robur", "Fagus sylvatica"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images_of(numbers: Sequence[int | None]) -> pa.Array:
    """Pictures as `datasets` writes them; None stands for null."""
    rows = [None if number is None else {"bytes": picture(number), "path": f"{number}.jpg"} for number in numbers]
    return pa.array(rows, IMAGE)


def table_of(numbers: Sequence[int | None], **columns: Any) -> pa.Table:
    """Pictures with the captions `caption N`, and labels whose names stand in the metadata, as the Hub has them."""
    labels = pa.array([None if number is None else number % len(NAMES) for number in numbers], pa.int64())
    captions = [f"a picture with the number {number}" for number in numbers]
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": images_of(numbers), "caption": captions, "label": labels} | columns)
    return table.replace_schema_metadata(metadata)


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    """Write a table in row groups of 5 rows, unless `options` say otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **{"row_group_size": 5, **options})
    return path
