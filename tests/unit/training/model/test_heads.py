"""The controls of the study beside the branch: what each computes, parameters, padding, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks.study_heads import HEADS, AttentionBranch, CovarianceBranch, MaxBranch, MeanBranch, matrix_square_root
from torch import Tensor

from training.model.branch import BranchShape, SecondOrderBranch

CONTROLS = sorted(set(HEADS) - {"brownian"})
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


@pytest.mark.parametrize("kind", CONTROLS)
def test_gradients_equal_finite_differences(kind: Any) -> None:
    torch.manual_seed(2)
    branch = HEADS[kind](shape()).double()
    anchor, tokens = (x.requires_grad_() for x in inputs(5, dtype=torch.float64))
    mask = torch.tensor([[True] * 5, [True] * 4 + [False], [True] * 5])
    assert torch.autograd.gradcheck(lambda a, t: branch(a, t, mask), (anchor, tokens), atol=1e-5)


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


@pytest.mark.parametrize("mask", [None, torch.ones(3, 7, dtype=torch.bool)])
def test_each_pooling_is_what_its_name_says(mask: Tensor | None) -> None:
    _, tokens = inputs()
    mean, largest, attention = (kind(shape()) for kind in (MeanBranch, MaxBranch, AttentionBranch))
    for branch in (mean, largest, attention):
        torch.nn.init.eye_(branch.token_projection.weight)
    torch.testing.assert_close(mean.pool(tokens, mask, None), tokens.mean(1))
    torch.testing.assert_close(largest.pool(tokens, mask, None), tokens.amax(1))
    torch.testing.assert_close(attention.pool(tokens, mask, None), tokens.mean(1))  # its start
    with torch.no_grad():
        attention.query.copy_(1000 * tokens[0, 3].view(4, 4))
    nearest = (tokens[0].view(7, 4, 4) * attention.query).sum(-1).argmax(0)
    expected = tokens[0].view(7, 4, 4)[nearest, torch.arange(4)].flatten()
    torch.testing.assert_close(attention.pool(tokens, mask, None)[0], expected)


def test_the_root_times_itself_is_the_matrix() -> None:
    x = torch.randn(5, 40, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    matrix = x.transpose(1, 2) @ x / 40
    root = matrix_square_root(matrix)
    torch.testing.assert_close(root @ root, matrix, rtol=1e-3, atol=1e-3)
    assert matrix_square_root(torch.zeros(1, 4, 4)).isfinite().all()


def test_the_covariance_is_that_of_the_rectified_tokens() -> None:
    """Of one head, against torch's own covariance."""
    branch = CovarianceBranch(shape(heads=1, reduced_width=3))
    tokens = torch.randn(2, 50, 1, 3, generator=torch.Generator().manual_seed(4))
    vector = branch.compare(tokens, None, None)
    row, column = torch.triu_indices(3, 3)
    for given, sample in zip(vector, tokens, strict=True):
        root = torch.zeros(3, 3)
        root[row, column] = root[column, row] = given
        expected = torch.cov(sample[:, 0].relu().t(), correction=0)
        torch.testing.assert_close(root @ root, expected, rtol=1e-2, atol=1e-3)
