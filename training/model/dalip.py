"""The model: a CLIP of open_clip, with second-order branches beside its towers.

The CLIP inside is open_clip's own module, unchanged. `training.model.build` makes a model from settings. Reads and
writes nothing. Gives up with ConfigError on towers without tokens.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from manifests.errors import ConfigError
from manifests.services import open_clip_api as open_clip
from training.model import towers
from training.model.adapters import Side, merged, name_of_weight, train_last_blocks
from training.model.architecture import architecture_config, create_tokenizer
from training.model.branch import BranchShape, SecondMomentBranch, SecondOrderBranch
from training.model.precision import full_precision, without_autocast
from training.model.presets import ModelSettings, SecondOrder, Statistic, resolve_second_order

_Branch = SecondOrderBranch | SecondMomentBranch
_BRANCHES: dict[Statistic, type[_Branch]] = {"brownian": SecondOrderBranch, "second_moment": SecondMomentBranch}
_LARGEST_CONDITION = 1e4  # of a projection whose inverse leaves z right to 1e-3

Role = Literal["image_tower", "text_tower", "second_order", "scale"]


class ParameterGroup(NamedTuple):
    """Parameters that share a learning rate and a weight decay."""

    role: Role
    decay: bool
    parameters: list[nn.Parameter]


class DalipModel(nn.Module):
    """An open_clip CLIP (`clip`) and, unless the preset is `clip`, two second-order branches beside it.

    With `projectors` the first-order feature of a picture has a projection for each kind of text. The first kind has
    that of the CLIP; each other one a matrix (C, C) behind it, which begins as the identity. The second-order feature
    is the same for all kinds: its branch reads tokens behind the CLIP's projection alone.

    `new_parameters` names the parameters without a pretrained weight, `unused_tensors` what the weights had beside.
    """

    def __init__(self, clip: Any, settings: ModelSettings) -> None:
        super().__init__()
        self.clip = clip
        self.settings = settings
        self.second_order = resolve_second_order(settings)
        self.new_parameters: tuple[str, ...] = ()
        self.unused_tensors: tuple[str, ...] = ()
        of_kinds = settings.projectors[1:]
        width = architecture_config(settings.architecture)["embed_dim"] if of_kinds else 0
        self.projectors = nn.ParameterDict({kind: torch.eye(width) for kind in of_kinds})
        self.terms = nn.ParameterDict()  # parameters of the loss, by the names that its task gives them
        self.trains_texts = True  # else `forward` leaves their features out: the loss needs none
        self.kind = 0  # number of the kind that a picture is projected for where nothing else is said
        self._frozen_norms: list[nn.Module] = []  # batch norms that keep their statistics in training
        self.image_branch: _Branch | None = None
        self.text_branch: _Branch | None = None
        if self.second_order is not None:
            self.image_branch, self.text_branch = _branches(clip, self.second_order)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.clip.logit_scale.device
        return device

    @property
    def tokenizer(self) -> Any:
        """open_clip's tokenizer for this architecture: texts to ids (B, context length)."""
        return create_tokenizer(self.settings.architecture)

    @property
    def preprocess_settings(self) -> Any:
        """open_clip's `PreprocessCfg` (size, mean, std, interpolation, resize_mode) for `image_transform_v2`."""
        return open_clip.PreprocessCfg(**self.clip.visual.preprocess_cfg)

    def forward(self, images: Tensor, text_tokens: Tensor, kinds: Tensor | None = None) -> dict[str, Tensor]:
        """Features of a batch of pairs, L2-normalised, and the scale (already exp'd).

        `kinds` (B,) are the numbers of the pairs' kinds of text, with `projectors`; None: `kind` for all.

        Keys: image_features, text_features, logit_scale. Unless the preset is `clip` also image_second_order and
        text_second_order. `logit_bias` where the architecture has one, and the `terms`. Nothing of texts where
        `trains_texts` is False.
        """
        output = self.scales()
        orders = {"image": self.image_orders(images, kinds)}
        if self.trains_texts:
            orders["text"] = self.text_orders(text_tokens)
        for side, (first, second) in orders.items():
            output[f"{side}_features"] = first
            if second is not None:
                output[f"{side}_second_order"] = second
        return output

    def image_orders(self, images: Tensor, kinds: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """f of pictures, for `kinds` as in `forward`, and, unless the preset is `clip`, z; each (B, C)."""
        if self.image_branch is None:
            return self.project(self.encode_image(images), kinds), None
        f_BC, z_BC = _both_orders(towers.image_tower(self.clip, images), self.image_branch)
        return self.project(f_BC, kinds), z_BC

    def project(self, f_BC: Tensor, kinds_B: Tensor | None = None) -> Tensor:
        """Return the f of pictures for their kinds of text, from that for the first kind; None: `kind` for all."""
        if not self.projectors or (kinds_B is None and self.kind == 0):
            return f_BC
        with without_autocast(f_BC):
            f_BC = full_precision(f_BC)
            matrices = [full_precision(matrix).to(f_BC) for matrix in self.projectors.values()]
            if kinds_B is None:
                return _normalised(f_BC @ matrices[self.kind - 1])
            all_BKC = torch.stack([f_BC, *(f_BC @ matrix for matrix in matrices)], dim=1)
            return _normalised(all_BKC[torch.arange(f_BC.shape[0], device=f_BC.device), kinds_B])

    def use_kind(self, kind: str) -> None:
        """Project pictures for a kind of text from now on.

        Raises: ConfigError for a kind that the model has no projection of.
        """
        kinds = self.settings.projectors
        if kind not in kinds:
            raise ConfigError(f"--kind {kind}: the model has {', '.join(kinds) or 'one projection for all texts'}")
        self.kind = kinds.index(kind)

    @torch.no_grad()
    def fold_kind(self, *, keeps_z: bool = True) -> None:
        """Make the projection of `kind` that of the CLIP, which then holds all of f for that kind.

        z reads tokens behind the CLIP's projection, so its branch then begins with the inverse.

        Raises: ConfigError for a tower without a linear projection at its end; with `keeps_z` for a projection that
            cannot be undone for z.
        """
        if self.kind == 0:
            return
        matrix_CC = self.projectors[self.settings.projectors[self.kind]]
        visual = self.clip.visual
        if keeps_z and self.image_branch is not None:
            if not torch.linalg.cond(matrix_CC) < _LARGEST_CONDITION:
                raise ConfigError(
                    f"--kind {self.settings.projectors[self.kind]}: its projection cannot be undone for z; export all "
                    "kinds together, or f alone (--format open_clip)"
                )
            layer = self.image_branch.token_projection
            inverted = torch.linalg.solve(matrix_CC.double(), layer.weight.double().t()).t()
            layer.weight.copy_(inverted)
        heads = [part for part in getattr(visual, "head", nn.Identity()).modules() if isinstance(part, nn.Linear)]
        if isinstance(getattr(visual, "proj", None), nn.Parameter):
            visual.proj.copy_(visual.proj @ matrix_CC)
        elif heads:
            heads[-1].weight.copy_(matrix_CC.t() @ heads[-1].weight)
            if heads[-1].bias is not None:
                heads[-1].bias.copy_(heads[-1].bias @ matrix_CC)
        else:
            raise ConfigError(f"{self.settings.architecture}: has no linear projection to hold that of a kind of text")
        self.kind = 0
        self.projectors = nn.ParameterDict()
        self.settings = self.settings.model_copy(update={"projectors": ()})

    def text_orders(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """f of token ids (B, M) and, unless the preset is `clip`, z; each (B, C)."""
        second, branch = self.second_order, self.text_branch
        if second is None or branch is None:
            return self.encode_text(tokens), None
        tower = towers.text_tower(self.clip, tokens, mask_padding=second.text_padding == "mask")
        return _both_orders(tower, branch)

    def scales(self) -> dict[str, Tensor]:
        """Return the inputs of a loss beside the features.

        The scale (already exp'd), the bias, if there is one, its terms.
        """
        bias = getattr(self.clip, "logit_bias", None)
        scales = {"logit_scale": self.clip.logit_scale.exp(), **self.terms}
        return scales if bias is None else scales | {"logit_bias": bias}

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        """Return the first-order feature f of pictures, (B, C); the branch is not run. Called as open_clip's."""
        features: Tensor = self.clip.encode_image(images)
        return _normalised(features) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        """Return the first-order feature f of token ids (B, M), (B, C); the branch is not run.

        Called as open_clip's.
        """
        features = towers.text_feature(self.clip, tokens)
        return _normalised(features) if normalize else features

    def cut_texts(self, tokens: Tensor) -> Tensor:
        """Token ids (B, M) without positions that no feature depends on: those behind the end of the longest text.

        Unchanged where the tower or the second-order statistic looks at padding. For ids on the CPU.
        """
        second = self.second_order
        padding_counts = second is not None and (second.text_padding == "keep" or second.text_norm == "batch")
        return tokens if padding_counts else towers.cut_texts(self.clip, tokens)

    def lock_tower(self, side: Side, last_blocks: int | None = None) -> None:
        """Freeze a tower (LiT, as open_clip does), or all but its last blocks; its branch stays free.

        Batch norms of what is frozen keep their statistics in training too. open_clip would replace them by modules
        with other tensors, which no checkpoint would fit.

        Raises: ConfigError for a tower without so many blocks.
        """
        if last_blocks is not None:
            train_last_blocks(self.clip, side, last_blocks)
        elif side == "image":
            self.clip.lock_image_tower()
        else:
            self.clip.lock_text_tower()
        norms = (part for part in self.clip.visual.modules() if isinstance(part, _BatchNorm))
        self._frozen_norms = [part for part in norms if not any(p.requires_grad for p in part.parameters())]
        self.train(self.training)

    def train(self, mode: bool = True) -> DalipModel:
        """Training or evaluation mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        for norm in self._frozen_norms:
            norm.eval()
        return self

    @torch.no_grad()
    def clamp_logit_scale(self, maximum: float) -> None:
        """Keep the scale, after exp, within 1 and `maximum`; call after each optimiser step."""
        self.clip.logit_scale.clamp_(0.0, math.log(maximum))

    def text_tower_digest(self) -> str:
        """sha256 of the tensors of the text tower: models that share it share the space of f."""
        digest = hashlib.sha256()
        of_texts = {name.removeprefix("clip.").removeprefix("text."): parameter for name, parameter in
                    merged(self.state_dict()).items() if parameter_role(name) == "text_tower"}  # fmt: skip
        for name, parameter in sorted(of_texts.items()):
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            values = parameter.detach().float().cpu() + 0.0  # a merged -0.0 is 0.0
            digest.update(values.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def num_left_random(self, *, all_new: bool) -> int:
        """Parameters of the towers that neither train nor have a pretrained weight; `all_new`: none has one."""
        return sum(
            parameter.numel()
            for name, parameter in self.named_parameters()
            if not parameter.requires_grad
            and parameter_role(name) in ("image_tower", "text_tower")
            and (all_new or name_of_weight(name) in self.new_parameters)
        )

    def parameter_groups(self) -> list[ParameterGroup]:
        """Every trainable parameter once, by role and by whether weight decay applies.

        Vectors and scalars (biases, norms, scales) get no decay, as in open_clip's trainer. No group is empty.
        """
        groups: dict[tuple[Role, bool], ParameterGroup] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            role, decay = parameter_role(name), parameter.ndim >= 2
            groups.setdefault((role, decay), ParameterGroup(role, decay, [])).parameters.append(parameter)
        return list(groups.values())


def one_vector(f_NC: Tensor, z_NC: Tensor | None, first_order_weight: float) -> Tensor:
    """f and z as one vector, whose inner products are the weighted sum of both similarities; f where there is no z."""
    if z_NC is None:
        return f_NC
    return torch.cat([first_order_weight**0.5 * f_NC, (1 - first_order_weight) ** 0.5 * z_NC], dim=1)


def parameter_role(name: str) -> Role:
    """Which part a parameter of a `DalipModel` belongs to, by its name."""
    if "logit_scale" in name or "logit_bias" in name or name.startswith("terms."):
        return "scale"
    if name.startswith(("image_branch.", "text_branch.")):
        return "second_order"
    return "image_tower" if name.startswith(("clip.visual.", "projectors.")) else "text_tower"


def _branches(clip: Any, second: SecondOrder) -> tuple[_Branch, _Branch]:
    embed_dim = towers.probe_width(clip)
    if embed_dim % second.heads:
        raise ConfigError(
            f"second_order.heads is {second.heads}, which does not divide the embedding width {embed_dim}"
        )
    image = BranchShape(
        embed_dim, second.heads, second.reduced_width, second.image_norm, second.dropout, second.image_dropout_axis,
        second.projection, second.image_reduce_start,
    )  # fmt: skip
    text = replace(image, norm=second.text_norm, dropout_axis=second.text_dropout_axis, reduce_start="linear")
    make = _BRANCHES[second.statistic]
    return make(image), make(text)


def _both_orders(tower: towers.TowerOutput, branch: _Branch) -> tuple[Tensor, Tensor]:
    # z before f: the order of these calls is that in which their gradients add up, and so shapes the last digits.
    z_BC = branch(tower.feature, tower.tokens, tower.mask)
    return _normalised(tower.feature), _normalised(z_BC)


def _normalised(features_BC: Tensor) -> Tensor:
    """L2-normalised in full precision, whatever autocast says: in bfloat16 lengths are off by up to 0.4 %."""
    with without_autocast(features_BC):
        return functional.normalize(full_precision(features_BC), dim=-1)
