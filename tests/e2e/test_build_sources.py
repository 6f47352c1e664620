"""A release out of three kinds of sources at once: a GBIF archive, existing shards, a folder of pictures."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq
import pytest
import yaml
from building import ROOT, Web, hash_tree, release_of, run_here
from darwin_core import gbif_files, write_zip

CC_BY = "http://creativecommons.org/licenses/by/4.0/"
NUM_EACH = 24


def file_of(url: str) -> Path:
    return ROOT / "data/demo/web" / unquote(urlsplit(url).path.lstrip("/"))


def pictures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose picture is a good one, in a fixed order."""
    plain = [row for row in rows if row["record_id"].startswith("tuxpaint/") and file_of(row["url"]).is_file()]
    return sorted(plain, key=lambda row: str(row["record_id"]))


def write_archive(path: Path, rows: list[dict[str, Any]], root: str) -> Path:
    """Each picture a media row; one record has three with three licences, one is no plant, one address is dead."""
    occurrences, media = [], []
    for number, row in enumerate(rows):
        record = number // 3 if number < 3 else number
        if number == record or number == 0:
            kingdom = "Animalia" if number == 5 else "Plantae"
            taxon = {
                "kingdom": kingdom,
                "genus": "Rosa",
                "species": "Rosa canina",
                "scientificName": 'Rosa "canina" L.',
            }
            occurrences.append({"gbifID": str(record), "basisOfRecord": "HUMAN_OBSERVATION", **taxon})
        licence = ("http://creativecommons.org/publicdomain/zero/1.0/", CC_BY, "© all rights reserved")[number % 3]
        media.append(
            {
                "gbifID": str(record),
                "type": "StillImage",
                "identifier": row["url"],
                "title": row["caption"],
                "creator": f"Person {number}",
                "license": licence if number < 3 else CC_BY,
            }
        )
    media.append({"gbifID": "0", "type": "StillImage", "identifier": f"{root}gone.jpg", "license": CC_BY})
    return write_zip(path, gbif_files(occurrences, media))


def write_shards(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    for number in range(2):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for place, row in enumerate(rows[number::2]):
                members = {
                    "jpg": file_of(row["url"]).read_bytes(),
                    "txt": row["caption"].encode(),
                    "json": json.dumps({"url": f"http://origin.example.org/{row['record_id']}"}).encode(),
                }
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"{number:05d}{place:04d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def write_folder(folder: Path, rows: list[dict[str, Any]]) -> Path:
    for place, row in enumerate(rows):
        target = folder / f"class_{place % 3}" / f"{place:03d}{file_of(row['url']).suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file_of(row["url"]), target)
    return folder


def write_config(folder: Path, data: Path, executor: str) -> Path:
    defaults = {"licence": "CC0-1.0"}
    demo = yaml.safe_load((ROOT / "configs/pipeline/demo.yaml").read_text(encoding="utf-8"))
    config = {
        "name": "three",
        "work_dir": str(folder / "work"),
        "sources": [
            {
                "name": "gbif",
                "domain": "plant",
                "dwca": {
                    "path": str(data / "0012345.zip"),
                    "caption": ["media.title"],
                    "where": {"kingdom": ["Plantae"]},
                },
            },
            {"name": "shards", "domain": "general", "defaults": defaults, "webdataset": {"path": str(data / "shards")}},
            {"name": "pics", "domain": "general", "defaults": defaults, "folder": {"path": str(data / "pics")}},
        ],
        "fetch": {**demo["fetch"], "image": {"size_px": 64, "min_side_px": 16}},
        "caption": demo["caption"],
        "select": {"licences": {"allow": ["CC-BY-4.0", "CC0-1.0"]}},
        "mix": {"ratio": {"plant": 1, "general": 1}},
        "pack": {"samples_per_shard": 10},
        "run": {"executor": executor, "fetch_part_size": 10, "num_workers": 2},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "build.yaml"


@pytest.fixture(scope="module")
def data(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three sources, of real pictures."""
    folder = tmp_path_factory.mktemp("three sources")
    with web.plants.open(encoding="utf-8", newline="") as stream:
        plants = pictures(list(csv.DictReader(stream)))
    general = pictures(pq.read_table(web.general).to_pylist())
    write_archive(folder / "0012345.zip", plants[:NUM_EACH], web.root)
    write_shards(folder / "shards", general[:NUM_EACH])
    write_folder(folder / "pics", general[NUM_EACH : 2 * NUM_EACH])
    return folder


def query(work_dir: Path, sql: str) -> list[dict[str, Any]]:
    done = run_here("query", work_dir, sql, "--format", "json")
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.slow
def test_three_kinds_of_sources_become_one_release(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "data"
    shutil.copytree(data, own)
    config = write_config(tmp_path / "inline", own, "inline")
    done = run_here("build", config)
    assert done.returncode == 0, done.stderr
    work = tmp_path / "inline" / "work"
    release = hash_tree(release_of(work))
    assert run_here("verify", work, "--deep").returncode == 0
    check_counts(work)
    check_life(work)

    # one more picture: only that is read
    before = local_parts(work)
    shutil.copy(next((own / "pics").rglob("*.png")), own / "pics" / "class_0" / "more.png")
    assert run_here("build", config, "--to", "fetch").returncode == 0
    after = local_parts(work)
    assert (after["num"] - before["num"], after["num_in"] - before["num_in"]) == (1, 1)

    # elsewhere, on Ray: the same bytes
    moved = tmp_path / "moved" / "else where"
    shutil.copytree(data, moved)
    done = run_here("build", write_config(tmp_path / "ray", moved, "ray"))
    assert done.returncode == 0, done.stderr
    assert hash_tree(release_of(tmp_path / "ray" / "work")) == release


def check_counts(work: Path) -> None:
    """Every row of every source ended where it should."""
    facts = query(
        work,
        "SELECT source, outcome, count(*) AS num FROM candidates JOIN facts USING (sample_id) "
        "GROUP BY ALL UNION ALL SELECT source, reason, count(*) FROM rejects GROUP BY ALL ORDER BY ALL",
    )
    assert [(row["source"], row["outcome"], row["num"]) for row in facts] == [
        ("gbif", "http_404", 1),
        ("gbif", "ok", NUM_EACH - 1),
        ("gbif", "where_kingdom", 1),
        ("pics", "ok", NUM_EACH),
        ("shards", "ok", NUM_EACH),
    ]
    dropped = query(
        work,
        "SELECT reason, value FROM decisions JOIN candidates USING (sample_id) WHERE licence LIKE '©%'",
    )
    assert [(row["reason"], row["value"]) for row in dropped] == [("licence", "all-rights-reserved")]


def check_life(work: Path) -> None:
    """`explain` finds a local picture by where it lies and by its address, and tells both."""
    sample = query(work, "SELECT * FROM candidates WHERE source = 'shards' ORDER BY row_number LIMIT 1")[0]
    assert sample["url"].startswith("http://origin.example.org/")
    for name in (sample["url"], sample["locator"]):
        told = run_here("explain", work, name).stdout
        assert f"on this machine: {sample['locator']}" in told
        assert f"sample    {sample['sample_id']}" in told
        assert sample["url"] in told


def local_parts(work: Path) -> dict[str, Any]:
    """How many parts read pictures that lie here, and how many pictures."""
    return query(
        work,
        "SELECT count(*) AS num, sum(num_in)::BIGINT AS num_in FROM parts WHERE stage = 'fetch' AND step = 'local'",
    )[0]
