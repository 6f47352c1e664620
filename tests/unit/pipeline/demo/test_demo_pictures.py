from __future__ import annotations

import csv
import io
import random
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import imagehash
import pyarrow.parquet as pq
import pytest
from building import hash_tree
from PIL import Image
from tars import tar_of

from pipeline.demo import pictures
from pipeline.demo.packages import PACKAGES, Picture, category_of, read_package
from pipeline.demo.pictures import table_rows
from pipeline.demo.troubles import TROUBLES, plant_troubles

STAMPS = PACKAGES[0]


def _picture(name: str, domain: str, seed: int) -> Picture:
    chance = random.Random(seed)
    small = Image.new("RGB", (8, 8))
    small.putdata([(chance.randrange(256), chance.randrange(256), chance.randrange(256)) for _ in range(64)])
    stream = io.BytesIO()
    small.resize((160, 120), Image.Resampling.BICUBIC).save(stream, "PNG")
    return Picture(
        record_id=f"tuxpaint/{domain}/{name}",
        path=f"tuxpaint/{domain}/{name}.png",
        caption=f"A {name}. (animals)" if seed % 7 else "",
        domain=domain,
        category="fruit" if domain == "plant" else "animals",
        package=STAMPS,
        content=stream.getvalue(),
    )


@pytest.fixture(scope="module")
def own() -> list[Picture]:
    return [_picture(f"thing{n:02}", domain, n) for domain in ("plant", "general") for n in range(70)]


def _added(own: list[Picture], made: list[Picture], folder: str) -> list[Picture]:
    known = {picture.record_id for picture in own}
    return [p for p in made if p.record_id not in known and p.record_id.startswith(folder)]


def test_every_trouble_is_there_as_often_as_stated(own: list[Picture]) -> None:
    made = plant_troubles(own)
    wanted = {kind: sum(trouble.counts) for kind, trouble in TROUBLES.items()}
    assert len(_added(own, made, "gone/")) == wanted["dead_links"]
    assert all(picture.content is None for picture in _added(own, made, "gone/"))
    assert len(_added(own, made, "mirror/")) == wanted["exact_copies"]
    assert len(_added(own, made, "resized/")) == wanted["resized_copies"]
    odd = _added(own, made, "odd/")
    assert len(odd) == wanted["html_as_jpg"] + wanted["truncated_files"] + wanted["tracking_pixels"]
    before = {picture.record_id: picture for picture in own}
    changed = [p for p in made if p.record_id in before and p.caption != before[p.record_id].caption]
    assert len([p for p in changed if len(p.caption) == 1]) == wanted["one_character_captions"]
    assert len(changed) == wanted["one_character_captions"] + wanted["filename_captions"]


def test_only_the_captions_of_the_stated_number_change(own: list[Picture]) -> None:
    made = {picture.record_id: picture for picture in plant_troubles(own)}
    for picture in own:
        assert made[picture.record_id] == replace(picture, caption=made[picture.record_id].caption)
    assert len(made) == len(plant_troubles(own)), "record ids are unique"
    assert len({picture.path for picture in made.values()}) == len(made), "paths are unique"


def test_it_is_a_pure_function(own: list[Picture]) -> None:
    assert plant_troubles(own) == plant_troubles(list(own))


def test_exact_copies_have_an_original_s_bytes_and_a_poorer_caption(own: list[Picture]) -> None:
    by_bytes = {picture.content: picture for picture in own}
    for copy in _added(own, plant_troubles(own), "mirror/"):
        original = by_bytes[copy.content]
        assert len(copy.caption) < len(original.caption)
        assert urllib.parse.quote(copy.path) != copy.path


def test_resized_copies_are_near_duplicates_of_their_originals(own: list[Picture]) -> None:
    hashes = {p.caption: imagehash.phash(Image.open(io.BytesIO(p.content or b""))) for p in own if p.caption}
    copies = _added(own, plant_troubles(own), "resized/")
    for copy in copies:
        image = Image.open(io.BytesIO(copy.content or b""))
        assert image.format == "JPEG"
        assert image.size == (120, 90)
        assert imagehash.phash(image) - hashes[copy.caption.removesuffix(" (small)")] <= 6
    crossing = [copy for copy in copies if copy.record_id.startswith("resized/plant") and copy.domain == "general"]
    assert len(crossing) == 5


def test_odd_files_are_not_whole_images(own: list[Picture]) -> None:
    made = {picture.record_id: picture.content or b"" for picture in _added(own, plant_troubles(own), "odd/")}
    assert made["odd/plant-page-1"].startswith(b"<!DOCTYPE html>")
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(made["odd/general-half-1"])).load()
    assert Image.open(io.BytesIO(made["odd/general-pixel-2"])).size == (1, 1)


@pytest.mark.parametrize(
    ("folder", "category"),
    [
        ("food/fruit/cartoon", "fruit"),
        ("fruit_n_veg", "fruit"),
        ("food", "food"),
        ("plants/flowers/plastic", "plants"),
        ("seasonal/winter", "holidays"),
        ("animals/birds/cartoon", "animals"),
    ],
)
def test_categories_are_one_word_for_both_packages(folder: str, category: str) -> None:
    assert category_of(folder) == category


