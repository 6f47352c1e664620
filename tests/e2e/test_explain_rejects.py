"""`explain` tells of rows that never became candidates, by whatever names them."""

from __future__ import annotations

from pathlib import Path

import pytest
from building import done, run_here, write_small_config
from walk.web import picture


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of pictures: one is there, one is not."""
    folder = tmp_path_factory.mktemp("rejects")
    (folder / "pics/deep").mkdir(parents=True)
    (folder / "pics/deep/there.jpg").write_bytes(picture(1, "jpg"))
    (folder / "pics/list.csv").write_text(
        "file,id,caption\ndeep/there.jpg,k-1,a plant in the garden\ndeep/gone.jpg,k-2,a plant in a pot\n"
    )
    columns = {"file": "file", "record_key": "id", "caption": "caption"}
    place = {"path": str(folder / "pics"), "table": "list.csv", "columns": columns}
    source = {"name": "ours", "domain": "plant", "folder": place, "defaults": {"licence": "CC0-1.0"}}
    done("build", write_small_config(folder, source))
    return folder / "work"


@pytest.mark.parametrize("what", ["deep/gone.jpg", "PICS/deep/gone.jpg", "pics/deep/gone.jpg", "'pics/deep/gone.jpg',"])
def test_a_picture_that_is_not_there(work: Path, what: str) -> None:
    said = done("explain", work, what.replace("PICS", str(work.parent / "pics")))
    assert "row 3 of ours: deep/gone.jpg" in said
    assert "DROPPED: missing_file (deep/gone.jpg)" in said


def test_one_that_is_there_and_one_that_no_row_has(work: Path) -> None:
    assert "sample " in done("explain", work, str(work.parent / "pics/deep/there.jpg"))
    assert run_here("explain", work, "pics/never.jpg").returncode == 2
