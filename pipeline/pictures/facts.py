"""A measurement as columns of the table of facts (manifests.tables.FACTS)."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pipeline.pictures.image import Original, Rejected, StoredImage

Fact = dict[str, Any]
_OF_ORIGINAL = [field.name for field in fields(Original)]
_OF_STORED = [field.name for field in fields(StoredImage) if field.name not in ("original", "body")]


def fact_of(result: StoredImage | Rejected) -> Fact:
    """What a measurement adds to the fact of a row: its fields have the names of the columns."""
    original = {name: getattr(result.original, name) for name in _OF_ORIGINAL} if result.original is not None else {}
    if isinstance(result, Rejected):
        return {"outcome": result.outcome.value, "detail": result.detail, **original}
    return original | {name: getattr(result, name) for name in _OF_STORED}
