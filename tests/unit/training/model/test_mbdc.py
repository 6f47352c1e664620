"""Brownian distance covariance against golden values, a double loop, and finite differences."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.model import mbdc

GOLDEN = Path(__file__).parent / "mbdc_golden.npz"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
DTYPES = [torch.float64, torch.float32]


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


def released_steps(golden: dict[str, Tensor], side: str, dtype: torch.dtype) -> Tensor:
    """Steps 0 to 7 from the pure functions, in evaluation mode."""
    tokens_BMC = golden[f"{side}_tokens"].to(dtype) @ golden[f"{side}_fc1"].to(dtype).t()
    if side == "image":
        anchor_BC, tokens_BMC = tokens_BMC[:, 0], tokens_BMC[:, 1:]
    else:
        anchor_BC = tokens_BMC[torch.arange(len(tokens_BMC)), golden["text_ids"].argmax(-1)]
    tokens_BMHE, anchor_BHE = tokens_BMC.unflatten(-1, (4, -1)), anchor_BC.unflatten(-1, (4, -1))
    reduced_BMHR = mbdc.weigh_and_reduce(anchor_BHE, tokens_BMHE, golden[f"{side}_reduce"].to(dtype))
    if side == "image":
        weight, bias, mean, var = (golden[f"image_bn_{k}"].to(dtype) for k in ("weight", "bias", "mean", "var"))
        reduced_BMHR = (reduced_BMHR - mean) / torch.sqrt(var + 1e-5) * weight + bias
    else:
        weight, bias = golden["text_ln_weight"].to(dtype), golden["text_ln_bias"].to(dtype)
        reduced_BMHR = torch.nn.functional.layer_norm(reduced_BMHR, weight.shape, weight, bias, 1e-7)
    return mbdc.second_order(reduced_BMHR.relu().transpose(1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_distance_and_triangle_equal_the_golden_values(golden: dict[str, Tensor], dtype: torch.dtype) -> None:
    tokens_BHMR = golden["bdc_in"].to(dtype).transpose(1, 2).unsqueeze(1)
    matrix = mbdc.brownian_distance(tokens_BHMR)
    assert matrix.dtype == dtype
    expected = golden["bdc_out"].unsqueeze(1)
    largest = expected.abs().max().item()
    assert (matrix - expected).abs().max().item() <= TOLERANCE[dtype] * largest
    triangle = mbdc.second_order(tokens_BHMR)
    assert triangle.shape == golden["triu_out"].shape
    assert (triangle - golden["triu_out"]).abs().max().item() <= TOLERANCE[dtype] * largest


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", ["image", "text"])
def test_steps_0_to_7_equal_the_golden_values(golden: dict[str, Tensor], side: str, dtype: torch.dtype) -> None:
    vector = released_steps(golden, side, dtype)
    expected = golden[f"{side}_second_order"]
    assert vector.shape == expected.shape == (len(expected), mbdc.num_second_order(4, 46))
    assert vector.dtype == dtype
    assert (vector - expected).abs().max().item() <= TOLERANCE[dtype] * expected.abs().max().item()


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 7), width=st.integers(2, 6), padding=st.integers(0, 4), seed=st.integers(0, 2**31 - 1))
def test_equals_the_double_loop_also_with_padding(tokens: int, width: int, padding: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn(2, 3, tokens, width, dtype=torch.float64, generator=generator)
    padded = torch.cat([real, torch.zeros(2, 3, padding, width, dtype=torch.float64)], dim=2)
    matrix = mbdc.brownian_distance(padded, torch.tensor([tokens, tokens]))
    assert torch.equal(matrix, matrix.transpose(-1, -2))
    for sample in range(2):
        for head in range(3):
            expected = torch.tensor(double_loop(real[sample, head], tokens), dtype=torch.float64)
            assert torch.allclose(matrix[sample, head], expected, atol=1e-9, rtol=0)
    if not padding:
        assert torch.allclose(mbdc.brownian_distance(real), matrix, atol=1e-12, rtol=0)


def test_the_triangle_goes_head_by_head_and_row_by_row_with_the_diagonal() -> None:
    tokens_BHMR = torch.randn(1, 2, 6, 3, generator=torch.Generator().manual_seed(7))
    matrix = mbdc.brownian_distance(tokens_BHMR)[0]
    expected = [matrix[head, row, column] for head in range(2) for row in range(3) for column in range(row, 3)]
    assert torch.equal(mbdc.second_order(tokens_BHMR)[0], torch.stack(expected))
    assert mbdc.num_second_order(4, 46) == 4324


def test_gradients_equal_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(2, 5, 2, 4, dtype=torch.float64, generator=generator).requires_grad_()
    anchor = torch.randn(2, 2, 4, dtype=torch.float64, generator=generator).requires_grad_()
    reduce = torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])

    def whole(anchor: Tensor, tokens: Tensor, reduce: Tensor) -> Tensor:
        return mbdc.second_order(mbdc.weigh_and_reduce(anchor, tokens, reduce, mask).transpose(1, 2), mask.sum(dim=1))

    assert torch.autograd.gradcheck(whole, (anchor, tokens, reduce), atol=1e-6)
    factor = (torch.rand(2, 1, 2, 3, dtype=torch.float64, generator=generator) + 0.5) * mask[:, :, None, None]
    normalised = torch.randn(2, 5, 2, 3, dtype=torch.float64, generator=generator).requires_grad_()

    def rectified(normalised: Tensor) -> Tensor:
        return mbdc.rectify_and_compare(normalised, factor, mask.sum(dim=1))

    assert torch.autograd.gradcheck(rectified, normalised, atol=1e-6)


# Few and many samples, tokens in numbers that 16 divides and not, one of everything: each takes its own way to oneDNN.
@pytest.mark.parametrize("shape", [(20, 5, 2), (16, 3, 1), (8, 6, 4), (3, 5, 2), (1, 7, 3), (1, 1, 1), (0, 4, 2)])
def test_float32_on_a_cpu_equals_float64_in_values_and_gradients(shape: tuple[int, int, int]) -> None:
    batch, num_tokens, heads = shape
    generator = torch.Generator().manual_seed(5)
    around = torch.randn(batch, num_tokens + 1, heads, 6, dtype=torch.float64, generator=generator)
    anchor = torch.randn(batch, heads, 6, dtype=torch.float64, generator=generator)
    reduce = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    pull = torch.randn(batch, num_tokens, heads, 5, dtype=torch.float64, generator=generator)

    def run(dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = tuple(x.to(dtype).requires_grad_() for x in (around, anchor, reduce))
        tokens = inputs[0][:, 1:]  # without the class token, as towers hand them over: not contiguous
        out = mbdc.weigh_and_reduce(inputs[1], tokens, inputs[2])
        return out, *torch.autograd.grad(out, inputs, pull.to(dtype))

    for single, double in zip(run(torch.float32), run(torch.float64), strict=True):
        assert single.dtype == torch.float32
        assert torch.allclose(single.double(), double, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 7, 2, 5), (3, 1, 2, 5), (3, 7, 2, 1), (3, 7, 1, 1)])
def test_rectifier_and_dropout_within_the_distance_step_equal_them_before_it(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, 7, 2, 5, dtype=torch.float64, generator=generator).requires_grad_()
    factor = torch.randint(0, 3, shape, generator=generator).double()
    for kept in (factor, None):
        fused = mbdc.rectify_and_compare(x, kept)
        apart = mbdc.second_order((x.relu() if kept is None else x.relu() * kept).transpose(1, 2))
        assert torch.allclose(fused, apart, atol=1e-12)
        pull = torch.randn(fused.shape, dtype=torch.float64, generator=generator)
        (one,), (two,) = (torch.autograd.grad(value, x, pull) for value in (fused, apart))
        assert torch.allclose(one, two, atol=1e-12)


def test_weights_sum_to_one_and_leave_padding_out() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, anchor = torch.randn(3, 6, 2, 4, generator=generator), torch.randn(3, 2, 4, generator=generator)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4, [True] + [False] * 5])
    weights = mbdc.anchor_weights(anchor, tokens, mask)
    assert torch.allclose(weights.sum(dim=1), torch.ones(3, 2))
    assert (weights[~mask] == 0).all()
    assert (weights[mask] > 0).all()
    assert torch.allclose(weights[1, :2], mbdc.anchor_weights(anchor[1:2], tokens[1:2, :2])[0])


def test_a_token_or_anchor_of_zeros_gives_finite_values_and_gradients() -> None:
    tokens = torch.zeros(1, 3, 1, 4, requires_grad=True)
    anchor = torch.zeros(1, 1, 4, requires_grad=True)
    vector = mbdc.second_order(mbdc.weigh_and_reduce(anchor, tokens, torch.ones(3, 4)).transpose(1, 2))
    vector.sum().backward()
    assert torch.isfinite(vector).all()
    assert torch.isfinite(tokens.grad).all()
    assert torch.isfinite(anchor.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_distance_step_is_float32_under_autocast(golden: dict[str, Tensor], dtype: torch.dtype) -> None:
    tokens_BHMR = golden["bdc_in"].transpose(1, 2).unsqueeze(1).to(dtype)
    exact = mbdc.brownian_distance(tokens_BHMR.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = mbdc.brownian_distance(tokens_BHMR)
    assert under.dtype == torch.float32
    assert (under - exact).abs().max().item() < 1e-5
    # The same formula left to autocast: what the guard is for.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gram = (tokens_BHMR.transpose(-1, -2) @ tokens_BHMR).double()
    assert (gram - tokens_BHMR.double().transpose(-1, -2) @ tokens_BHMR.double()).abs().max().item() > 1e-3


# Dynamo makes an instance of every autograd function it traces, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_whole_compiles_without_a_graph_break_and_equals_eager() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens, anchor = torch.randn(2, 5, 2, 4, generator=generator), torch.randn(2, 2, 4, generator=generator)
    reduce = torch.randn(3, 4, generator=generator)
    mask = torch.ones(2, 5, dtype=torch.bool)

    def whole(anchor: Tensor, tokens: Tensor, reduce: Tensor, mask: Tensor) -> Tensor:
        return mbdc.second_order(mbdc.weigh_and_reduce(anchor, tokens, reduce, mask).transpose(1, 2), mask.sum(dim=1))

    def rectified(anchor: Tensor, tokens: Tensor, reduce: Tensor, mask: Tensor) -> Tensor:
        weighed = mbdc.weigh_and_reduce(anchor, tokens, reduce, mask)
        return mbdc.rectify_and_compare(weighed, mask[:, :, None, None].float() * 2, mask.sum(dim=1))

    leaves = [value.requires_grad_() for value in (anchor, tokens, reduce)]
    for function in (whole, rectified):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        given, expected = compiled(*leaves, mask), function(*leaves, mask)
        assert torch.allclose(given, expected, atol=1e-6, rtol=0)
        grads = (torch.autograd.grad(value.square().sum(), leaves) for value in (given, expected))
        assert all(torch.allclose(one, two, atol=1e-5, rtol=1e-4) for one, two in zip(*grads, strict=True))
