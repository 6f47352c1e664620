"""The views of a picture: open_clip's own pixels, and a reduced decode that stays close to them."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform
from PIL import Image

from training.data.images import AugmentSettings, CorruptSample, EvalView, TrainView, normalise

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _photo(width: int, height: int, mode: str = "RGB", form: str = "JPEG") -> bytes:
    """Smooth colours with texture, as a photo has."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    rng = np.random.default_rng(width * 10_000 + height)
    waves = [np.sin(x / width * (9 + 7 * c)) * np.cos(y / height * (13 + 5 * c)) * 90 + 128 for c in range(3)]
    pixels = np.stack(waves, -1) + rng.normal(0, 6, (height, width, 3))
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)
    stream = io.BytesIO()
    picture.save(stream, form, **({"quality": 92} if form == "JPEG" else {}))
    return stream.getvalue()


def _seeded(view: Any, content: Any, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    result: torch.Tensor = view(content)
    return result


@pytest.mark.parametrize("settings", [AugmentSettings(), AugmentSettings(scale=(0.4, 0.9))], ids=["default", "scale"])
@pytest.mark.parametrize(("width", "height"), [(150, 90), (64, 64), (40, 200)])
def test_train_view_equals_open_clip(settings: AugmentSettings, width: int, height: int) -> None:
    """Same seed, same pixels as open_clip's transform, normalisation included."""
    content = _photo(width, height)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unused augmentation cfg items")  # said of those it does use
        theirs = image_transform(64, True, MEAN, STD, aug_cfg=AugmentationCfg(scale=settings.scale))
    ours = TrainView((64, 64), settings, reduced_decode=False)
    for seed in range(8):
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            expected = _seeded(theirs, picture, seed)
        actual = normalise(_seeded(ours, content, seed)[None], MEAN, STD)[0]
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
def test_eval_view_equals_open_clip(resize_mode: str) -> None:
    content = _photo(170, 90)
    expected = image_transform(64, False, MEAN, STD, resize_mode=resize_mode)(Image.open(io.BytesIO(content)))
    ours = EvalView(PreprocessCfg(size=64, mean=MEAN, std=STD, resize_mode=resize_mode))
    assert torch.equal(normalise(ours(content)[None], MEAN, STD)[0], expected)


@pytest.mark.parametrize(("width", "height"), [(900, 700), (1601, 1207), (530, 270)])
def test_reduced_decode_is_close_and_reduced(width: int, height: int) -> None:
    """The same crop from a reduced decode differs by little: mean below 2 of 255 on textured pictures."""
    content = _photo(width, height)
    whole = TrainView((64, 64), AugmentSettings(), reduced_decode=False)
    reduced = TrainView((64, 64), AugmentSettings())
    decoded: list[tuple[int, int]] = []
    cut = reduced._crop

    def watch(picture: Any, *box: int) -> Any:
        result = cut(picture, *box)
        decoded.append(picture.size)
        return result

    reduced._crop = watch
    for seed in range(6):
        difference = _seeded(whole, content, seed).float() - _seeded(reduced, content, seed).float()
        assert difference.abs().mean() < 2
    assert all(2 * w <= width + 1 and min(w, h) >= 64 for w, h in decoded)


def test_reduced_decode_leaves_small_pictures_alone() -> None:
    content = _photo(120, 110)
    for seed in range(5):
        whole = _seeded(TrainView((64, 64), AugmentSettings(), reduced_decode=False), content, seed)
        assert torch.equal(whole, _seeded(TrainView((64, 64), AugmentSettings()), content, seed))


@pytest.mark.parametrize(("mode", "form"), [("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("P", "PNG")])
def test_other_modes_and_formats_become_rgb(mode: str, form: str) -> None:
    for view in (TrainView((48, 32), AugmentSettings()), EvalView(PreprocessCfg(size=(48, 32)))):
        pixels = view(_photo(300, 260, mode, form))
        assert pixels.shape == (3, 48, 32)
        assert pixels.dtype == torch.uint8


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\xff\xd8\xff\xe0" + bytes(50), _photo(90, 90)[:800]])
def test_broken_bytes_are_an_outcome(content: bytes) -> None:
    with pytest.raises(CorruptSample):
        TrainView((64, 64), AugmentSettings())(content)


def test_augment_settings_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="0 < low <= high <= 1"):
        AugmentSettings(scale=(0.9, 0.1))
