"""Each defect of the released DALIP code, shown absent here; released code is read, not run."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from tiny_clip import tiny
from torch import nn

from training.model.branch import BranchShape, SecondOrderBranch
from training.model.build import build_model
from training.model.dalip import DalipModel
from training.model.presets import ModelSettings

PRESETS = ["released", "dalip", "second_moment"]
CHANGES = {"reduced_width": 6}


@pytest.fixture(params=PRESETS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> DalipModel:
    path = tiny(tmp_path, f"defects-{request.param}", 48)
    settings = {"preset": request.param, "architecture": path, "second_order": CHANGES}
    return build_model(ModelSettings.model_validate(settings))


def test_it_imports_and_encode_text_works_for_every_batch_size(model: DalipModel) -> None:
    model.eval()
    for size in (1, 2, 5):
        f, z = model.text_orders(model.tokenizer(["a leaf"] * size))
        assert f.shape == z.shape == (size, 48)


def test_open_clips_zero_shot_classifier_gets_a_tensor(model: DalipModel) -> None:
    model.eval()
    classifier = open_clip.build_zero_shot_classifier(
        model, model.tokenizer, ["oak", "iris"], [lambda name: f"a photo of {name}."], device="cpu"
    )
    assert classifier.shape == (48, 2)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14"])
def test_every_embedding_width_of_open_clip_is_computed_not_typed(name: str) -> None:
    embed_dim = open_clip.get_model_config(name)["embed_dim"]
    with torch.device("meta"):
        branch = SecondOrderBranch(BranchShape(embed_dim, 4, 46, "batch", 0.5, "channel", "full"))
    assert branch.reduce.weight.shape == (46, embed_dim // 4)
    assert branch.projection[0].weight.shape == (4324, 4324)
    assert branch.projection[1].weight.shape == (embed_dim, 4324)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("name", "vision"),
    [("oblong", {"image_size": [32, 56]}), ("dropped", {"patch_dropout": 0.4}), ("prime", {"image_size": 40})],
)
def test_any_token_grid_works_also_with_patch_dropout(tmp_path: Path, preset: str, name: str, vision: dict) -> None:
    path = tiny(tmp_path, f"grid-{name}-{preset}", 48, vision=vision)
    settings = {"preset": preset, "architecture": path, "second_order": CHANGES}
    model = build_model(ModelSettings.model_validate(settings)).train()
    height, width = model.preprocess_settings.size
    f, z = model.image_orders(torch.randn(3, 3, height, width))
    z.sum().backward()
    assert f.shape == z.shape == (3, 48)


def test_a_batch_of_one_keeps_its_axis_in_training_and_evaluation(model: DalipModel) -> None:
    images, tokens = torch.randn(1, 3, 32, 32), model.tokenizer(["a leaf"])
    for training in (True, False):
        output = model.train(training)(images, tokens)
        assert all(value.shape == (1, 48) for name, value in output.items() if not name.startswith("logit"))
        assert all(torch.isfinite(value).all() for value in output.values())


def test_a_sample_does_not_depend_on_its_batch_in_evaluation(model: DalipModel) -> None:
    model.eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        alone, together = (
            model.image_orders(images[:1]),
            model.image_orders(images),
        )
    assert all(torch.allclose(a, b[:1], atol=1e-5) for a, b in zip(alone, together, strict=True))


def test_forward_moves_nothing_between_devices(model: DalipModel) -> None:
    # A module moved inside forward would leave the meta device; a tensor made elsewhere could not meet it.
    model = model.to("meta").eval()
    output = model(torch.empty(2, 3, 32, 32, device="meta"), torch.ones(2, 12, dtype=torch.long, device="meta"))
    assert {value.device.type for value in output.values()} == {"meta"}
    assert {part.device.type for part in [*model.parameters(), *model.buffers()]} == {"meta"}
    assert isinstance(model, nn.Module)
