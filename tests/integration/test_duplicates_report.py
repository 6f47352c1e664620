"""The report's section on duplicates, over a build of real photos with copies among them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from manifests.catalog import Catalog
from manifests.reader import open_reader, read_status
from pipeline.commands.explain import describe_life, find_lives
from pipeline.commands.status import describe_status
from pipeline.config import BuildConfig
from pipeline.flow import FLOW
from pipeline.runner.runner import Runner
from pipeline.sidefiles.contact_sheets import duplicates_section

PHOTOS = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))


def build(folder: Path, work: Path, **dedup: Any) -> None:
    config = BuildConfig.model_validate(
        {
            "name": "demo",
            "work_dir": str(work),
            "sources": [
                {
                    "name": "photos",
                    "domain": "food",
                    "folder": {"path": str(folder), "captions": "none"},
                    "defaults": {"caption": "a photo of something to eat", "licence": "CC0-1.0"},
                }
            ],
            "dedup": dedup,
            "mix": {"ratio": {"food": 1}},
            "run": {"executor": "inline"},
        }
    )
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


def sheets_of(section: str) -> dict[str, int]:
    """Title of every sheet -> how many pictures it shows."""
    parts = re.split(r"<h3>(.*?)</h3>", section)[1:]
    return {title: body.count("data:image/jpeg;base64,") for title, body in zip(parts[::2], parts[1::2], strict=True)}


def test_groups_and_pairs_inside_are_shown(pictures: Path, tmp_path: Path) -> None:
    build(pictures, tmp_path, radius=8)
    section = duplicates_section(str(tmp_path), num_random=4, num_largest=2, num_pairs=6)
    sheets = sheets_of(section)
    assert 2 <= sheets.pop("Just inside the radius") <= 12  # some copies have the very hash of the original
    assert sheets == {"Random groups": 12, "Largest groups": 6}
    assert "10 images dropped as near_duplicate in favour of 5 images." in section
    assert section == duplicates_section(str(tmp_path), num_random=4, num_largest=2, num_pairs=6)


def test_explain_names_the_image_kept_instead_by_id_and_place(pictures: Path, tmp_path: Path) -> None:
    build(pictures, tmp_path, radius=8)
    with open_reader(str(tmp_path)) as sql:
        key, value, twin, place = sql.execute(
            "SELECT c.record_key, d.value, d.other_sample_id, o.locator FROM decisions d "
            "JOIN candidates c USING (sample_id) JOIN candidates o ON o.sample_id = d.other_sample_id "
            "WHERE d.reason = 'near_duplicate' LIMIT 1"
        ).fetchall()[0]
        (life,) = find_lives(sql, key)
    lines = describe_life(life)
    assert f"select    DROPPED: near_duplicate ({value})" in lines
    assert f"          kept instead: {twin} {place}" in lines


def test_pairs_just_outside_are_searched_for(pictures: Path, tmp_path: Path) -> None:
    build(pictures, tmp_path, radius=0)
    section = duplicates_section(str(tmp_path))
    assert sheets_of(section)["Just outside the radius"] >= 2
    assert set(re.findall(r"stays, pHash distance (\d+)", section)) <= {"1", "2"}


def test_a_picture_that_is_gone_is_an_empty_frame(pictures: Path, tmp_path: Path) -> None:
    build(pictures, tmp_path, radius=8)
    for file in (tmp_path / "pool").glob("*.tar"):
        file.unlink()
    section = duplicates_section(str(tmp_path))
    assert "data:image" not in section
    assert 'class="dup-gone"' in section


def test_a_placeholder_is_named_and_shown(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):  # one picture to the eye, four to sha256
        picture = Image.open(PHOTOS[0]).convert("RGB")
        picture.putpixel((100, 100), (60 * number, 0, 0))
        picture.save(folder / f"none-{number}.png")
    build(folder, tmp_path / "work", placeholder_min_count=4)
    assert sheets_of(duplicates_section(str(tmp_path / "work")))["pHashes shared by many images"] == 3
    assert any(
        "placeholders: " in line and "(4 images)" in line
        for line in describe_status(read_status(str(tmp_path / "work")))
    )


def test_before_the_search_it_says_so(pictures: Path, tmp_path: Path) -> None:
    Catalog.open(str(tmp_path)).__exit__(None, None, None)
    assert "Not searched for yet" in duplicates_section(str(tmp_path))
