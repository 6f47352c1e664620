"""Existing tars are read in place: img2dataset's, TreeOfLife's, plain ones, broken ones."""

from __future__ import annotations

import gzip
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tars import tar_of

from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError
from pipeline.sources.files import LocalReader, find_files
from pipeline.sources.reading import check_source, digest_inputs, read_rows, root_of
from pipeline.sources.settings import SourceSettings


def source(path: Path | str, **changes: Any) -> SourceSettings:
    values = {"name": "old", "domain": "plant", "webdataset": {"path": str(path), **changes}}
    return parse_settings(values, SourceSettings, "test")


def no_scratch() -> Any:
    raise AssertionError("shards need no join")


def read(given: SourceSettings) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]]]:
    rows, lost, numbers = [], [], []
    for batch in read_rows(given, no_scratch):
        rows += [{name: value for name, value in row.items() if value is not None} for row in batch.rows.to_pylist()]
        lost += [(row["record_key"], row["reason"], row["value"]) for row in batch.lost.to_pylist()]
        numbers += batch.numbers.tolist() + batch.lost["row_number"].to_pylist()
    assert sorted(numbers) == list(range(len(rows) + len(lost)))
    return rows, lost


def write_tar(path: Path, *members: tuple[str, bytes], kind: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(members, kind))
    return path


