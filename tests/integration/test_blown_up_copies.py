"""Copies blown up from less than the stored size do not replace their originals; nothing is measured twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from building import ROOT, build_own_pictures
from PIL import Image

from manifests.reader import open_reader

PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))[:6]


def kept(folder: Path) -> list[str]:
    with open_reader(str(folder / "work")) as sql:
        rows = sql.execute("SELECT record_key FROM decisions JOIN candidates USING (sample_id) WHERE keep").fetchall()
    return sorted(key for (key,) in rows)


@pytest.mark.slow
def test_the_originals_stay(tmp_path: Path) -> None:
    (tmp_path / "pics/fruit").mkdir(parents=True)
    for photo in PHOTOS:
        shutil.copy(photo, tmp_path / "pics/fruit")
        image = Image.open(photo)
        image.resize((250, 250), Image.Resampling.BICUBIC).save(
            tmp_path / "pics/fruit" / f"{photo.stem}-blown.jpg", quality=95
        )
    build_own_pictures(tmp_path, "--to", "select")
    assert kept(tmp_path) == [f"fruit/{photo.name}" for photo in PHOTOS]
    with open_reader(str(tmp_path / "work")) as sql:
        assert sql.execute("SELECT count(*) FROM details").fetchall() == [(12,)]
    # one more pair: the twelve that are measured are not read again
    extra = Image.open(sorted((ROOT / "tests/photos").glob("*.jpg"))[8])
    extra.save(tmp_path / "pics/fruit/extra.jpg", quality=95)
    extra.resize((150, 150)).save(tmp_path / "pics/fruit/extra-small.jpg", quality=95)
    build_own_pictures(tmp_path, "--to", "select")
    assert "fruit/extra.jpg" in kept(tmp_path)
    assert "fruit/extra-small.jpg" not in kept(tmp_path)
    with open_reader(str(tmp_path / "work")) as sql:
        assert sql.execute("SELECT count(*) FROM details").fetchall() == [(14,)]
        rows = sql.execute("SELECT num_rows FROM files WHERE table_name = 'found_details' ORDER BY 1").fetchall()
    assert rows == [(2,), (12,)]
