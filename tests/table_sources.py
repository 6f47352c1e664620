"""Sources over tables, read whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.sources.settings import SourceSettings
from pipeline.sources.table import TableReader


def source(path: Path | str, **changes: Any) -> SourceSettings:
    values = {
        "name": "herbarium",
        "domain": "plant",
        "table": str(path),
        "columns": {"url": "url", "caption": "caption"},
        **changes,
    }
    return SourceSettings.model_validate(values)


def table(given: SourceSettings) -> TableReader:
    reader = given.reader
    assert isinstance(reader, TableReader)
    return reader


def read(given: SourceSettings) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]], list[tuple[int, str]]]:
    """Rows in order, rows by their number, and malformed rows."""
    rows: list[dict[str, Any]] = []
    by_number: dict[int, dict[str, Any]] = {}
    malformed: list[tuple[int, str]] = []
    for batch in table(given).batches():
        found = batch.rows.to_pylist()
        rows += found
        by_number.update(zip(batch.numbers.tolist(), found, strict=True))
        malformed += batch.malformed
    assert len(by_number) == len(rows)
    assert not {number for number, _ in malformed} & set(by_number)
    return rows, by_number, malformed
