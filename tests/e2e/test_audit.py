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
    "empty": ("", "", "", ""),
}


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    path = tmp_path / "test.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["name", "URL", "gbifID", "sha256", "species"])
        writer.writerows([name, *row[:3], "oak" if row[3] else "rose"] for name, row in ROWS.items())
    return path


def catalogue(folder: Path, **more: list[str | None]) -> Path:
    others = [f"https://example.com/{number}.jpg" for number in range(1000)]
    planted: list[str | None] = [
        PHOTO.format(7, "small.jpg"),
        "https://example.org/8.jpg#x",
        "https://example.org/11.jpg",
    ]
    urls = [*planted, *others, None, ""]
    ids = [*range(5000, 5000 + len(urls) - 2), 9, 11]
    hashes = [None] * (len(urls) - 1) + ["ad"]
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
    assert "5 of 7 rows" in said
    assert "compared by address, gbifid, sha256" in said
    assert [line.split() for line in said.splitlines()[-2:]] == [["oak", "5", "5"], ["rose", "2", "0"]]
    assert done(*command) == said, "its own file is replaced"


def test_tables_that_cannot_be_compared_are_refused(test_set: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for against, why in (("other.csv", "share no column of url, sourceurl"), ("none.parquet", "cannot be read")):
        ended = run_here("audit", test_set, "--against", tmp_path / against, "--out", tmp_path / "out.csv")
        assert ended.returncode == 2
        assert why in ended.stderr
    ended = run_here("audit", test_set, "--against", catalogue(tmp_path), "--out", test_set)
    assert ended.returncode == 2
    assert "this command did not write it" in ended.stderr
