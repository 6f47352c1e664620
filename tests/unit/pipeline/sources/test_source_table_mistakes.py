"""Tables that are not what they should be, and the ways in which programs write what is."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from table_sources import read, source, table

from manifests.errors import ConfigError
from pipeline.sources.reading import check_source


def test_a_missing_column_names_the_nearest_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("image_url,title,licence\n")
    with pytest.raises(ConfigError) as caught:
        check_source(source(path, columns={"url": "imageurl", "caption": "title", "licence": "license"}))
    assert "sources.herbarium" in str(caught.value)
    assert "has no column 'imageurl', 'license' (did you mean 'image_url'?)" in str(caught.value)
    assert "it has image_url, title, licence" in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_column_named_twice_is_a_mistake(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("url,caption,caption,,\nu,c,d,,\n")
    if name == "a.parquet":
        table = pa.table([["u"], ["c"], ["d"]], ["url", "caption", "caption"])
        pq.write_table(table, path)
    with pytest.raises(ConfigError, match="names the column 'caption' twice; rename one"):
        check_source(source(path))


def test_a_zip_holds_one_table(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.csv.zip", "w") as archive:
        archive.writestr("1.csv", "url,caption\n")
        archive.writestr("2.csv", "url,caption\n")
    with pytest.raises(ConfigError, match="a zip of one table is read, this one holds 2 files"):
        check_source(source(tmp_path / "a.csv.zip"))


def test_every_file_of_a_folder_is_checked(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("url,caption\n")
    (tmp_path / "2.csv").write_text("url,text\n")
    with pytest.raises(ConfigError, match=r"2\.csv has no column 'caption'"):
        check_source(source(tmp_path))


@pytest.mark.parametrize("name", ["absent.csv", "absent-*.csv", "absent/"])
def test_a_table_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"sources\.herbarium: .*absent.*: no such table; give a file, a folder or a glob"
    ):
        check_source(source(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.parquet", b"no parquet", "parquet"),
        ("a.parquet", b"", "parquet"),
        ("a.csv", b"", "csv"),
        ("a.csv", b"\n\n", "csv"),
        ("a.csv", b"url,caption\xff\n", "csv"),
        ("a.csv.gz", b"no gzip", "csv"),
        ("a.csv.gz", gzip.compress(b"url,caption\n" * 1000)[:30], "csv"),
        ("a.json", b"", "json"),
        ("a.json", b'[{"url": "u", "caption"', "json"),
        ("a.csv.zip", b"no zip", "csv"),
        ("a.csv.zst", b"no zstandard", "csv"),
        ("a.jsonl", b"", "jsonl"),
        ("a.jsonl", b"url,caption\nu,c\n", "jsonl"),
    ],
)
def test_a_file_that_is_not_what_it_should_be(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"sources\.herbarium: .*{name} cannot be read as {kind}: \S"):
        check_source(source(path))


def test_a_file_that_breaks_off_later(tmp_path: Path) -> None:
    whole = gzip.compress(b"url,caption\n" + b"http://a/1.jpg,caption\n" * 200_000)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(whole[: len(whole) // 2])
    check_source(source(path))  # its head is fine
    with pytest.raises(ConfigError, match=r"a\.csv\.gz cannot be read as csv"):
        read(source(path))


ROWS = [["url", "caption"], ["u", "Köln, am Rhein"], ["v", "cœur – „so“"]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("first", ["", "sep="])
def test_a_csv_is_read_as_programs_write_it(
    tmp_path: Path, encoding: str, delimiter: str, newline: str, first: str
) -> None:
    text = io.StringIO()
    text.write(f"{first}{delimiter}{newline}" if first else "")
    csv.writer(text, delimiter=delimiter, lineterminator=newline).writerows(ROWS)
    path = tmp_path / "a.csv"
    path.write_bytes(text.getvalue().encode(encoding))
    check_source(source(path))
    rows, numbers, malformed = read(source(path))
    assert (rows, malformed) == ([dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]], [])
    assert list(numbers) == [1, 2]


def test_a_comma_in_a_header_of_semicolons_is_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("url;caption;Höhe, cm\nu;c;3,5\nv;d, e;4\n", encoding="latin-1")
    rows, _, malformed = read(source(path, columns={"url": "url", "caption": "caption", "extra": ["Höhe, cm"]}))
    assert [row["Höhe, cm"] for row in rows] == ["3,5", "4"]
    assert not malformed


def test_semicolons_in_captions_do_not_make_them_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("url,caption\nu,a; b; c\nv,d; e; f\nw,g; h; i\n", encoding="utf-8")
    rows, _, malformed = read(source(path))
    assert [row["caption"] for row in rows] == ["a; b; c", "d; e; f", "g; h; i"]
    assert not malformed


def test_mapped_columns_each_once() -> None:
    given = source(
        "a.csv", columns={"url": "u", "caption": ["title", "text"], "creator": "title", "extra": ["text", "width"]}
    )
    assert table(given).columns == ["u", "title", "text", "width"]
