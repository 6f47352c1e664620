"""What a measurement says, as columns of the table of facts (manifests.tables.FACTS)."""

from __future__ import annotations

from typing import Any

from pipeline.pictures.image import Rejected, Seen, StoredImage

Fact = dict[str, Any]


def fact_of(result: StoredImage | Rejected) -> Fact:
    """What a measurement adds to the fact of a row."""
    if isinstance(result, Rejected):
        return {"outcome": result.outcome.value, "detail": result.detail, **_seen_fact(result.seen)}
    return _stored_fact(result)


def _seen_fact(seen: Seen | None) -> Fact:
    if seen is None:
        return {}
    return {
        "num_bytes": seen.num_bytes,
        "image_id": seen.image_id,
        "width_px": seen.width_px,
        "height_px": seen.height_px,
        "format": seen.format,
        "mode": seen.mode,
        "exif_orientation": seen.exif_orientation,
    }


def _stored_fact(image: StoredImage) -> Fact:
    return {
        **_seen_fact(image.seen),
        "stored_sha256": image.stored_sha256,
        "pixels_sha256": image.pixels_sha256,
        "phash": image.phash,
        "stored_width_px": image.stored_width_px,
        "stored_height_px": image.stored_height_px,
        "pixel_std": image.pixel_std,
    }
