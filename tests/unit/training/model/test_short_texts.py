"""Texts cut at the end of the longest one: the same features and gradients, and only where nothing looks behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_clip import tiny
from torch import Tensor

from manifests.contract.settings import parse_settings
from training.model.build import build_model
from training.model.dalip import DalipModel
from training.model.presets import ModelSettings

CONTEXT = 40
CAPTIONS = ["a leaf", "the flower of an iris by the water, seen from above", "oak"]


def model_of(folder: Path, name: str, preset: str, second: dict[str, Any], *, custom: bool, **text: Any) -> DalipModel:
    more = {"text": {"context_length": CONTEXT} | text, "custom_text": custom}
    path = tiny(folder, f"short-{name}", vision={"layers": 1}, **more)
    values: dict[str, Any] = {"preset": preset, "architecture": path}
    if preset != "clip":
        values["second_order"] = {"reduced_width": 5, "dropout": 0.0} | second
    torch.manual_seed(0)
    return build_model(parse_settings(values, ModelSettings, where="test"))


def gradients(model: DalipModel, tokens: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the text gives, and the gradient of each parameter that it reaches."""
    outputs = [order for order in model.text_orders(tokens) if order is not None]
    model.zero_grad(set_to_none=True)
    towards = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1))
    sum((output * towards).sum() for output in outputs).backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {str(number): output.detach() for number, output in enumerate(outputs)}, found


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("preset", ["clip", "dalip", "second_moment"])
def test_short_texts_give_the_features_and_gradients_of_padded_ones(tmp_path: Path, preset: str, custom: bool) -> None:
    model = model_of(tmp_path, f"{preset}-{custom}", preset, {}, custom=custom).double()
    whole = model.tokenizer(CAPTIONS)
    short = model.cut_texts(whole)
    assert whole.shape == (3, CONTEXT)
    assert short.shape == (3, 16), "13 tokens, up to the next multiple of 8"
    expected, found = gradients(model, whole), gradients(model, short)
    for kind in (0, 1):
        assert found[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            torch.testing.assert_close(found[kind][name], value, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    ("preset", "text"),
    [
        ("released", {}),
        ("dalip", {"no_causal_mask": True}),
        ("dalip", {"pool_type": "last"}),
        ("dalip", {"embed_cls": True}),
    ],
)
def test_texts_stay_whole_where_padding_is_looked_at(tmp_path: Path, preset: str, text: dict[str, Any]) -> None:
    name = "-".join([preset, *text])
    model = model_of(tmp_path, f"whole-{name}", preset, {}, custom=bool(text), **text)
    tokens = model.tokenizer(CAPTIONS)
    assert model.cut_texts(tokens) is tokens


def test_the_text_at_the_end_of_the_context_keeps_all_of_it(tmp_path: Path) -> None:
    model = model_of(tmp_path, "long", "clip", {}, custom=False)
    tokens = model.tokenizer(["oak", "a tree " * CONTEXT])
    assert torch.equal(model.cut_texts(tokens), tokens)
