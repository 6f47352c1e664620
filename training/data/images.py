"""The bytes of a picture in, pixels of the model's size out: decoding and augmentation.

The training view is open_clip's: a random resized crop. Here the crop is drawn before decoding, so that a large JPEG is
decoded at 1/2, 1/4 or 1/8 when the crop stays large enough. The evaluation view is open_clip's own transform. Both see
a picture as `plantmix` stores it: upright, in sRGB, on white. Pixels leave as uint8; `normalise` does the rest on the
device, a batch at a time. Gives up on a broken picture with CorruptSample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from pydantic import model_validator
from torch import Tensor

from manifests.contract.settings import Settings
from manifests.pictures.opening import Unreadable, as_unreadable, is_plain, open_picture, upright_srgb
from manifests.services import open_clip_api as open_clip

Picture = Any  # PIL.Image.Image
View = Callable[[bytes], Tensor]


class CorruptSample(Exception):  # noqa: N818 - an outcome of one sample, not an error of the run
    """The bytes of one sample are not a picture, or not a text."""


class AugmentSettings(Settings):
    """Augmentation of the training view; name and default are open_clip's (`AugmentationCfg`)."""

    scale: tuple[float, float] = (0.9, 1.0)
    """Area of the crop over the area of the picture."""

    @model_validator(mode="after")
    def _is_consistent(self) -> AugmentSettings:
        if not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise ValueError(f"scale must be 0 < low <= high <= 1, given {self.scale}")
        return self


class TrainView:
    """open_clip's training transform up to the tensor: bytes -> uint8 (3, H, W).

    Draws from torch's random state in the order open_clip's transform does.
    """

    def __init__(self, size_px: tuple[int, int], settings: AugmentSettings, reduced_decode: bool = True) -> None:
        from torchvision import transforms

        self.size_px, self.settings, self.reduced_decode = size_px, settings, reduced_decode
        self._draw_crop = transforms.RandomResizedCrop.get_params

    def __call__(self, content: bytes) -> Tensor:
        """One random view.

        Raises: CorruptSample.
        """
        try:
            with open_picture(content) as opened, as_unreadable():
                picture = opened if is_plain(opened) else upright_srgb(opened)
                top, left, height, width = self._draw_crop(picture, self.settings.scale, (3 / 4, 4 / 3))
                view = self._crop(picture, left, top, width, height)
        except Unreadable as error:
            raise CorruptSample(str(error)) from None
        return to_tensor(view)

    def _crop(self, picture: Picture, left: int, top: int, width: int, height: int) -> Picture:
        """Return the crop, resized, from a reduced decode when that still has a pixel for every pixel wanted.

        Compared with the whole decode on 44 photos of 348 px (2026-11): 40 to 47 dB at 1/2, 36 to 41 dB at 1/4, 32 to
        43 dB at 1/8. The low values are those where the reduced crop is hardly larger than the view.
        """
        out_height, out_width = self.size_px
        full_width, full_height = picture.size
        scale = 1.0
        if self.reduced_decode and picture.format == "JPEG":
            enough = max(out_width / width, out_height / height)
            if enough <= 0.5:
                least_size = (int(full_width * enough), int(full_height * enough))
                drafted = picture.draft(picture.mode, least_size)
                # Pillow rounds the size up to whole pixels, but not the scale of the content.
                scale = drafted[1][2] / full_width if drafted is not None else 1.0
        image = picture.convert("RGB")
        if scale == 1.0:
            cut = image.crop((left, top, left + width, top + height))
            return cut.resize((out_width, out_height), Image.Resampling.BICUBIC)
        box = (left * scale, top * scale, (left + width) * scale, (top + height) * scale)
        return image.resize((out_width, out_height), Image.Resampling.BICUBIC, box=box)


class EvalView:
    """open_clip's evaluation transform up to the tensor: bytes -> uint8 (3, H, W)."""

    def __init__(self, preprocess: Any) -> None:
        steps = open_clip.image_transform_v2(preprocess, is_train=False).transforms
        self._steps = steps[:-2]  # the last two are ToTensor and Normalize, see `normalise`

    def __call__(self, content: bytes | Picture) -> Tensor:
        """Return the one view of the bytes of a picture, or of a picture of Pillow's.

        Raises: CorruptSample.
        """
        try:
            if isinstance(content, bytes):
                with open_picture(content) as picture:
                    view = upright_srgb(picture)
            else:
                view = upright_srgb(content)
        except Unreadable as error:
            raise CorruptSample(str(error)) from None
        for step in self._steps:
            view = step(view)
        return to_tensor(view)


def to_tensor(view: Picture) -> Tensor:
    """Return a PIL picture (RGB) as uint8 (3, H, W)."""
    pixels = torch.frombuffer(bytearray(view.tobytes()), dtype=torch.uint8)
    return pixels.view(view.size[1], view.size[0], 3).permute(2, 0, 1)


def normalise(pixels_BCHW: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (B, 3, H, W) to float32, as ToTensor and Normalize do it, on the device of the input."""
    mean_C = torch.tensor(mean, device=pixels_BCHW.device).view(3, 1, 1)
    std_C = torch.tensor(std, device=pixels_BCHW.device).view(3, 1, 1)
    return pixels_BCHW.to(torch.float32).div_(255).sub_(mean_C).div_(std_C)


def model_input(batch: Tensor, preprocess: Any) -> Tensor:
    """Normalise pixels as the model's `PreprocessCfg` says."""
    return normalise(batch, preprocess.mean, preprocess.std)
