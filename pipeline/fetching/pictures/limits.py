"""The limits that refuse a picture for its size: for one that is open now, and as SQL over facts that are stored."""

from __future__ import annotations

from dataclasses import dataclass

from manifests.contract.outcomes import Outcome
from pipeline.fetching.pictures.settings import ImageSettings

PIXELS = "width_px::BIGINT * height_px"
SHORTER_SIDE = "least(width_px, height_px)"
ASPECT_RATIO = "greatest(width_px, height_px) / least(width_px, height_px)"
_SIZE = "{width_px} x {height_px} px"


@dataclass(frozen=True)
class Limit:
    """One limit: the setting of `ImageSettings` that holds it, what it is compared with, and what a refusal says."""

    outcome: Outcome
    setting: str
    measured: str  # SQL over facts
    detail: str  # names of facts in braces, and `limit`
    is_least: bool = False

    def shown(self, image: ImageSettings) -> str:
        """Return the limit as text."""
        value = getattr(image, self.setting)
        return f"{value:g}" if isinstance(value, float) else str(value)

    def is_broken(self, image: ImageSettings) -> str:
        """Return SQL that tells whether a fact breaks it."""
        return f"{self.measured} {'<' if self.is_least else '>'} {getattr(image, self.setting)}"

    def detail_sql(self, image: ImageSettings) -> str:
        """Return SQL for what a refusal says of a fact."""
        text = self.detail.replace("{limit}", self.shown(image))
        return "'" + text.replace("{", "' || ").replace("}", " || '") + "'"


# in the order in which a download meets them
LIMITS = (
    Limit(Outcome.BODY_TOO_LARGE, "max_body_bytes", "num_bytes", "{num_bytes} bytes, allowed {limit}"),
    Limit(Outcome.TOO_MANY_PIXELS, "max_pixels", PIXELS, f"{_SIZE}, allowed {{limit}} pixels"),
    Limit(Outcome.IMAGE_TOO_SMALL, "min_side_px", SHORTER_SIDE, f"{_SIZE}, shortest side allowed {{limit}}", True),
    Limit(Outcome.ASPECT_TOO_EXTREME, "max_aspect_ratio", ASPECT_RATIO, f"{_SIZE}, ratio allowed {{limit}}"),
)
_, _, SIDE, RATIO = LIMITS


def refusal_of_shape(width_px: int, height_px: int, image: ImageSettings) -> tuple[Outcome, str] | None:
    """Outcome and detail of a picture whose sides are too short or too different; None when it passes."""
    if min(width_px, height_px) < image.min_side_px:
        limit = SIDE
    elif max(width_px, height_px) / min(width_px, height_px) > image.max_aspect_ratio:
        limit = RATIO
    else:
        return None
    return limit.outcome, limit.detail.format(width_px=width_px, height_px=height_px, limit=limit.shown(image))
