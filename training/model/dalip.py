"""A CLIP of open_clip with second-order branches beside its towers: settings in, a `DalipModel` out.

Reads an architecture (an open_clip name or a JSON file in open_clip's model format) and, when asked,
pretrained weights (an open_clip tag, a checkpoint file, or a folder in the Hugging Face layout). The CLIP
inside is open_clip's own module, unchanged. Writes nothing. Gives up with ConfigError for an unknown
architecture or tag, weights that do not fit, and towers without tokens.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from manifests.errors import ConfigError
from training.model import towers
from training.model.branch import BranchShape, DropoutAxis, NormKind, ReduceStart, SecondOrderBranch
from training.model.precision import full_precision, without_autocast
from training.model.presets import ModelSettings, SecondOrder, resolve_second_order

Role = Literal["image_tower", "text_tower", "second_order", "scale"]


class ParameterGroup(NamedTuple):
    """Parameters that share a learning rate and a weight decay."""

    role: Role
    decay: bool
    names: list[str]
    parameters: list[nn.Parameter]


class DalipModel(nn.Module):
    """An open_clip CLIP (`clip`) and, unless the preset is `clip`, two second-order branches beside it.

    `new_parameters` names what no pretrained weight was loaded into.
    """

    def __init__(self, clip: Any, settings: ModelSettings) -> None:
        super().__init__()
        self.clip = clip
        self.settings = settings
        self.second_order = resolve_second_order(settings)
        self.new_parameters: tuple[str, ...] = ()
        self._still: list[nn.Module] = []  # batch norms whose statistics are frozen
        self.image_branch: SecondOrderBranch | None = None
        self.text_branch: SecondOrderBranch | None = None
        self.logit_scale_second: nn.Parameter | None = None
        if getattr(clip, "logit_bias", None) is not None:
            # A softmax over rows and columns does not see a constant: it would get no gradient.
            clip.logit_bias.requires_grad_(False)
        if self.second_order is not None:
            self.image_branch, self.text_branch = _branches(clip, self.second_order)
            if self.second_order.temperature == "own":
                self.logit_scale_second = nn.Parameter(clip.logit_scale.detach().clone())

    @property
    def tokenizer(self) -> Any:
        """open_clip's tokenizer for this architecture: texts to ids (B, context length)."""
        from training.model.architecture import create_tokenizer

        return create_tokenizer(self.settings.architecture)

    @property
    def preprocess_settings(self) -> Any:
        """open_clip's `PreprocessCfg` (size, mean, std, interpolation, resize_mode) for `image_transform_v2`."""
        from open_clip.transform import PreprocessCfg

        return PreprocessCfg(**self.clip.visual.preprocess_cfg)

    @property
    def context_length(self) -> int:
        """Text positions."""
        return int(self.clip.context_length)

    def forward(self, images: Tensor, text_tokens: Tensor) -> dict[str, Tensor]:
        """Features of a batch of pairs, L2-normalised, and the scales (already exp'd).

        Keys: image_features, text_features, logit_scale; and, unless the preset is `clip`,
        image_second_order, text_second_order; and logit_scale_second when z has its own temperature.
        """
        output = {}
        if self.second_order is None:
            output["image_features"] = self.encode_image(images)
            output["text_features"] = self.encode_text(text_tokens)
        else:
            output["image_features"], output["image_second_order"] = self.encode_image(images, second_order=True)
            output["text_features"], output["text_second_order"] = self.encode_text(text_tokens, second_order=True)
        output["logit_scale"] = self.clip.logit_scale.exp()
        if self.logit_scale_second is not None:
            output["logit_scale_second"] = self.logit_scale_second.exp()
        return output

    @overload
    def encode_image(self, images: Tensor, *, normalize: bool = ..., second_order: Literal[False] = ...) -> Tensor: ...

    @overload
    def encode_image(
        self, images: Tensor, *, normalize: bool = ..., second_order: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    def encode_image(
        self, images: Tensor, *, normalize: bool = True, second_order: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The first-order feature f (B, C); with `second_order` the pair (f, z), each (B, C).

        Without `second_order` the branch is not run at all.
        """
        if not second_order:
            return _unit(self.clip.encode_image(images), normalize)
        placement, branch = self._need(self.image_branch)
        tower = towers.image_tower(self.clip, images, placement)
        z_BC = branch(tower.anchor, tower.tokens, tower.mask)
        return _unit(tower.feature, normalize), _unit(z_BC, normalize)

    @overload
    def encode_text(self, tokens: Tensor, *, normalize: bool = ..., second_order: Literal[False] = ...) -> Tensor: ...

    @overload
    def encode_text(
        self, tokens: Tensor, *, normalize: bool = ..., second_order: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    def encode_text(
        self, tokens: Tensor, *, normalize: bool = True, second_order: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The first-order feature f (B, C) of token ids (B, M); with `second_order` the pair (f, z)."""
        if not second_order:
            return _unit(self.clip.encode_text(tokens), normalize)
        placement, branch = self._need(self.text_branch)
        mask = self.second_order is not None and self.second_order.text_padding == "mask"
        tower = towers.text_tower(self.clip, tokens, placement, mask_padding=mask)
        z_BC = branch(tower.anchor, tower.tokens, tower.mask)
        return _unit(tower.feature, normalize), _unit(z_BC, normalize)

    def _need(self, branch: SecondOrderBranch | None) -> tuple[towers.Placement, SecondOrderBranch]:
        if branch is None or self.second_order is None:
            raise ConfigError("preset 'clip' has no second-order feature; use preset 'dalip' or 'released'")
        return self.second_order.placement, branch

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = True) -> None:
        """Freeze the image tower but for its last groups (LiT, as open_clip); its branch stays free.

        With `freeze_bn_stats` the batch norms of what is frozen normalise by the statistics they have, also in
        training. open_clip puts other modules in their place, which have other tensors: a checkpoint would not fit.
        """
        self.clip.lock_image_tower(unlocked_groups=unlocked_groups)
        if freeze_bn_stats:
            norms = [part for part in self.clip.visual.modules() if isinstance(part, _BatchNorm)]
            self._still = [part for part in norms if not any(value.requires_grad for value in part.parameters())]
            self.train(self.training)

    def train(self, mode: bool = True) -> DalipModel:
        """Training mode, or evaluation mode; batch norms whose statistics are frozen stay in the latter."""
        super().train(mode)
        for norm in self._still:
            norm.eval()
        return self

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freeze the text tower but for its last layers (as open_clip); its branch stays free."""
        self.clip.lock_text_tower(unlocked_layers=unlocked_layers, freeze_layer_norm=freeze_layer_norm)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the towers' blocks in the backward pass instead of keeping their activations."""
        self.clip.set_grad_checkpointing(enable)

    @torch.no_grad()
    def clamp_logit_scale(self, maximum: float) -> None:
        """Keep every scale, after exp, within [1, maximum]; call after each optimiser step.

        `released` does not clamp. CLIP's own bound is 100 (Radford et al. 2021).
        """
        for scale in (self.clip.logit_scale, self.logit_scale_second):
            if scale is not None:
                scale.clamp_(0.0, torch.log(torch.tensor(maximum)).item())

    def parameter_groups(self) -> list[ParameterGroup]:
        """Every trainable parameter once, by role and by whether weight decay applies.

        No decay for vectors and scalars (biases, norms, scales), as open_clip's trainer does. Empty groups are
        left out.
        """
        groups: dict[tuple[Role, bool], ParameterGroup] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            role, decay = parameter_role(name), parameter.ndim >= 2
            group = groups.setdefault((role, decay), ParameterGroup(role, decay, [], []))
            group.names.append(name)
            group.parameters.append(parameter)
        return list(groups.values())


def parameter_role(name: str) -> Role:
    """Which part a parameter of a `DalipModel` belongs to, by its name."""
    if "logit_scale" in name or "logit_bias" in name:
        return "scale"
    if name.startswith(("image_branch.", "text_branch.")):
        return "second_order"
    return "image_tower" if name.startswith("clip.visual.") else "text_tower"


def _branches(clip: Any, second: SecondOrder) -> tuple[SecondOrderBranch, SecondOrderBranch]:
    image_width, text_width, embed_dim = towers.probe_widths(clip, second.placement)
    if embed_dim % second.heads:
        raise ConfigError(
            f"second_order.heads is {second.heads}, which does not divide the embedding width {embed_dim}"
        )

    def shape(width: int, norm: NormKind, axis: DropoutAxis, start: ReduceStart) -> BranchShape:
        return BranchShape(
            token_width=width,
            embed_dim=embed_dim,
            heads=second.heads,
            reduced_width=second.reduced_width,
            norm=norm,
            dropout=second.dropout,
            dropout_axis=axis,
            projection=second.projection,
            projection_rank=second.projection_rank,
            reduce_start=start,
        )

    image = shape(image_width, second.image_norm, second.image_dropout_axis, second.image_reduce_start)
    text = shape(text_width, second.text_norm, second.text_dropout_axis, "linear")
    return SecondOrderBranch(image), SecondOrderBranch(text)


def _unit(features_BC: Tensor, normalize: bool) -> Tensor:
    """L2-normalised, in full precision whatever autocast says: in bfloat16 lengths are off by up to 0.4 %."""
    if not normalize:
        return features_BC
    with without_autocast(features_BC):
        return functional.normalize(full_precision(features_BC), dim=-1)
