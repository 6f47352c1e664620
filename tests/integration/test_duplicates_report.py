"""The report's section on duplicates, over a build of real photos with copies among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from building import photos_config
from PIL import Image

from manifests.contract.catalog import Catalog
from manifests.contract.reader import read_status
from pipeline.commands.status import describe_status
from pipeline.engine.runner import Runner
from pipeline.flow import FLOW
from pipeline.sidefiles.contact_sheets import Picture, collect_duplicates

PHOTOS = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))


def build(folder: Path, work: Path, **dedup: Any) -> None:
    config = photos_config(folder, work, dedup=dedup)
    with Catalog.open(str(work)) as catalog:
        Runner(config, FLOW, catalog).run(last="select")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for photo in PHOTOS[:5]:
        picture = Image.open(photo).convert("RGB")
        for quality in (95, 20, 8):  # the last two are 0 to 6 bits away from the first
            picture.save(folder / f"{photo.stem}-{quality}.jpg", quality=quality)
    return folder


def shown(work: Path) -> dict[str, list[Picture]]:
    """Title of every sheet -> the pictures that it shows."""
    found = collect_duplicates(str(work))
    assert found is not None
    return {sheet.title: [picture for group in sheet.groups for picture in group] for sheet in found["sheets"]}


def test_groups_and_pairs_inside_are_shown(pictures: Path, tmp_path: Path) -> None:
    build(pictures, tmp_path, radius=8)
    sheets = {title: len(pictures) for title, pictures in shown(tmp_path).items() if pictures}
    assert 2 <= sheets.pop("Just inside the radius") <= 20  # some copies have the very hash of the original
    assert sheets == {"Random groups": 15, "Largest groups": 12}
    found = collect_duplicates(str(tmp_path))
    assert found is not None
    assert found == collect_duplicates(str(tmp_path))
    assert all(picture.jpg for pictures in shown(tmp_path).values() for picture in pictures)


@pytest.mark.slow
def test_a_picture_that_is_gone_has_no_bytes(pictures: Path, tmp_path: Path) -> None:
    build(pictures, tmp_path, radius=8)
    for file in (tmp_path / "pool").glob("*.tar"):
        file.unlink()
    sheets = shown(tmp_path)
    assert sheets["Random groups"]
    assert not any(picture.jpg for pictures in sheets.values() for picture in pictures)


@pytest.mark.slow
def test_a_placeholder_is_named_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.config.PLACEHOLDER_MIN_COUNT", 4)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):  # one picture to the eye, four to sha256
        picture = Image.open(PHOTOS[0]).convert("RGB")
        picture.putpixel((100, 100), (60 * number, 0, 0))
        picture.save(folder / f"none-{number}.png")
    build(folder, tmp_path / "work")
    assert len(shown(tmp_path / "work")["pHashes shared by many images"]) == 3
    assert any(
        "placeholders: " in line and "(4 images)" in line
        for line in describe_status(read_status(str(tmp_path / "work")))
    )


def test_before_the_search_there_is_nothing_to_show(tmp_path: Path) -> None:
    Catalog.open(str(tmp_path)).__exit__(None, None, None)
    assert collect_duplicates(str(tmp_path)) is None
