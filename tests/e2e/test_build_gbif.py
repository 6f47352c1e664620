"""A build that asks GBIF: estimate asks nothing, a killed wait asks no second time, the release says what to cite."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from building import ROOT, done, release_of, run_here
from command_server import CommandServer
from darwin_core import GBIF, gbif_files, write_zip
from gbif_server import ACCOUNT, DATASETS, PASSWORD, GbifServer
from waiting import wait_until

from pipeline.demo.server import serving

LICENCE = "http://creativecommons.org/licenses/by/4.0/legalcode"


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ACCOUNT.items():
        monkeypatch.setenv(name, value)


def make_archive(folder: Path, address: str) -> bytes:
    """All photos of the tests, an observation each."""
    occurrences, media = [], []
    for number, photo in enumerate(sorted((ROOT / "tests/photos").glob("*.jpg"))):
        shutil.copy(photo, folder / f"{number}.jpg")
        record = {
            "gbifID": str(number),
            "datasetKey": DATASETS[number % 2]["datasetKey"],
            "kingdom": "Plantae",
            "scientificName": f"Rosa number{number}",
        }
        occurrences.append(record | {"basisOfRecord": "HUMAN_OBSERVATION"})
        media.append(
            {"gbifID": str(number), "type": "StillImage", "identifier": f"{address}/{number}.jpg", "license": LICENCE}
        )
    return write_zip(folder / "made.zip", gbif_files(occurrences, media, [f"{GBIF}datasetKey"])).read_bytes()


def write_config(folder: Path, api: str, **settings: Any) -> Path:
    config = {
        "name": "asked",
        "work_dir": str(folder / "work"),
        "sources": [{"name": "oaks", "domain": "plant", "gbif": {"api": api, "taxon": ["Fagus"], **settings}}],
        "fetch": {"network": {"allow_private_addresses": True, "limits": {"requests_per_second": None}}},
        "caption": {"rules": [{"preset": "plant"}]},
        "mix": {"ratio": {"plant": 1}},
        "run": {"executor": "inline"},
    }
    path = folder / "build.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_killed_wait_goes_on_and_the_release_says_what_to_cite(
    commands: CommandServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = tmp_path / "web"
    web.mkdir()
    with serving(web) as pictures, GbifServer(make_archive(web, f"http://127.0.0.1:{pictures.port}")) as gbif:
        gbif.statuses = ["RUNNING"]
        config = write_config(tmp_path, gbif.api)

        assert "not there yet" in done("estimate", config)
        with monkeypatch.context() as patch:
            patch.delenv("GBIF_USER")
            refused = run_here("estimate", config)
        assert refused.returncode == 2
        assert "set GBIF_USER in the environment" in refused.stderr
        assert gbif.log == [], "estimate asks nothing"

        process = commands.start("plantmix", "build", config)
        wait_until(lambda: gbif.asked("GET", "/occurrence/download/0012345-261126031328000") >= 2, process)
        process.kill()
        process.wait(300)
        assert gbif.asked("POST") == 1

        gbif.statuses = ["SUCCEEDED"]
        done("build", config)
        for name in ACCOUNT:
            monkeypatch.delenv(name)
        assert "nothing to do" in done("build", config), "what is there needs no account"
        assert gbif.asked("POST") == 1

    release = release_of(tmp_path / "work")
    card = (release / "README.md").read_text(encoding="utf-8")
    assert "GBIF Occurrence Download https://doi.org/10.15468/dl.abc123" in card
    assert "| Data set 3 \\| of plants | 10\\.15468/d3 | 30 |" in card
    lines = (release / "gbif-derived-dataset.csv").read_text(encoding="utf-8").splitlines()
    assert {line.partition(",")[0] for line in lines} == {DATASETS[0]["datasetKey"], DATASETS[1]["datasetKey"]}
    num_images = pq.read_table(release / "attribution.parquet").num_rows
    assert sum(int(line.partition(",")[2]) for line in lines) == num_images, "each picture that is in the release"
    assert "`gbif-derived-dataset.csv` counts" in card
    (source,) = json.loads((release / "release.json").read_text(encoding="utf-8"))["recipe"]["sources"]
    assert source["cites"]["key"] == "0012345-261126031328000"
    for path in (tmp_path / "work").rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path


def test_a_wrong_config_stops_before_gbif_is_asked(tmp_path: Path) -> None:
    with GbifServer(b"") as gbif:
        path = write_config(tmp_path, gbif.api)
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        values["mix"]["heldout"] = {"num_samples": {"plant": -1}}
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        assert run_here("build", path).returncode == 2
        assert gbif.log == []


@pytest.mark.parametrize("command", ["preview", "estimate"])
def test_commands_that_only_look_ask_nothing(tmp_path: Path, command: str) -> None:
    with GbifServer(b"") as gbif:
        looked = run_here(command, write_config(tmp_path, gbif.api))
        assert "not there yet" in looked.stderr, looked.stdout
        assert "Traceback" not in looked.stderr
        assert gbif.log == []
