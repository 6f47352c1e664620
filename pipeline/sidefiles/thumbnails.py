"""Stored images made small, for the pages about a work folder."""

from __future__ import annotations

import io
from typing import Any

from manifests.errors import IntegrityError
from pipeline.store.pool import STORED_COLUMNS, PoolReader

THUMBNAIL_PX = 144


def read_thumbnail(sql: Any, pool: PoolReader, sample_id: str) -> bytes | None:
    """A stored image as a small JPEG; None where nothing is stored or its bytes are gone."""
    from manifests.pictures.opening import open_stored

    query = f"SELECT {STORED_COLUMNS} FROM facts WHERE sample_id = ? AND outcome = 'ok'"
    rows = sql.execute(query, [sample_id]).fetchall()
    if not rows:
        return None
    try:
        content = pool.read(*rows[0])
    except IntegrityError:
        return None
    with open_stored(content) as picture:
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=75)
    return stream.getvalue()
