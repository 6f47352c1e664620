"""A measurement as columns of the table of facts (manifests.tables.FACTS)."""

from __future__ import annotations

from typing import Any

from pipeline.pictures.image import Original, Rejected, StoredImage

Fact = dict[str, Any]


def fact_of(result: StoredImage | Rejected) -> Fact:
    """What a measurement adds to the fact of a row."""
    if isinstance(result, Rejected):
        return {"outcome": result.outcome.value, "detail": result.detail, **_original_fact(result.original)}
    return _stored_fact(result)


def _original_fact(original: Original | None) -> Fact:
    if original is None:
        return {}
    return {
        "num_bytes": original.num_bytes,
        "image_id": original.image_id,
        "width_px": original.width_px,
        "height_px": original.height_px,
        "format": original.format,
        "mode": original.mode,
        "exif_orientation": original.exif_orientation,
    }


def _stored_fact(image: StoredImage) -> Fact:
    return {
        **_original_fact(image.original),
        "detail": image.detail,
        "stored_sha256": image.stored_sha256,
        "pixels_sha256": image.pixels_sha256,
        "phash": image.phash,
        "stored_width_px": image.stored_width_px,
        "stored_height_px": image.stored_height_px,
        "pixel_std": image.pixel_std,
    }
