"""`dalip embed`: one vector a picture or a text, as a table with a row each.

Reads a model, and pictures or a table of texts. Writes Parquet: `name`, `error`, and `vector`, a list of fixed length,
null where the picture cannot be read. The table's metadata names the model by its fingerprint, so that a search can
refuse a query by another one. Gives up with ConfigError before the first row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from manifests.errors import ConfigError
from manifests.masking import hide_secrets
from manifests.storage import is_remote
from training.evaluation.encoder import Encoder
from training.evaluation.encoding import FeatureKind
from training.evaluation.set_layouts import read_text
from training.using.pictures import TABLES, Listing, encode_pieces, read_column
from training.using.pieces import PiecedTable
from training.using.predict import spread

METADATA_KEY = b"dalip"
_TEXT_COLUMNS = ("text", "caption")


def embed_pictures(
    encoder: Encoder, listing: Listing, out: str, kind: FeatureKind | None, batch_size: int, num_workers: int
) -> tuple[dict[str, Any], bool]:
    """Write the vectors of pictures; returns the table's record, and whether it was there before.

    Raises: ConfigError, IntegrityError.
    """
    table, schema = _open(encoder, out, kind, len(listing), {"batch": batch_size}, listing)

    def encode(pixels: Tensor) -> Tensor:
        return encoder.encode_views(pixels, kind)

    def compute(pieces: list[range]) -> Iterator[tuple[range, pa.Table]]:
        encoded = encode_pieces(listing, pieces, encoder.view(), encode, batch_size, num_workers)
        for piece, vectors, faults in encoded:
            columns = {"vector": _as_lists(vectors)} if len(vectors) else {}
            yield piece, spread(listing.names(piece), faults, columns, schema)

    return table.fill(compute, {"model": encoder.source}, "embed"), table.is_finished


def embed_texts(encoder: Encoder, texts: list[str], out: str, kind: FeatureKind | None) -> tuple[dict[str, Any], bool]:
    """Write the vectors of texts; returns the table's record, and whether it was there before.

    Raises: ConfigError, IntegrityError; RunError for features that are not finite.
    """
    digest = hashlib.sha256(json.dumps(texts).encode("utf-8")).hexdigest()
    table, schema = _open(encoder, out, kind, len(texts), {"texts": digest})

    def compute(pieces: list[range]) -> Iterator[tuple[range, pa.Table]]:
        for piece in pieces:
            own = texts[piece.start : piece.stop]
            vectors = _as_lists(encoder.encode_texts(own, kind))
            yield piece, pa.table([pa.array(own), pa.nulls(len(own), pa.string()), vectors], schema=schema)

    return table.fill(compute, {"model": encoder.source}, "embed"), table.is_finished


def read_texts(path: str) -> list[str]:
    """Texts of a file: a text a line, or the column `text` or `caption` of a table (csv, tsv, Parquet).

    Raises: ConfigError.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{path}: no such file of texts")
    if file.suffix.lower() in TABLES:
        return read_column(file, _TEXT_COLUMNS)
    return [line for line in read_text(file).splitlines() if line.strip()]


def _open(
    encoder: Encoder,
    out: str,
    kind: FeatureKind | None,
    num_rows: int,
    identity: dict[str, Any],
    listing: Listing | None = None,
) -> tuple[PiecedTable, pa.Schema]:
    if not out.lower().endswith(".parquet"):
        raise ConfigError(f"{out}: vectors go into Parquet; end --out in .parquet")
    width = encoder.width(kind)
    model = {"model": encoder.fingerprint, "features": kind or encoder.kinds[-1], "width": width}
    # where the model and the pictures were, for a search
    places = listing.places if listing else ()
    paths = {
        "source": str(encoder.folder.resolve()),
        "places": [hide_secrets(p) if is_remote(p) else str(Path(p).resolve()) for p in places],
    }
    metadata = {METADATA_KEY: json.dumps(model | paths).encode("utf-8")}
    schema = pa.schema(
        [("name", pa.string()), ("error", pa.string()), ("vector", pa.list_(pa.float32(), width))], metadata
    )
    identity = model | identity | {"device": encoder.model.device.type}
    return PiecedTable(out, identity, num_rows, schema, listing.content if listing else None), schema


def _as_lists(vectors: Tensor) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.numpy().reshape(-1)), vectors.shape[1])