def test_tables_hold_the_names_of_darwin_core_for_plants_only(own: list[Picture]) -> None:
    rose = replace(own[0], caption="A rose.")
    plants = table_rows([rose, *own], "plant", 8731)
    assert plants[0]["scientificName"] == "Rosa"
    assert plants[0]["family"] == "Rosaceae"
    assert plants[1]["scientificName"] == ""
    assert plants[0]["url"] == "http://127.0.0.1:8731/tuxpaint/plant/thing00.png"
    general = table_rows(own, "general", 9999)
    assert "scientificName" not in general[0]
    assert {row["licence"] for row in general} == {"GPL-2"}


def test_written_twice_it_has_the_same_bytes_and_reads_back(own: list[Picture], tmp_path: Path) -> None:
    versions = {package.name: "1.0" for package in PACKAGES}
    made = plant_troubles(own)
    for name in ("first", "second"):
        pictures._write_web(tmp_path / name, made, 8731, versions)
    web = tmp_path / "first"
    assert hash_tree(web) == hash_tree(tmp_path / "second")
    with (web / "plants.csv").open(encoding="utf-8", newline="") as stream:
        plants = list(csv.DictReader(stream))
    general = pq.read_table(web / "general.parquet").to_pylist()
    assert len(plants) + len(general) == len(made)
    assert plants == table_rows(made, "plant", 8731)
    dead = 0
    for row in plants + general:
        path = urllib.parse.unquote(urllib.parse.urlsplit(row["url"]).path).lstrip("/")
        dead += not (web / path).is_file()
    marker = pictures.read_marker(web)
    assert marker is not None
    assert dead == marker["troubles"]["dead_links"]
    assert marker["rows"] == {"plant": len(plants), "general": len(general)}
    readme = (web / "README.txt").read_text(encoding="utf-8")
    for kind, trouble in TROUBLES.items():
        assert f"{marker['troubles'][kind]:3}  {kind}: {trouble.meaning}" in readme


def test_a_finished_set_up_is_reused_and_an_unfinished_one_is_not(own: list[Picture], tmp_path: Path) -> None:
    web = tmp_path / "web"
    assert pictures.read_marker(web) is None
    pictures._write_web(web, plant_troubles(own), 8731, {package.name: "1.0" for package in PACKAGES})
    before = hash_tree(web)
    # no package lies in the folder and none is fetched: a reuse needs neither
    marker = pictures.prepare_web(web, tmp_path / "packages", 8731)
    assert marker["port"] == 8731
    assert hash_tree(web) == before
    (web / "plants.csv").unlink()
    assert pictures.read_marker(web) is None


def test_set_ups_of_one_folder_at_the_same_time_wait_for_one_another(
    own: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(pictures, "fetch_package", lambda name, folder: folder / name)
    monkeypatch.setattr(pictures, "package_version", lambda deb: "1.0")
    monkeypatch.setattr(pictures, "read_package", lambda package, deb: read.append(package) or own[:: len(PACKAGES)])
    monkeypatch.setattr(pictures, "plant_troubles", lambda _: plant_troubles(own))
    web = tmp_path / "web"
    with ThreadPoolExecutor(4) as pool:
        markers = list(pool.map(lambda _: pictures.prepare_web(web, tmp_path / "packages", 8731), range(4)))
    assert len(read) == len(PACKAGES)  # one of them did it, the others took what it made
    assert markers == [pictures.read_marker(web)] * 4


def _deb(folder: Path, files: dict[str, bytes]) -> Path:
    body = tar_of(((f"./{STAMPS.root}{name}", content) for name, content in files.items()), mode="w:xz")
    path = folder / "tuxpaint-stamps-default_1_all.deb"
    with path.open("wb") as deb:
        deb.write(b"!<arch>\n")
        for name, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", b""), ("data.tar.xz", body)):
            deb.write(f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(content):<10}`\n".encode())
            deb.write(content + b"\n" * (len(content) % 2))
    return path


def test_a_package_becomes_rows_with_caption_class_and_domain(tmp_path: Path) -> None:
    files = {
        "food/fruit/banana.png": b"png1",
        "food/fruit/banana.txt": b"A banana.\nde.utf8=Eine Banane.\n",
        "food/fruit/banana.ogg": b"sound",
        "animals/birds/owl.png": b"png2",
    }
    owl, banana = read_package(STAMPS, _deb(tmp_path, files))
    assert (banana.record_id, banana.path) == ("tuxpaint/food/fruit/banana", "tuxpaint/food/fruit/banana.png")
    assert (banana.caption, banana.category, banana.domain) == ("A banana. (fruit)", "fruit", "plant")
    assert banana.content == b"png1"
    assert (owl.caption, owl.category, owl.domain) == ("", "animals", "general")
