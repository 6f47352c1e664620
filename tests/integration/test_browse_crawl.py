"""Every page of `plantmix browse` that links and forms lead to, over a folder that has something for each of them."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from browsing import PHOTOS
from building import done, release_of, write_small_config
from crawling import crawl, make_client, open_image_index
from PIL import Image, ImageOps
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from tiny_clip import MODEL, save_weights

from pipeline.browse.image_index import ImageIndex

RADIUS = 2
SCORERS = str(Path(__file__).parents[1] / "unit/pipeline/scoring")


def write_inputs(folder: Path) -> None:
    """Photos with copies inside the radius, just outside it, and mirrored; a leak; files that are no pictures."""
    pictures, exam = folder / "pictures", folder / "exam"
    pictures.mkdir()
    exam.mkdir()
    for photo in PHOTOS[:5]:
        with Image.open(photo) as opened:
            image = opened.convert("RGB")
        image.save(pictures / photo.name)
        image.save(pictures / f"pale-{photo.name}", quality=4)
        image.crop((image.width // 40, 0, image.width, image.height)).save(pictures / f"cut-{photo.name}")
    ImageOps.mirror(image).save(pictures / "mirrored.jpg")
    shutil.copy(pictures / PHOTOS[0].name, pictures / "same bytes.jpg")
    shutil.copy(pictures / PHOTOS[1].name, exam / "same.jpg")
    with Image.open(PHOTOS[2]) as opened:
        opened.convert("RGB").resize((150, 150)).save(exam / "smaller.png")
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    Image.new("RGB", (3, 3)).save(pictures / "dot.png")
    names = [*sorted(path.name for path in pictures.iterdir()), "not there.jpg"]
    with (pictures / "list.csv").open("w", newline="") as stream:
        rows = [
            (
                name,
                "untitled" if at % 7 == 6 else f"leaf {at} & <b>stem</b> of a plant",
                "all rights reserved" if at % 9 == 8 else "CC-BY-4.0",
                "Rosa canina",
            )
            for at, name in enumerate(names)
        ]
        csv.writer(stream).writerows([("file", "caption", "licence", "name"), *rows])
    with (folder / "traits.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file", "text"), *((name, f"{name} has hairs") for name in names[:9])])


def write_config(folder: Path, seed: int, semantic: dict[str, object] | None) -> Path:
    columns = {"file": "file", "caption": "caption", "licence": "licence", "taxon_scientific_name": "name"}
    source = {
        "name": "photos",
        "domain": "plant",
        "folder": {"path": str(folder / "pictures"), "table": "list.csv", "columns": columns},
        "captions": [
            {"join": str(folder / "traits.csv"), "on": {"record_key": "file"}, "text": "text", "kind": "trait"},
        ],
    }
    return write_small_config(
        folder,
        source,
        name="crawled",
        evaluation=[{"name": "exam", "folder": {"path": str(folder / "exam"), "captions": "none"}}],
        dedup={"radius": RADIUS, "semantic": semantic},
        caption={"rules": [{"preset": "general"}]},
        score={
            "plugins": [{"name": "middle", "scorer": "own_scorer:Middle"}],
            "rules": [{"scorer": "middle", "max_score": 0.8}],
        },
        mix={"ratio": {"plant": 1}, "num_samples": 2, "seed": seed},
    )


@pytest.fixture(scope="module", params=["", pytest.param("semantic", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs, and a work folder with two releases."""
    folder = tmp_path_factory.mktemp(request.param or "crawled")
    write_inputs(folder)
    semantic = None
    if request.param:
        semantic = {"model": str(MODEL), "pretrained": str(save_weights(folder)), "threshold": 0.99}
    with mock.patch.object(sys, "path", [SCORERS, *sys.path]):
        for seed in (0, 1):
            done("--quiet", "build", write_config(folder, seed, semantic))
    return folder


@pytest.fixture(scope="module")
def image_index(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageIndex]:
    with open_image_index(folder / "work", tmp_path_factory.mktemp("private")) as found:
        yield found


def test_every_page_of_a_work_folder_answers(folder: Path, image_index: ImageIndex) -> None:
    pages, faults = crawl(make_client(image_index, evaluation=[f"exam={folder / 'exam'}"]))
    assert faults == []
    sections = pages["/duplicates"].split("<h2>")
    inside, outside = (next(text for text in sections if text.startswith(f"Just {side}")) for side in ("in", "out"))
    assert "bits apart" in inside
    assert "one of them mirrored" in inside
    apart = [int(bits) for bits in re.findall(r"([0-9]+) bits apart</p>", outside)]
    assert apart, "the pages are to be tried with such pairs"
    assert min(apart) > RADIUS
    assert "matched by near" in pages["/leaks"]
    reasons = (
        "near duplicate",
        "exact duplicate",
        "eval leak",
        "corrupt image",
        "looks like a placeholder",
        "licence",
        "left out by ratio",
    )
    assert [reason for reason in reasons if reason not in pages["/reasons"]] == []
    has_semantic = "semantic duplicate" in pages["/reasons"]
    assert has_semantic == folder.name.startswith("semantic")
    lives = [text for address, text in pages.items() if address.startswith("/image/")]
    assert len(lives) == image_index.codes.num_images
    assert sum("has hairs" in life for life in lives) > 2
    assert sum(address.startswith("/compare?") for address in pages) == 4


def test_every_page_of_a_release_answers(folder: Path, tmp_path: Path) -> None:
    with open_image_index(release_of(folder / "work"), tmp_path) as found:
        pages, faults = crawl(make_client(found))
    assert faults == []
    assert sum(address.startswith("/image/") for address in pages) == 2


def test_a_crawl_sees_what_is_wrong() -> None:
    async def page(_: object) -> HTMLResponse:
        return HTMLResponse(
            '<a href="/no-page">gone</a> <a href="#no">nowhere</a> <a href="https://example.org">out</a>'
        )

    faults = crawl(TestClient(Starlette(routes=[Route("/", page)])))[1]
    assert faults == ["no element no: #no on /", "404: /no-page on /"]
