"""Sources read as ingest reads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.sources.reading import check_source, read_rows
from pipeline.sources.settings import SourceSettings
from pipeline.stages.ingest.stage import map_rows
from pipeline.store.sql import open_scratch


@pytest.fixture
def read(tmp_path: Path) -> Callable[[SourceSettings], tuple[list[dict[str, Any]], list[tuple[Any, ...]]]]:
    """Rows without nulls in their order, and row number, reason, key, value of the lost ones, sorted."""
    workdir = tmp_path / "it's scratch"

    def read_all(given: SourceSettings) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]]]:
        check_source(given)
        found, lost = [], []
        for batch in read_rows(given, partial(open_scratch, str(workdir), 0.5)):
            rows = map_rows(batch, given).to_pylist()
            found += [{k: v for k, v in row.items() if v is not None} for row in rows if row["reason"] is None]
            lost += [
                tuple(row[k] for k in ("row_number", "reason", "record_key", "value")) for row in rows if row["reason"]
            ]
        assert not list(workdir.rglob("*.parquet")), "staged files are removed"
        return sorted(found, key=lambda row: row["row_number"]), sorted(lost, key=str)

    return read_all


@pytest.fixture
def read_whole(read: Callable[..., Any]) -> Callable[..., Any]:
    """The same, for tests that call something else `read`."""
    return read