def img2dataset(folder: Path) -> Path:
    """A shard as img2dataset 1.47 writes it: Parquet with every row, tar with those that came."""
    rows = [
        {
            "url": f"http://a/{n}.jpg",
            "caption": f"c{n}",
            "key": f"00000000{n}",
            "status": "success",
            "error_message": None,
        }
        for n in range(4)
    ]
    rows[2] |= {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}
    members: list[tuple[str, bytes]] = []
    for row in rows[:2] + rows[3:]:
        members += [
            (f"{row['key']}.jpg", b"jpeg of " + str(row["key"]).encode()),
            (f"{row['key']}.json", json.dumps(row | {"sha256": "ab", "exif": "{}"}).encode()),
            (f"{row['key']}.txt", str(row["caption"]).encode()),
        ]
    write_tar(folder / "00000.tar", *members)
    table = pa.Table.from_pylist([row | {"license": "cc0"} for row in rows])
    pq.write_table(table, folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    return folder


def test_img2dataset_output_with_its_failures(tmp_path: Path) -> None:
    given = source(img2dataset(tmp_path))
    check_source(given)
    rows, lost = read(given)
    assert [(row["record_key"], row["url"], row["caption"]) for row in rows] == [
        ("00000/000000000", "http://a/0.jpg", "c0"),
        ("00000/000000001", "http://a/1.jpg", "c1"),
        ("00000/000000003", "http://a/3.jpg", "c3"),
    ]
    assert lost == [("00000/000000002", "no_image", "failed_to_download: HTTP Error 404: Not Found")]
    with LocalReader(str(root_of(given))) as reader:
        assert [reader.read(row["locator"], 100) for row in rows] == [
            b"jpeg of 000000000",
            b"jpeg of 000000001",
            b"jpeg of 000000003",
        ]


def test_columns_of_the_parquet_file_and_keys_of_the_json(tmp_path: Path) -> None:
    fields = {
        "record_key": "__key__",
        "caption": ["json.caption", "parquet.license"],
        "licence": "parquet.license",
        "extra": ["json.sha256", "json.error_message"],
    }
    rows, _ = read(source(img2dataset(tmp_path), fields=fields))
    assert rows[0]["record_key"] == "000000000"
    assert (rows[0]["caption"], rows[0]["licence"]) == ("c0 cc0", "cc0")
    assert json.loads(rows[0]["extra"]) == {"json.sha256": "ab", "json.error_message": None}
    assert "url" not in rows[0]


def test_tree_of_life_style_text_members(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        ("set/id-1.common_name.txt", b"English oak"),
        ("set/id-1.jpg", b"picture"),
        ("set/id-1.scientific_name.txt", b"Quercus robur"),
        ("set/id-1.taxonTag_com.txt", "kingdom Plantæ".encode()),
        ("set/id-2.jpg", b"second"),
        kind=tarfile.PAX_FORMAT,
    )
    fields = {
        "caption": "taxontag_com.txt",
        "taxon_scientific_name": "scientific_name.txt",
        "taxon_vernacular_name": "common_name.txt",
    }
    rows, lost = read(source(tmp_path / "a.tar", fields=fields))
    assert lost == []
    assert rows[0]["record_key"] == "a/set/id-1"
    assert rows[0]["caption"] == "kingdom Plantæ"
    assert rows[0]["taxon_scientific_name"] == "Quercus robur"
    assert rows[0]["taxon_vernacular_name"] == "English oak"
    assert set(rows[1]) == {"record_key", "locator"}


def test_what_is_no_sample_ends_with_a_reason(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        ("__index__", b"skipped"),
        ("plain", b"no extension"),
        ("k0.txt", b"a text alone"),
        ("k1.JPG", b"upper case"),
        ("k1.txt", b"c1"),
        ("k2.png", b"png"),
        ("k2.jpg", b"jpg wins"),
        ("k2.txt", b"\xff broken"),
        ("k3.jpg", b"p"),
        ("k3.json", b"[1]"),
        ("k4.jpg", b"p"),
        ("k4.json", b'{"caption": "half \\ud800"}'),
        ("k5.webp", b"w"),
        ("k5.json", b'{"caption": "from json", "url": 5}'),
    )
    rows, lost = read(source(tmp_path / "a.tar"))
    assert [(row["record_key"], row.get("caption"), row.get("url")) for row in rows] == [
        ("a/k1", "c1", None),
        ("a/k5", "from json", "5"),
    ]
    assert [(key, reason) for key, reason, _ in lost] == [
        ("a/k0", "no_image"),
        ("a/k2", "malformed_row"),
        ("a/k3", "malformed_row"),
        ("a/k4", "malformed_row"),
    ]


def test_a_shard_that_breaks_off_costs_only_its_end(tmp_path: Path) -> None:
    whole = write_tar(
        tmp_path / "whole.tar", *[(f"k{n}.{kind}", bytes(700)) for n in range(3) for kind in ("jpg", "txt")]
    ).read_bytes()
    for name, content in {
        "0-in-data": whole[: 512 + 1024 + 512 + 1024 + 512 + 100],  # within k1.jpg
        "1-no-end-mark": whole[: 6 * 1536],
        "2-garbage": whole[: 4 * 1536] + b"garbage" * 500,
    }.items():
        (tmp_path / "cut").mkdir(exist_ok=True)
        (tmp_path / "cut" / f"{name}.tar").write_bytes(content)
    write_tar(tmp_path / "cut" / "3-good.tar", ("k.jpg", b"p"))
    rows, lost = read(source(tmp_path / "cut"))
    assert [row["record_key"] for row in rows if row["record_key"].startswith("0")] == ["0-in-data/k0"]
    assert [row["record_key"] for row in rows][-1] == "3-good/k"
    assert [(reason, str(value).partition(":")[0]) for _, reason, value in lost] == [
        ("broken_shard", "0-in-data.tar"),
        ("broken_shard", "1-no-end-mark.tar"),
        ("broken_shard", "2-garbage.tar"),
    ]


def test_rows_behind_a_break_end_with_it_and_not_as_downloads(tmp_path: Path) -> None:
    shard = img2dataset(tmp_path) / "00000.tar"
    shard.write_bytes(shard.read_bytes()[: 6 * 1024 + 512])  # amid the third sample
    rows, lost = read(source(tmp_path))
    assert [row["record_key"] for row in rows] == ["00000/000000000", "00000/000000001"]
    of_shard, failed, behind = lost
    assert of_shard[:2] == (None, "broken_shard")
    assert failed == ("00000/000000002", "no_image", "failed_to_download: HTTP Error 404: Not Found")
    assert behind == ("00000/000000003", "broken_shard", of_shard[2])


def test_shards_by_folder_glob_and_brace_range(tmp_path: Path) -> None:
    for number in range(12):
        write_tar(tmp_path / "sub" / f"s-{number:03d}.tar", ("k.jpg", b"p"))
    (tmp_path / "sub" / "s-000.parquet.txt").write_text("not a shard")
    numbered = [f"s-{number:03d}.tar" for number in range(12)]
    assert find_files(str(tmp_path), "here", ".tar").names == [f"sub/{name}" for name in numbered]
    assert find_files(f"{tmp_path}/*/s-00*.tar", "here", ".tar").names == [f"sub/{name}" for name in numbered[:10]]
    ranged = find_files(f"{tmp_path}/sub/s-{{009..011}}.tar", "here", ".tar")
    assert ranged.names == numbered[9:]
    assert ranged.path(ranged.names[0]) == f"{tmp_path}/sub/s-009.tar"
    with pytest.raises(ConfigError, match=r"2 of 4 files are missing, the first is .*s-012"):
        find_files(f"{tmp_path}/sub/s-{{010..013}}.tar", "here", ".tar")
    with pytest.raises(ConfigError, match=r"no \.tar file is there"):
        find_files(f"{tmp_path}/none-*.tar", "here", ".tar")


def test_the_digest_covers_tar_and_parquet(tmp_path: Path) -> None:
    hashed: list[str] = []

    def hash_file(path: str) -> str:
        hashed.append(Path(path).name)
        return "x"

    digest_inputs(source(img2dataset(tmp_path)), hash_file)
    assert hashed == ["00000.tar", "00000.parquet"]


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (gzip.compress(b"tar"), r"is compressed \(gzip\); name it \.tar\.gz"),
        (lzma.compress(b"tar"), r"is compressed \(xz\); unpack it"),
        (b"no tar at all" * 50, r"is no tar file \((invalid header|bad checksum)\)"),
    ],
)
def test_what_is_no_tar_is_refused_before_work(tmp_path: Path, content: bytes, seen: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"sources\.old: .*a\.tar {seen}"):
        check_source(source(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00", "Frame requires too much memory"),  # a window of 2 GiB
        (b"\x28\xb5\x2f\xfd\x00", "Truncated compressed stream"),
    ],
)
def test_a_compressed_tar_that_cannot_be_unpacked_says_why(tmp_path: Path, content: bytes, seen: str) -> None:
    """It was called no tar."""
    (tmp_path / "a.tar.zst").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{seen}.*unpack it yourself .*`zstd -d --long=31`"):
        check_source(source(tmp_path / "a.tar.zst"))


