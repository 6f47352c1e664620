"""`plantmix init`: what it makes of the things that people have, and what it says of things that cannot be a source."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from building import ROOT
from darwin_core import gbif_files, write_zip
from foreign_tars import img2dataset_samples, write_tar
from picture_tables import table_of, write
from tars import tar_of

from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError
from pipeline.answers.first_config import parse_domains, write_first_config
from pipeline.answers.preflight import examine
from pipeline.cli import main
from pipeline.config import BuildConfig, read_config
from pipeline.sources.tables.columns import guess_columns

PHOTO = next((ROOT / "tests/photos").glob("*.jpg"))


def source_of(path: Path | str, domain: str = "plant") -> tuple[dict[str, Any], str]:
    """The written source over one place, and the whole text."""
    text = write_first_config("own", {domain: [str(path)]})
    (source,) = yaml.safe_load(text)["sources"]
    return source, text


def put_photos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PHOTO, folder / name)
    return folder


@pytest.mark.parametrize(
    ("head", "row", "wanted"),
    [
        ("URL,TEXT", ("http://a.org/1.jpg", "a red rose"), {"url": "URL", "caption": "TEXT"}),
        (
            "id;Bild-URL;Beschreibung;Lizenz",
            ("7", "https://a.org/1.jpg", "Eine rote Rose", "CC BY 4.0"),
            {"url": "Bild-URL", "caption": "Beschreibung", "licence": "Lizenz"},
        ),
        (
            "identifier,scientificName,family,license,rightsHolder,references",
            ("https://a.org/1.jpg", "Rosa canina L.", "Rosaceae", "CC0", "Ann Lee", "https://a.org/page"),
            {"url": "identifier", "taxon_scientific_name": "scientificName", "taxon_family": "family",
             "licence": "license", "rights_holder": "rightsHolder", "reference_url": "references", "caption": []},
        ),
        (
            "page_url,image_url,alt_text,license_url",
            ("https://a.org/p", "https://a.org/x?id=1", "two dogs", "https://creativecommons.org/licenses/by/4.0/"),
            {"url": "image_url", "reference_url": "page_url", "caption": "alt_text", "licence_url": "license_url"},
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_columns_of_a_table(tmp_path: Path, head: str, row: tuple[str, ...], wanted: dict[str, Any], mark: str) -> None:
    sign = ";" if ";" in head else ","
    (tmp_path / "t.csv").write_text(mark + "\n".join([head, *[sign.join(row)] * 4]) + "\n", encoding="utf-8")
    source, text = source_of(tmp_path / "t.csv")
    assert source["columns"] == wanted
    assert "from its " in text


def test_a_german_table_of_excel_is_understood_and_columns_left_out_are_named(tmp_path: Path) -> None:
    rows = [
        f"http://a.org/{n}.jpg;Rosa {name};Ähren am Weg {n};CC BY 4.0;Jörg Müller;Beet;{n};"
        for n, name in enumerate(["canina", "rugosa", "gallica", "arvensis"] * 6)
    ]
    head = "sep=;\nBild-URL;Art;Beschreibung;Lizenz;Fotograf;Titel;Nr;Notiz"
    (tmp_path / "t.csv").write_text("\n".join([head, *rows]) + "\n", encoding="cp1252")
    source, text = source_of(tmp_path / "t.csv")
    assert source["columns"] == {
        "url": "Bild-URL", "taxon_scientific_name": "Art", "caption": "Beschreibung", "licence": "Lizenz",
        "creator": "Fotograf",
    }  # fmt: skip
    told = " ".join(text.replace("#", " ").split())
    assert "8 columns separated by semicolons in cp1252, the first rows were read" in told
    assert (
        "columns that are not read: Titel (the same in each row: Beet); Nr (its name says nothing that PlantMix "
        "reads); Notiz (empty in the first rows). Map them in `columns`, or keep them in `extra`" in told
    )


def test_the_names_of_ranks_in_other_languages_need_values_that_fit() -> None:
    values = {
        "image_url": ["http://a.org/1.jpg"] * 3,
        "art": ["oil on canvas", "print", "a drawing"],
        "genre": ["a", "b"],
    }
    assert set(guess_columns(list(values), values)) & {"taxon_scientific_name", "taxon_genus"} == set()


def test_a_domain_of_plants_is_judged_as_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("url,caption\n" + "http://a.org/1.jpg,a red rose\n" * 3)
    text = write_first_config("x", {"plants": [str(tmp_path / "t.csv")], "general": [str(tmp_path / "t.csv")]})
    assert yaml.safe_load(text)["caption"]["rules"] == [
        {"domains": ["plants"], "preset": "plant"},
        {"preset": "general"},
    ]


def test_a_guess_says_how_sure_it_is() -> None:
    values = {"link": ["http://a.org/1.jpg"], "words": ["a red rose"] * 1, "licence": []}
    found = guess_columns(["link", "words", "licence"], values)
    assert {field: guess.trust for field, guess in found.items()} == {
        "url": "sure",
        "licence": "likely",
        "caption": "guess",
    }


def test_parquet_and_json(tmp_path: Path) -> None:
    rows = [{"url": f"http://a.org/{n}.jpg", "caption": f"a rose {n}", "similarity": 0.3} for n in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for path in (tmp_path / "*.parquet", tmp_path / "more.jsonl"):
        assert source_of(path)[0]["columns"] == {"url": "url", "caption": "caption"}


def test_a_gbif_archive(tmp_path: Path) -> None:
    media = [{"gbifID": "1", "identifier": "http://a.org/1.jpg", "license": "CC0"}]
    archive = write_zip(tmp_path / "0012.zip", gbif_files([{"gbifID": "1", "scientificName": "Rosa canina"}], media))
    source, text = source_of(archive)
    assert source["name"] == "0012", "a name of digits is no number"
    assert source["dwca"] == {"path": str(archive)}
    assert "licences:" not in text.partition("\n\n")[0], "its media state licences"
    assert yaml.safe_load(text)["caption"]["rules"] == [{"domains": ["plant"], "preset": "plant"}]
    (tmp_path / "short.zip").write_bytes(archive.read_bytes()[:300])
    with pytest.raises(ConfigError, match=r"short\.zip is a zip that breaks off before its end; download it again"):
        source_of(tmp_path / "short.zip")


def test_folders_of_pictures(tmp_path: Path) -> None:
    by_taxon = put_photos(tmp_path / "taxa", "Rosa_canina/1.jpg", "Bellis_perennis/2.jpg")
    assert source_of(by_taxon)[0]["folder"]["folder_name_is"] == "scientific_name"
    oak = "04001_Plantae_Tracheophyta_Magnoliopsida_Fagales_Fagaceae_Quercus"
    by_ranks = put_photos(tmp_path / "inat", f"{oak}_robur/1.jpg", f"{oak}_rubra/2.jpg")
    assert source_of(by_ranks)[0]["folder"]["folder_name_is"] == "ranks"
    by_name = put_photos(tmp_path / "names", "oak tree/1.jpg", "elm/2.jpg")
    assert source_of(by_name)[0]["folder"] == {"path": str(by_name), "captions": "folder_name"}
    beside = put_photos(tmp_path / "beside", "1.jpg")
    (beside / "1.txt").write_text("a rose")
    assert source_of(beside)[0]["folder"]["captions"] == "text_file"
    listed = put_photos(tmp_path / "listed", "img/1.jpg")
    (listed / "metadata.csv").write_text("file_name,text\nimg/1.jpg,a rose\n")
    assert source_of(listed)[0]["folder"]["columns"] == {"file": "file_name", "caption": "text"}
    source, text = source_of(put_photos(tmp_path / "mute", "images/1.jpg"))
    assert source["folder"]["captions"] == "none"
    head = " ".join(text.partition("\n\n")[0].replace("#", "").split())
    assert "no text file, no table and no telling folder names are there" in head


def test_img2dataset_shards(tmp_path: Path) -> None:
    members = {"0.jpg": PHOTO.read_bytes(), "0.txt": b"a rose", "0.json": b'{"url": "http://a", "license": "CC0"}'}
    (tmp_path / "00000.tar").write_bytes(tar_of(members.items()))
    source, _ = source_of(tmp_path)
    assert source["webdataset"]["fields"] == {"url": "json.url", "caption": "txt", "licence": "json.license"}


def test_the_first_sample_of_every_tar_says_what_there_is(tmp_path: Path) -> None:
    for number in range(7):
        json_of = {"json": json.dumps({"license": "CC0"}).encode()} if number == 5 else {}
        write_tar(tmp_path / f"{number}.tar", [(str(number), {"jpg": PHOTO.read_bytes(), "txt": b"a rose", **json_of})])
    source, _ = source_of(tmp_path)
    assert source["webdataset"]["fields"]["licence"] == "json.license"


def test_what_cannot_be_a_source(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pics.zip", "w") as archive:
        archive.write(PHOTO, "a.jpg")
    (tmp_path / "files.csv").write_text("file,text\na.jpg,a rose\n")
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty").mkdir()
    for path, says in (
        (tmp_path / "pics.zip", "a zip of pictures, without a meta.xml; unpack it"),
        (PHOTO, "one picture; name its folder"),
        (tmp_path / "files.csv", "its column 'file' names files; name the folder of the pictures"),
        (tmp_path / "numbers.csv", "no column holds addresses of pictures"),
        (tmp_path / "empty", "holds no pictures, tables, tars or archives"),
        ("C:\\data\\x.csv", "written as Windows writes paths; write C:/data/x.csv"),
        ("gone/x.csv", "nothing is there (looked for at"),
    ):
        with pytest.raises(ConfigError) as error:
            source_of(path)
        assert says in str(error.value)


def test_domains_as_they_are_given() -> None:
    assert parse_domains(["plant=a.zip", "web=b/*.parquet, c/", "plant=d/{0,1}.tar"]) == {
        "plant": ["a.zip", "d/{0,1}.tar"],
        "web": ["b/*.parquet", "c/"],
    }
    for text, says in (
        ("plant", "write DOMAIN=PLACE"),
        ("Plant=a", "'Plant' is no name"),
        ("a=", "write DOMAIN=PLACE"),
    ):
        with pytest.raises(ConfigError, match=says):
            parse_domains([text])


def test_the_command_writes_a_config_that_only_lacks_decisions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put_photos(tmp_path / "pics", "oak tree/1.jpg", "elm/2.jpg")
    Path("list.csv").write_text("url,text,license\n" + "http://a.org/1.jpg,a red rose,CC0\n" * 9)
    wanted = ["init", "--domain", "plant=pics", "--domain", "web=list.csv", "--out", "my.yaml"]
    assert main(wanted) == 0
    told = capsys.readouterr().out
    assert "1. fetch.network.contact" in told
    assert "2. licences: pics states none" in told
    assert "3. mix.ratio" in told
    values = yaml.safe_load(Path("my.yaml").read_text())
    assert values["run"] == {"executor": "processes"}, "a stranger's machine needs no Ray"
    assert main(wanted) == 2
    assert "there already" in capsys.readouterr().err
    config = parse_settings(values, BuildConfig, "my.yaml")
    assert [
        finding.text for finding in examine(config) if finding.is_error and "contact is not set" not in finding.text
    ] == []
    values["fetch"]["network"]["contact"] = "mailto:me@example.org"
    assert not [f for f in examine(parse_settings(values, BuildConfig, "my.yaml")) if f.is_error]


def test_a_folder_of_tars_builds_at_the_first_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tars state no licence. As it was found, the config that `init` wrote dropped all of them."""
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "shards/00000.tar", img2dataset_samples(0, 12))
    assert main(["init", "--domain", "plant=shards", "--out", "my.yaml"]) == 0
    assert not [each for each in examine(read_config("my.yaml")) if each.is_error]
    assert "take `unknown` out" in " ".join(Path("my.yaml").read_text().replace("#", "").split())


