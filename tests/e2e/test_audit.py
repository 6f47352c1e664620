"""`plantmix audit`: planted leaks of each kind are found, and none is invented."""

from __future__ import annotations

import csv
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from building import done, run_here

from manifests.names.addresses import address_key

PHOTO = "https://inaturalist-open-data.s3.amazonaws.com/photos/{}/{}"
EQUAL = [
    (PHOTO.format(123, "original.jpg"), PHOTO.format(123, "medium.jpeg")),
    (PHOTO.format(123, "original.jpg"), "https://static.inaturalist.org/photos/123/square.jpg?1545345"),
    (PHOTO.format(123, "original.jpg"), "http://www.inaturalist.org/photos/123"),
    ("http://www.Example.org:80/A/b.jpg#top", "https://example.org/A/b.jpg"),
    ("https://example.org", "http://example.org/"),
    ("example.org/a.jpg", "https://EXAMPLE.org/a.jpg/"),
]
OTHER = [
    (PHOTO.format(123, "original.jpg"), PHOTO.format(1234, "original.jpg")),
    (PHOTO.format(123, "original.jpg"), "https://example.org/photos/123/original.jpg"),
    (PHOTO.format(123, "original.jpg"), "https://static.inaturalist.org.example.org/photos/123/original.jpg"),
    ("https://example.org/A.jpg", "https://example.org/a.jpg"),
    ("https://example.org/a?id=1", "https://example.org/a?id=2"),
    ("https://example.org/a%2Fb.jpg", "https://example.org/a/b.jpg"),
    ("https://example.org:8080/a.jpg", "https://example.org/a.jpg"),
    ("", ""),
]


@pytest.mark.parametrize(("one", "other", "same"), [(*p, True) for p in EQUAL] + [(*p, False) for p in OTHER])
def test_addresses_of_one_picture_have_one_key(one: str, other: str, same: bool) -> None:
    with duckdb.connect() as sql:
        query = f"SELECT {address_key('a')} = {address_key('b')} FROM (SELECT ? AS a, ? AS b)"
        assert (sql.execute(query, [one, other]).fetchall() == [(True,)]) == same


ROWS = {  # a row of the test set, and why it leaks
    "photo": (PHOTO.format(7, "original.jpg"), "1", "aa", "address"),
    "address": ("http://www.example.org/8.jpg", "2", "ab", "address"),
    "occurrence": ("https://example.org/nine.jpg", "9", "ac", "gbifid"),
    "bytes": ("https://example.org/ten.jpg", "4", "AD", "sha256"),
    "twice": ("https://example.org/11.jpg", "11", "ae", "address, gbifid"),
    "clean": ("https://example.org/12.jpg", "12", "af", ""),
    "float": ("", "4011234567.0", "", "gbifid"),
    "blanks": (" https://example.org/13.jpg\u00a0", "13", "ag", "address"),
    "empty": ("", "", "", "not compared"),
    "placeholders": ("NA", " n/a", "NULL", "not compared"),
}


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    path = tmp_path / "test.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["name", "URL", "gbifID", "sha256", "species"])
        writer.writerows(
            [name, *row[:3], "oak" if row[3] not in ("", "not compared") else "rose"] for name, row in ROWS.items()
        )
    return path


def catalogue(folder: Path, **more: list[str | None]) -> Path:
    others = [f"https://example.com/{number}.jpg" for number in range(1000)]
    planted: list[str | None] = [
        PHOTO.format(7, "small.jpg"),
        "https://example.org/8.jpg#x",
        "https://example.org/11.jpg",
        "https://example.org/13.jpg",
        "NA",
    ]
    urls = [*planted, *others, None, ""]
    ids = [*range(5000, 5000 + len(urls) - 3), 9, 11, 4011234567]
    hashes = [None] * (len(urls) - 2) + ["null", "ad"]
    path = folder / "catalog.parquet"
    pq.write_table(pa.table({"source_url": urls, "gbif_id": ids, "sha256": pa.array(hashes, pa.string())}), path)
    return path


def test_planted_leaks_are_found_and_none_is_invented(test_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "audited.csv"
    command = ["audit", str(test_set), "--against", str(catalogue(tmp_path)), "--out", str(out)]
    said = done(*command)
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["name"]: row["leak"] for row in rows} == {name: row[3] for name, row in ROWS.items()}
    assert [row["name"] for row in rows] == list(ROWS), "in the order of the test set"
    assert "7 of 10 rows" in said
    assert "2 rows could not be compared: they state none of address, gbifid, sha256" in said
    assert "compared by address, gbifid, sha256" in said
    assert [line.split() for line in said.splitlines()[-2:]] == [["oak", "7", "7"], ["rose", "3", "0"]]
    assert done(*command) == said, "its own file is replaced"


def test_files_of_a_catalogue_have_their_own_columns_and_are_read_as_sources_are(tmp_path: Path) -> None:
    lines = ["url;key;name", "https://a.org/1.jpg;;one", "https://a.org/2.jpg;;two", "https://a.org/3.jpg;;gr\u00fcn"]
    test = tmp_path / "test.csv"
    test.write_bytes("\n".join([*lines, "https://a.org/4.jpg;;x;y"]).encode("cp1252"))
    (tmp_path / "parts").mkdir()
    pq.write_table(pa.table({"URL": ["https://a.org/1.jpg"], "n": [1.0]}), tmp_path / "parts" / "a.parquet")
    pq.write_table(pa.table({"source_url": ["https://a.org/2.jpg"]}), tmp_path / "parts" / "b.parquet")
    pq.write_table(pa.table({"else": ["https://a.org/3.jpg"]}), tmp_path / "parts" / "c.parquet")
    out = tmp_path / "audited.csv"
    said = done("audit", str(test), "--against", str(tmp_path / "parts/*.parquet"), "--out", str(out))
    with out.open(newline="", encoding="utf-8") as stream:
        rows = {row["name"]: row["leak"] for row in csv.DictReader(stream)}
    assert rows == {"one": "address", "two": "address", "gr\u00fcn": ""}
    assert f"1 rows of {test} cannot be read, and were not compared" in said


def test_tables_that_cannot_be_compared_are_refused(test_set: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for against, why in (("other.csv", "share no column of url, sourceurl"), ("none.parquet", "no such table")):
        ended = run_here("audit", test_set, "--against", tmp_path / against, "--out", tmp_path / "out.csv")
        assert ended.returncode == 2
        assert why in ended.stderr
    ended = run_here("audit", test_set, "--against", catalogue(tmp_path), "--out", test_set)
    assert ended.returncode == 2
    assert "this command did not write it" in ended.stderr
