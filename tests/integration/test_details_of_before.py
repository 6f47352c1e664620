"""Details that an earlier build measured, and that this one does not want, change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from building import photos_config
from PIL import Image

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader
from pipeline.engine.runner import Runner
from pipeline.flow import FLOW

PHOTOS = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))


def build(pictures: Path, work: Path) -> tuple[str, int]:
    """The fingerprint of select, and how many pictures had their details measured."""
    config = photos_config(pictures, work)
    with Catalog.open(config.work_dir) as catalog:
        Runner(config, FLOW, catalog).run(last="select")
    with open_reader(str(work)) as sql:
        ((fingerprint,),) = sql.execute("SELECT fingerprint FROM current_stages WHERE stage = 'select'").fetchall()
        ((num,),) = sql.execute("SELECT count(*) FROM details").fetchall()
    return fingerprint, num


@pytest.mark.slow
def test_a_copy_that_is_gone_leaves_what_a_clean_build_gives(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for photo in PHOTOS[:2]:
        with Image.open(photo) as image:
            image.convert("RGB").save(pictures / photo.name)
            image.convert("RGB").resize((120, 120)).save(pictures / f"small-{photo.name}")
    _, num_wanted = build(pictures, tmp_path / "work")
    assert num_wanted == 4
    for photo in PHOTOS[:2]:
        (pictures / f"small-{photo.name}").unlink()
    assert build(pictures, tmp_path / "work") == build(pictures, tmp_path / "clean")
