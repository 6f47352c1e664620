"""The ONNX layout: onnxruntime gives torch's features, for any number of pictures and texts, and the same tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from manifests.errors import ConfigError
from training.cli import main
from training.model import exports_onnx
from training.model.build import build_model
from training.model.exports import export_hugging_face
from training.model.exports_onnx import export_onnx
from training.model.presets import ModelSettings

pytestmark = pytest.mark.slow

TEXTS = [
    "a photo of a rose", "Quercus robur L., été 2024!", "it's   the\tfarmer's field", "x" * 50, "葉っぱ 🌿 naïve café",
    "",    " ".join(["leaf"] * 60), "100% wool & 3.5 km", "don't we'll I'm they'd you've",
]  # fmt: skip


@pytest.mark.parametrize("preset", ["clip", "dalip"])
def test_onnxruntime_gives_the_features_of_torch(preset: str, architecture: Path, tmp_path: Path) -> None:
    second = {} if preset == "clip" else {"second_order": {"heads": 2, "reduced_width": 4}}
    torch.manual_seed(0)
    model = build_model(ModelSettings(preset=preset, architecture=str(architecture), **second)).eval()
    folder = tmp_path / "onnx"
    assert export_onnx(model, folder, 0.3) == f'onnxruntime.InferenceSession("{folder}/image.onnx")'
    assert sorted(path.name for path in folder.iterdir()) == [
        "dalip_onnx.json", "image.onnx", "preprocessor_config.json", "text.onnx", "tokenizer.json"
    ]  # fmt: skip
    tokens = model.tokenizer(TEXTS)
    with torch.no_grad():
        for size in (1, 5, 33):
            pixels = torch.randn(size, 3, 32, 32)
            _assert_same(folder / "image.onnx", pixels, _features(model, pixels, "image"))
        _assert_same(folder / "text.onnx", tokens, _features(model, tokens, "text"))
    config = json.loads((folder / "dalip_onnx.json").read_text())
    assert config["outputs"] == (["f"] if preset == "clip" else ["f", "z", "both"])
    assert config["image"]["size_px"] == [32, 32]

    tokenizers = pytest.importorskip("tokenizers")
    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [encoded.ids for encoded in own.encode_batch(TEXTS)] == tokens.tolist()


def test_kinds_of_text_are_exported_alone_and_together(architecture: Path, tmp_path: Path) -> None:
    kinds = ("taxon", "caption", "general")
    second = {"heads": 2, "reduced_width": 4}
    settings = {"architecture": str(architecture), "second_order": second, "projectors": kinds}
    model = build_model(ModelSettings.model_validate(settings)).eval()
    for matrix in model.projectors.values():
        matrix.data += torch.randn(matrix.shape, generator=torch.Generator().manual_seed(1)) / 4
    export_hugging_face(model, tmp_path / "hub")
    assert main(["export", str(tmp_path / "hub"), str(tmp_path / "all"), "--format", "onnx"]) == 0
    assert main(["export", str(tmp_path / "hub"), str(tmp_path / "one"), "--format", "onnx", "--kind", "general"]) == 0
    config = json.loads((tmp_path / "all/dalip_onnx.json").read_text())
    assert config["kinds"] == list(kinds)
    assert config["image_outputs"] == ["f", "z", "both", "f_caption", "both_caption", "f_general", "both_general"]
    assert config["outputs"] == ["f", "z", "both"]
    pixels = torch.randn(3, 3, 32, 32)
    together, alone = (
        onnxruntime.InferenceSession(str(tmp_path / name / "image.onnx")).run(None, {"pixels": pixels.numpy()})
        for name in ("all", "one")
    )
    with torch.no_grad():
        for number, kind in enumerate(kinds):
            model.use_kind(kind)
            f, z = model.image_orders(pixels)
            np.testing.assert_allclose(together[0 if number == 0 else 2 * number + 1], f, rtol=0, atol=1e-4)
    for name, value in {"f_general": 5, "both_general": 6}.items():
        np.testing.assert_allclose(alone[0 if name.startswith("f") else 2], together[value], rtol=0, atol=1e-4)
    np.testing.assert_allclose(alone[1], z, rtol=0, atol=1e-4)


def _features(model: Any, inputs: torch.Tensor, side: str) -> list[np.ndarray]:
    if model.second_order is None:
        return [getattr(model, f"encode_{side}")(inputs).numpy()]
    f, z = getattr(model, f"encode_{side}_both")(inputs)
    return [f.numpy(), z.numpy(), np.concatenate([0.3**0.5 * f.numpy(), 0.7**0.5 * z.numpy()], axis=1)]


def _assert_same(path: Path, inputs: torch.Tensor, wanted: list[np.ndarray]) -> None:
    session = onnxruntime.InferenceSession(str(path))
    found = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


def test_a_file_that_computes_something_else_is_not_published(
    architecture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights change between the writing and the check, as an exporter's mistake would."""
    model = build_model(ModelSettings(preset="clip", architecture=str(architecture))).eval()
    write = exports_onnx._write_side

    def spoil(*arguments: Any) -> None:
        write(*arguments)
        with torch.no_grad():
            model.clip.visual.proj.add_(torch.randn_like(model.clip.visual.proj))

    monkeypatch.setattr(exports_onnx, "_write_side", spoil)
    with pytest.raises(ConfigError, match=r"image.onnx: f of 1 differs from the model's by .* nothing is written"):
        export_onnx(model, tmp_path / "onnx", 0.5)
    assert list(tmp_path.iterdir()) == []


def test_what_onnx_cannot_hold_is_refused(architecture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(ModelSettings(preset="clip", architecture=str(architecture))).eval()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        export_onnx(model, tmp_path / "file", 0.5)
    monkeypatch.setattr(exports_onnx, "_PACKAGES", ("onnx", "no_such_runtime"))
    with pytest.raises(ConfigError, match="needs no_such_runtime, which is not installed"):
        export_onnx(model, tmp_path / "onnx", 0.5)
