"""The second branch with each statistic: padding, gradients, and the uncentred moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
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

HEADS = {"brownian": SecondOrderBranch, "uncentred": SecondMoment}


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


def test_the_uncentred_moment_is_the_covariance_and_the_mean_times_itself() -> None:
    x = torch.randn(3, 2, 7, 5, dtype=torch.float64).relu()
    count = torch.tensor([7, 4, 5]).view(-1, 1, 1, 1)
    x *= (torch.arange(7).view(1, 1, 7, 1) < count).double()
    about_zero, one = SecondMoment(shape()).moment(x, count), x[1, 0, :4]
    mean = one.mean(dim=0)
    torch.testing.assert_close(about_zero[1, 0], torch.cov(one.t(), correction=0) + torch.outer(mean, mean))
    values, vectors = torch.linalg.eigh(about_zero + 1e-5 * torch.eye(5))
    root = vectors @ torch.diag_embed(values.sqrt()) @ vectors.transpose(-1, -2)
    assert (matrix_square_root(about_zero) - root).norm() < 0.02 * root.norm()


def test_the_statistic_is_no_setting_any_more(config: dict[str, Any]) -> None:
    assert "statistic" not in identity_values(make_settings(config), ["x"])["model"]["second_order"]
    for values in ({"statistic": "brownian"}, {"statistic": None}):
        parse_settings({"second_order": values}, ModelSettings, where="an export", is_kept=True)
    for is_kept in (False, True):  # a model that had another one is not this model
        with pytest.raises(ConfigError, match=r"unknown key 'second_order\.statistic'"):
            parse_settings({"second_order": {"statistic": "mean"}}, ModelSettings, where="x", is_kept=is_kept)


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
