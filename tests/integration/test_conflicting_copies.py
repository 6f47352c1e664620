"""Copies that contradict each other, blank pictures and captions of one letter: a whole build, and what is said."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from building import ROOT, release_of, write_small_config
from PIL import Image
from starlette.testclient import TestClient

from manifests.contract.reader import open_reader
from pipeline.browse.app import Pages, make_app
from pipeline.browse.evaluation import EvaluationPictures
from pipeline.browse.image_index import ImageIndex
from pipeline.browse.index import make_index
from pipeline.browse.snapshot import IMAGES_FILE, open_snapshot
from pipeline.cli import main
from pipeline.commands.explain import describe_life

PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))
FREE, OWNED, NO_CHANGES = "CC BY 4.0", "© Ada Smith", "CC BY-ND 4.0"
ROSE, OAK = "Rosa canina", "Quercus robur"


def poor(photo: Path) -> bytes:
    out = io.BytesIO()
    Image.open(photo).save(out, "JPEG", quality=40)
    return out.getvalue()


def write_rows(folder: Path, with_exact: bool) -> None:
    """Pictures and the table beside them; each key says what is wrong with the row."""
    folder.mkdir()
    for number, photo in enumerate(PHOTOS[:9]):
        (folder / f"{number}.jpg").write_bytes(photo.read_bytes())
    (folder / "near.jpg").write_bytes(poor(PHOTOS[1]))
    (folder / "near-owned.jpg").write_bytes(poor(PHOTOS[8]))
    (folder / "exact.jpg").write_bytes(PHOTOS[2].read_bytes())
    (folder / "oak.jpg").write_bytes(PHOTOS[3].read_bytes())
    Image.new("RGB", (200, 200), "white").save(folder / "white.png")
    rows = [
        ("free", "0.jpg", "a thing to eat", FREE, ""),
        ("owned", "0.jpg", "x", OWNED, ""),
        ("original", "1.jpg", "another thing to eat", FREE, ""),
        ("near", "near.jpg", "another thing", NO_CHANGES, ""),
        ("near-free", "8.jpg", "a thing to eat by others", FREE, ""),
        ("near-owned", "near-owned.jpg", "x", OWNED, ""),
        ("exact-free", "2.jpg", "a third thing to eat now", FREE, ""),
        *([("exact-nd", "exact.jpg", "a third thing to eat", NO_CHANGES, "")] if with_exact else []),
        ("rose", "3.jpg", "a rose in a large garden", FREE, ROSE),
        ("oak", "oak.jpg", "an oak in a garden", FREE, OAK),
        ("blank", "white.png", "a polar bear in a storm", FREE, ""),
        ("letter", "4.jpg", "a", FREE, OAK),
        *((f"plain-{number}", f"{number}.jpg", f"plain thing number {number}", FREE, "") for number in (5, 6, 7)),
    ]
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("id", "file", "caption", "licence", "taxon"), *rows])


def build(folder: Path, with_exact: bool) -> Path:
    folder.mkdir(exist_ok=True)
    write_rows(folder / "pics", with_exact)
    columns = {
        "file": "file",
        "record_key": "id",
        "caption": "caption",
        "licence": "licence",
        "taxon_scientific_name": "taxon",
    }
    pictures = {"path": str(folder / "pics"), "table": "list.csv", "columns": columns}
    config = write_small_config(folder, {"name": "ours", "domain": "plant", "folder": pictures})
    assert main(["--quiet", "build", str(config)]) == 0
    return folder / "work"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("conflicts") / "both", with_exact=True)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_each_row_ends_with_its_reason(work: Path) -> None:
    with open_reader(str(work)) as sql:
        rows = sql.execute("SELECT record_key, reason FROM decisions JOIN candidates USING (sample_id)").fetchall()
        ((text, source),) = sql.execute(
            "SELECT t.text, text_source FROM captions t JOIN candidates USING (sample_id) WHERE record_key = 'letter'"
        ).fetchall()
        stays = sql.execute(
            "SELECT record_key, about, matched, value, other_value FROM conflicts JOIN candidates USING (sample_id) "
            "ORDER BY record_key"
        ).fetchall()
        funnel = sql.execute(
            "SELECT num_in - num_kept, sum(num_dropped) FROM funnel GROUP BY stage, num_in, num_kept"
        ).fetchall()
    found = dict(rows)
    assert found == {
        "free": "conflicting_licence",
        "owned": "licence",
        "original": None,
        "near": "near_duplicate",
        "near-free": "conflicting_licence",
        "near-owned": "licence",
        "exact-free": None,
        "exact-nd": "exact_duplicate",
        "rose": None,
        "oak": "exact_duplicate",
        "blank": "flat_picture",
        "letter": None,
        **{f"plain-{number}": None for number in (5, 6, 7)},
    }
    assert (text, source) == ("Quercus robur.", "taxon")
    assert stays == [
        ("exact-free", "licence", "same bytes", "CC-BY-4.0", "CC-BY-ND-4.0"),
        ("original", "licence", "near copy", "CC-BY-4.0", "CC-BY-ND-4.0"),
        ("rose", "label", "same bytes", ROSE, OAK),
    ]
    assert all(lost == (dropped or 0) for lost, dropped in funnel)
    with open_reader(str(work)) as sql:
        places = sql.execute("SELECT place, other_place FROM conflicts WHERE about = 'label'").fetchall()
    assert [[place.partition("@")[0] for place in both] for both in places] == [["3.jpg", "oak.jpg"]]


def test_the_commands_tell_it(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "explain", str(work), "free")
    assert (
        "DROPPED: conflicting_licence (CC-BY-4.0 here, all-rights-reserved there; allowed: one licence for the " in told
    )
    assert "contradicted by " in told
    assert "one licence for the near copy" in said(capsys, "explain", str(work), "near-free")
    assert "contradicted in its licence: 'CC-BY-ND-4.0', not 'CC-BY-4.0', says the near copy" in said(
        capsys, "explain", str(work), "original"
    )
    assert "DROPPED: flat_picture (measured '0.0', allowed >= 2 (spread of light))" in said(
        capsys, "explain", str(work), "blank"
    )
    status = said(capsys, "status", str(work))
    assert "1 images stay of which a copy is labelled otherwise" in status
    assert "2 images stay of which a copy states another licence" in status
    report = (release_of(work) / "report.html").read_text(encoding="utf-8")
    assert "a copy is labelled otherwise" in report
    assert "a copy states another licence" in report


def test_browse_shows_them_side_by_side(work: Path, tmp_path: Path) -> None:
    with open_snapshot(str(work), tmp_path) as snapshot:
        make_index(snapshot)
        with snapshot.attached(snapshot.index / IMAGES_FILE, read_only=True):
            pages = Pages(snapshot, "today", describe_life, EvaluationPictures(snapshot, ()))
            pages.open(ImageIndex(snapshot))
            client = TestClient(make_app(pages, token="t", port=8123), base_url="http://127.0.0.1:8123")
            client.get("/", params={"open": "t"})
            page = client.get("/duplicates").text
    assert "Copies that contradict each other" in page
    assert "licence CC-BY-4.0, the near copy says CC-BY-ND-4.0" in page
    assert "label Rosa canina, the same bytes says Quercus robur" in page


@pytest.mark.slow
def test_a_release_with_doubtful_licences_does_not_become_public(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = ("--to", "hf:lab/plants", "--public", "--dry-run")
    capsys.readouterr()
    assert main(["publish", str(release_of(work)), *public]) == 2
    refused = capsys.readouterr().err
    assert "1 images: CC-BY-4.0, but CC-BY-ND-4.0 by the same bytes" in refused
    near = "1 images: CC-BY-4.0, but CC-BY-ND-4.0 by the near copy"
    assert near in refused
    assert "all-rights-reserved" not in refused, "a near copy of such a picture is not in the release"
    assert main(["publish", str(release_of(build(tmp_path, with_exact=False))), *public]) == 2
    assert near in capsys.readouterr().err
