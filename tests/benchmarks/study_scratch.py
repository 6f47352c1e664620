"""The regime `scratch` of the study: a ViT 128 wide and a text tower, trained from their start on pictures of 60 px."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from learning_pictures import CONTEXT, VIEW_PX, Data
from study_arms import EMBED_DIM


class Scratch:
    """Pictures decoded once by `learning_pictures.prepare`, and the texts of their rows."""

    name = "scratch"

    def __init__(self, work: Path) -> None:
        self.work, self.data = work, Data(work)
        self.by_split, self.rows = self.data.by_split, self.data.rows

    def architecture(self, times_wider: int) -> Path:
        width, vocabulary = EMBED_DIM["scratch"], len(self.data.vocabulary)
        path = self.work / f"study-vit-{width}-{times_wider}-{vocabulary}.json"
        vision = {"image_size": VIEW_PX, "layers": 3, "width": width, "head_width": 32, "patch_size": 10}
        text = {
            "context_length": CONTEXT, "vocab_size": vocabulary, "width": width, "heads": width // 32, "layers": 2
        }  # fmt: skip
        path.write_text(json.dumps({"embed_dim": times_wider * width, "vision_cfg": vision, "text_cfg": text}))
        return path

    def pictures(self, rows: list[int], rng: np.random.Generator | None) -> Any:
        return self.normalised(self.data.views(rows, rng))

    def normalised(self, pixels: Any) -> Any:
        """uint8 pictures as the towers take them, by the mean and deviation of open_clip."""
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        from training.data.images import normalise

        return normalise(pixels, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)

    def texts(self, rows: list[int], rng: np.random.Generator) -> Any:
        import torch

        return torch.stack([self.data.tokens[row][int(rng.integers(len(self.data.tokens[row])))] for row in rows])

    def encode_texts(self, texts: list[str]) -> Any:
        return self.data.encode(texts)
