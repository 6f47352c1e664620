"""What lies about in a lab, in one folder: `init` uses or names everything, and a build keeps all that has a text."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from building import ROOT, done, release_of, run_inline
from foreign_tars import write_tar
from PIL import Image

from pipeline.demo.server import serving

PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))
NUM_OF_TAR = 8


def photo(number: int, side_px: int = 0) -> bytes:
    """A real picture that no other number shows: one of the photos, turned by a quarter for each round."""
    with Image.open(PHOTOS[number % len(PHOTOS)]) as image:
        turned = image.convert("RGB").rotate(90 * (number // len(PHOTOS)), expand=True)
    if side_px:
        turned.thumbnail((side_px, side_px))
    turned.save(stream := io.BytesIO(), "JPEG", quality=90)
    return stream.getvalue()


def put(path: str, number: int, side_px: int = 0) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(photo(number, side_px))


def put_tars() -> None:
    """Tars of img2dataset with and without texts; a model's captions for the second half of them."""
    for shard, with_text in ((0, True), (1, False)):
        rows: list[dict[str, Any]] = [
            {"url": f"https://a.example/{n}.jpg", "key": f"{n:09d}", "status": "success", "error_message": None}
            for n in range(NUM_OF_TAR * shard, NUM_OF_TAR * (shard + 1))
        ]
        samples = [
            (
                row["key"],
                {"jpg": photo(int(row["key"])), "json": json.dumps(row).encode()}
                | ({"txt": f"own words of picture {int(row['key'])}".encode()} if with_text else {}),
            )
            for row in rows
        ]
        write_tar(Path(f"lab/tars/{shard:05d}.tar"), samples)
        pq.write_table(pa.Table.from_pylist(rows), f"lab/tars/{shard:05d}.parquet")
        Path(f"lab/tars/{shard:05d}_stats.json").write_text(json.dumps({"count": NUM_OF_TAR}))
    words = {f"{n:09d}": f"a model's words of picture {n}" for n in range(NUM_OF_TAR // 2, 2 * NUM_OF_TAR)}
    pq.write_table(pa.table({"key": [*words], "blip": [*words.values()]}), "lab/tars/captions.parquet")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The folder `lab`, and the web that a list of addresses in it names."""
    monkeypatch.chdir(tmp_path)
    put_tars()
    for number in range(4):
        put(f"lab/fruit/Kiwi/k{number}.jpg", 16 + number)
        put(f"lab/fruit/Käse/c{number}.jpg", 20 + number)
        put(f"lab/species/Prunus_persica/{number}.jpg", 24 + number)
        put(f"lab/species/Malus_domestica/{number}.jpg", 28 + number)
        put(f"lab/species/Prunus_persica/thumbs/{number}.jpg", 24 + number, 60)
        put(f"lab/species/Malus_domestica/{number}_thumb.jpg", 28 + number, 60)
        put(f"lab/testset/{number}.jpg", 32 + number)
        put(f"web/{number}.jpg", 36 + number)
    put("lab/fruit/Kiwi/nobody.jpg", 40)
    put("lab/fruit/Kiwi/thumbs/k0.jpg", 16, 60)
    rows = [f"Kiwi\\k{n}.JPG;eine Kiwi auf dem Tisch, Nummer {n}" for n in range(4)]
    Path("lab/fruit/kiwi.csv").write_text("\r\n".join(["Datei;Beschreibung", *rows]), encoding="utf-8-sig")
    rows = [f"Käse\\c{n}.jpg,ein Stück Käse im Regal Nummer {n}" for n in range(4)]
    Path("lab/fruit/kaese.csv").write_text("\r\n".join(["Datei,Beschreibung", *rows]), encoding="cp1252")
    Path("lab/checkpoint.pt").write_bytes(b"weights")
    (tmp_path / "web").mkdir(exist_ok=True)
    with serving(tmp_path / "web") as server:
        root = f"http://127.0.0.1:{server.port}"
        Path("lab/urls.txt").write_text("".join(f"{root}/{n}.jpg\n" for n in range(4)))
        yield root


@pytest.mark.slow
def test_everything_is_used_or_named_and_the_config_builds_as_it_is(lab: str) -> None:
    """As it was found: tars hid the rest, of two tables one was taken, own captions were thrown away."""
    said = " ".join(done("init", "--domain", "plant=lab", "--out", "my.yaml").split())
    for named in (
        "lab/testset: 4 pictures or tars, a test set by its name; write `--evaluation lab/testset`",
        "lab/fruit/Kiwi: 1 of its pictures, which no row of a table names",
        "lab/checkpoint.pt: weights of a model",
        "lab/**/thumbs/**: 5 thumbnails of other pictures",
        "lab/**/*_thumb.*: 4 thumbnails of other pictures",
    ):
        assert named in said
    text = Path("my.yaml").read_text()
    sources = {source["name"]: source for source in yaml.safe_load(text)["sources"]}
    assert sources["tars"]["captions"][0]["join"] == "lab/tars/captions.parquet"
    assert sources["species"]["folder"]["folder_name_is"] == "scientific_name"
    assert sources["species"]["folder"]["exclude"] == ["**/*_thumb.*", "**/thumbs/**"]
    assert "4 of the first 4 are met with / for \\, in another case or in another Unicode form" in text
    assert (sources["urls"]["table"], sources["urls"]["format"]) == ("lab/urls.txt", "urls")
    # what only a user can say: who asks, and that this machine may be asked
    known = "contact: mailto:lab@example.org\n    allow_private_addresses: true"
    Path("my.yaml").write_text(text.replace("contact: null", known))
    run_inline(Path("my.yaml"))
    built = done("build", "my.yaml")
    how = "with / for \\, in another case or in another Unicode form"
    assert f"sources.kiwi: 4 of the first 4 names of kiwi.csv are met {how}" in built
    assert "caption: done, 32 of 36 kept, dropped: 4 empty_caption" in built, "of the bare list of addresses"
    rows = pq.read_table(release_of(Path("data/my")) / "samples.parquet").to_pylist()
    assert Counter(row["source"] for row in rows) == {"tars": 16, "kiwi": 4, "kaese": 4, "species": 8}
    texts = {row["text"] for row in rows if row["source"] == "tars"}
    own = {f"own words of picture {n}" for n in range(NUM_OF_TAR)}
    assert texts == own | {f"a model's words of picture {n}" for n in range(NUM_OF_TAR, 2 * NUM_OF_TAR)}
    taxa = {row["taxon_scientific_name"] for row in rows if row["source"] == "species"}
    assert taxa == {"Prunus persica", "Malus domestica"}
    first = next(row for row in rows if row["text"] == "eine Kiwi auf dem Tisch, Nummer 0")
    assert "row 2 of kiwi" in done("explain", "data/my", first["sample_id"]), "as a spreadsheet counts it"
    assert "ein Stück Käse im Regal Nummer 0" in {row["text"] for row in rows}


def test_a_file_name_is_no_caption_where_a_table_has_words(lab: str) -> None:
    """Own text comes first, but IMG_1.jpg is none: the table's text stands in, and the picture is kept."""
    body = {"url": "https://a.example/1.jpg", "key": "1"}
    samples = [
        (f"{n}", {"jpg": photo(n), "json": json.dumps(body).encode(), "txt": own})
        for n, own in enumerate([b"IMG_0001.jpg", b"a red apple on a table"])
    ]
    write_tar(Path("junk/00000.tar"), samples)
    pq.write_table(pa.table({"id": ["0", "1"], "words": ["a model's words", "other words"]}), "junk/t.parquet")
    done("init", "--domain", "plant=junk", "--out", "junk.yaml")
    run_inline(Path("junk.yaml"))
    done("build", "junk.yaml")
    rows = pq.read_table(release_of(Path("data/junk")) / "samples.parquet").to_pylist()
    assert {row["text"] for row in rows} == {"a model's words", "a red apple on a table"}
