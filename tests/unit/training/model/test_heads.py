"""The branch and the controls of the study beside it: parameters, padding, gradients, projected tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.study_heads import HEADS
from tiny_clip import tiny
from torch import Tensor
from training_runs import make_settings

from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError
from training.config import identity_values
from training.model.branch import BranchShape, SecondMoment, SecondOrderBranch, matrix_square_root
from training.model.build import build_model
from training.model.presets import ModelSettings
from training.model.weights import load_state

MATCHED = ("mean", "token_mlp", "max", "attention", "covariance", "uncentred", "rect_mean_wide")


def shape(projection: str = "single", **changes: Any) -> BranchShape:
    values: dict[str, Any] = {
        "embed_dim": 16, "heads": 4, "reduced_width": 5, "norm": "layer", "dropout": 0.0,
        "dropout_axis": "channel", "projection": projection,
    }  # fmt: skip
    return BranchShape(**values | changes)


def inputs(num_tokens: int = 7, width: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(3, width, generator=generator, dtype=dtype),
        torch.randn(3, num_tokens, width, generator=generator, dtype=dtype),
    )


def num_parameters(branch: SecondOrderBranch) -> int:
    return sum(parameter.numel() for parameter in branch.parameters())


@pytest.mark.parametrize("projection", ["full", "single"])
@pytest.mark.parametrize("kind", MATCHED)
def test_a_control_has_as_many_parameters_as_mbdc(kind: Any, projection: str) -> None:
    """At the size of ViT-B/16: within half of what one more hidden unit would add, which is below 0.1 %."""
    with torch.device("meta"):
        wide = shape(projection, embed_dim=512, reduced_width=46)
        counts = [num_parameters(HEADS[name](wide)) for name in (kind, "brownian")]
    assert counts[0] == pytest.approx(counts[1], rel=1e-3)


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_padding_changes_nothing_and_every_parameter_gets_a_gradient(kind: Any) -> None:
    torch.manual_seed(1)
    branch = HEADS[kind](shape())
    anchor, tokens = inputs()
    padded = torch.cat([tokens, 9.0 * torch.randn(3, 4, 16)], dim=1)
    mask = torch.arange(11).expand(3, 11) < 7
    torch.testing.assert_close(branch(anchor, padded, mask), branch(anchor, tokens), rtol=1e-4, atol=1e-5)
    branch(anchor, padded, mask).square().sum().backward()
    for name, parameter in branch.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", sorted(HEADS))
def test_a_projection_given_beside_the_tokens_is_one_done_before(kind: Any, dtype: torch.dtype) -> None:
    """Value and gradients; float32 goes another way on a processor than float64."""
    torch.manual_seed(3)
    branch = HEADS[kind](shape()).to(dtype)
    anchor, tokens = inputs(dtype=dtype)[0], inputs(width=12, dtype=dtype)[1]
    projection = (0.3 * torch.randn(12, 16, dtype=dtype)).requires_grad_()
    mask = torch.arange(7).expand(3, 7) < torch.tensor([[7], [5], [6]])
    found = []
    for z in (branch(anchor, tokens, mask, projection), branch(anchor, tokens @ projection, mask)):
        wanted = [projection, *branch.parameters()] if kind != "pooled" else list(branch.parameters())
        found.append([z, *torch.autograd.grad(z.square().sum(), wanted)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_hidden_layer_for_each_token_has_the_layers_of_the_mean_head_and_sees_more_than_the_mean() -> None:
    """Same names, same shapes, same start. With one token it is the mean head; two tokens with one mean differ."""
    branches = []
    for kind in ("mean", "token_mlp"):
        torch.manual_seed(4)
        branches.append(HEADS[kind](shape()).double())
    mean, token_mlp = branches
    for (name, one), (other_name, other) in zip(mean.named_parameters(), token_mlp.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    anchor, tokens = inputs(dtype=torch.float64)
    torch.testing.assert_close(token_mlp(anchor, tokens[:, :1]), mean(anchor, tokens[:, :1]))
    spread = torch.cat([tokens[:, :1] + tokens[:, 1:2], tokens[:, :1] - tokens[:, 1:2]], dim=1)
    torch.testing.assert_close(mean(anchor, spread), mean(anchor, tokens[:, :1]))
    assert (token_mlp(anchor, spread) - token_mlp(anchor, tokens[:, :1])).abs().max() > 0.01
    torch.testing.assert_close(token_mlp(anchor, tokens), token_mlp(anchor, tokens[:, torch.randperm(7)]))


def test_the_uncentred_moment_is_the_covariance_and_the_mean_times_itself() -> None:
    x = torch.randn(3, 2, 7, 5, dtype=torch.float64).relu()
    count = torch.tensor([7, 4, 5]).view(-1, 1, 1, 1)
    x *= (torch.arange(7).view(1, 1, 7, 1) < count).double()
    mean = x.sum(dim=2, keepdim=True) / count
    branches = (HEADS[name](shape()) for name in ("covariance", "uncentred"))
    about_mean, about_zero = (one.moment(x, count) for one in branches if isinstance(one, SecondMoment))
    torch.testing.assert_close(about_zero, about_mean + mean.transpose(-1, -2) @ mean)
    one = x[1, 0, :4]
    torch.testing.assert_close(about_mean[1, 0], torch.cov(one.t(), correction=0))
    values, vectors = torch.linalg.eigh(about_zero + 1e-5 * torch.eye(5))
    root = vectors @ torch.diag_embed(values.sqrt()) @ vectors.transpose(-1, -2)
    assert (matrix_square_root(about_zero) - root).norm() < 0.02 * root.norm()


def test_the_rectified_mean_by_hand() -> None:
    """Its formula in NumPy, with padding; the wide one differs in nothing but its width."""
    torch.manual_seed(6)
    narrow, wide = (HEADS[name](shape()).double() for name in ("rect_mean", "rect_mean_wide"))
    assert isinstance(wide.reduce, torch.nn.Linear)
    assert wide.reduce.out_features > 5
    assert narrow.state_dict().keys() == wide.state_dict().keys() == HEADS["uncentred"](shape()).state_dict().keys()
    anchor, tokens = inputs(dtype=torch.float64)
    mask = torch.arange(7).expand(3, 7) < torch.tensor([[7], [4], [5]])
    for branch in (narrow, wide):
        own = {name: value.detach().numpy() for name, value in branch.state_dict().items()}
        for sample in range(3):
            x = tokens[sample, mask[sample]].numpy() @ own["token_projection.weight"].T
            y = anchor[sample].numpy() @ own["token_projection.weight"].T
            vector = []
            for x_ME, y_E in zip(np.split(x, 4, axis=1), np.split(y, 4), strict=True):
                fit = np.exp(x_ME @ y_E / np.linalg.norm(x_ME, axis=1) / np.linalg.norm(y_E))
                reduced = (fit / fit.sum())[:, None] * x_ME @ own["reduce.weight"].T
                centred = reduced - reduced.mean(axis=1, keepdims=True)
                normal = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-7)
                vector.append(np.maximum(normal * own["norm.weight"] + own["norm.bias"], 0.0).mean(axis=0))
            found = branch.statistics(anchor, tokens, mask)[sample].detach().numpy()
            np.testing.assert_allclose(found, np.concatenate(vector), rtol=1e-9)


def test_the_statistic_is_no_setting_any_more(config: dict[str, Any]) -> None:
    assert "statistic" not in identity_values(make_settings(config), ["x"])["model"]["second_order"]
    for values in ({"statistic": "brownian"}, {"statistic": None}):
        parse_settings({"second_order": values}, ModelSettings, where="an export", is_kept=True)
    for is_kept in (False, True):  # a model that had another one is not this model
        with pytest.raises(ConfigError, match=r"unknown key 'second_order\.statistic'"):
            parse_settings({"second_order": {"statistic": "mean"}}, ModelSettings, where="x", is_kept=is_kept)


def test_the_preset_is_the_arm_of_the_study(tmp_path: Path) -> None:
    """To the last digit, gradients included; nothing else differs from preset `dalip`."""
    path, given = tiny(tmp_path, "arm", 48), {"second_order": {"reduced_width": 6}}
    found = []
    for preset, branch in (("second_moment", None), ("dalip", HEADS["uncentred"])):
        torch.manual_seed(0)
        settings = ModelSettings.model_validate({"preset": preset, "architecture": path, **given})
        model = build_model(settings, branch)
        output = model(torch.linspace(-1, 1, 6144).view(2, 3, 32, 32), model.tokenizer(["a leaf", "an oak"]))
        loss = (output["image_second_order"] * output["text_second_order"].flip(0)).sum()
        named = dict(model.named_parameters())
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        found.append(dict(zip((name.replace(".second_moment", "") for name in named), grads, strict=True)))
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        other = found[1][name]
        assert (grad is None) is (other is None), name
        assert grad is None or torch.equal(grad, other), name


def test_no_weights_of_one_statistic_load_as_those_of_the_other(tmp_path: Path) -> None:
    """Their tensors have equal shapes, and another meaning."""
    path = tiny(tmp_path, "statistics")
    models = [build_model(ModelSettings(preset=preset, architecture=path)) for preset in ("dalip", "second_moment")]
    for number, (one, other) in enumerate((models, models[::-1])):
        with pytest.raises(ConfigError, match="does not fit the model, 32 keys differ"):
            load_state(one, other.state_dict(), where="x")
        source = tmp_path / f"{number}.pt"
        torch.save({"model": one.state_dict()}, source)
        begun = build_model(other.settings.model_copy(update={"pretrained": str(source)}))
        branches = {name for name, _ in begun.named_parameters() if name.startswith(("image_branch.", "text_branch."))}
        assert set(begun.new_parameters) == branches
        assert len(begun.unused_tensors) == 16
