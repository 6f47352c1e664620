"""Scorers of a config: how they are found, checked before work, and loaded once a process.

Reads the `score` settings and imports the modules that plug-ins name. Raises ConfigError when a scorer cannot be used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from manifests.errors import ConfigError, PartError
from manifests.services.packages import load_named
from pipeline.scoring.settings import CLIP, PluginSettings, ScoreSettings

GONE = {"pipeline.scoring.nsfw:NsfwScorer", *(f"pipeline.scoring.kinds:{one}Scorer" for one in ("Face", "Text"))}


class Box(NamedTuple):
    """A place in a picture: its sides as shares of width and height, and how sure the scorer is of it, 0 to 1."""

    left: float
    top: float
    right: float
    bottom: float
    confidence: float

    def is_place(self, width_px: int, height_px: int) -> bool:
        """Return whether the box covers at least a pixel of a picture of this size: blurring changes something."""
        wide, high = (self.right - self.left) * width_px, (self.bottom - self.top) * height_px
        within = min(self.left, self.top) >= 0 and max(self.right, self.bottom) <= 1
        return all(map(math.isfinite, self)) and within and min(wide, high) >= 1


class Scorer(Protocol):
    """A model that gives one number to each image with its text.

    A class may have `check`, which raises ConfigError cheaply, before any work, when `load` cannot succeed; without it
    `load` itself is tried. A class may have `version`, which keeps scores of changed code apart, as its file does.

    A class with `boxes(images)` in place of `score` is a detector: it gives each picture a list of `Box`, whatever lies
    beside it in the batch. Its score is the confidence of the surest box, 0 without one.
    """

    name: str

    def load(self) -> None:
        """Get the model ready; called once a worker. Raises: ConfigError when that is not possible."""

    def score(self, images: Sequence[Any], texts: Sequence[str]) -> Sequence[float]:
        """One number a pair; the text may be "". `images` are PIL images in RGB; a batch has the configured length."""


def make_scorer(settings: ScoreSettings, name: str) -> Scorer:
    """Return the scorer of this name, not loaded.

    Raises: ConfigError when its module or class cannot be imported, or the class does not take its options.
    """
    if name == CLIP:
        from pipeline.scoring.clip import ClipScorer

        return ClipScorer(str(settings.model), str(settings.pretrained), settings.precision, settings.device)
    return _make_plugin(next(plugin for plugin in settings.plugins if plugin.name == name))


def _make_plugin(plugin: PluginSettings) -> Scorer:
    where = f"score.plugins.{plugin.name}"
    if plugin.scorer in GONE:
        raise ConfigError(
            f"{where}: {plugin.scorer} is gone; the recipe configs/recipes/faces has a detector of 30 "
            "lines to copy, which you name here"
        )
    kind = load_named(where, plugin.scorer)
    try:
        scorer: Scorer = kind(**plugin.options)
    except TypeError as error:
        raise ConfigError(f"{where}: {plugin.scorer} does not take these options: {error}") from None
    words = ("name", "load", "boxes" if hasattr(scorer, "boxes") else "score")
    lacking = [word for word in words if not hasattr(scorer, word)]
    if lacking:
        raise ConfigError(f"{where}: {plugin.scorer} is no scorer: it has no {', '.join(lacking)}")
    return scorer


def check_scorers(settings: ScoreSettings) -> None:
    """Make sure that every scorer can be used, before any work.

    Raises: ConfigError.
    """
    for name in settings.scorers:
        scorer = make_scorer(settings, name)
        getattr(scorer, "check", scorer.load)()
        if not hasattr(scorer, "boxes") and any(
            rule.scorer == name and rule.action == "blur" for rule in settings.rules
        ):
            raise ConfigError(
                f"score.rules: {name} gives no boxes, so there is nothing to blur; name a scorer with `boxes`, such "
                "as that of the recipe configs/recipes/faces, or take `action: drop` or `action: flag`"
            )


@lru_cache(maxsize=1)
def _load(settings_json: str, name: str) -> Scorer:
    scorer = make_scorer(ScoreSettings.model_validate_json(settings_json), name)
    scorer.load()
    return scorer


def loaded_scorer(settings: ScoreSettings, name: str) -> Scorer:
    """Return the scorer, loaded once a process: later parts in the same worker find it ready."""
    return _load(settings.model_dump_json(exclude={"rules"}), name)


def find_boxes(detector: Any, images: Sequence[Any]) -> tuple[list[float], list[Sequence[Box]]]:
    """Scores and boxes of a batch, which is not filled up: a detector looks at each picture alone.

    Raises: PartError for a box that is none.
    """
    given = detector.boxes(images)
    try:
        boxes = [[Box(*map(float, box)) for box in found] for _, found in zip(images, given, strict=True)]
    except (TypeError, ValueError) as error:
        raise PartError(
            f"score: the scorer {detector.name} gave no list of boxes, of five numbers each, for each of {len(images)} "
            f"pictures: {error}. Mend the scorer, then build again"
        ) from None
    for image, box in ((image, box) for image, found in zip(images, boxes, strict=True) for box in found):
        if not box.is_place(*image.size):
            raise PartError(
                f"score: the scorer {detector.name} gave {box} for a picture of {image.width} x {image.height} pixels. "
                "Sides are shares from 0 to 1, left before right and top before bottom, a pixel apart or more. Mend "
                "the scorer, then build again"
            )
    return [max((box.confidence for box in found), default=0.0) for found in boxes], list(boxes)


def score_batch(
    scorer: Scorer, images: Sequence[Any], texts: Sequence[str], batch_size: int, decimals: int = 4
) -> list[float]:
    """Scores of one batch, rounded.

    A score must not depend on the other pairs of its batch, but kernels choose their order of summing by the shape. So
    the batch is filled up to `batch_size` with its last pair. Rounding hides what differs still (1e-7).

    Raises: ConfigError for too few or too many; PartError for what is no number.
    """
    num = len(images)
    missing = batch_size - num
    given = scorer.score([*images, *[images[-1]] * missing], [*texts, *[texts[-1]] * missing])
    try:
        scores = [round(float(score), decimals) for score in given]
    except (TypeError, ValueError) as error:
        raise PartError(
            f"score: the scorer {scorer.name} gave something that is no number: {error}. Mend the scorer, then build "
            "again"
        ) from None
    if len(scores) != batch_size:
        raise ConfigError(f"score: the scorer {scorer.name} gave {len(scores)} scores for {batch_size} images")
    return scores[:num]
