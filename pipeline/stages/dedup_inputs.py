"""All that the steps of dedup read, in one typed list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config import EvaluationSet
from pipeline.pictures.settings import ImageSettings
from pipeline.store.files import Files, Named


@dataclass(frozen=True)
class SetInputs:
    """One evaluation set: its settings, and hashes of all that its images depend on."""

    settings: EvaluationSet
    content: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        """What leaks depend on. `unreadable` is left out: it only decides whether a build stops."""
        return {
            **self.settings.identity(),
            "inputs": list(self.content),
            "radius": self.settings.radius,
            "mirrored": True,
            "match_names": self.settings.match_names,
        }


@dataclass(frozen=True)
class SemanticInputs:
    """Model and thresholds of semantic duplicates; model and weights count by the content of their files."""

    model: Named
    weights: Named
    threshold: float
    images_per_cluster: int
    seed: int


@dataclass(frozen=True)
class DedupInputs:
    """All that dedup reads. `candidates` count only when an evaluation set is matched by names."""

    facts: Files
    candidates: Files
    radius: int
    placeholder_min_count: int
    evaluation: tuple[SetInputs, ...]
    image: ImageSettings | None
    semantic: SemanticInputs | None
    num_images: int
