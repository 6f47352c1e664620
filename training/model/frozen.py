"""A CLIP on frozen towers: it takes their tokens, which are computed once, and trains only what lies behind them.

An architecture file names the two towers and the widths; `training.model.backbones` loads the towers themselves when a
picture or a text comes in instead of its tokens. Their weights are no part of this model: a checkpoint holds the heads.

Tokens of a batch are (B, 1 + M, W): the pooled feature of the tower, then its tokens; rows of zeros are padding.

Shape letters: `B` batch, `M` tokens, `V` width of the tower, `W` width that is kept of it, `C` embedding width.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from manifests.errors import ConfigError
from training.model.backbones import Backbone, load_backbone
from training.model.towers import TowerOutput

Side = Literal["image", "text"]

COMPONENTS_FILE = "components.npz"  # of `dalip tokens`: mean and directions of either tower


class FrozenTower(nn.Module):
    """Behind one tower: the reduction of its width, fixed, and the projection to the embedding, trained."""

    reduce_mean: Tensor
    reduce_basis: Tensor

    def __init__(self, side: Side, settings: dict[str, Any], embed_dim: int) -> None:
        super().__init__()
        try:
            self.name, full, width = settings["frozen_tower"], settings["tower_width"], settings["width"]
        except KeyError as error:
            raise ConfigError(f"an architecture on frozen towers needs {error} in its {side} part") from None
        self.side, self.num_tokens = side, int(settings["num_tokens"])
        self.preprocess_cfg = dict(settings.get("preprocess", {}))
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, embed_dim))
        # Principal components of the tower's tokens; the identity where the whole width is kept.
        self.register_buffer("reduce_mean", torch.zeros(full))
        self.register_buffer("reduce_basis", torch.eye(full, width))
        self._weights = settings.get("weights")
        self._loaded: list[Backbone] = []  # in a list: no part of the state, and no module to move or train

    def use(self, backbone: Backbone) -> None:
        """Run this tower, which is loaded already."""
        self._loaded = [backbone]

    def backbone(self) -> Backbone:
        """The tower itself, loaded at the first call.

        Raises: ConfigError when it cannot be loaded, or has other weights than those that the tokens came from.
        """
        if not self._loaded:
            backbone = load_backbone(self.name, self.side)
            if self._weights is not None and backbone.fingerprint != self._weights:
                raise ConfigError(
                    f"{self.name}: has other weights than those this model was trained on "
                    f"({backbone.fingerprint[:12]}, not {self._weights[:12]}); install the version that was used"
                )
            self._loaded.append(backbone)
        return self._loaded[0]

    @torch.no_grad()
    def tokens_of(self, inputs: Any) -> Tensor:
        """The tower on pictures (B, 3, H, W) or on a list of texts: tokens as this model takes them.

        Raises: ConfigError for tokens of another number or width than the model was made for.
        """
        pooled_BV, tokens_BMV, mask_BM = self.backbone().run(inputs)
        if tokens_BMV.shape[1] != self.num_tokens or tokens_BMV.shape[2] != len(self.reduce_mean):
            raise ConfigError(
                f"{self.name}: gives tokens {tuple(tokens_BMV.shape[1:])}, the model was made for "
                f"({self.num_tokens}, {len(self.reduce_mean)}); every batch needs the same number, padded where needed"
            )
        device = self.proj.device
        rows_BNV = torch.cat([pooled_BV.unsqueeze(1), tokens_BMV], dim=1).to(device, torch.float32)
        rows_BNW = (rows_BNV - self.reduce_mean) @ self.reduce_basis
        if mask_BM is not None:
            rows_BNW[:, 1:] *= mask_BM.unsqueeze(-1).to(device)
        return rows_BNW

    def output(self, tokens_BNW: Tensor) -> TowerOutput:
        """The input of the second branch: the tokens as they are kept, and their projection. Padding is always masked.

        Left to the branch, the projection is one product with its own first layer, and tokens without gradients cost
        two products of their size a step instead of five.
        """
        pooled_BW, tokens_BMW, mask_BM = self.split(tokens_BNW)
        return TowerOutput(pooled_BW @ self.proj, tokens_BMW, mask_BM, self.proj)

    def split(self, tokens_BNW: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Pooled feature (B, W), tokens (B, M, W) and, for texts, which of them count (B, M)."""
        tokens_BNW = tokens_BNW.to(self.proj.dtype)
        pooled_BW, tokens_BMW = tokens_BNW[:, 0], tokens_BNW[:, 1:]
        return pooled_BW, tokens_BMW, (tokens_BMW != 0).any(dim=-1) if self.side == "text" else None


def load_components(clip: FrozenCLIP, folder: Path) -> None:
    """Take the directions that `dalip tokens` kept of either tower.

    Raises: ConfigError for a folder that has none, or others than the model was made for.
    """
    path = folder / COMPONENTS_FILE
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != clip.components:
        raise ConfigError(f"{path}: is not what this architecture was made with; give the architecture.json beside it")
    with np.load(path) as stored:
        for side, tower in (("image", clip.visual), ("text", clip.text)):
            stored_shape, shape = stored[f"{side}_basis"].shape, tuple(tower.reduce_basis.shape)
            if stored_shape != shape:
                raise ConfigError(
                    f"{path}: keeps {stored_shape[1]} of {stored_shape[0]} numbers of a token of {tower.name}, "
                    f"not {shape[1]} of {shape[0]}; choose another folder"
                )
            tower.reduce_mean.copy_(torch.from_numpy(stored[f"{side}_mean"]))
            tower.reduce_basis.copy_(torch.from_numpy(stored[f"{side}_basis"]))


class FrozenCLIP(nn.Module):
    """The part of an open_clip model that the rest of the code calls, on frozen towers."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.visual = FrozenTower("image", config["vision_cfg"], config["embed_dim"])
        self.text = FrozenTower("text", config["text_cfg"], config["embed_dim"])
        self.context_length = 1 + self.text.num_tokens
        self.components = config.get("components")
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def image_tokens(self, images: Tensor) -> Tensor:
        """Tokens (B, 1 + M, W) as they are; of pictures (B, 3, H, W) the tower is run."""
        return self.visual.tokens_of(images) if images.ndim == 4 else images

    def encode_image(self, images: Tensor) -> Tensor:
        """f of tokens (B, 1 + M, W), or of pictures (B, 3, H, W)."""
        return self.visual.split(self.image_tokens(images))[0] @ self.visual.proj

    def encode_text(self, tokens_BNW: Tensor) -> Tensor:
        """f of tokens (B, 1 + M, W)."""
        return self.text.split(tokens_BNW)[0] @ self.text.proj

    def tokenizer(self, texts: list[str]) -> Tensor:
        """In place of a tokenizer: texts to the tokens of the text tower."""
        return self.text.tokens_of(texts)
