"""The branch and the controls of the study beside it: parameters, padding, gradients, projected tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks.study_heads import HEADS
from torch import Tensor
from training_runs import make_settings

from manifests.errors import ConfigError
from manifests.settings import parse_settings
from training.config import identity_values
from training.model.branch import BranchShape, SecondOrderBranch
from training.model.presets import ModelSettings

MATCHED = ("mean", "max", "attention", "covariance")


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


def test_the_statistic_is_no_setting_any_more(config: dict[str, Any]) -> None:
    assert "statistic" not in identity_values(make_settings(config), ["x"])["model"]["second_order"]
    for values in ({"statistic": "brownian"}, {"statistic": None}):
        parse_settings({"second_order": values}, ModelSettings, where="an export", is_kept=True)
    with pytest.raises(ConfigError, match=r"second_order\.statistic' is no setting any more; it is always .brownian"):
        parse_settings({"second_order": {"statistic": "mean"}}, ModelSettings, where="x")
