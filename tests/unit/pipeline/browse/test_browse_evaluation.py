"""Pictures of evaluation sets: shown where the user names their place, and only those that were measured."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from manifests.contract.reader import open_reader
from manifests.errors import ConfigError
from pipeline.browse.evaluation import EvaluationPictures
from pipeline.browse.image_index import ImageIndex


@pytest.fixture
def near(work: Path) -> str:
    """The image that shows a picture of the set, with other bytes and other pixels."""
    with open_reader(str(work)) as sql:
        ((sample_id,),) = sql.execute("SELECT sample_id FROM leaks WHERE matched = 'near'").fetchall()
    return str(sample_id)


def test_a_picture_that_is_only_near_is_shown_beside_the_leak(
    client_with: Callable[..., TestClient], work: Path, near: str
) -> None:
    place = work.parent / "evaluation"
    client = client_with(evaluation=[f"held={place}"])
    address = f"/twin/{near}.jpg?set=held"
    for page in ("/leaks", f"/image/{near}"):
        assert f'src="{address}"' in client.get(page).text
    answer = client.get(address)
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as shown, Image.open(place / "near.png") as own:
        assert shown.width / shown.height == pytest.approx(own.width / own.height, rel=0.02)
        small = [picture.convert("L").resize((8, 8)).tobytes() for picture in (shown, own)]
    assert sum(abs(a - b) for a, b in zip(*small, strict=True)) / 64 < 4
    assert client.get(f"/twin/{near}.jpg?set=other").status_code == 404
    assert client.get(f"/twin/{'0' * 32}.jpg?set=held").status_code == 404


def test_without_the_place_it_is_named_and_nothing_is_read(client: TestClient, near: str) -> None:
    assert client.get(f"/twin/{near}.jpg?set=held").status_code == 404
    page = client.get(f"/image/{near}").text
    assert "held: near.png" in page
    assert "--evaluation shows it" in page


def test_only_the_bytes_that_were_measured_are_shown(image_index: ImageIndex, tmp_path: Path, near: str) -> None:
    place = tmp_path / "evaluation"
    shutil.copytree(image_index.snapshot.folder.parent / "evaluation", place)
    pictures = EvaluationPictures(image_index.snapshot, [f"held={place}"])
    assert pictures.read(near, "held") is not None
    inside = (place / "near.png").rename(tmp_path / "outside.png")
    assert pictures.read(near, "held") is None
    (place / "near.png").symlink_to(inside)
    assert pictures.read(near, "held") is None, "a link out of the place is not followed"
    (place / "near.png").unlink()
    other = bytearray(inside.read_bytes())
    other[-1] ^= 1
    (place / "near.png").write_bytes(other)
    assert pictures.read(near, "held") is None, "another file of the same size"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("other=.", r"no evaluation set 'other' was measured here; known: held"),
        ("held=nowhere", "nowhere is not there"),
        ("held", "no place is not there; give SET=PLACE"),
    ],
)
def test_a_set_or_place_that_is_not_there_is_named(image_index: ImageIndex, given: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        EvaluationPictures(image_index.snapshot, [given])
