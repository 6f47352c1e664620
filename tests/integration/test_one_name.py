"""What a release, its shards, the catalogue's views, the card and `explain` say of the same sample is the same."""

from __future__ import annotations

import csv
import json
import re
import shutil
import socket
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from building import release_of
from darwin_core import gbif_files, write_zip
from misbehaving.answers import send_picture
from misbehaving.registry import Request
from misbehaving.server import MisbehavingServer
from tars import tar_of

from manifests.contract.reader import open_reader, rows_of
from manifests.contract.release import Release
from pipeline.answers.lives import find_lives
from pipeline.cli import main
from pipeline.commands.explain import describe_life
from pipeline.releases.cutting import iter_samples
from training.using.labels import labels_of_release

PHOTOS = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))
NAMES = ("Malus domestica Borkh.", "Citrus × aurantium", "Zingiber officinale", "Beta vulgaris L.")
# fields of the json member that other tools named first, and our columns
ALIASES = {
    "uid": "sample_id",
    "sha256": "image_id",
    "width": "stored_width_px",
    "height": "stored_height_px",
    "original_width": "width_px",
    "original_height": "height_px",
}


def send_photo(photo: Path, sock: socket.socket, request: Request) -> None:
    send_picture(sock, photo.read_bytes())


def write_sources(folder: Path, root: str) -> list[dict[str, Any]]:
    """Sources of all kinds but downloads of GBIF, EOL, iNaturalist; some rows have no caption, all have a taxon."""
    table = folder / "list.csv"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["link", "words", "latin", "rights"])
        for place, name in enumerate(NAMES[:3]):
            writer.writerow([f"{root}{PHOTOS[place].name}", "" if place % 2 else "fruit on a shelf", name, "CC-BY-4.0"])
    for number, kind in enumerate(("pics", "listed")):
        (folder / kind / "Beta vulgaris").mkdir(parents=True)
        for photo in PHOTOS[3 + 2 * number : 5 + 2 * number]:
            shutil.copy(photo, folder / kind / "Beta vulgaris" / photo.name)
    (folder / "listed/list.tsv").write_text(
        "file\twords\tgenus\n" + "".join(f"Beta vulgaris/{photo.name}\ta beet\tBeta\n" for photo in PHOTOS[5:7])
    )
    (folder / "shards").mkdir()
    members = []
    for place, photo in enumerate(PHOTOS[7:9]):
        name = json.dumps({"name": NAMES[place], "url": f"http://origin.example.org/{place}.jpg"}).encode()
        members += [(f"{place}.jpg", photo.read_bytes()), (f"{place}.txt", b"a shelf" * place), (f"{place}.json", name)]
    (folder / "shards/0.tar").write_bytes(tar_of(members))
    taxon = {"kingdom": "Plantae", "genus": "Zingiber", "scientificName": NAMES[2]}
    occurrences = [{"gbifID": str(place), "basisOfRecord": "HUMAN_OBSERVATION", **taxon} for place in range(2)]
    media = [
        {"gbifID": str(place), "type": "StillImage", "identifier": f"{root}{photo.name}", "license": "CC0"}
        for place, photo in enumerate(PHOTOS[9:11])
    ]
    write_zip(folder / "gbif.zip", gbif_files(occurrences, media))
    columns = {"url": "link", "caption": "words", "taxon_scientific_name": "latin", "licence": "rights"}
    with_table = {"table": "list.tsv", "columns": {"file": "file", "caption": "words", "taxon_genus": "genus"}}
    named = {"caption": "txt", "taxon_scientific_name": "json.name", "url": "json.url"}
    here = {"domain": "food", "defaults": {"licence": "CC0-1.0"}}
    return [
        {"name": "web", "domain": "plant", "table": str(table), "columns": columns},
        {"name": "gbif", "domain": "plant", "dwca": {"path": str(folder / "gbif.zip")}},
        {
            "name": "pics",
            **here,
            "folder": {"path": str(folder / "pics"), "captions": "folder_name", "folder_name_is": "scientific_name"},
        },
        {"name": "listed", **here, "folder": {"path": str(folder / "listed"), **with_table}},
        {"name": "shards", **here, "webdataset": {"path": str(folder / "shards"), "fields": named}},
    ]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    pictures = {photo.name: partial(send_photo, photo) for photo in PHOTOS}
    with MisbehavingServer(extra=pictures) as server:
        values = {
            "name": "names",
            "work_dir": str(folder / "work"),
            "sources": write_sources(folder, f"http://127.0.0.1:{server.port}/"),
            "fetch": {"network": {"allow_private_addresses": True, "contact": "test@example.org"}},
            "dedup": {"radius": 2},
            "mix": {"ratio": {"plant": 1, "food": 1}, "heldout": {"num_samples": {"plant": 1, "food": 1}}},
            "run": {"executor": "inline"},
        }
        (folder / "build.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        assert main(["build", str(folder / "build.yaml")]) == 0
    return folder / "work"


@pytest.fixture(scope="module")
def samples(work: Path) -> list[dict[str, Any]]:
    rows = Release.open(str(release_of(work))).samples().to_pylist()
    assert {row["source"] for row in rows} == {"web", "gbif", "pics", "listed", "shards"}
    assert {row["text_type"] for row in rows} == {"caption", "sentence"}
    return rows


def test_the_json_member_has_the_columns_of_samples_parquet(work: Path, samples: list[dict[str, Any]]) -> None:
    release = Release.open(str(release_of(work)))
    members = {
        key: json.loads(dict(parts)["json"])
        for split in ("train", "heldout")
        for shard in release.shards(split)
        for key, parts in iter_samples(release.shard_path(split, shard))
    }
    assert len(members) == len(samples)
    for row in samples:
        told = members[row["key"]]
        assert {ALIASES.get(name, name) for name in told} <= set(row)
        for name, value in told.items():
            column = row[ALIASES.get(name, name)]
            assert (int(value, 16) if name == "phash" else value) == ("" if column is None else column), name


def test_the_catalogue_says_the_same(work: Path, samples: list[dict[str, Any]]) -> None:
    with open_reader(str(work)) as connection:
        views = {row["sample_id"]: row for row in rows_of(connection, "SELECT * FROM samples")}
        lives = {row["sample_id"]: find_lives(connection, row["sample_id"])[0] for row in samples}
    for row in samples:
        view = views[row["sample_id"]]
        shared = set(view) & set(row)
        assert {"caption", "text", "licence", "licence_id", "language", "taxon_derived", "shard", "key"} <= shared
        assert {name: view[name] for name in shared} == {name: row[name] for name in shared}
        assert (row["text_type"] == "caption") == (view["text_source"] == "caption")
        for rank in (row["taxon_derived"] or "").split():
            assert row[f"taxon_{rank}"] == dict(view["taxon_ranks"])[rank]
            assert f"{rank} {row[f'taxon_{rank}']} (derived)" in "\n".join(describe_life(lives[row["sample_id"]]))


def test_a_local_picture_is_found_by_where_it_lies_and_by_its_address(work: Path) -> None:
    with open_reader(str(work)) as connection:
        for row in rows_of(connection, "SELECT * FROM candidates WHERE source = 'shards'"):
            (life,) = find_lives(connection, row["url"])
            assert row["url"].startswith("http://origin.example.org/")
            assert describe_life(*find_lives(connection, row["locator"])) == (told := describe_life(life))
            assert f"on this machine: {row['locator']}" in (text := "\n".join(told))
            assert row["sample_id"] in text
            assert row["url"] in text


def test_a_rank_that_the_name_states_arrives_and_is_marked(work: Path, samples: list[dict[str, Any]]) -> None:
    told = {(row["source"], row["taxon_genus"], row["taxon_species"], row["taxon_derived"]) for row in samples}
    assert ("web", "Malus", "Malus domestica", "genus species") in told
    assert ("gbif", "Zingiber", "Zingiber officinale", "species") in told
    assert ("pics", "Beta", "Beta vulgaris", "genus species") in told
    assert ("listed", "Beta", None, None) in told
    assert "Zingiber officinale" in labels_of_release(Release.open(str(release_of(work))), "species").names


def test_card_and_report_count_the_texts_as_samples_parquet_does(work: Path, samples: list[dict[str, Any]]) -> None:
    card = (release_of(work) / "README.md").read_text(encoding="utf-8")
    told = {
        (domain, kind): int(num) for domain, num, kind in re.findall(r"- (\w+): (\d+) texts made from: (\w+)", card)
    }
    assert told == Counter((row["domain"], row["text_type"]) for row in samples)
