"""Settings of pictures: size, quality, limits. All of them are identity: other values give other bytes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from manifests.contract.settings import Settings
from manifests.pictures.bounds import MOST_PIXELS

BACKGROUND = (255, 255, 255)  # sRGB colour under transparent pixels


class ImageSettings(Settings):
    """The look of a stored picture, and which pictures are refused."""

    size_px: Annotated[int, Field(ge=16, le=8192)] = 256
    """Length of the side that `resize` names. Pictures are made smaller, never larger."""
    resize: Literal["keep_ratio", "keep_ratio_largest", "no"] = "keep_ratio"
    """keep_ratio: the shorter side becomes size_px. keep_ratio_largest: the longer one. no: nothing is resized."""
    jpeg_quality: Annotated[int, Field(ge=30, le=100)] = 95
    """JPEG quality of pictures that are encoded anew."""
    keep_metadata: bool = False
    """true: a JPEG that is not encoded anew keeps EXIF (position, owner, thumbnail), XMP, IPTC, profile, comments."""
    min_side_px: Annotated[int, Field(ge=1)] = 32
    """Pictures with a shorter side below this end as image_too_small."""
    max_aspect_ratio: Annotated[float, Field(ge=1)] = 20.0
    """Longer over shorter side. Pictures above it end as aspect_too_extreme."""
    max_pixels: Annotated[int, Field(ge=1, le=MOST_PIXELS)] = 100_000_000
    """Pictures above it end as too_many_pixels, before anything is decoded. Formats that take more than 8 bytes a pixel
    to decode (WebP 17, JPEG 2000 20, AVIF and HEIF 10, transparent palettes 12) may have fewer pixels in proportion."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 50_000_000
    """A longer body is broken off and ends as body_too_large."""

    def identity(self) -> dict[str, Any]:
        """Return the values behind the bytes of a stored picture, and which are refused.

        The settings, and the background.
        """
        return self.model_dump(mode="json") | {"background": list(BACKGROUND)}

    def without_limits(self) -> ImageSettings:
        """Return the same settings with the default limits: what a picture becomes that passes them."""
        limits = ("min_side_px", "max_aspect_ratio", "max_pixels", "max_body_bytes")
        return self.model_copy(update={name: type(self).model_fields[name].default for name in limits})

    def of_any_shape(self) -> ImageSettings:
        """Return the same settings without limits on size and shape, for a picture of an evaluation set."""
        return self.model_copy(update={"min_side_px": 1, "max_aspect_ratio": float("inf")})
