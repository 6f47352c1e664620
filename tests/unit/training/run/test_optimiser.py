"""What an update does: AdamW's arithmetic by hand, decay on matrices alone, rates of groups, compiling."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch

from manifests.contract.settings import parse_settings
from training.config import OptimiserSettings, ScheduleSettings, TrainSettings
from training.model.build import build_model
from training.model.dalip import DalipModel
from training.model.presets import ModelSettings
from training.record.log import read_log
from training.run.loop import train
from training.run.optimiser import build_optimiser, clip_gradients, lr_ratio_at, set_lr


@pytest.fixture
def model(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return build_model(parse_settings(config["model"] | {"preset": "dalip"}, ModelSettings, where="test"))


def test_an_update_is_adamw_fused_with_decay_on_matrices_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """First step: the mean and the root of the square are the gradient and its size, so each weight moves by lr."""
    monkeypatch.setattr("training.run.optimiser.EPS", 1e-12)
    settings = OptimiserSettings(lr=0.01, weight_decay=0.3)
    optimiser = build_optimiser(model, settings)
    assert all(group["fused"] for group in optimiser.param_groups)
    set_lr(optimiser, settings.lr)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimiser.step()
    for name, value in model.named_parameters():
        decayed = before[name] * (1 - 0.01 * 0.3) if value.ndim >= 2 else before[name]
        assert torch.allclose(value, decayed - 0.01, atol=1e-6), name


def test_each_role_has_its_rate(model: Any) -> None:
    settings = OptimiserSettings(lr=0.01, second_order_lr_ratio=5.0)
    optimiser = build_optimiser(model, settings)
    set_lr(optimiser, 0.02)
    rates = {group["role"]: group["lr"] for group in optimiser.param_groups}
    assert rates == pytest.approx({"second_order": 0.1, "image_tower": 0.02, "text_tower": 0.02, "scale": 0.02})


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    schedule = ScheduleSettings(steps=110, warmup_steps=10)
    ratios = [lr_ratio_at(step, 110, schedule) for step in range(111)]
    assert ratios[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert ratios[10] == 1.0
    assert ratios[60] == pytest.approx(0.5)
    assert ratios[35] == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert ratios[110] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(ratios[10:]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch itself
@pytest.mark.parametrize("projectors", [[], ["plant", "general"]])
def test_a_compiled_run_has_the_losses_of_an_eager_one(
    projectors: list[str], config: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: Any, tokens: Any) -> Any:
        raise AssertionError("texts of another length make it compile anew")

    torch.compiler.reset()  # shapes that other tests compiled would make these symbolic
    # The graphs are ours and run as they were traced, whole; what torch makes of each took 200 s of g++ here.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    config["model"]["second_order"] |= {"dropout": 0.0}
    config["model"]["projectors"] = projectors
    config["schedule"] |= {"steps": 3}
    losses = []
    for compiled in (False, True):
        values = config | {"output_dir": str(tmp_path / str(compiled))}
        if compiled:
            monkeypatch.setattr(DalipModel, "cut_texts", refuse)
        values["compute"] = config["compute"] | {"compile": compiled, "grad_checkpointing": not compiled}
        train(parse_settings(values, TrainSettings, where="test"))
        losses.append([line["loss"] for line in read_log(tmp_path / str(compiled) / "log.jsonl", "step")])
    assert losses[1][0] == pytest.approx(losses[0][0], abs=1e-5)
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)  # AdamW makes full steps of gradients that are all rounding


@pytest.mark.parametrize("share", [0.5, 1 - 1e-7, 1.0, 1 + 1e-7, 2.0, math.inf])
@pytest.mark.parametrize("spoilt", [None, math.inf, math.nan])
def test_gradients_are_clipped_as_torch_does_and_left_alone_where_they_are_short(
    share: float, spoilt: float | None
) -> None:
    generator = torch.Generator().manual_seed(3)
    values = [torch.randn(size, generator=generator) for size in (7, 300, 1)]
    limit = share * float(torch.nn.utils.get_total_norm(values))
    if spoilt is not None:
        values[0][0] = spoilt
    ours, theirs = ([torch.nn.Parameter(torch.zeros_like(value)) for value in values] for _ in range(2))
    for one, other, value in zip(ours, theirs, values, strict=True):
        one.grad, other.grad = value.clone(), value.clone()
    norm, expected = clip_gradients(ours, limit), torch.nn.utils.clip_grad_norm_(theirs, limit)
    torch.testing.assert_close(norm, expected, rtol=0, atol=0, equal_nan=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0, equal_nan=True)
        if spoilt is None and share >= 2.0:
            assert one.grad._version == 0, "nothing was written"
