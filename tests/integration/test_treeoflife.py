"""The recipes of TreeOfLife run over its layout and schemas: tars with two tables, a table of addresses with one."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from building import ROOT, done, loopback, release_of, run_here
from datasets import load_dataset
from tree_of_life import NUM_10M, id_of, write_10m, write_200m, write_web_list
from walk.web import picture

from manifests.contract.reader import open_reader, rows_of
from manifests.contract.release import Release
from pipeline.demo.server import serving


def recipe(name: str, folder: Path, **sections: Any) -> Path:
    """A recipe where it finds its archives, and nothing changed but what a small build on this machine needs."""
    values = yaml.safe_load((ROOT / f"configs/pipeline/{name}.yaml").read_text(encoding="utf-8"))
    values = {**values, "run": {"executor": "inline"}, **sections}
    path = folder / f"configs/pipeline/{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def samples_of(work: Path) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(release_of(work) / "samples.parquet").to_pylist()
    return {row["record_key"]: row for row in rows}


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    write_10m(folder / "archives/treeoflife-10m")
    return folder


def test_the_tars_get_ranks_licences_and_owners_of_their_tables(tars: Path) -> None:
    config = recipe("treeoflife-10m", tars)
    said = done("estimate", config)
    assert "treeoflife  life      12        11  1 where_split" in said
    assert "11 pictures of " in said
    assert (
        "join 1 of treeoflife: 0 of 12 pictures (0.0%) have no partner among 17 rows, 3 of which belong to no picture "
        "here; 2 keys stand on several rows" in said
    )
    assert "join 2 of treeoflife: 1 of 12 pictures (8.3%) have no partner among 11 rows" in said
    licences = (
        "licences  treeoflife: 4 CC-BY-NC-4.0, 3 CC-BY-2.0; left out by select.licences: 3 CC-BY-NC-ND-4.0, 1 unknown"
    )
    assert licences in said
    assert not (tars / "data").exists(), "nothing is written"
    done("build", config)
    work = tars / "data/treeoflife-10m"
    samples = samples_of(work)
    assert sorted(samples) == sorted(id_of(n) for n in range(NUM_10M) if n % 3 != 2 and n not in (5, 7))
    oak = samples[id_of(0)]
    assert (oak["taxon_species"], oak["taxon_family"], oak["taxon_kingdom"]) == ("Quercus robur", "Fagaceae", "Plantae")
    assert (oak["rights_holder"], oak["licence"]) == ("Sofia Almeida", "cc-by-nc")
    assert oak["licence_id"] == "CC-BY-NC-4.0"
    assert json.loads(oak["extra"]) == {"split": "train", "eol_content_id": "20000000", "eol_page_id": "40000"}
    assert json.loads(samples[id_of(1)]["extra"])["split"] is None, "its two rows say different things"
    explained = done("explain", work, id_of(5))
    assert "where_split" in explained
    assert "val" in explained
    record = json.loads((release_of(work) / "release.json").read_text())
    assert [row["num_joined"] for row in record["counts"]["stages"]["ingest"]["join"]] == [12, 11]
    assert record["counts"]["stages"]["ingest"]["reasons"] == {"where_split": 1}
    page = (release_of(work) / "report.html").read_text(encoding="utf-8")
    assert "Joined fields, table 2: 1 of 12 pictures of treeoflife have no partner among 11 rows." in page
    assert "join 1 of treeoflife" in done("preview", recipe("treeoflife-10m", tars, work_dir=str(tars / "none")))


@pytest.mark.slow
def test_init_finds_the_tables_that_belong_to_tars(tars: Path) -> None:
    out = tars / "first.yaml"
    done("init", "--domain", f"life={tars}/archives/treeoflife-10m", "--out", out)
    (source,) = yaml.safe_load(out.read_text(encoding="utf-8"))["sources"]
    by_table = {Path(entry["table"]).name: entry for entry in source["join"]}
    assert by_table["licenses.csv"]["columns"] == {
        "licence": "license_name", "licence_url": "license_link", "rights_holder": "copyright_owner",
    }  # fmt: skip
    assert by_table["catalog.csv"]["columns"]["taxon_vernacular_name"] == "common"
    assert by_table["catalog.csv"]["columns"]["taxon_kingdom"] == "kingdom"
    assert by_table["catalog.csv"]["on"] == {"extra.__key__": "treeoflife_id"}
    assert by_table["catalog.csv"]["columns"]["taxon_class"] == "class", "though other columns hold names too"
    assert "captions" not in source, "every title says that it is not provided"
    text = out.read_text(encoding="utf-8")
    assert "12 of the first 12 pictures have a row there; not read: split, eol_content_id" in text
    out.write_text(text.replace("executor: processes", "executor: inline"), encoding="utf-8")
    assert "licences  " in done("estimate", out)
    assert "Red Admiral" in done("preview", out)
    done("build", out)
    work = tars / "data/first"
    (oak,) = (row["sample_id"] for key, row in samples_of(work).items() if key.endswith(id_of(0)))
    for name in (oak, id_of(0), f"{id_of(0)}.jpg", f"EOL/image_set_01.tar.gz/{id_of(0)}.jpg"):
        assert "licence read as CC-BY-NC-4.0" in done("explain", work, name), name
    assert run_here("explain", work, f"EOL/image_set_02.tar.gz/{id_of(0)}.jpg").returncode == 2
    for split in load_dataset(str(release_of(work)), streaming=True).values():
        for row in split:
            assert row["txt"] != "not provided"
            assert row["json"]["taxon_class"] in {"Magnoliopsida", "Liliopsida", "Insecta"}
            assert row["jpg"].size == (96, 96)


def test_a_part_of_the_tars_foretells_no_stop(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.webdataset.HEAD_ROWS", 4)
    config = recipe("treeoflife-10m", tars)
    said = done("estimate", config)
    assert "join 1 of treeoflife: 0 of the first 4 pictures (0.0%) have no partner among 17 rows; 2 keys" in said
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["sources"][0]["where"] = {"split": ["val"]}  # the sixth picture alone
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    said = done("estimate", config)
    assert "warning: sources.treeoflife: none of its first samples can be used (where_split); a build reads on" in said
    monkeypatch.undo()
    ended = run_here(
        "estimate", recipe("treeoflife-10m", tars, sources=[{**values["sources"][0], "where": {"genus": ["Rosa"]}}])
    )
    assert ended.returncode == 2
    told = "sources.treeoflife: none of 12 rows can be used (12 where_genus); `where` leaves all of them out"
    assert told in ended.stderr
    ended = run_here("preview", config)
    assert (ended.returncode, told.partition(": ")[2] in ended.stderr) == (2, True)


@pytest.mark.slow
def test_init_takes_the_catalogue_and_its_provenance_as_one_source(tmp_path: Path) -> None:
    """As it was found, the pictures of the catalogue had no licence, and those of the provenance no taxon."""
    web, out = tmp_path / "web", tmp_path / "first.yaml"
    web.mkdir()
    for n in range(16):
        (web / f"{n}.jpg").write_bytes(picture(n, "jpg"))
    with serving(web) as server:
        write_200m(tmp_path / "tol", f"http://127.0.0.1:{server.port}")
        said = done("init", "--domain", f"plant={tmp_path}/tol", "--out", out)
        assert "provenance.parquet: it says more of pictures here, so its other addresses" in " ".join(said.split())
        values = yaml.safe_load(out.read_text(encoding="utf-8"))
        (source,) = values["sources"]
        assert source["table"].endswith("catalog.parquet")
        (joined,) = source["join"]
        assert joined["on"] == {"url": "source_url"}
        assert joined["columns"]["rights_holder"] == "copyright_owner"
        values |= {"fetch": loopback(), "run": {"executor": "inline"}}
        out.write_text(yaml.safe_dump(values), encoding="utf-8")
        done("build", out)
    whole = "licence IS NOT NULL AND rights_holder IS NOT NULL AND taxon_species IS NOT NULL"
    with open_reader(str(tmp_path / "data/first")) as connection:
        (counts,) = rows_of(connection, f"SELECT count(*) AS num, count(*) FILTER ({whole}) AS whole FROM candidates")
    assert counts == {"num": 16, "whole": 16}
    release = release_of(tmp_path / "data/first")
    num_samples = Release.open(str(release)).record["splits"]["train"]["num_samples"]
    assert len(list(load_dataset(str(release), streaming=True, split="train"))) == num_samples > 8


def test_plants_of_a_catalogue_and_a_public_list_are_estimated_from_their_tables(tmp_path: Path) -> None:
    write_200m(tmp_path / "archives/treeoflife-200m", "https://inaturalist-open-data.s3.amazonaws.com/photos")
    write_web_list(tmp_path / "tables/web", "https://images.example.org")
    small: dict[str, Any] = {
        "ratio": {"plant": 10, "general": 3},
        "heldout": {"num_samples": {"plant": 1, "general": 1}},
    }
    network = {"network": {"contact": "mailto:me@example.org"}}
    config = recipe("plantmix-13m-treeoflife", tmp_path, mix=small, fetch=network)
    lines = done("estimate", config).splitlines()
    for line in (
        "treeoflife  plant      16         9  4 where_kingdom, 3 where_img_type",
        "web         general     9         9",
        "18 distinct addresses on 2 hosts",
        "images.example.org                              9           5        2   2 s",
        "inaturalist-open-data.s3.amazonaws.com          9           5        3   2 s",
        "join 1 of treeoflife: 0 of 16 pictures (0.0%) have no partner among 16 rows",
        "licences  treeoflife: 5 CC-BY-4.0, 2 CC-BY-NC-4.0, 2 CC0-1.0",
        "licences  web: 9 unknown",
        "download  9 MB, at 500 kB a picture (assumed; --head N asks a sample)",
        "          in total 2 s: hosts are asked side by side, pictures decoded meanwhile",
    ):
        assert line in lines
    assert [line.partition(":")[0] for line in lines if line.startswith("disk")] == ["disk      1.54 MB"]


@pytest.mark.slow
def test_plants_of_a_catalogue_and_a_public_list_become_one_release(tmp_path: Path) -> None:
    web = tmp_path / "web"
    (web / "web").mkdir(parents=True)
    for n in range(16):
        (web / f"{n}.jpg").write_bytes(picture(n, "jpg"))
        (web / f"web/{n}.jpg").write_bytes(picture(100 + n, "jpg"))
    with serving(web) as server:
        write_200m(tmp_path / "archives/treeoflife-200m", f"http://127.0.0.1:{server.port}")
        write_web_list(tmp_path / "tables/web", f"http://127.0.0.1:{server.port}")
        mix: dict[str, Any] = {"ratio": {"plant": 10, "general": 3}}
        done("build", recipe("plantmix-13m-treeoflife", tmp_path, mix=mix, fetch=loopback()))
    release = release_of(tmp_path / "data/plantmix-13m-treeoflife")
    rows = list(load_dataset(str(release), streaming=True, split="train"))
    domains = [row["json"]["domain"] for row in rows]
    assert (domains.count("plant"), domains.count("general")) == (9, 3)
    assert {row["txt"][:14] for row in rows if row["json"]["domain"] == "general"} == {"a quiet street"}


@pytest.mark.slow
def test_plants_without_sheets_are_asked_for_and_a_changed_table_asks_for_none_again(tmp_path: Path) -> None:
    web, archive = tmp_path / "web", tmp_path / "archives/treeoflife-200m"
    web.mkdir()
    for n in range(16):
        (web / f"{n}.jpg").write_bytes(picture(n, "jpg"))
    plants = [n for n in range(16) if n % 4 != 2 and n // 4 != 1]
    with serving(web) as server:
        write_200m(archive, f"http://127.0.0.1:{server.port}")
        config = recipe("treeoflife-200m-plants", tmp_path, fetch=loopback())
        said = done("estimate", config)
        assert "treeoflife  plant     16         9  4 where_kingdom, 3 where_img_type" in said
        assert "join 1 of treeoflife: 0 of 16 pictures (0.0%) have no partner among 16 rows" in said
        assert "licences  treeoflife: " in said
        assert "9 distinct addresses on 1 host" in said
        done("build", config)
        work = tmp_path / "data/treeoflife-200m-plants"
        samples = samples_of(work)
        assert sorted(samples) == sorted(map(id_of, plants))
        assert {row["taxon_species"] for row in samples.values()} == {
            "Quercus robur", "Poa angustifolia", "Malus sylvestris",
        }  # fmt: skip
        assert samples[id_of(0)]["rights_holder"] == "Sofia Almeida"
        before = release_of(work)
        num_of_almeida = sum(row["rights_holder"] == "Sofia Almeida" for row in samples.values())
    provenance = archive / "dataset/metadata/provenance.parquet"
    rows = pq.read_table(provenance)
    owners = [owner.replace("Sofia", "S.") for owner in rows["copyright_owner"].to_pylist()]
    pq.write_table(
        rows.set_column(rows.column_names.index("copyright_owner"), "copyright_owner", pa.array(owners)), provenance
    )
    said = done("build", config)  # no server is there any more
    assert "fetch: reused" in said
    assert samples_of(work)[id_of(0)]["rights_holder"] == "S. Almeida"
    said = done("diff", before, release_of(work))
    assert f"other fields: rights_holder of {num_of_almeida} images" in said
    with open_reader(str(work)) as connection:
        (outcomes,) = rows_of(connection, "SELECT count(*) AS num FROM facts WHERE outcome = 'ok'")
    assert outcomes["num"] == len(plants)


def test_a_table_that_fits_no_picture_stops_the_build_and_estimate_says_so(tars: Path, tmp_path: Path) -> None:
    shutil.copytree(tars / "archives", tmp_path / "archives")
    table = tmp_path / "archives/treeoflife-10m/metadata/licenses.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "treeoflife_id": f"x{row['treeoflife_id']}"} for row in rows)
    config = recipe("treeoflife-10m", tmp_path)
    for command in ("estimate", "build"):
        ended = run_here(command, config)
        assert ended.returncode == 2
        assert "sources.treeoflife.join[2]: none of 12 pictures has a row: record_key of the source (" in ended.stderr
        assert "Traceback" not in ended.stderr
