"""Mirrored copies of real photos are near-duplicates, also of photos that an earlier version fetched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from building import ROOT, build_own_pictures
from PIL import Image, ImageOps

from manifests.contract import tables
from manifests.contract.reader import open_reader
from pipeline.judging.matching.looks import LOOKS
from pipeline.stages.fetch import stage as fetch

PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))[:5]


def mirror(photo: Path, to: Path) -> None:
    with Image.open(photo) as image:
        ImageOps.mirror(image).resize((200, 200)).save(to / f"{photo.stem}-mirrored.jpg", quality=80)


def measured(folder: Path) -> dict[str, list[Any]]:
    with open_reader(str(folder / "work")) as sql:
        return {
            "pairs": sql.execute("FROM pairs ORDER BY ALL").fetchall(),
            "decisions": sql.execute("FROM decisions ORDER BY sample_id").fetchall(),
        }


@pytest.mark.slow
def test_mirrored_copies_go_wherever_their_hashes_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pics = tmp_path / "grown/pics/fruit"
    pics.mkdir(parents=True)
    for photo in PHOTOS[:4]:
        shutil.copy(photo, pics)
    mirror(PHOTOS[0], pics)
    older = pa.schema([field for field in tables.FETCHED if field.name not in LOOKS.names[1:]])
    with monkeypatch.context() as then:
        then.setitem(fetch.STAGE.tables, "fetched", older)
        build_own_pictures(tmp_path / "grown", "--to", "fetch")
    shutil.copy(PHOTOS[4], pics)
    for photo in PHOTOS[1:]:
        mirror(photo, pics)
    build_own_pictures(tmp_path / "grown", "--to", "select")
    with open_reader(str(tmp_path / "grown/work")) as sql:
        assert sql.execute("SELECT num_rows FROM files WHERE table_name = 'looks'").fetchall() == [(5,)]
        rows = sql.execute(
            "SELECT c.record_key, value, c.record_key[:-14] = o.record_key[:-5] FROM decisions d "
            "JOIN candidates c USING (sample_id) JOIN candidates o ON o.sample_id = d.other_sample_id ORDER BY 1"
        ).fetchall()
        assert [row[0] for row in rows] == [f"fruit/{photo.stem}-mirrored.jpg" for photo in PHOTOS]
        assert all(value.startswith("mirrored, pHash distance ") for _, value, _ in rows)
        assert all(is_copy for *_, is_copy in rows)

    (tmp_path / "clean").mkdir()
    shutil.copytree(tmp_path / "grown/pics", tmp_path / "clean/pics")
    build_own_pictures(tmp_path / "clean", "--to", "select")
    assert measured(tmp_path / "clean") == measured(tmp_path / "grown")
