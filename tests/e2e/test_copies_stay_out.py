"""Copies of what was taken down stay out of every later build, and copies under two labels go by the setting."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from building import ROOT, done, release_of, write_small_config
from PIL import Image, ImageOps
from sealed import lend, unwritten

from manifests.contract.reader import open_reader

PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))
COLUMNS = {"file": "file", "record_key": "key", "caption": "caption", "taxon_scientific_name": "taxon"}


def _source(folder: Path, name: str, pictures: dict[str, Image.Image | Path], **taxa: str) -> dict[str, Any]:
    """A source of its own folder; a file that is given goes in as it is."""
    at = folder / name
    at.mkdir(parents=True)
    with (at / "list.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "key", "caption", "taxon"])
        for key, picture in pictures.items():
            if isinstance(picture, Path):
                shutil.copy(picture, at / f"{key}.jpg")
            else:
                picture.save(at / f"{key}.jpg", quality=80)
            rows.writerow([f"{key}.jpg", key, f"a photo of something to eat, {key}", taxa.get(key, "")])
    pictures_of = {"path": str(at), "table": "list.csv", "columns": COLUMNS}
    return {"name": name, "domain": "plant", "folder": pictures_of, "defaults": {"licence": "CC0-1.0"}}


def _sources(folder: Path) -> list[dict[str, Any]]:
    """One source has the original, others a small copy and a mirrored one, and each something else."""
    with Image.open(PHOTOS[0]) as photo:
        small, mirrored = photo.resize((150, 150)), ImageOps.mirror(photo)
    return [
        _source(folder, "first", {"original": PHOTOS[0], "other": PHOTOS[1]}),
        _source(folder, "second", {"small": small, "another": PHOTOS[2]}),
        _source(folder, "third", {"mirrored": mirrored, "one-more": PHOTOS[3]}),
    ]


def _kept(work: Path) -> set[str]:
    return set(pq.read_table(release_of(work) / "samples.parquet")["record_key"].to_pylist())


def _chosen(work: Path) -> set[str]:
    """What select keeps for the next release."""
    with open_reader(str(work)) as sql:
        rows = sql.sql("SELECT record_key FROM decisions JOIN candidates USING (sample_id) WHERE keep").fetchall()
    return {key for (key,) in rows}


def _id(work: Path, key: str) -> str:
    with open_reader(str(work)) as sql:
        ((sample_id,),) = sql.execute("SELECT sample_id FROM candidates WHERE record_key = $1", [key]).fetchall()
    return str(sample_id)


def _listed(work: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (work / "takedowns.jsonl").read_text().splitlines()]


OTHERS = {"other", "another", "one-more"}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sealed")
    done("build", write_small_config(folder, *_sources(folder)))
    with unwritten(folder):
        yield folder


def _config(folder: Path, names: str = "first second third", **sections: Any) -> Path:
    sources = [
        {
            "name": name,
            "domain": "plant",
            "folder": {"path": str(folder / name), "table": "list.csv", "columns": COLUMNS},
            "defaults": {"licence": "CC0-1.0"},
        }
        for name in names.split()
    ]
    return write_small_config(folder, *sources, **sections)


def test_copies_stay_out_when_nothing_knows_the_original_any_more(sealed: Path, tmp_path: Path) -> None:
    folder = lend(sealed, tmp_path / "lent")
    work = folder / "work"
    assert _kept(work) == {"original", *OTHERS}
    done("takedown", work, "--id", _id(work, "original"), "--reason", "asked by letter")
    (picture,) = [line for line in _listed(work) if line["by"] == "picture"]
    assert {"phash", "phash_mirrored", "middle_hash", "middle_mirrored", "pixels_sha256"} < picture.keys()
    assert picture["reason"] == "asked by letter"
    assert _kept(work) == OTHERS

    done("build", _config(folder, "second third"), "--to", "select")  # its source left the config
    assert _chosen(work) == OTHERS - {"other"}
    told = done("explain", work, _id(work, "mirrored"))
    assert "DROPPED: takedown, as a copy (pHash distance " in told
    assert f"to the mirror image of {picture['value']}); reason: asked by letter" in told

    new = folder / "elsewhere"
    (new / "work").mkdir(parents=True)
    shutil.copy(work / "takedowns.jsonl", new / "work")
    for name in ("second", "third"):
        shutil.copytree(folder / name, new / name)
    smaller = _config(new, "second third", fetch={"image": {"size_px": 64, "jpeg_quality": 60}})
    done("build", smaller, "--to", "select")
    assert _chosen(new / "work") == OTHERS - {"other"}
    assert _listed(new / "work") == _listed(work)


def test_a_list_written_by_hand_gains_the_hashes_of_what_it_names(sealed: Path, tmp_path: Path) -> None:
    folder = lend(sealed, tmp_path / "lent")
    work = folder / "work"
    entry = {"by": "id", "value": _id(work, "original"), "reason": "by hand"}
    (work / "takedowns.jsonl").write_text(json.dumps(entry))
    done("build", _config(folder))
    assert _kept(work) == OTHERS
    assert [line["by"] for line in _listed(work)] == ["id", "picture"]
    told = done("explain", work, _id(work, "small"))
    assert "DROPPED: takedown, as a copy (pHash distance " in told
    assert f"that picture is {entry['value']}" in told
    assert done("build", _config(folder)).startswith("nothing to do"), "the hashes are no other input"
    assert "nothing to do" not in done("mix", _config(folder, mix={"ratio": {"plant": 1}, "seed": 3}), "--dry-run")


@pytest.mark.slow
def test_copies_under_two_labels_go_by_the_setting(tmp_path: Path) -> None:
    with Image.open(PHOTOS[0]) as photo:
        mirrored = ImageOps.mirror(photo)
    pictures: dict[str, Image.Image | Path] = {
        "rose": PHOTOS[0], "oak": mirrored, "iris": PHOTOS[1], "iris-again": PHOTOS[1], "genus": PHOTOS[1],
    }  # fmt: skip
    names = {
        "rose": "Rosa canina", "oak": "Quercus robur",
        "iris": "Iris tectorum", "iris-again": "Iris tectorum", "genus": "Iris",
    }  # fmt: skip
    source, work = _source(tmp_path, "labelled", pictures, **names), tmp_path / "work"
    done("build", write_small_config(tmp_path, source))
    kept = _kept(work)
    assert len(kept) == 2
    assert len(kept & {"rose", "oak"}) == 1
    with open_reader(str(work)) as sql:
        rows = str(sql.execute("SELECT about, place, other_place FROM conflicts").fetchall())
    assert "oak.jpg" in rows
    assert "rose.jpg" in rows
    told = done("build", write_small_config(tmp_path, source, select={"other_labels": "drop"}))
    assert "2 conflicting_label" in told
    assert _kept(work) == kept & {"iris", "iris-again", "genus"}
    assert "(Rosa canina here, Quercus robur there; allowed: one label for copies)" in done(
        "explain", work, _id(work, "rose")
    )