def test_parquet_columns_must_be_there(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ("k.jpg", b"p"))
    with pytest.raises(ConfigError, match=r"no Parquet file beside it, and `fields` asks for parquet\.title"):
        check_source(source(tmp_path, fields={"caption": "parquet.title"}))
    with pytest.raises(ConfigError, match="its Parquet has no title"):
        check_source(source(img2dataset(tmp_path / "i"), fields={"caption": "parquet.title"}))


OWNERS = {"Image Artist": "Ann Field", "Image Copyright": "\u00a9 2020 Field & Co"}
EXIF = json.dumps(OWNERS | {"EXIF Flash": 0, "lens": {"name": "50mm"}})


def with_exif(folder: Path) -> Path:
    for shard in range(2):
        members = [
            (f"{n}.{kind}", body)
            for n in range(2)
            for kind, body in (("jpg", b"p"), ("json", json.dumps({"exif": EXIF, "a.b": n, "null": None}).encode()))
        ]
        write_tar(folder / f"{shard}.tar", *members)
    return folder


def test_text_that_is_json_within_the_json_is_read(tmp_path: Path) -> None:
    names = ["json.exif.EXIF Flash", "json.exif.lens.name", "json.a.b", "json.null", "json.exif"]
    rows, _ = read(source(with_exif(tmp_path), fields={"extra": names}))
    kept = {"json.exif.EXIF Flash": "0", "json.exif.lens.name": "50mm", "json.a.b": "0", "json.null": None}
    assert json.loads(rows[0]["extra"]) == kept | {"json.exif": EXIF}


def test_owners_in_exif_are_those_of_a_row_that_states_none(tmp_path: Path) -> None:
    rows, _ = read(source(with_exif(tmp_path)))
    assert {(row["creator"], row.get("rights_holder")) for row in rows} == {("Ann Field", "Field & Co")}
    rows, _ = read(source(tmp_path, fields={"creator": "json.exif.lens.name", "caption": "json.null"}))
    assert {(row["creator"], row.get("rights_holder")) for row in rows} == {("50mm", "Field & Co")}


@pytest.mark.parametrize("name", ["json.exif.Artist", "json.exif.lens.name.x", "json.author", "json.null.x", "txt"])
def test_a_field_that_no_sample_has_is_named_with_those_that_are_there(tmp_path: Path, name: str) -> None:
    given = source(with_exif(tmp_path), fields={"creator": name})
    there = "they have json, json.a.b, json.exif, json.null"
    with pytest.raises(ConfigError, match=rf"sources.old: none of 4 samples has {name}, and `fields` asks .*{there}"):
        read(given)
    assert given.reader.remarks() == [f"none of the first samples has {name}, and `fields` asks for it; {there}"]


def test_a_field_that_some_samples_have_is_no_mistake(tmp_path: Path) -> None:
    given = source(with_exif(tmp_path), fields={"creator": "json.exif.Image Artist", "caption": "json.caption"})
    write_tar(tmp_path / "2.tar", ("a.jpg", b"p"), ("a.json", b'{"caption": "a rose"}'))
    rows, _ = read(given)
    assert [row.get("caption") for row in rows] == [None] * 4 + ["a rose"]
    assert given.reader.remarks() == []


def test_a_key_that_several_tars_have_is_a_doubt_where_it_is_used(tmp_path: Path) -> None:
    folder = with_exif(tmp_path)
    assert source(folder, fields={"creator": "json.exif.Image Artist"}).reader.remarks() == []
    said = "__key__: samples of several tars have the same, such as '0'; leave `record_key` out"
    for fields in ({"record_key": "__key__"}, {"extra": ["__key__"]}):
        (doubt,) = source(folder, fields=fields).reader.remarks()
        assert doubt.startswith(said)
