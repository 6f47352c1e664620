"""A measurement as columns of the table of facts (manifests.tables.FACTS)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.pictures.image import Rejected, StoredImage

Fact = dict[str, Any]


def fact_of(result: StoredImage | Rejected) -> Fact:
    """What a measurement adds to the fact of a row: its fields have the names of the columns."""
    original = asdict(result.original) if result.original is not None else {}
    if isinstance(result, Rejected):
        return {"outcome": result.outcome.value, "detail": result.detail, **original}
    columns = asdict(result)
    del columns["original"], columns["body"]
    return original | columns
