"""A CLIP of open_clip with second-order branches beside its towers: settings in, a `DalipModel` out.

Reads an architecture (an open_clip name or a JSON file in open_clip's model format) and, when asked,
pretrained weights (an open_clip tag, a checkpoint file, or a folder in the Hugging Face layout). The CLIP
inside is open_clip's own module, unchanged. Writes nothing. Gives up with ConfigError for an unknown
architecture or tag, weights that do not fit, and towers without tokens.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from manifests.errors import ConfigError
from manifests.settings import Settings
from training import towers
from training.branch import BranchShape, DropoutAxis, NormKind, ProjectionKind, SecondOrderBranch
from training.mbdc import full_precision, without_autocast

logger = logging.getLogger(__name__)

Preset = Literal["clip", "released", "dalip"]
TextPadding = Literal["keep", "mask"]
Temperature = Literal["shared", "own"]
Role = Literal["image_tower", "text_tower", "second_order", "scale"]


class SecondOrderSettings(Settings):
    """What may be changed in the second-order branches; a key left out takes the preset's value."""

    heads: int | None = Field(default=None, ge=1)
    reduced_width: int | None = Field(default=None, ge=2)
    placement: towers.Placement | None = None
    text_padding: TextPadding | None = None
    image_norm: NormKind | None = None
    text_norm: NormKind | None = None
    dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    image_dropout_axis: DropoutAxis | None = None
    text_dropout_axis: DropoutAxis | None = None
    projection: ProjectionKind | None = None
    projection_rank: int | None = Field(default=None, ge=1)
    temperature: Temperature | None = None


class ModelSettings(Settings):
    """The `model` section of a training config."""

    preset: Preset = "dalip"
    architecture: str = Field(default="ViT-B-16", min_length=1)
    pretrained: str | None = None
    patch_dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    image_size_px: int | tuple[int, int] | None = None
    second_order: SecondOrderSettings = SecondOrderSettings()

    @model_validator(mode="after")
    def _no_branch_in_clip(self) -> ModelSettings:
        given = [name for name, value in self.second_order if value is not None]
        if self.preset == "clip" and given:
            raise ValueError(f"preset 'clip' has no second-order branch: remove {', '.join(given)}")
        return self


@dataclass(frozen=True)
class SecondOrder:
    """The second-order settings with every value known: a preset, with the user's changes on it."""

    heads: int
    reduced_width: int
    placement: towers.Placement
    text_padding: TextPadding
    image_norm: NormKind
    text_norm: NormKind
    dropout: float
    image_dropout_axis: DropoutAxis
    text_dropout_axis: DropoutAxis
    projection: ProjectionKind
    projection_rank: int
    temperature: Temperature


# The released behaviour, held by golden values in tests/unit/training/model: do not change a value here.
RELEASED = SecondOrder(
    heads=4,
    reduced_width=46,
    placement="after_projection",
    text_padding="keep",
    image_norm="batch",
    text_norm="layer",
    dropout=0.5,
    image_dropout_axis="channel",
    text_dropout_axis="token",
    projection="full",
    projection_rank=128,
    temperature="shared",
)

# Ours. What differs from the released code, and why; the loss that goes with it is the default of `training.loss`.
# "Small runs" are those of tests/benchmarks/results/learning.md: a ViT 128 wide, 300 steps. With f and z
# at test they could not tell settings of padding, norm and temperature apart.
DALIP = SecondOrder(
    heads=4,
    reduced_width=46,
    placement="after_projection",
    # A caption of 8 tokens leaves 69 of 77 positions to padding, which would make most of its statistics.
    text_padding="mask",
    # Batch statistics differ with the number of processes and with accumulation; with layer norm two processes equal
    # one to 1e-6 (tests/unit/training/model/test_loss.py). Layer norm undoes the anchor's weights of step 2, as in the
    # released text branch: another anchor moves the statistics by 0.0003, with batch norm by 0.14. In small runs
    # neither batch norm (3 seeds) nor weights behind the norm (1) learned more.
    image_norm="layer",
    text_norm="layer",
    # Small runs, mean of six tasks, 3 seeds: 0.5 costs f and z together 6.2 points (3.0 to 9.7), z alone 16.9.
    dropout=0.0,
    # Where dropout is asked for: dropping tokens empties a head's statistics with probability 0.5^tokens, 1 in 8 for a
    # caption of 3.
    image_dropout_axis="channel",
    text_dropout_axis="channel",
    # Nothing non-linear lies between the two released layers, so one reaches the same maps, with 5.0 M parameters more
    # than CLIP in place of 42.4 M; cost in tests/benchmarks/results/model_cost.md.
    projection="single",
    projection_rank=128,
    temperature="shared",
)


def resolve_second_order(settings: ModelSettings) -> SecondOrder | None:
    """The preset with the user's changes on it; None for preset `clip`."""
    if settings.preset == "clip":
        return None
    base = RELEASED if settings.preset == "released" else DALIP
    values = {name: value for name, value in settings.second_order if value is not None}
    return SecondOrder(**{**base.__dict__, **values})


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
        from training.architecture import create_tokenizer

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


def build_model(settings: ModelSettings) -> DalipModel:
    """Build the model on the CPU in float32, with pretrained weights when the settings name some.

    Raises: ConfigError for an unknown architecture, tag or file, weights that do not fit, towers without tokens.
    """
    from training import architecture, convert

    source = settings.pretrained
    folder = source is not None and Path(source).is_dir()
    own_checkpoint = source is not None and not folder and convert.is_dalip_checkpoint(source)
    clip = architecture.create_clip(
        settings.architecture,
        pretrained=None if folder or own_checkpoint else source,
        patch_dropout=settings.patch_dropout,
        image_size_px=settings.image_size_px,
    )
    model = DalipModel(clip, settings)
    loaded: set[str] = set()
    if source is not None:
        loaded = {f"clip.{name}" for name, _ in clip.named_parameters()}
        if folder or own_checkpoint:
            loaded = convert.load_weights(model, source)
    model.new_parameters = tuple(name for name, _ in model.named_parameters() if name not in loaded)
    logger.info(
        "%s, preset %s: %d parameters; %d tensors from %s; new: %s",
        settings.architecture,
        settings.preset,
        sum(parameter.numel() for parameter in model.parameters()),
        len(loaded),
        source or "no checkpoint",
        ", ".join(model.new_parameters) if loaded else "all",
    )
    return model


def _branches(clip: Any, second: SecondOrder) -> tuple[SecondOrderBranch, SecondOrderBranch]:
    image_width, text_width, embed_dim = towers.probe_widths(clip, second.placement)
    if embed_dim % second.heads:
        raise ConfigError(
            f"second_order.heads is {second.heads}, which does not divide the embedding width {embed_dim}"
        )

    def shape(width: int, norm: NormKind, axis: DropoutAxis) -> BranchShape:
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
        )

    return (
        SecondOrderBranch(shape(image_width, second.image_norm, second.image_dropout_axis)),
        SecondOrderBranch(shape(text_width, second.text_norm, second.text_dropout_axis)),
    )


def _unit(features_BC: Tensor, normalize: bool) -> Tensor:
    """L2-normalised, in full precision whatever autocast says: in bfloat16 lengths are off by up to 0.4 %."""
    if not normalize:
        return features_BC
    with without_autocast(features_BC):
        return functional.normalize(full_precision(features_BC), dim=-1)
