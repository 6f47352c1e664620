"""`dalip embed`: one vector a picture, as a table with a row each.

Reads a model and pictures. Writes Parquet: `name`, `error`, and `vector`, a list of fixed length,
null where the picture cannot be read. The table's metadata names the model by its fingerprint, so that a search can
refuse a query by another one. Gives up with ConfigError before the first row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from manifests.errors import ConfigError
from manifests.masking import hide_secrets
from manifests.stores.storage import is_remote
from training.data.vectors import METADATA_KEY
from training.evaluation.encoder import Encoder
from training.evaluation.encoding import FeatureKind
from training.using.pictures import Encoded, Listing, encode_pieces
from training.using.pieces import PiecedTable


def embed_pictures(
    encoder: Encoder, listing: Listing, out: str, kind: FeatureKind | None, batch_size: int, num_workers: int
) -> tuple[dict[str, Any], bool]:
    """Write the vectors of pictures; returns the table's record, and whether it was there before.

    Raises: ConfigError, IntegrityError.
    """
    if not out.lower().endswith(".parquet"):
        raise ConfigError(f"{out}: vectors go into Parquet; end --out in .parquet")
    width = encoder.width(kind)
    model = {"model": encoder.fingerprint, "features": kind or encoder.kinds[-1], "width": width}
    # where the model and the pictures were, for a search; the text tower, for a student
    beside = {
        "source": encoder.place,
        "places": [hide_secrets(p) if is_remote(p) else str(Path(p).resolve()) for p in listing.places],
        "text_tower": encoder.model.text_tower_digest(),
    }
    vector = pa.list_(pa.float32(), width)
    metadata = {METADATA_KEY: json.dumps(model | beside).encode("utf-8")}
    schema = pa.schema([("name", pa.string()), ("error", pa.string()), ("vector", vector)], metadata)
    identity = model | {"batch": batch_size, "device": encoder.model.device.type}
    table = PiecedTable(out, identity, listing, schema)

    def encode(pieces: list[range]) -> Iterator[Encoded]:
        of_views = partial(encoder.encode_views, kind=kind)
        return encode_pieces(listing, pieces, encoder.view(), of_views, batch_size, num_workers)

    def columns(vectors: Tensor) -> dict[str, Any]:
        return {"vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.numpy().reshape(-1)), type=vector)}

    return table.fill(encode, columns, {"model": encoder.source}, "embed"), table.is_finished
