"""The regime `lit` of the study: frozen towers out of packages, tokens computed once, heads trained on them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study_arms import EMBED_DIM

IMAGE_TOWER, TEXT_TOWER = "study_towers:efficientnet_lite2", "study_towers:minilm"
WIDTH = 256  # what is kept of 1,280 and of 384
FITTED_PICTURES, FITTED_TOKENS = 1024, 100_000  # that the principal components come from, all of training
_BATCH = 32


class LiT:
    """Rows of `learning_pictures` with `path` and `texts`, and the tokens of both towers."""

    name = "lit"

    def __init__(self, work: Path, rows: list[dict[str, Any]]) -> None:
        from training.data.tokens import TokenStore

        self.work, self.rows = work, rows
        self.by_split: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            self.by_split.setdefault(row["split"], []).append(number)
        self._image, self._text = TokenStore(work / "image"), TokenStore(work / "text")
        self._first_text = np.cumsum([0] + [len(row["texts"]) for row in rows])
        self._clip: Any = None
        self._encoded: dict[tuple[str, ...], Any] = {}  # judging asks for the same texts for every run

    def architecture(self, times_wider: int) -> Path:
        path = self.work / f"study-lit-{times_wider}.json"
        path.write_text(json.dumps(_config(self.work) | {"embed_dim": times_wider * EMBED_DIM["lit"]}))
        return path

    def pictures(self, rows: list[int], rng: np.random.Generator | None) -> Any:
        """There is one view, so `rng` is not used."""
        import torch

        return torch.from_numpy(self._image.read(rows)).float()

    def texts(self, rows: list[int], rng: np.random.Generator) -> Any:
        import torch

        chosen = [int(self._first_text[row]) + int(rng.integers(len(self.rows[row]["texts"]))) for row in rows]
        return torch.from_numpy(self._text.read(chosen)).float()

    def encode_texts(self, texts: list[str]) -> Any:
        import torch

        if self._clip is None:
            self._clip = _towers(self.work)
        key = tuple(texts)
        if key not in self._encoded:
            parts = [self._clip.text.tokens_of(texts[start : start + 256]) for start in range(0, len(texts), 256)]
            self._encoded[key] = torch.cat(parts)
        return self._encoded[key]

    def encode_files(self, paths: Sequence[str]) -> Any:
        """Pictures that are in no store: the sealed ones."""
        import torch

        if self._clip is None:
            self._clip = _towers(self.work)
        parts = [_run_pictures(self._clip, paths[start : start + _BATCH]) for start in range(0, len(paths), _BATCH)]
        return torch.cat(parts).half().float()  # as the store keeps them


def compute_tokens(work: Path, rows: list[dict[str, Any]], say: Callable[[str], None]) -> None:
    """Principal components of both towers, then the tokens of all pictures and texts; goes on where it was."""
    import torch

    from training.data.tokens import fill_store, principal_components
    from training.model.backbones import load_backbone

    torch.set_num_threads(1)
    texts = [text for row in rows for text in row["texts"]]
    for side, tower in (("image", IMAGE_TOWER), ("text", TEXT_TOWER)):
        path = work / f"{side}-components.npz"
        if path.is_file():
            continue
        rng, backbone = np.random.default_rng(0), load_backbone(tower, side)
        training = [i for i, row in enumerate(rows) if row["split"].endswith("_train")]
        chosen = rng.permutation(training)[:FITTED_PICTURES].tolist()
        found = []
        for start in range(0, len(chosen), _BATCH):
            part = chosen[start : start + _BATCH]
            given = (
                _pixels(backbone, [rows[i]["path"] for i in part])
                if side == "image"
                else [rows[i]["texts"][0] for i in part]
            )
            _, tokens, mask = backbone.run(given)
            found.append((tokens.flatten(0, 1) if mask is None else tokens[mask]).numpy())
        every = np.concatenate(found)
        every = every[rng.permutation(len(every))[:FITTED_TOKENS]]
        mean, basis = principal_components(every, WIDTH)
        kept = float(((every - mean) @ basis).var(axis=0).sum() / every.var(axis=0).sum())
        np.savez(path.with_suffix(".part.npz"), mean=mean, basis=basis, weights=backbone.fingerprint, kept=kept)
        path.with_suffix(".part.npz").replace(path)
        say(f"{side}: {WIDTH} components of {len(mean)} keep {kept:.1%} of the variance of {len(every):,} tokens")
    clip = _towers(work)
    started = time.time()

    def told(side: str) -> Callable[[int, int], None]:
        return lambda done, total: say(f"{side}: {done} of {total} chunks, {time.time() - started:.0f} s")

    fill_store(
        work / "text", {"tower": TEXT_TOWER, "weights": clip.text._weights, "width": WIDTH}, len(texts),
        lambda part: np.concatenate([
            clip.text.tokens_of([texts[i] for i in part[start : start + _BATCH]]).numpy()
            for start in range(0, len(part), _BATCH)
        ]), told("text"),
    )  # fmt: skip
    fill_store(
        work / "image", {"tower": IMAGE_TOWER, "weights": clip.visual._weights, "width": WIDTH}, len(rows),
        lambda part: np.concatenate([
            _run_pictures(clip, [rows[i]["path"] for i in part[start : start + _BATCH]]).numpy()
            for start in range(0, len(part), _BATCH)
        ]), told("image"),
    )  # fmt: skip


def _config(work: Path) -> dict[str, Any]:
    """The architecture of the towers, without its embed_dim."""
    from study_towers import MAX_TOKENS

    with np.load(work / "image-components.npz") as image, np.load(work / "text-components.npz") as text:
        weights = str(image["weights"]), str(text["weights"])
    preprocess = {
        "size": 260, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"
    }  # fmt: skip
    return {
        "embed_dim": EMBED_DIM["lit"],
        "vision_cfg": {
            "frozen_tower": IMAGE_TOWER, "tower_width": 1280, "width": WIDTH, "num_tokens": 81,
            "weights": weights[0], "preprocess": preprocess,
        },
        "text_cfg": {
            "frozen_tower": TEXT_TOWER, "tower_width": 384, "width": WIDTH, "num_tokens": MAX_TOKENS,
            "weights": weights[1],
        },
    }  # fmt: skip


def _towers(work: Path) -> Any:
    """The two towers with their principal components."""
    import torch

    from training.model.frozen import FrozenCLIP

    clip = FrozenCLIP(_config(work))
    for side, tower in (("image", clip.visual), ("text", clip.text)):
        with np.load(work / f"{side}-components.npz") as stored:
            tower.reduce_mean.copy_(torch.from_numpy(stored["mean"]))
            tower.reduce_basis.copy_(torch.from_numpy(stored["basis"]))
    return clip


def _run_pictures(clip: Any, paths: Sequence[str]) -> Any:
    return clip.visual.tokens_of(_pixels(clip.visual.backbone(), paths))


def _pixels(backbone: Any, paths: Sequence[str]) -> Any:
    """Pictures on white, in the tower's own view, normalised."""
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    transform = image_transform_v2(PreprocessCfg(**backbone.preprocess), is_train=False)
    pictures = []
    for path in paths:
        with Image.open(path) as picture:
            picture.draft("RGB", (520, 520))
            found = picture.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", found.size, (255, 255, 255, 255)), found).convert("RGB")
        side = max(flat.size)
        square = Image.new("RGB", (side, side), (255, 255, 255))
        square.paste(flat, ((side - flat.size[0]) // 2, (side - flat.size[1]) // 2))
        pictures.append(transform(square))
    return torch.stack(pictures)
