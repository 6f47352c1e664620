"""Brownian distance covariance, as the formula reads and fast: golden values, a double loop, finite differences."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.model import fast, mbdc

GOLDEN = Path(__file__).parent / "mbdc_golden.npz"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}  # of the largest value
DTYPES = [torch.float64, torch.float32]
both_paths = pytest.mark.parametrize("path", [mbdc, fast], ids=["formula", "fast"])


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def double_loop(tokens_MR: Tensor, num_tokens: int) -> list[list[float]]:
    """The definition, one pair of channels at a time, in Python floats."""
    tokens, width = tokens_MR.tolist(), tokens_MR.shape[1]
    distance = [[0.0] * width for _ in range(width)]
    for k in range(width):
        for j in range(width):
            squared = sum((row[k] - row[j]) ** 2 for row in tokens)
            distance[k][j] = math.sqrt(max(squared, 0.0) / (2 * num_tokens) + 1e-5)
    row = [sum(distance[k]) / width for k in range(width)]
    column = [sum(distance[k][j] for k in range(width)) / width for j in range(width)]
    total = sum(row) / width
    return [[distance[k][j] - row[k] - column[j] + total for j in range(width)] for k in range(width)]


def triangle_of(matrix_BHRR: Tensor) -> Tensor:
    """Head by head and row by row, with the diagonal."""
    width = matrix_BHRR.shape[-1]
    entries = [matrix_BHRR[..., row, column] for row in range(width) for column in range(row, width)]
    return torch.stack(entries, dim=-1).flatten(1)


def without_negatives(tokens_BMHR: Tensor) -> Tensor:
    """The same distances between channels, from tokens that a rectifier leaves as they are."""
    return tokens_BMHR - tokens_BMHR.amin(dim=-1, keepdim=True)


def released_steps(path: ModuleType, golden: dict[str, Tensor], side: str, dtype: torch.dtype) -> Tensor:
    """Steps 0 to 7 from the pure functions, in evaluation mode."""
    tokens_BMC = golden[f"{side}_tokens"].to(dtype) @ golden[f"{side}_fc1"].to(dtype).t()
    if side == "image":
        anchor_BC, tokens_BMC = tokens_BMC[:, 0], tokens_BMC[:, 1:]
    else:
        anchor_BC = tokens_BMC[torch.arange(len(tokens_BMC)), golden["text_ids"].argmax(-1)]
    tokens_BMHE, anchor_BHE = tokens_BMC.unflatten(-1, (4, -1)), anchor_BC.unflatten(-1, (4, -1))
    reduced_BMHR = path.weigh_and_reduce(anchor_BHE, tokens_BMHE, golden[f"{side}_reduce"].to(dtype))
    if side == "image":
        weight, bias, mean, var = (golden[f"image_bn_{k}"].to(dtype) for k in ("weight", "bias", "mean", "var"))
        reduced_BMHR = (reduced_BMHR - mean) / torch.sqrt(var + 1e-5) * weight + bias
    else:
        weight, bias = golden["text_ln_weight"].to(dtype), golden["text_ln_bias"].to(dtype)
        reduced_BMHR = torch.nn.functional.layer_norm(reduced_BMHR, weight.shape, weight, bias, 1e-7)
    return path.rectify_and_compare(reduced_BMHR, None)


def assert_within(given: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert given.dtype == dtype
    assert given.shape == expected.shape
    assert (given - expected).abs().max().item() <= TOLERANCE[dtype] * expected.abs().max().item()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_distance_matrix_equals_the_golden_values(golden: dict[str, Tensor], dtype: torch.dtype) -> None:
    tokens_BHMR = golden["bdc_in"].to(dtype).transpose(1, 2).unsqueeze(1)
    assert_within(mbdc.brownian_distance(tokens_BHMR).squeeze(1), golden["bdc_out"], dtype)


@both_paths
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_triangle_equals_the_golden_values(path: ModuleType, golden: dict[str, Tensor], dtype: torch.dtype) -> None:
    tokens_BMHR = without_negatives(golden["bdc_in"].transpose(1, 2).unsqueeze(2)).to(dtype)
    assert_within(path.rectify_and_compare(tokens_BMHR, None), golden["triu_out"], dtype)


@both_paths
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", ["image", "text"])
def test_steps_0_to_7_equal_the_golden_values(
    path: ModuleType, golden: dict[str, Tensor], side: str, dtype: torch.dtype
) -> None:
    vector = released_steps(path, golden, side, dtype)
    assert vector.shape[1] == mbdc.num_second_order(4, 46) == 4324
    assert_within(vector, golden[f"{side}_second_order"], dtype)


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 7), width=st.integers(2, 6), padding=st.integers(0, 4), seed=st.integers(0, 2**31 - 1))
def test_the_distance_equals_the_double_loop_also_with_padding(
    tokens: int, width: int, padding: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn(2, 3, tokens, width, dtype=torch.float64, generator=generator)
    padded = torch.cat([real, torch.zeros(2, 3, padding, width, dtype=torch.float64)], dim=2)
    matrix = mbdc.brownian_distance(padded, torch.tensor([tokens, tokens]))
    assert torch.allclose(matrix, matrix.transpose(-1, -2), atol=1e-12, rtol=0)
    for sample in range(2):
        for head in range(3):
            expected = torch.tensor(double_loop(real[sample, head], tokens), dtype=torch.float64)
            assert torch.allclose(matrix[sample, head], expected, atol=1e-9, rtol=0)
    if not padding:
        assert torch.allclose(mbdc.brownian_distance(real), matrix, atol=1e-12, rtol=0)


@both_paths
def test_the_triangle_goes_head_by_head_and_row_by_row_with_the_diagonal(path: ModuleType) -> None:
    tokens_BMHR = torch.rand(1, 6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    expected = triangle_of(mbdc.brownian_distance(tokens_BMHR.transpose(1, 2)))
    assert torch.allclose(path.rectify_and_compare(tokens_BMHR, None), expected, atol=1e-12, rtol=0)


@both_paths
def test_gradients_equal_finite_differences(path: ModuleType) -> None:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(2, 5, 2, 4, dtype=torch.float64, generator=generator).requires_grad_()
    anchor = torch.randn(2, 2, 4, dtype=torch.float64, generator=generator).requires_grad_()
    reduce = torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])

    def weighed(anchor: Tensor, tokens: Tensor, reduce: Tensor) -> Tensor:
        result: Tensor = path.weigh_and_reduce(anchor, tokens, reduce, mask)
        return result

    assert torch.autograd.gradcheck(weighed, (anchor, tokens, reduce), atol=1e-6)
    factor = (torch.rand(2, 1, 2, 3, dtype=torch.float64, generator=generator) + 0.5) * mask[:, :, None, None]
    normalised = torch.randn(2, 5, 2, 3, dtype=torch.float64, generator=generator).requires_grad_()

    def compared(normalised: Tensor) -> Tensor:
        result: Tensor = path.rectify_and_compare(normalised, factor, mask.sum(dim=1))
        return result

    assert torch.autograd.gradcheck(compared, normalised, atol=1e-6)


def values_and_gradients(path: ModuleType, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """What both functions give, with padding and dropped channels, and the gradients of all that goes in."""
    batch, num_tokens, heads = shape
    generator = torch.Generator().manual_seed(5)

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64, generator=generator).to(dtype)

    around = drawn(batch, num_tokens + 1, heads, 6).requires_grad_()
    anchor, reduce = drawn(batch, heads, 6).requires_grad_(), drawn(5, 6).requires_grad_()
    mask = torch.rand(batch, num_tokens, generator=generator) < 0.7
    mask[:, 0] = True
    tokens = around[:, 1:]  # without the class token, as towers hand them over: not contiguous
    weighed = path.weigh_and_reduce(anchor, tokens, reduce, mask)
    weighed_grads = torch.autograd.grad(weighed, (around, anchor, reduce), drawn(*weighed.shape))

    normalised = drawn(batch, num_tokens, heads, 5).requires_grad_()
    dropped = torch.randint(0, 3, (batch, 1, heads, 5), generator=generator)
    vector = path.rectify_and_compare(normalised, (mask[:, :, None, None] * dropped).to(dtype), mask.sum(dim=1))
    return weighed, *weighed_grads, vector, *torch.autograd.grad(vector, normalised, drawn(*vector.shape))


# Few and many samples, tokens in numbers that 16 divides and not, one of everything: each takes its own way to oneDNN.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(20, 5, 2), (16, 3, 1), (8, 6, 4), (3, 5, 2), (1, 7, 3), (1, 1, 1)])
def test_the_fast_path_equals_the_formula_in_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    by_hand, formula = (values_and_gradients(path, shape, dtype) for path in (fast, mbdc))
    names = ("weighed", "to tokens", "to anchor", "to matrix", "distances", "to normalised")
    for name, one, two in zip(names, by_hand, formula, strict=True):
        assert one.dtype == two.dtype == dtype
        # Channels that nearly agree are the root of the eps apart, 0.003; dividing by that costs digits.
        tolerance = {torch.float64: 1e-11, torch.float32: 2e-4 if name == "to normalised" else 1e-5}[dtype]
        assert (one - two).abs().max() <= tolerance * max(1.0, two.abs().max().item()), name


@both_paths
def test_no_sample_at_all_gives_no_vector(path: ModuleType) -> None:
    weighed = path.weigh_and_reduce(torch.ones(0, 2, 6), torch.ones(0, 4, 2, 6), torch.ones(5, 6))
    assert weighed.shape == (0, 4, 2, 5)


@both_paths
@pytest.mark.parametrize("shape", [(3, 7, 2, 5), (3, 1, 2, 5), (3, 7, 2, 1), (3, 7, 1, 1)])
def test_the_factor_scales_the_rectified_tokens_in_every_shape(path: ModuleType, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, 7, 2, 5, dtype=torch.float64, generator=generator)
    factor = torch.randint(0, 3, shape, generator=generator).double()
    expected = triangle_of(mbdc.brownian_distance((x.relu() * factor).transpose(1, 2)))
    assert torch.allclose(path.rectify_and_compare(x, factor), expected, atol=1e-12, rtol=0)


def test_weights_sum_to_one_and_leave_padding_out() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, anchor = torch.randn(3, 6, 2, 4, generator=generator), torch.randn(3, 2, 4, generator=generator)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4, [True] + [False] * 5])
    weights = mbdc.anchor_weights(anchor, tokens, mask)
    assert torch.allclose(weights.sum(dim=1), torch.ones(3, 2))
    assert (weights[~mask] == 0).all()
    assert (weights[mask] > 0).all()
    assert torch.allclose(weights[1, :2], mbdc.anchor_weights(anchor[1:2], tokens[1:2, :2])[0])


@both_paths
def test_a_token_or_anchor_of_zeros_gives_finite_values_and_gradients(path: ModuleType) -> None:
    tokens = torch.zeros(1, 3, 1, 4, requires_grad=True)
    anchor = torch.zeros(1, 1, 4, requires_grad=True)
    vector = path.rectify_and_compare(path.weigh_and_reduce(anchor, tokens, torch.ones(3, 4)), None)
    vector.sum().backward()
    assert torch.isfinite(vector).all()
    assert torch.isfinite(tokens.grad).all()
    assert torch.isfinite(anchor.grad).all()


@both_paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_distance_step_is_float32_under_autocast(
    path: ModuleType, golden: dict[str, Tensor], dtype: torch.dtype
) -> None:
    tokens_BMHR = without_negatives(golden["bdc_in"].transpose(1, 2).unsqueeze(2)).to(dtype)
    exact = path.rectify_and_compare(tokens_BMHR.double(), None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = path.rectify_and_compare(tokens_BMHR, None)
    assert under.dtype == torch.float32
    assert (under - exact).abs().max().item() < 1e-5
    # The same product left to autocast: what the guard is for.
    tokens_BHMR = tokens_BMHR.transpose(1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gram = (tokens_BHMR.transpose(-1, -2) @ tokens_BHMR).double()
    assert (gram - tokens_BHMR.double().transpose(-1, -2) @ tokens_BHMR.double()).abs().max().item() > 1e-3


# Dynamo makes an instance of every autograd function it traces, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.slow
def test_the_fast_path_compiles_without_a_graph_break_and_equals_eager() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens, anchor = torch.randn(2, 5, 2, 4, generator=generator), torch.randn(2, 2, 4, generator=generator)
    reduce = torch.randn(3, 4, generator=generator)
    mask = torch.ones(2, 5, dtype=torch.bool)

    def whole(anchor: Tensor, tokens: Tensor, reduce: Tensor, mask: Tensor) -> Tensor:
        weighed = fast.weigh_and_reduce(anchor, tokens, reduce, mask)
        return fast.rectify_and_compare(weighed, mask[:, :, None, None].float() * 2, mask.sum(dim=1))

    leaves = [value.requires_grad_() for value in (anchor, tokens, reduce)]
    compiled = torch.compile(whole, backend="aot_eager", fullgraph=True)
    given, expected = compiled(*leaves, mask), whole(*leaves, mask)
    assert torch.allclose(given, expected, atol=1e-6, rtol=0)
    grads = (torch.autograd.grad(value.square().sum(), leaves) for value in (given, expected))
    assert all(torch.allclose(one, two, atol=1e-5, rtol=1e-4) for one, two in zip(*grads, strict=True))
