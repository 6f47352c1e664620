"""Pictures in a folder: names, class folders, texts beside them, and tables; a missing file ends as one lost row."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from manifests.contract.settings import parse_settings
from manifests.contract.tables import TAXON_RANKS
from manifests.errors import ConfigError
from pipeline.sources.files import BytesUnreadable, LocalReader, walk_files
from pipeline.sources.reading import check_source, digest_inputs, read_rows, root_of
from pipeline.sources.settings import SourceSettings
from pipeline.stages.ingest.stage import map_rows


def source(**folder: Any) -> SourceSettings:
    return parse_settings({"name": "pics", "domain": "plant", "folder": folder}, SourceSettings, "test")


def no_scratch() -> Any:
    raise AssertionError("a folder needs no join")


def read(given: SourceSettings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows without nulls, with their numbers; and the lost ones."""
    rows, lost = [], []
    for batch in read_rows(given, no_scratch):
        for number, row in zip(batch.numbers.tolist(), batch.rows.to_pylist(), strict=True):
            rows.append({"number": number} | {name: value for name, value in row.items() if value is not None})
        lost += batch.lost.to_pylist()
    return rows, lost


def fill(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_class_names_are_folder_names(tmp_path: Path) -> None:
    fill(tmp_path, red_rose__b_dot_jpg=b"12345", red_rose__a_dot_PNG=b"1", oak__x__c_dot_jpg=b"", root_dot_jpg=b"77")
    fill(tmp_path, red_rose__notes_dot_txt=b"no picture", _dot_hidden__d_dot_jpg=b"no")
    given = source(path=str(tmp_path))
    check_source(given)
    rows, lost = read(given)
    assert lost == []
    assert [(row["number"], row["record_key"], row["locator"], row["caption"]) for row in rows] == [
        (0, "oak/x/c.jpg", "oak/x/c.jpg@0+0", "x"),
        (1, "red_rose/a.PNG", "red_rose/a.PNG@0+1", "red rose"),
        (2, "red_rose/b.jpg", "red_rose/b.jpg@0+5", "red rose"),
        (3, "root.jpg", "root.jpg@0+2", ""),
    ]
    assert json.loads(rows[0]["extra"]) == {"folder": "oak/x"}
    assert root_of(given) == str(tmp_path)


def test_a_folder_name_may_be_a_scientific_name(tmp_path: Path) -> None:
    fill(tmp_path, Quercus_robur__1_dot_jpg=b"1")
    rows, _ = read(source(path=str(tmp_path), captions="folder_name", folder_name_is="scientific_name"))
    assert rows[0]["taxon_scientific_name"] == "Quercus robur"
    assert "caption" not in rows[0]


def test_a_folder_name_may_hold_all_ranks(tmp_path: Path) -> None:
    oak = "04001_Plantae_Tracheophyta_Magnoliopsida_Fagales_Fagaceae_Quercus_robur"
    for folder in (oak, "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(b"1")
    rows, _ = read(source(path=str(tmp_path), captions="folder_name", folder_name_is="ranks"))
    assert [rows[0][f"taxon_{rank}"] for rank in TAXON_RANKS] == oak.split("_")[1:]
    assert not any(name.startswith("taxon_") for name in rows[1])


def test_texts_beside_pictures(tmp_path: Path) -> None:
    fill(tmp_path, a_dot_jpg=b"1", a_dot_txt="\ufeffEine Röse\n".encode(), b_dot_jpg=b"1", c_dot_jpg=b"1")
    fill(tmp_path, c_dot_txt=b"\xff\xfe broken")
    rows, lost = read(source(path=str(tmp_path), captions="text_file"))
    assert [(row["record_key"], row["caption"]) for row in rows] == [("a.jpg", "Eine Röse\n"), ("b.jpg", "")]
    assert [(row["row_number"], row["reason"]) for row in lost] == [(2, "malformed_row")]


def test_a_table_beside_the_pictures(tmp_path: Path) -> None:
    fill(tmp_path, in__a_dot_jpg=b"123", b_dot_jpg=b"12345", not_listed_dot_jpg=b"1")
    (tmp_path / "meta.csv").write_text(
        "file,title,author,link\n"
        "in/a.jpg,A rose,Ann,http://a/1\n"
        f"{tmp_path}/b.jpg,An oak,,\n"
        "gone.jpg,Gone,Bob,\n"
        "../outside.jpg,Out,Eve,\n"
        ",No file,,\n"
        "short\n"
    )
    given = source(
        path=str(tmp_path),
        table="meta.csv",
        columns={"file": "file", "caption": "title", "creator": "author", "url": "link", "extra": ["title"]},
    )
    check_source(given)
    rows, lost = read(given)
    assert rows == [
        {
            "number": 1,
            "record_key": "in/a.jpg",
            "locator": "in/a.jpg@0+3",
            "caption": "A rose",
            "creator": "Ann",
            "url": "http://a/1",
            "extra": '{"title": "A rose"}',
        },
        {
            "number": 2,
            "record_key": f"{tmp_path}/b.jpg",
            "locator": "b.jpg@0+5",
            "caption": "An oak",
            "extra": '{"title": "An oak"}',
        },
    ]
    assert sorted((row["row_number"], row["reason"], row["value"]) for row in lost) == [
        (3, "missing_file", "gone.jpg"),
        (4, "file_outside_folder", "../outside.jpg"),
        (5, "missing_file", None),
        (6, "malformed_row", "short"),
    ]


def test_a_source_on_an_object_store(tmp_path: Path) -> None:
    address = f"memory://{tmp_path.name}"
    for name, content in (("rose/1.jpg", b"123"), ("oak/2.jpg", b"1")):
        with fsspec.open(f"{address}/{name}", "wb") as stream:
            stream.write(content)
    given = source(path=address)
    check_source(given)
    rows, _ = read(given)
    assert [(row["locator"], row["caption"]) for row in rows] == [("oak/2.jpg@0+1", "oak"), ("rose/1.jpg@0+3", "rose")]


def test_only_regular_files_of_the_folder_are_read_and_the_others_named(tmp_path: Path) -> None:
    """As it was found: linked folders multiplied the pictures, and a pipe beside one hung the build."""
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    folder = fill(tmp_path / "pics", real__a_dot_jpg=b"1", real__b_dot_jpg=b"12")
    (folder / "real" / "loop").symlink_to(folder / "real")
    (folder / "other").symlink_to(folder / "real")
    (folder / "linked.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "dangling.jpg").symlink_to(tmp_path / "gone")
    (folder / "notes.md").symlink_to(tmp_path / "secret.jpg")
    os.mkfifo(folder / "pipe.jpg")
    assert [name for name, size in walk_files(str(folder)) if size is not None] == ["real/a.jpg", "real/b.jpg"]
    given = source(path=str(folder))
    check_source(given)
    rows, lost = read(given)
    assert [(row["number"], row["record_key"]) for row in rows] == [(0, "real/a.jpg"), (1, "real/b.jpg")]
    assert [(row["row_number"], row["reason"], row["value"]) for row in lost] == [
        (2, "no_regular_file", "dangling.jpg"),
        (3, "no_regular_file", "linked.jpg"),
        (4, "no_regular_file", "other/"),
        (5, "no_regular_file", "pipe.jpg"),
        (6, "no_regular_file", "real/loop/"),
    ]
    (tmp_path / "door").symlink_to(folder)  # the folder that the user names may be a link
    assert read(source(path=str(tmp_path / "door")))[0] == rows


def test_no_caption_is_read_through_a_link_or_a_pipe(tmp_path: Path) -> None:
    """As it was found: a.txt -> /etc/passwd became a caption."""
    (tmp_path / "secret.txt").write_text("secret")
    folder = fill(tmp_path / "pics", a_dot_jpg=b"1", b_dot_jpg=b"1", c_dot_jpg=b"1", c_dot_txt=b"a rose")
    (folder / "a.txt").symlink_to(tmp_path / "secret.txt")
    os.mkfifo(folder / "b.txt")
    given = source(path=str(folder), captions="text_file")
    rows, lost = read(given)
    assert [(row["number"], row["caption"]) for row in rows] == [(2, "a rose")]
    assert [(row["row_number"], row["reason"], row["value"]) for row in lost] == [
        (0, "no_regular_file", "a.txt"),
        (1, "no_regular_file", "b.txt"),
    ]
    assert digest_inputs(given, lambda _: "")


def test_a_table_leads_to_no_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.jpg").write_bytes(b"secret")
    (tmp_path / "secret.csv").write_text("file,title\na.jpg,secret\n")
    folder = fill(tmp_path / "pics", a_dot_jpg=b"1")
    (folder / "door").symlink_to(tmp_path / "outside")
    (folder / "l.jpg").symlink_to(tmp_path / "outside" / "x.jpg")
    (folder / "meta.csv").write_text("file,title\na.jpg,A\ndoor/x.jpg,X\nl.jpg,L\n")
    columns = {"file": "file", "caption": "title"}
    rows, lost = read(source(path=str(folder), table="meta.csv", columns=columns))
    assert [row["record_key"] for row in rows] == ["a.jpg"]
    assert [(row["reason"], row["value"]) for row in lost] == [
        ("no_regular_file", "door/x.jpg lies behind the link door"),
        ("no_regular_file", "l.jpg is a link"),
    ]
    (folder / "linked.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(ConfigError, match=r"linked\.csv is a link; put the table itself into"):
        check_source(source(path=str(folder), table="linked.csv", columns=columns))


def test_a_picture_that_becomes_a_pipe_hangs_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with LocalReader(str(tmp_path)) as reader, pytest.raises(BytesUnreadable, match="no regular file"):
        reader.read("a.jpg@0+1", 100)


def test_the_digest_follows_content_and_not_the_place(tmp_path: Path) -> None:
    def digest(folder: Path, **settings: Any) -> list[str]:
        return digest_inputs(source(path=str(folder), **settings), lambda _: "")

    one = fill(tmp_path / "1", a__1_dot_jpg=b"123", a__1_dot_txt=b"x")
    two = fill(tmp_path / "2", a__1_dot_jpg=b"123", a__1_dot_txt=b"x")
    assert digest(one) == digest(two)
    assert digest(one, captions="text_file") == digest(two, captions="text_file")
    (two / "a" / "1.txt").write_bytes(b"y")
    assert digest(one) == digest(two)  # a text that nobody reads
    assert digest(one, captions="text_file") != digest(two, captions="text_file")
    (two / "a" / "1.jpg").write_bytes(b"1234")
    assert digest(one) != digest(two)


def test_defaults_fill_what_a_source_does_not_say(tmp_path: Path) -> None:
    fill(tmp_path, a__1_dot_jpg=b"1", root_dot_jpg=b"1")
    values = {"name": "p", "domain": "plant", "folder": {"path": str(tmp_path)}}
    given = SourceSettings.model_validate(values | {"defaults": {"licence": "CC0-1.0", "caption": "a plant"}})
    (batch,) = read_rows(given, no_scratch)
    found = map_rows(batch, given).to_pylist()
    assert [(row["caption"], row["licence"], row["reason"]) for row in found] == [
        ("a", "CC0-1.0", None),
        ("a plant", "CC0-1.0", None),
    ]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ({"path": "absent"}, "sources.pics: absent: no such folder"),
        ({"path": "EMPTY"}, "holds no picture"),
        ({"path": "EMPTY", "table": "t.csv"}, "give both table and columns, or neither"),
        ({"path": "EMPTY", "table": "t.csv", "columns": {"file": "f"}}, "no such table"),
        ({"path": "EMPTY", "table": "t.csv", "columns": {"file": "f"}, "captions": "none"}, "not both"),
        ({"path": "EMPTY", "folder_name_is": "scientific_name"}, "folder_name_is needs captions: folder_name"),
    ],
)
def test_mistakes(tmp_path: Path, folder: dict[str, Any], message: str) -> None:
    folder["path"] = folder["path"].replace("EMPTY", str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        check_source(source(**folder))


@pytest.mark.parametrize(
    ("origins", "message"),
    [
        ({}, r"give exactly one of table, .*folder.* \(found: none\)"),
        ({"table": "t.csv", "folder": {"path": "p"}}, "found: table and folder"),
        ({"table": "t.csv"}, "columns is needed with table"),
        (
            {"folder": {"path": "p"}, "format": "csv"},
            "columns, format and sheet at this level belong to table, not to folder",
        ),
        ({"folder": {"path": "p", "sufixes": ["jpg"]}}, "unknown key 'folder.sufixes'; did you mean 'suffixes'"),
    ],
)
def test_a_source_has_one_origin(origins: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings({"name": "s", "domain": "plant", **origins}, SourceSettings, "test")


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, who may read everything, so the file system is told to refuse."""
    fill(tmp_path, oak__a_dot_jpg=b"1", locked__b_dot_jpg=b"2")
    local = type(fsspec.filesystem("file"))
    listed = local.ls

    def ls(self: Any, path: str, **options: Any) -> Any:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return listed(self, path, **options)

    monkeypatch.setattr(local, "ls", ls)
    with pytest.raises(ConfigError, match=r"locked: this folder may not be read \(permission denied\); change its"):
        list(walk_files(str(tmp_path)))


def test_a_text_that_cannot_be_read_is_told_and_one_that_is_not_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, **{f"{name}_dot_jpg": b"1" for name in ("none", "locked", "long")})
    fill(tmp_path, locked_dot_txt=b"a rose", long_dot_txt=b"a" * ((1 << 20) + 1))
    local = type(fsspec.filesystem("file"))
    read_file = local.cat_file

    def cat_file(self: Any, path: str, **options: Any) -> Any:
        if path.endswith("locked.txt"):
            raise PermissionError(13, "Permission denied", path)
        return read_file(self, path, **options)

    given = source(path=str(tmp_path), captions="text_file")
    readable = digest_inputs(given, lambda path: path)
    monkeypatch.setattr(local, "cat_file", cat_file)
    rows, lost = read(given)
    assert [(row["record_key"], row["caption"]) for row in rows] == [("none.jpg", "")]
    assert [(row["reason"], row["value"].partition(" of ")[0]) for row in lost] == [
        ("malformed_row", "locked.txt: cannot be read: Permission denied"),
        ("malformed_row", "a row"),
    ], "a text that is too long is never cut"
    assert digest_inputs(given, lambda path: path) != readable, "with the permission it is read anew"


def test_names_as_windows_writes_them_are_met_and_said(tmp_path: Path) -> None:
    fill(tmp_path, Kiwi__x_dot_jpg=b"123", Kiwi__y_dot_JPG=b"12", z_dot_jpg=b"1")
    (tmp_path / "t.csv").write_text("file,text\nKiwi\\x.JPG,a\nKiwi/y.jpg,b\nz.jpg,c\n..\\t.csv,d\nKiwi\\gone.jpg,e\n")
    given = source(path=str(tmp_path), table="t.csv", columns={"file": "file", "caption": "text"})
    rows, lost = read(given)
    assert [row["locator"] for row in rows] == ["Kiwi/x.jpg@0+3", "Kiwi/y.JPG@0+2", "z.jpg@0+1"]
    assert [row["record_key"] for row in rows] == ["Kiwi\\x.JPG", "Kiwi/y.jpg", "z.jpg"], (
        "keys stay as they are written"
    )
    assert [(row["reason"], row["value"]) for row in lost] == [
        ("missing_file", "..\\t.csv"),
        ("missing_file", "Kiwi\\gone.jpg"),
    ]
    assert sorted(given.reader.picture_files()) == ["Kiwi/x.jpg", "Kiwi/y.JPG", "z.jpg"]
    (remark,) = given.reader.remarks()
    how = "with / for \\, in another case or in another Unicode form"
    assert remark == f"2 of the first 5 names of t.csv are met {how}, such as Kiwi\\x.JPG"


def test_names_in_another_unicode_form_or_case_are_met_where_one_file_has_them(tmp_path: Path) -> None:
    fill(tmp_path, Kiwi__café_dot_jpg=b"123", B_dot_jpg=b"1", TWICE_dot_jpg=b"12", twice_dot_JPG=b"12")
    names = ["Kiwi/cafe\u0301.jpg", "KIWI/CAFÉ.JPG", "b.JPG", "Twice.Jpg"]
    (tmp_path / "t.csv").write_text("\n".join(["file", *names]), encoding="utf-8")
    given = source(path=str(tmp_path), table="t.csv", columns={"file": "file"})
    rows, lost = read(given)
    assert [row["locator"] for row in rows] == ["Kiwi/café.jpg@0+3", "Kiwi/café.jpg@0+3", "B.jpg@0+1"]
    assert [row["record_key"] for row in rows] == names[:3], "keys stay as they are written"
    assert [(row["reason"], row["value"]) for row in lost] == [("missing_file", "Twice.Jpg")], "nobody knows which"
    assert sorted(given.reader.picture_files()) == ["B.jpg", "Kiwi/café.jpg"], "the digest of the source knows them"
    assert "3 of the first 4 names of t.csv are met" in given.reader.remarks()[0]


def test_what_globs_name_is_left_out(tmp_path: Path) -> None:
    fill(
        tmp_path, rose__a_dot_jpg=b"1", rose__thumbs__a_dot_jpg=b"1", rose__a_thumb_dot_jpg=b"1", thumbs__b_dot_jpg=b"1"
    )
    given = source(path=str(tmp_path), exclude=["**/thumbs/**", "*/*_thumb.jpg"])
    check_source(given)
    assert [row["record_key"] for row in read(given)[0]] == ["rose/a.jpg"]
    assert (given.reader.picture_files(), given.reader.most_rows()) == (["rose/a.jpg"], 1)
    before = digest_inputs(given, lambda path: path)
    fill(tmp_path, rose__thumbs__c_dot_jpg=b"2")
    assert digest_inputs(given, lambda path: path) == before, "what is left out is no part of the source"
    assert "exclude" not in source(path=str(tmp_path)).identity()["folder"]
    with pytest.raises(ConfigError, match="Invalid pattern"):
        source(path=str(tmp_path), exclude=["a**"])