def sources_of(folder: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """The folder sources over one place by their names, and the head of the config as one line."""
    text = write_first_config("own", {"plant": [str(folder)]})
    values = {source["name"]: source.get("folder", source) for source in yaml.safe_load(text)["sources"]}
    return values, " ".join(text.partition("\n\n")[0].replace("#", "").split())


def test_a_folder_is_parted_by_what_names_its_pictures(tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    put_photos(lab / "species", "Rosa_canina/1.jpg", "Bellis_perennis/2.jpg", "cover.jpg")
    put_photos(lab, "trips/harz/1.jpg", "trips/rhoen/2.jpg", "photos/[1]/7.jpg")
    (put_photos(lab / "described", "a.jpg") / "a.txt").write_text("a rose")
    found, _ = sources_of(lab)
    taxa = ["Bellis_perennis", "Rosa_canina"]
    assert {name: (Path(of["path"]).name, of["captions"], of.get("exclude")) for name, of in found.items()} == {
        "described": ("described", "text_file", None),
        "photos": ("[1]", "none", None),
        "species": ("species", "folder_name", ["*"]),
        "lab": ("lab", "folder_name", ["described/**", "photos/**", *(f"species/{name}/**" for name in taxa)]),
    }
    assert found["species"]["folder_name_is"] == "scientific_name"


def test_splits_beside_train_are_set_apart_or_named(tmp_path: Path) -> None:
    for folder, splits in {"folders": ("train", "val2017"), "alone": ("dev", "oak")}.items():
        put_photos(tmp_path, *(f"{folder}/{split}/red rose/{n}.jpg" for split in splits for n in range(2)))
    for name in ("train-00000-of-00001", "validation-00000-of-00001", "holdout"):
        write(tmp_path / f"hub/{name}.parquet", table_of(range(3)))
    for name in ("train", "valid"):
        (tmp_path / f"{name}.csv").write_text(f"url,caption\nhttps://a.org/{name}.jpg,a red rose\n" * 3)
        write_tar(tmp_path / f"tars/{name}-000.tar", img2dataset_samples(0, 2))
    sources, text = sources_of(tmp_path)
    assert [source["parquet"]["path"] for source in sources.values() if "parquet" in source] == [
        str(tmp_path / "hub/train-00000-of-00001.parquet")
    ]
    assert "folders/val2017: 2 pictures or tars, a test set by its name" in text
    assert "alone/dev: " not in text, "without `train` beside it, it may be anything"
    for name in ("validation-00000-of-00001.parquet: 1", "holdout.parquet: 1"):
        assert f"hub/{name} Parquet files, a test set by its name" in text
    for name in ("valid.csv", "tars/valid-000.tar"):
        assert f"{tmp_path / name}: 1 files in its folder are a test set by name, and are read with" in text


def test_every_table_beside_pictures_is_used_or_named(tmp_path: Path) -> None:
    lab = put_photos(tmp_path / "lab", "img/a.jpg", "img/b.jpg", "img/c.jpg", "more/d.jpg")
    (lab / "one.csv").write_text("file,text\nimg\\a.JPG,a rose\n")
    (lab / "lists").mkdir()
    (lab / "lists/two.csv").write_text("file,url,text\nd.jpg,https://a.example/d.jpg,a daisy\n")
    (lab / "prices.csv").write_text("plant,price\nrose,3\nlily,4\n")
    (lab / "book.xlsx").write_bytes(b"PK")
    (lab / "old.xls").write_bytes(b"")
    for number in range(3):
        put_table = (lab / f"web/{number}.csv", lab / f"mixed/{number}.csv")
        for path in put_table:
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"url,caption\nhttps://a.example/{number}.jpg,a rose\n")
    (lab / "mixed/2.csv").write_text("link,words\nhttps://a.example/9.jpg,a rose of another table\n")
    found, head = sources_of(lab)
    web = [
        of["table"].removeprefix(f"{lab}/") for of in found.values() if "columns" in of and "file" not in of["columns"]
    ]
    assert web == ["mixed/0.csv", "mixed/1.csv", "mixed/2.csv", "web/*.csv"]
    assert found["one"]["table"] == "one.csv"
    assert (Path(found["two"]["path"]).name, found["two"]["table"]) == ("more", "../lists/two.csv")
    assert found["two"]["columns"]["url"] == "url"
    assert f"{lab}/img: 2 of its pictures, which no row of a table names" in head
    assert f"{lab}/prices.csv: not read: no column holds addresses of pictures" in head
    assert "book.xlsx cannot be read as xlsx: it is damaged, or no workbook" in head
    assert f"{lab}/old.xls: a workbook that is not read; save it as .xlsx and name that file" in head


def test_lists_of_the_same_addresses_are_one_source(tmp_path: Path) -> None:
    """The longest, with what the others and a table without addresses say of its rows."""
    addresses = [f"https://a.example/{n}.jpg" for n in range(30)]
    tables = {
        "a_rights": ["id,link,licence", *(f"x{n},{url},CC0" for n, url in enumerate(addresses[:29]))],
        "list": ["id,url,caption", *(f"x{n},{url},a rose {n}" for n, url in enumerate(addresses))],
        "other": ["url,licence", *(f"{url},CC0" for url in [*addresses[:20], *(f"{url}?2" for url in addresses)])],
        "owners": ["id,owner", *(f"x{n},Ann Lee {n}" for n in range(30))],
        "prices": ["id,owner", *(f"x{90 + n},Bo Berg {n}" for n in range(30))],
    }
    for name, lines in tables.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    found, head = sources_of(tmp_path)
    assert list(found) == ["list", "other"], "most addresses of the third are others"
    joined = {Path(entry["table"]).stem: (entry["on"], entry["columns"]) for entry in found["list"]["join"]}
    assert joined == {
        "a_rights": ({"url": "link"}, {"licence": "licence"}),
        "owners": ({"extra.id": "id"}, {"rights_holder": "owner"}),
    }
    assert found["list"]["columns"]["extra"] == ["id"]
    assert f"{tmp_path}/a_rights.csv: it says more of pictures here, so its other addresses are not asked for" in head
    assert f"{tmp_path}/prices.csv: not read" in head


def test_names_of_columns_count_before_values() -> None:
    values = {
        "url": ["http://a.org/1.jpg"] * 3,
        "class": ["Insecta", "Aves", "Liliopsida"],
        "species": ["Vanessa atalanta", "Pica pica", "Poa annua"],
        "title": ["not provided", "Not provided.", "a magpie"],
    }
    guesses = guess_columns(list(values), values)
    assert {field: guess.column for field, guess in guesses.items()} == {
        "url": "url",
        "taxon_class": "class",
        "taxon_species": "species",
    }


def test_addresses_of_licences_are_none_of_pictures() -> None:
    """A table of licences was taken for a list of pictures, and not joined to the list beside it."""
    values = {"uuid": ["1", "2"], "license_link": ["https://creativecommons.org/licenses/by/4.0/"] * 2}
    with pytest.raises(ConfigError, match="no column holds addresses of pictures"):
        guess_columns(list(values), values)
    found = guess_columns(["url", "license_link"], values | {"url": ["http://a.org/1.jpg", "http://a.org/2.jpg"]})
    assert {field: guess.column for field, guess in found.items()} == {"url": "url", "licence_url": "license_link"}


def test_small_copies_are_left_out_only_where_each_has_its_picture(tmp_path: Path) -> None:
    found, _ = sources_of(put_photos(tmp_path / "a", "rose/1.jpg", "rose/thumbs/1.jpg", "rose/1_thumb.jpg"))
    assert found["a"]["exclude"] == ["**/*_thumb.*", "**/thumbs/**"]
    found, _ = sources_of(put_photos(tmp_path / "b", "rose/1.jpg", "rose/green_thumb.jpg", "Thumbs/2.jpg"))
    assert "exclude" not in found["b"]


def test_a_list_of_addresses_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text("\ufeffhttps://a.example/1.jpg\r\nhttps://a.example/x,2.jpg\r\n", "utf-8")
    source, text = source_of(tmp_path / "urls.txt")
    assert (source["format"], source["columns"]) == ("urls", {"url": "url", "caption": []})
    assert "a list of addresses has none; add `defaults: {caption: TEXT}`" in " ".join(text.replace("#", "").split())
    config = parse_settings(yaml.safe_load(text), BuildConfig, "own")
    (batch,) = config.sources[0].reader.rows(lambda: pytest.fail("no join"))
    assert batch.rows["url"].to_pylist() == ["https://a.example/1.jpg", "https://a.example/x,2.jpg"]
    assert batch.numbers.tolist() == [0, 1]
    (tmp_path / "notes.txt").write_text("https://a.example/1.jpg\nbought in May\n")
    with pytest.raises(ConfigError, match="an address a line"):
        source_of(tmp_path / "notes.txt")


def test_evaluation_sets_are_written_too(tmp_path: Path) -> None:
    photos = str(put_photos(tmp_path / "mine", "rose/a.jpg"))
    for folder in ("one/test", "two/test"):
        put_photos(tmp_path / folder, "b.jpg")
    (tmp_path / "names.csv").write_text("url\nhttp://a.org/1.jpg\n", encoding="utf-8")
    sets = [str(tmp_path / name) for name in ("one/test", "two/test", "names.csv")]
    text = write_first_config("own", {"plant": [photos]}, sets)
    config = parse_settings(yaml.safe_load(text), BuildConfig, "own")
    assert [(each.name, each.kind) for each in config.evaluation] == [
        ("test", "folder"),
        ("test-2", "folder"),
        ("names", "table"),
    ]
    assert config.evaluation[2].match_names


def test_a_config_in_another_folder_names_its_paths_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_photos(tmp_path / "pictures", "oak tree/1.jpg")
    (tmp_path / "list.csv").write_text("url,caption\nhttp://a.org/1.jpg,a rose\n")
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    places = "--domain=plant=list.csv,pictures", f"--domain=general={tmp_path}/pictures", "--evaluation=pictures"
    assert main(["init", *places, "--out", "configs/own.yaml"]) == 0
    config = read_config("configs/own.yaml")
    assert [source.reader.path for source in config.sources] == ["list.csv", "pictures", f"{tmp_path}/pictures"]
    assert [each.reader.path for each in config.evaluation] == ["pictures"]
    assert config.work_dir == "configs/data/own"
