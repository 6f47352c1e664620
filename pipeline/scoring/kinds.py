"""Kinds of pictures, named by prompts or by folders of examples.

    score:
      plugins:
        - name: maps
          scorer: "pipeline.scoring.kinds:KindScorer"
          options: {model: ViT-B-32, pretrained: weights.pt, of: [map, drawing]}
      rules:
        - {scorer: maps, max_score: 0.7}

An open_clip model looks at each picture and ignores its text. Faces, text and nudity need a detector of your own: the
recipe configs/recipes/faces has one in 30 lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.errors import ConfigError
from manifests.stores import storage
from pipeline.scoring.clip import ClipScorer

PROMPTS: dict[str, list[str]] = {
    "people": ["a photo of a person", "a photo of people", "a photo of a face"],
    "specimen_sheet": ["a herbarium sheet with a pressed plant", "a scan of a pressed plant specimen with labels"],
    "label_or_text": ["a photo of a label", "a scan of a page of text"],
    "drawer": ["a museum drawer of specimens", "a box of pinned insects"],
    "drawing": ["a drawing", "a botanical illustration", "clip art"],
    "map": ["a map", "a distribution map of a species"],
    "empty_frame": ["an empty background", "a photo of nothing"],
    "living": ["a photo of a living plant in nature", "a photo of a wild animal", "a photo of a mushroom in nature"],
}
"""Kinds that `KindScorer` tells apart unless it is given others."""


class KindScorer:
    """Probability that a picture is one of the kinds `of`, by an open_clip model on the CPU.

    `kinds` names all kinds that are told apart: each by a list of prompts, or each by a folder of example pictures. A
    kind is the mean of its embeddings, and the probability a softmax over the kinds at the model's own logit_scale.
    """

    name = "kind"

    def __init__(self, model: str, pretrained: str, of: Sequence[str], kinds: Mapping[str, Any] = PROMPTS) -> None:
        self._clip = ClipScorer(model, pretrained, where="score.plugins.options")
        self._of = [of] if isinstance(of, str) else list(of)
        self._kinds = dict(kinds)

    def check(self) -> None:
        """Raise ConfigError when the model or an example cannot be used, or `of` names no kind."""
        where, folders = "score.plugins.options", [isinstance(value, str) for value in self._kinds.values()]
        if not self._of or set(self._of) - set(self._kinds):
            raise ConfigError(f"{where}.of: {self._of}: name one or more of: {', '.join(sorted(self._kinds))}")
        if len(folders) < 2 or len(set(folders)) > 1:
            raise ConfigError(f"{where}.kinds: give at least two, all by prompts or all by folders")
        for kind, examples in self._kinds.items():
            if not (_pictures_in(examples) if isinstance(examples, str) else examples):
                raise ConfigError(f"{where}.kinds.{kind}: there is no picture in {examples}")
        self._clip.check()

    def load(self) -> None:
        """Load the model and embed prompts or examples."""
        self._clip.load()
        vectors = [self._vector(examples) for _, examples in sorted(self._kinds.items())]
        self._vectors_DK = np.stack(vectors, axis=1)
        self._columns = [sorted(self._kinds).index(kind) for kind in self._of]

    def score(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
        """One probability a picture."""
        logits_BK = self._clip.logit_scale * (self._clip.embed(images) @ self._vectors_DK)
        weights_BK = np.exp(logits_BK - logits_BK.max(axis=1, keepdims=True))
        shares: list[float] = (weights_BK[:, self._columns].sum(axis=1) / weights_BK.sum(axis=1)).tolist()
        return shares

    def _vector(self, examples: Any) -> npt.NDArray[np.float32]:
        folder = isinstance(examples, str)
        embed = self._clip.embed if folder else self._clip.embed_texts
        embedded = [embed([one]) for one in (_pictures_in(examples) if folder else examples)]
        mean: npt.NDArray[np.float32] = np.concatenate(embedded).mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-9)


def _pictures_in(folder: str) -> list[Any]:
    """Return the files of a folder as RGB pictures, ordered by their content and not by name.

    Raises: ConfigError when one is no picture.
    """
    from manifests.pictures.opening import Unreadable, open_picture, upright_srgb

    pictures = {}
    for path in storage.files_in(folder):
        body = b"".join(storage.read_chunks(path))
        try:
            pictures[hashlib.sha256(body).digest()] = upright_srgb(open_picture(body))
        except Unreadable as why:
            raise ConfigError(f"score.plugins.options.kinds: {path} cannot be read: {why}") from None
    return [picture for _, picture in sorted(pictures.items())]
