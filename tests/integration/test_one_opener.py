"""`dalip` sees a picture as `plantmix` stores it, and reads and refuses the same bytes."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from measuring import PLAIN, encode, picture, swapped_profile
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg
from PIL import Image

from pipeline.fetching.pictures.image import Rejected, StoredImage, measure_image
from training.data.decoded import shrink
from training.data.images import AugmentSettings, CorruptSample, EvalView, TrainView

SIDE = 96
Pixels = NDArray[np.int64]


def _eval(body: bytes | Image.Image) -> Pixels:
    return EvalView(PreprocessCfg(size=SIDE))(body).permute(1, 2, 0).numpy().astype(int)


def _train(body: bytes) -> Pixels:
    view = TrainView((SIDE, SIDE), AugmentSettings(scale=(1.0, 1.0)))
    return view(body).permute(1, 2, 0).numpy().astype(int)


def _decoded(body: bytes) -> Pixels:
    ppm = shrink(body, SIDE)
    if ppm == body and not body.startswith(b"P6"):
        raise CorruptSample("left as it is")
    return np.asarray(Image.open(io.BytesIO(ppm)), int)


WAYS: dict[str, Callable[[bytes], Pixels]] = {"eval": _eval, "train": _train, "decoded": _decoded}


def _turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture(SIDE, SIDE), kind, exif=exif if kind == "TIFF" else exif.tobytes())


def _clear(mode: str) -> Image.Image:
    image = picture(SIDE, SIDE, mode)
    image.putalpha(Image.linear_gradient("L").resize((SIDE, SIDE)))
    return image


GREY_16 = Image.fromarray(np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16))
WEAK = Image.new("L", (SIDE, SIDE), 20)  # a colour in LAB; the numbers have a sign
ODD = {
    "16-bit grey PNG": encode(GREY_16, "PNG"),
    "16-bit grey TIFF": encode(GREY_16, "TIFF"),
    "transparent PNG": encode(_clear("RGBA"), "PNG"),
    "transparent grey PNG": encode(_clear("LA"), "PNG"),
    "transparent WebP": encode(_clear("RGBA"), "WEBP", lossless=True),
    "transparent palette": encode(picture(SIDE, SIDE).quantize(8), "PNG", transparency=3),
    "transparent GIF": encode(picture(SIDE, SIDE).quantize(8), "GIF", transparency=3),
    "colour key": encode(Image.new("RGB", (SIDE, SIDE), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
    "profile in a JPEG": encode(picture(SIDE, SIDE), "JPEG", icc_profile=swapped_profile()),
    "profile in a PNG": encode(picture(SIDE, SIDE), "PNG", icc_profile=swapped_profile()),
    "CMYK JPEG": encode(picture(SIDE, SIDE, "CMYK"), "JPEG"),
    "CMYK TIFF": encode(picture(SIDE, SIDE, "CMYK"), "TIFF"),
    "LAB TIFF": encode(Image.merge("LAB", [Image.linear_gradient("L").resize((SIDE, SIDE)), *[WEAK] * 2]), "TIFF"),
    "bilevel": encode(picture(SIDE, SIDE, "1"), "PNG"),
    "AVIF": encode(picture(SIDE, SIDE), "AVIF"),
    "JPEG 2000": encode(picture(SIDE, SIDE), "JPEG2000"),
    "TGA": encode(picture(SIDE, SIDE), "TGA"),
    "PPM": encode(picture(SIDE, SIDE), "PPM"),
    **{f"{kind} turned {turn}": _turned(kind, turn) for kind in ("JPEG", "PNG", "WEBP", "TIFF") for turn in (2, 6)},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ODD)
def test_dalip_sees_what_plantmix_stores(name: str, way: str) -> None:
    stored = measure_image(ODD[name], PLAIN)
    assert isinstance(stored, StoredImage)
    expected = np.asarray(Image.open(io.BytesIO(stored.body)).convert("RGB"), int)
    assert np.abs(WAYS[way](ODD[name]) - expected).mean() < 5  # the JPEG that is stored has coarse colours


REFUSED = {
    "EPS": encode(picture(SIDE, SIDE), "EPS"),
    "DDS": encode(picture(SIDE, SIDE), "DDS"),
    "BLP": encode(picture(SIDE, SIDE).quantize(16), "BLP"),
    "ICO": encode(picture(SIDE, SIDE), "ICO"),
    "floating point": encode(Image.new("F", (SIDE, SIDE), 0.5), "TIFF"),
    "half a JPEG": encode(picture(SIDE, SIDE), "JPEG")[:1500],
    "HTML": b"<!doctype html><p>not found",
    "nothing": b"",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REFUSED)
def test_dalip_refuses_what_plantmix_refuses(
    name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No program is started for an EPS: a `gs` on the path would leave a mark."""
    ghostscript, mark = tmp_path / "gs", tmp_path / "started"
    ghostscript.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # else looked for once a process
    assert isinstance(measure_image(REFUSED[name], PLAIN), Rejected)
    with pytest.raises(CorruptSample):
        WAYS[way](REFUSED[name])
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["AVIF", "DDS", "BLP", "JPEG2000", "TIFF", "WEBP", "GIF"])
def test_damaged_bytes_end_one_picture(kind: str) -> None:
    sound = encode(picture(SIDE, SIDE).quantize(16) if kind == "BLP" else picture(SIDE, SIDE), kind)
    rng = random.Random(kind)
    for _ in range(60):
        body = bytearray(sound)
        for _ in range(rng.randint(1, 4)):
            body[rng.randrange(min(300, len(body)))] = rng.randrange(256)
        for way in WAYS.values():
            try:
                way(bytes(body))
            except CorruptSample:
                continue


def test_a_picture_in_memory_is_seen_as_its_file() -> None:
    body = ODD["transparent PNG"]
    assert (
        EvalView(PreprocessCfg(size=SIDE))(Image.open(io.BytesIO(body))).permute(1, 2, 0).numpy() == _eval(body)
    ).all()


def test_pictures_are_opened_in_one_place() -> None:
    root = Path(__file__).resolve().parents[2]
    modules = [path for package in ("pipeline", "manifests", "training") for path in (root / package).rglob("*.py")]
    opens = {
        str(path.relative_to(root)) for path in modules if re.search(r"Image\.open\(", path.read_text(encoding="utf-8"))
    }
    assert opens == {"manifests/pictures/opening.py", "pipeline/demo/troubles.py"}  # the demo breaks its own pictures
