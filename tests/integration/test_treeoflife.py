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
from tree_of_life import NUM_10M, id_of, write_10m, write_200m
from walk.web import picture

from manifests.contract.reader import open_reader, rows_of
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
    assert "pictures have a row there" in out.read_text(encoding="utf-8")
    said = done("estimate", out)
    assert "licences  " in said


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
    provenance = archive / "dataset/metadata/provenance.parquet"
    rows = pq.read_table(provenance)
    owners = [owner.replace("Sofia", "S.") for owner in rows["copyright_owner"].to_pylist()]
    pq.write_table(
        rows.set_column(rows.column_names.index("copyright_owner"), "copyright_owner", pa.array(owners)), provenance
    )
    said = done("build", config)  # no server is there any more
    assert "fetch: reused" in said
    assert samples_of(work)[id_of(0)]["rights_holder"] == "S. Almeida"
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
