"""Of copies of real photos, planted as people make them, the original stays, and `explain` says why."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from building import ROOT, folder_source, write_small_config
from misbehaving.answers import encode
from PIL import Image

from manifests.contract.reader import open_reader
from pipeline.answers.lives import find_lives
from pipeline.cli import main
from pipeline.commands.explain import describe_life

PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))  # JPEG of 200 x 200 px, without EXIF
Body = bytes
Plant = Callable[[Body], tuple[Body, Body, str]]
"""The bytes of a photo to the original, its worse copy, and what the original is better by."""


def opened(body: Body) -> Image.Image:
    image = Image.open(io.BytesIO(body))
    image.load()
    return image


def exif_of(tag: int, value: object) -> Image.Exif:
    exif = Image.Exif()
    exif[tag] = value
    return exif


def resized(body: Body, side: int, quality: int = 95) -> Body:
    return encode(opened(body).resize((side, side), Image.Resampling.BICUBIC), "JPEG", quality=quality)


def grey_jpeg(body: Body) -> tuple[Body, Body, str]:
    return body, encode(opened(body).convert("L"), "JPEG", quality=99), "it is in colour"


def grey_in_colours(body: Body) -> tuple[Body, Body, str]:
    return body, encode(opened(body).convert("L").convert("RGB"), "JPEG", quality=99), "it is in colour"


def colour_png_against_a_grey_jpeg(body: Body) -> tuple[Body, Body, str]:
    return encode(opened(body), "PNG"), encode(opened(body).convert("L"), "JPEG", quality=99), "it is in colour"


def webp(body: Body) -> tuple[Body, Body, str]:
    return body, encode(opened(body), "WEBP", quality=80), "it is stored as it was downloaded"


def turned(body: Body) -> tuple[Body, Body, str]:
    other = opened(body).transpose(Image.Transpose.ROTATE_90)
    copy = encode(other, "JPEG", quality=95, exif=exif_of(0x0112, 6))
    return body, copy, "it is stored as it was downloaded"


def png(body: Body) -> tuple[Body, Body, str]:
    return body, encode(opened(body), "PNG"), "the other one is a lossless copy"


def camera(body: Body) -> tuple[Body, Body, str]:
    original = encode(opened(body), "JPEG", quality=85, exif=exif_of(0x0110, "EOS 5D"))
    return original, encode(opened(body), "JPEG", quality=97), "its EXIF names the camera"


def fewer_bytes(body: Body) -> tuple[Body, Body, str]:
    return body, encode(opened(body), "JPEG", quality=40), "it has more bytes as downloaded"


def reduced(body: Body) -> tuple[Body, Body, str]:
    return body, resized(body, 160, 100), "it has more pixels"


def blown_up(body: Body) -> tuple[Body, Body, str]:
    return body, resized(body, 250), "it was not blown up"


def reduced_png(body: Body) -> tuple[Body, Body, str]:
    return encode(opened(body), "PNG"), resized(body, 150, 100), "it has more pixels"


def build(folder: Path, plants: list[Plant], size_px: int) -> None:
    pics = folder / "pics"
    pics.mkdir()
    for plant, photo in zip(plants, PHOTOS, strict=False):
        original, copy, _ = plant(photo.read_bytes())
        (pics / f"{plant.__name__}-original").write_bytes(original)
        (pics / f"{plant.__name__}-copy").write_bytes(copy)
    rows = [f"{path.name},a photo of number {number}\n" for number, path in enumerate(sorted(pics.iterdir()))]
    (pics / "list.csv").write_text("".join(["file,caption\n", *rows]))
    source = folder_source(pics)
    source["folder"] |= {"table": "list.csv", "columns": {"file": "file", "caption": "caption"}}
    config = write_small_config(folder, source, fetch={"image": {"size_px": size_px}})
    assert main(["build", str(config), "--to", "select"]) == 0


AS_THEY_CAME: list[Plant] = [
    grey_jpeg,
    grey_in_colours,
    colour_png_against_a_grey_jpeg,
    webp,
    turned,
    png,
    camera,
    fewer_bytes,
    reduced,
    blown_up,
]
MADE_SMALLER: list[Plant] = [grey_jpeg, png, camera, reduced, blown_up, reduced_png]


@pytest.mark.parametrize(
    ("size_px", "plants"), [pytest.param(256, AS_THEY_CAME, marks=pytest.mark.slow), (128, MADE_SMALLER)]
)
def test_the_original_stays(tmp_path: Path, size_px: int, plants: list[Plant]) -> None:
    build(tmp_path, plants, size_px)
    because = {plant.__name__: plant(photo.read_bytes())[2] for plant, photo in zip(plants, PHOTOS, strict=False)}
    with open_reader(str(tmp_path / "work")) as sql:
        rows = sql.execute("SELECT record_key, keep FROM decisions JOIN candidates USING (sample_id)").fetchall()
        assert sorted(key for key, keep in rows if keep) == sorted(f"{name}-original" for name in because)
        for name, why in because.items():
            (life,) = find_lives(sql, f"{name}-copy")
            lines = describe_life(life)
            assert f"          because {why}" in lines, lines
