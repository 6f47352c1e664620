"""What the file of a picture says of its owners comes into the release, contradicts openly, and meets takedowns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from building import done, folder_source, release_of, run_here, write_small_config
from misbehaving.answers import encode, pixels
from PIL import Image

from manifests.contract.reader import open_reader

ANN, LAB = "Ann Field", "The Lab"
OWNERS = [(ANN, "© 2020 Ann Field"), (ANN, ""), ("", "Copyright Field & Co"), *[("", "")] * 7]


def build(folder: Path, *options: str, caps: tuple[dict[str, Any], ...] = (), **defaults: str) -> Path:
    (folder / "pictures").mkdir(parents=True)
    for number, (artist, notice) in enumerate(OWNERS):
        exif = Image.Exif()
        exif[0x013B], exif[0x8298] = artist.encode(), notice.encode()
        body = encode(pixels(seed=number), exif=exif.tobytes() if artist or notice else b"", quality=90)
        (folder / f"pictures/{number}.jpg").write_bytes(body)
    source = folder_source(folder / "pictures", caption="a plant beside a path in the garden", **defaults)
    config = write_small_config(folder, source, dedup={"radius": 0}, select={"balance": {"caps": [*caps]}})
    done("build", config, *options)
    return config


def samples_of(folder: Path) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(release_of(folder / "work") / "samples.parquet").to_pylist()
    return {Path(row["record_key"]).stem: row for row in rows}


@pytest.fixture(scope="module")
def unstated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unstated")
    build(folder)
    return folder


def test_the_file_speaks_where_the_source_does_not(unstated: Path) -> None:
    rows = samples_of(unstated)
    owners = {key: (row["creator"], row["rights_holder"]) for key, row in rows.items()}
    assert owners == {
        "0": (ANN, ANN),
        "1": (ANN, None),
        "2": (None, "Field & Co"),
        **{str(number): (None, None) for number in range(3, 10)},
    }
    assert (rows["3"]["file_creator"], rows["3"]["file_rights"]) == ("", ""), "looked for, and not there"
    release = release_of(unstated / "work")
    page = (release / "ATTRIBUTION.md").read_text()
    assert "- Ann Field: 2\n" in page
    assert "- Field & Co: 1\n" in page.replace("&amp;", "&").replace("\\", "")
    card = (release / "README.md").read_text()
    assert "name another creator" not in card
    assert "nobody looked" not in card


def test_a_cap_counts_the_owners_of_files(tmp_path: Path) -> None:
    build(tmp_path, "--to", "select", caps=({"by": "creator", "at_most": 1},))
    with open_reader(str(tmp_path / "work")) as sql:
        query = "SELECT record_key FROM decisions JOIN candidates USING (sample_id) WHERE NOT keep"
        ((dropped,),) = sql.sql(query).fetchall()
    assert Path(dropped).stem in ("0", "1")


@pytest.mark.slow
def test_a_contradiction_is_counted_shown_and_met_by_a_takedown(tmp_path: Path) -> None:
    config = build(tmp_path, creator=LAB, rights_holder=LAB)
    release = release_of(tmp_path / "work")
    rows = samples_of(tmp_path)
    assert {(row["creator"], row["rights_holder"]) for row in rows.values()} == {(LAB, LAB)}
    assert [rows[key]["file_creator"] for key in "012"] == [ANN, ANN, ""]
    assert "The files of 3 images name another creator or rights holder than" in (release / "README.md").read_text()

    done = run_here("takedown", release, "--owner", "ann  FIELD", "--reason", "she asked")
    assert done.returncode == 0, done.stderr
    assert "taken down: 2 images" in done.stdout
    assert samples_of(tmp_path).keys() == {str(number) for number in range(2, 10)}
    assert run_here("build", config).returncode == 0
    assert samples_of(tmp_path).keys() == {str(number) for number in range(2, 10)}, "nor in a later build"
    with open_reader(str(tmp_path / "work")) as sql:
        assert sql.execute("SELECT count(*) FROM facts WHERE file_creator = 'Ann Field'").fetchall() == [(2,)]
