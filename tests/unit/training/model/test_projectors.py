"""A projection of pictures for each kind of text: in the model, in a run, and out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from training_runs import final_weights, make_settings, run_once

from manifests.errors import ConfigError
from training.cli import main
from training.evaluation.trained_model import open_trained_model
from training.model import exports
from training.model.build import build_model, load_hugging_face
from training.model.dalip import DalipModel
from training.model.presets import ModelSettings
from training.record.log import read_log
from training.run.loop import train

KINDS = ("taxon", "caption", "general")


def model_of(architecture: Path, kinds: tuple[str, ...] = KINDS, **values: Any) -> DalipModel:
    torch.manual_seed(0)
    second = {} if values.get("preset") == "clip" else {"second_order": {"heads": 2, "reduced_width": 4}}
    settings = {"architecture": str(architecture), "projectors": kinds, **second, **values}
    return build_model(ModelSettings.model_validate(settings))


def shaken(model: DalipModel) -> DalipModel:
    """With projections that are no identity."""
    for number, matrix in enumerate(model.projectors.values()):
        matrix.data += torch.randn(matrix.shape, generator=torch.Generator().manual_seed(number)) / 4
    return model.eval()


def batch(model: DalipModel) -> tuple[Tensor, Tensor]:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)), model.tokenizer(list("abcde"))


def test_a_model_begins_as_the_one_without_projections(architecture: Path) -> None:
    model, plain = model_of(architecture), model_of(architecture, ())
    assert [name for name, _ in model.named_parameters() if name.startswith("proj")] == [
        "projectors.caption", "projectors.general",
    ]  # fmt: skip
    inputs = batch(model)
    with torch.no_grad():
        output, expected = model(*inputs, torch.tensor([0, 1, 2, 2, 0])), plain(*inputs)
    for name, value in expected.items():
        assert torch.allclose(output[name], value, rtol=0, atol=1e-6), name


def test_each_picture_has_the_projection_of_its_text(architecture: Path) -> None:
    model, kinds = shaken(model_of(architecture)), torch.tensor([0, 1, 2, 2, 0])
    images, tokens = batch(model)
    output = model(images, tokens, kinds)
    base = model.encode_image(images)
    for row, kind in enumerate(kinds.tolist()):
        matrix = torch.eye(32) if kind == 0 else model.projectors[KINDS[kind]]
        assert torch.allclose(output["image_features"][row], normalize(base[row] @ matrix, dim=0), atol=1e-6)
    for name in ("text_features", "image_second_order"):
        assert torch.equal(output[name], model(images, tokens)[name])
    model.zero_grad()
    model(images, tokens, torch.ones(5, dtype=torch.int64))["image_features"][:, 0].sum().backward()
    assert model.projectors["caption"].grad.abs().sum() > 0
    assert model.projectors["general"].grad.abs().sum() == 0, "a kind that is not in a batch, as one process needs it"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["clip", "dalip", "second_moment"])
def test_one_kind_goes_to_open_clip_and_all_of_them_together(
    preset: str, kind: str, architecture: Path, tmp_path: Path
) -> None:
    model = shaken(model_of(architecture, preset=preset))
    images, _ = batch(model)
    exports.export_hugging_face(model, tmp_path / "hub")
    together = load_hugging_face(tmp_path / "hub").eval()
    assert together.settings.projectors == KINDS
    for loaded in (model, together):
        loaded.use_kind(kind)
    with torch.no_grad():
        expected = model.image_orders(images)[0]
        assert torch.allclose(together.image_orders(images)[0], expected, rtol=0, atol=1e-6)
        first = open_clip.create_model(f"local-dir:{tmp_path / 'hub'}").eval()
        assert torch.allclose(first.encode_image(images, normalize=True), model.encode_image(images), rtol=0, atol=1e-6)
    assert main(["export", str(tmp_path / "hub"), str(tmp_path / f"{kind}-{preset}.pt"), "--kind", kind]) == 0
    open_clip.add_model_config(tmp_path / f"{kind}-{preset}.json")
    alone = open_clip.create_model(f"{kind}-{preset}", pretrained=str(tmp_path / f"{kind}-{preset}.pt")).eval()
    with torch.no_grad():
        assert torch.allclose(alone.encode_image(images, normalize=True), expected, rtol=0, atol=1e-5)


def test_a_linear_head_of_a_tower_holds_a_kind_too(architecture: Path, tmp_path: Path) -> None:
    """As timm's towers have it, with a bias."""
    model = shaken(model_of(architecture, preset="clip"))
    images, _ = batch(model)
    model.use_kind("general")
    expected = model.image_orders(images)[0]
    visual, head = model.clip.visual, torch.nn.Linear(32, 32)
    with torch.no_grad():
        head.weight.copy_(visual.proj.t())
        head.bias.zero_()
    visual.proj = None
    visual.head = torch.nn.Sequential(head)
    model.fold_kind()
    assert torch.allclose(normalize(visual.head(visual(images)), dim=-1), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_run_trains_every_projection_and_measures_by_one(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kinds are domains here; micro-batches give the weights of one batch."""
    config["eval"]["every_steps"] = 3
    folders = [str(tmp_path / name) for name in ("whole", "parts")]
    values = config | {"model": config["model"] | {"projectors": ["plant", "general"]}}
    for folder, accumulate in zip(folders, (1, 2), strict=True):
        run_once(values | {"output_dir": folder}, compute={"accumulate": accumulate})
    whole, parts = map(final_weights, folders)
    assert not torch.allclose(whole["projectors.general"], torch.eye(32), atol=1e-3)
    assert all(torch.allclose(whole[name], parts[name], rtol=0, atol=2e-3) for name in whole)
    validations = read_log(Path(folders[0]) / "log.jsonl", "validation")
    model = open_trained_model(folders[0]).model
    assert model.settings.projectors == ("plant", "general")
    figures = {}
    for kind in ("plant", "general"):
        assert main(["eval", folders[0], "--kind", kind, "--out", str(tmp_path / f"{kind}.json")]) == 0
        figures[kind] = json.loads((tmp_path / f"{kind}.json").read_text())
        assert figures[kind]["kind"] == kind
    assert figures["plant"]["retrieval"]["f"] != figures["general"]["retrieval"]["f"]
    losses = figures["plant"]["validation_loss"]
    assert losses["all"]["value"] == pytest.approx(validations[-1]["losses"]["all"], rel=1e-5), "each pair by its kind"
    assert main(["export", folders[0], str(tmp_path / "alone"), "--format", "huggingface", "--kind", "general"]) == 0
    alone = open_trained_model(str(tmp_path / "alone")).model
    assert alone.settings.projectors == ()
    model.use_kind("general")
    pictures = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for own, others in zip(alone.image_orders(pictures), model.image_orders(pictures), strict=True):
            assert torch.allclose(own, others, rtol=0, atol=1e-5)
    capsys.readouterr()
    assert main(["eval", folders[0], "--kind", "moss"]) == 2
    assert "--kind moss: the model has plant, general" in capsys.readouterr().err


def test_samples_of_no_kind_are_counted_before_a_run(config: dict[str, Any]) -> None:
    config["model"]["projectors"] = ["plant", "moss"]
    with pytest.raises(ConfigError, match=r"model\.projectors: the release has no field 'text_type'"):
        train(make_settings(config))
    with pytest.raises(ConfigError, match="name two kinds of text or more, each once"):
        make_settings(config, model={"projectors": ["plant"]})
    assert not (Path(config["output_dir"]) / "run.json").exists()
