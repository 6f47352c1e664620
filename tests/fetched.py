"""One part of a fetch, in one piece, for tests and benchmarks of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.fetching.engine import fetch_in_pieces
from pipeline.fetching.hosts import Gate
from pipeline.fetching.http import HttpClient
from pipeline.fetching.settings import FetchSettings


def fetch_rows(
    rows: Sequence[tuple[str, str]],
    settings: FetchSettings,
    gate: Gate,
    pool_path: str | Path,
    client: HttpClient | None = None,
) -> pa.Table:
    """The facts of (sample_id, url) rows; `pool_path` is written even when it holds no picture."""
    (piece,) = fetch_in_pieces(rows, settings, gate, lambda: str(pool_path), client=client)
    return piece.facts
