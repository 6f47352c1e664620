"""Webdataset tars as other programs write them, for tests: members by ending, in any order; and who reads them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from release_writer import draw_picture
from tars import tar_of

Members = dict[str, bytes]


class PictureModel:
    """What the loader asks of a model; a token is a byte of the text."""

    class preprocess_settings:  # noqa: N801 - stands for open_clip's PreprocessCfg
        size = 32

    @staticmethod
    def tokenizer(texts: list[str]) -> torch.Tensor:
        return torch.tensor([list(text.encode()[:40].ljust(40, b"\0")) for text in texts])


def write_tar(path: Path, samples: Iterable[tuple[str, Members]]) -> Path:
    """A tar of samples: key, and content by ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        tar_of((f"{key}.{ending}", content) for key, members in samples for ending, content in members.items())
    )
    return path


def picture(number: int, kind: str = "jpg", side_px: int = 48) -> bytes:
    """A picture that no other number has."""
    colour, shape = (("red", "blue", "green")[number % 3], ("circle", "square", "star")[number // 3 % 3])
    jpeg = draw_picture(colour, shape, number, side_px)
    if kind == "jpg":
        return jpeg
    stream = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(stream, {"png": "PNG", "webp": "WEBP"}[kind])
    return stream.getvalue()


def img2dataset_samples(start: int, stop: int) -> list[tuple[str, Members]]:
    """As img2dataset writes them: jpg, json, txt."""
    return [
        (f"{i:09d}", {"jpg": picture(i), "json": json.dumps({"caption": f"caption {i}", "url": "u"}).encode(),
                      "txt": f"text {i}".encode()})
        for i in range(start, stop)
    ]  # fmt: skip


def tree_of_life_samples(start: int, stop: int) -> list[tuple[str, Members]]:
    """As TreeOfLife-10M has them: several texts, the picture among them."""
    texts = ("sci.txt", "sci_com.txt", "taxon.txt")
    return [
        (
            f"dir/{i}-abc",
            {"com.txt": f"com {i}".encode(), "jpg": picture(i)} | {name: f"{name[:-4]} {i}".encode() for name in texts},
        )
        for i in range(start, stop)
    ]
