"""A release of a GBIF archive counts its pictures by data set, as GBIF's form for derived data sets takes them."""

from __future__ import annotations

import collections
import csv
import json
import shutil
from pathlib import Path

from building import ROOT, loopback, release_of, write_small_config
from darwin_core import GBIF, gbif_files, write_zip

from manifests.contract.release import Release
from pipeline.cli import main
from pipeline.demo.server import serving
from pipeline.releases.checks import inconsistencies

FILE = "gbif-derived-dataset.csv"
KEYS = ("3ea36590-9b79-46a8-9300-c9ef0bfed7b8", "630eb55d-5169-4473-99d6-a93396aeae38")
LICENCE = "http://creativecommons.org/licenses/by/4.0/legalcode"


def build(folder: Path, address: str, *, has_keys: bool = True) -> Release:
    """Every third photo is of the second data set, and the first one of none."""
    occurrences, media = [], []
    for number, photo in enumerate(sorted((ROOT / "tests/photos").glob("*.jpg"))):
        shutil.copy(photo, folder / f"{number}.jpg")
        key = KEYS[number % 3 == 0] if number and has_keys else ""
        occurrences.append({"gbifID": str(number), "scientificName": f"Rosa number{number}", "datasetKey": key})
        picture = {"type": "StillImage", "identifier": f"{address}/{number}.jpg", "license": LICENCE}
        media.append({"gbifID": str(number), **picture})
    write_zip(folder / "gbif.zip", gbif_files(occurrences, media, [f"{GBIF}datasetKey"]))
    source = {"name": "gbif", "domain": "plant", "dwca": {"path": str(folder / "gbif.zip")}}
    mix = {"ratio": {"plant": 1}, "num_samples": 30, "max_epochs": 4}
    config = write_small_config(folder, source, fetch=loopback(), caption={"rules": [{"preset": "plant"}]}, mix=mix)
    assert main(["build", str(config)]) == 0
    return Release.open(str(release_of(folder / "work")))


def counted(release: Release) -> dict[str, int]:
    """What samples.parquet says: its pictures by data set."""
    rows = [row for split in release.splits for row in release.samples(split).to_pylist() if row["copy"] == 0]
    keys = (json.loads(row["extra"])["datasetKey"] for row in rows)
    return dict(collections.Counter(key for key in keys if key))


def stated(release: Release) -> dict[str, int]:
    with Path(release.path, FILE).open(newline="") as stream:
        return {key: int(num) for key, num in csv.reader(stream)}


def test_the_counts_are_those_of_the_release_and_follow_a_takedown(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        old = build(tmp_path, f"http://127.0.0.1:{server.port}")
    assert stated(old) == counted(old)
    assert set(stated(old)) == set(KEYS)
    num_rows = sum(old.num_samples(split) for split in old.splits)
    assert sum(stated(old).values()) < num_rows, "some are drawn again, and one is of no data set"
    assert list(stated(old).values()) == sorted(stated(old).values(), reverse=True)
    card = Path(old.path, "README.md").read_text()
    assert f"`{FILE}` counts {sum(stated(old).values())} images by datasetKey, of which there are 2" in card
    assert FILE in old.record["files"]

    gone = next(row for row in old.samples("train").to_pylist() if KEYS[0] in row["extra"])
    assert main(["takedown", old.path, "--url", gone["url"], "--reason", "asked"]) == 0
    new = Release.open(str(release_of(tmp_path / "work")))
    assert new.path != old.path
    assert stated(new) == counted(new) == stated(old) | {KEYS[0]: stated(old)[KEYS[0]] - 1}
    assert main(["verify", new.path]) == 0
    Path(new.path, FILE).write_text(f"{KEYS[0]},1\n")
    assert list(inconsistencies(new)) == [f"{FILE}: not the images of samples.parquet by datasetKey"]


def test_an_archive_without_keys_has_no_such_file(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        release = build(tmp_path, f"http://127.0.0.1:{server.port}", has_keys=False)
    assert not Path(release.path, FILE).exists()
    assert FILE not in Path(release.path, "README.md").read_text()
