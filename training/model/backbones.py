"""Frozen towers from elsewhere, by name: timm's, open_clip's, or a function in any module that Python can import.

    timm:vit_small_patch16_224.dino            timm downloads the weights, or finds them in its cache
    open_clip:ViT-B-16:laion2b_s34b_b88k       an open_clip model and tag (or checkpoint file)
    my_towers:efficientnet_lite2               a function without arguments that returns a `Backbone`

A tower turns a batch into a pooled feature, its tokens and, for texts, which tokens count. Reads weights; writes
nothing. Gives up with ConfigError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from manifests.errors import ConfigError, words_of
from manifests.services import model_hub
from manifests.services.packages import load_named
from training.model.architecture import create_clip, create_tokenizer
from training.model.towers import check_towers, image_tower, text_tower

Rows = tuple[Tensor, Tensor, Tensor | None]  # pooled (B, V), tokens (B, M, V), which of them count (B, M) or None


@dataclass(frozen=True)
class Backbone:
    """A frozen tower.

    `forward` takes normalised pictures (B, 3, H, W), or a list of texts. `preprocess` is open_clip's `PreprocessCfg` as
    a dict (size, mean, std, interpolation, resize_mode), for pictures. `network` holds the weights.
    """

    network: nn.Module
    forward: Callable[[Any], Rows]
    preprocess: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def run(self, inputs: Any) -> Rows:
        """The tower in evaluation mode."""
        self.network.eval()
        return self.forward(inputs)

    @property
    def fingerprint(self) -> str:
        """sha256 of every tensor of the network with its name."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_backbone(name: str, side: str) -> Backbone:
    """The tower of a name, for `side` image or text.

    Raises: ConfigError.
    """
    kind, _, rest = name.partition(":")
    try:
        if kind == "timm" and side == "image":
            return _from_timm(rest)
        if kind == "open_clip":
            return _from_open_clip(rest, side)
        made = load_named(f"the {side} tower '{name}'", name)()
    except ConfigError:
        raise
    except Exception as error:  # the libraries, and a function of anyone's, raise their own kinds
        raise ConfigError(f"the {side} tower '{name}' cannot be loaded: {words_of(error)}") from error
    if not isinstance(made, Backbone):
        raise ConfigError(
            f"the {side} tower '{name}' gives {type(made).__name__}, not a training.model.backbones.Backbone"
        )
    return made


def _from_timm(name: str) -> Backbone:
    import timm

    library: Any = timm  # half typed
    with model_hub.cache_without_hub():
        network = library.create_model(name, pretrained=True, num_classes=0)
    config = library.data.resolve_model_data_config(network)

    def forward(pictures: Tensor) -> Rows:
        features = network.forward_features(pictures)
        pooled_BV = network.forward_head(features, pre_logits=True)
        if features.ndim == 4:  # a convolutional trunk; its channels come second
            return pooled_BV, features.flatten(2).transpose(1, 2), None
        return pooled_BV, features[:, network.num_prefix_tokens :], None

    preprocess = {
        "size": config["input_size"][-1], "mean": config["mean"], "std": config["std"],
        "interpolation": config["interpolation"], "resize_mode": "shortest",
    }  # fmt: skip
    return Backbone(network, forward, preprocess)


def _from_open_clip(name: str, side: str) -> Backbone:
    architecture, _, tag = name.partition(":")
    if not tag:
        raise ConfigError(f"the {side} tower 'open_clip:{name}' names no weights: open_clip:NAME:TAG, or a file as TAG")
    clip = create_clip(architecture, pretrained=tag, key=f"the tag of {side}.tower")
    check_towers(clip, "before_projection")
    if side == "text":
        tokenizer = create_tokenizer(architecture)

        def forward_texts(texts: list[str]) -> Rows:
            output = text_tower(clip, tokenizer(texts), "before_projection", mask_padding=True)
            return output.feature, output.tokens, output.mask

        return Backbone(clip, forward_texts)

    def forward(pictures: Tensor) -> Rows:
        output = image_tower(clip, pictures, "before_projection")
        return output.feature, output.tokens, output.mask

    return Backbone(clip.visual, forward, dict(clip.visual.preprocess_cfg))
