"""Linear layers as convolutions give what the model gives without them, and leave torch as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from training.model import fast
from training.model.build import build_model
from training.model.presets import ModelSettings


@pytest.mark.parametrize("num_pictures", [3, 16, 40])
def test_features_are_the_same_to_rounding(
    num_pictures: int, architecture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    second = {"heads": 2, "reduced_width": 4}
    model = build_model(ModelSettings(architecture=str(architecture), second_order=second)).eval()
    images = torch.randn(num_pictures, 3, 32, 32)
    calls = []
    monkeypatch.setattr(fast, "_is_amd", lambda: True)
    monkeypatch.setattr(fast, "_FEWEST_NUMBERS", 1)
    convolution = fast._convolve

    def counted(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(arguments[0].shape[2])
        return convolution(*arguments)

    monkeypatch.setattr(fast, "_convolve", counted)
    with torch.inference_mode():
        wanted = model.image_orders(images)
        with fast.fast_linear(torch.device("cpu")):
            found = model.image_orders(images)
    assert (1 in calls) == (num_pictures >= 16), "the branch itself multiplies two heads at a time"
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_layer_by_hand_with_and_without_a_bias() -> None:
    x, weight, bias = torch.randn(17, 5, 24), torch.randn(10, 24), torch.randn(10)
    for given in (bias, None):
        torch.testing.assert_close(
            fast._convolve(x.unsqueeze(2), weight, given).squeeze(2),
            functional.linear(x, weight, given),
            rtol=1e-5,
            atol=1e-5,
        )


def test_other_processors_and_devices_keep_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_is_amd", lambda: False)
    with fast.fast_linear(torch.device("cpu")):
        assert torch.backends.mha.get_fastpath_enabled()
    monkeypatch.setattr(fast, "_is_amd", lambda: True)
    with fast.fast_linear(torch.device("meta")):
        assert torch.backends.mha.get_fastpath_enabled()
