"""The lines of the guide that make ONNX of a model run, and the network computes what the model does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_clip import tiny

from training.model import exports
from training.model.build import build_model
from training.model.presets import ModelSettings

ROOT = Path(__file__).parents[4]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch and onnxscript, about each other
def test_the_guides_lines_make_a_network_that_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (ROOT / "configs/guide/python.md").read_text(encoding="utf-8")
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "torch.onnx.export" in block]
    monkeypatch.chdir(tmp_path)
    model = build_model(ModelSettings(preset="clip", architecture=tiny(tmp_path, "onnx"))).eval()
    exports.export_hugging_face(model, tmp_path / "my-model")
    exec(compile(lines, "python.md", "exec"), {})
    session = onnxruntime.InferenceSession("image.onnx")
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (name,) = (each.name for each in session.get_inputs())
    (given,) = session.run(None, {name: pixels.numpy()})
    with torch.no_grad():
        expected = model.clip.encode_image(pixels).numpy()
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-4)
