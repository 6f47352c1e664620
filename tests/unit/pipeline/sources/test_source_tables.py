"""Tables of every format come in row by row; what cannot be read is counted, what is no table is named."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from table_sources import read, source, table

from manifests.errors import ConfigError
from pipeline.sources.reading import check_source
from pipeline.sources.settings import SourceSettings
from pipeline.sources.tables import formats

# ---- csv and tsv


def test_csv_with_quotes_newlines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfurl,id,caption\r\n"
        b'http://a/1.jpg,1,"a ""quoted"" rose, red"\r\n'
        b'http://a/2.jpg,2,"two\nlines"\r\n'
        b"http://a/3.jpg,3,\r\n"
        b"\r\n"
        b'"http://a/4.jpg",4,NULL\r\n'
    )
    check_source(source(path))
    rows, by_number, malformed = read(source(path))
    assert [row["caption"] for row in rows] == ['a "quoted" rose, red', "two\nlines", None, "NULL"]
    assert [row["url"] for row in rows] == [f"http://a/{number}.jpg" for number in (1, 2, 3, 4)]
    assert sorted(by_number) == [1, 2, 3, 4], "the header is row 0, as a spreadsheet has it in row 1"
    assert rows[0].keys() == {"url", "caption"}  # mapped columns only
    assert malformed == []


def test_carriage_returns_alone_end_the_rows_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'url,caption\ru1,"two\rlines"\ru2,b,too many\ru3,c\r')
    rows, by_number, malformed = read(source(path))
    assert [row["caption"] for row in rows] == ["two\rlines", "c"]
    assert (sorted(by_number), malformed) == ([1, 3], [(2, "u2,b,too many")])


def test_a_value_of_parquet_that_is_no_text_costs_its_row_alone(tmp_path: Path) -> None:
    bad = pa.array([b"a", b"b\xff", b"c", None]).view(pa.string())
    urls = [f"http://a/{number}.jpg" for number in range(4)]
    for captions in (bad, pa.ListArray.from_arrays([0, 1, 2, 3, 4], bad), bad.dictionary_encode()):
        pq.write_table(pa.table({"url": urls, "caption": captions}), tmp_path / "a.parquet")
        rows, by_number, malformed = read(source(tmp_path / "a.parquet"))
        assert [row["url"] for row in rows] == [urls[0], urls[2], urls[3]]
        assert (sorted(by_number), malformed) == ([0, 2, 3], [(1, f"{urls[1]}, \N{REPLACEMENT CHARACTER}")])


def test_whole_floats_of_parquet_are_written_as_whole_numbers(tmp_path: Path) -> None:
    numbers = [1e10, 4011234567.0, 2.5, -3.0, None, 1e300]
    captions = pa.array([float(1 << 24)] * 6, pa.float32())
    pq.write_table(pa.table({"url": numbers, "caption": captions}), tmp_path / "a.parquet")
    rows, _, _ = read(source(tmp_path / "a.parquet"))
    assert [row["url"] for row in rows] == ["10000000000", "4011234567", "2.5", "-3", None, "1e+300"]
    assert rows[0]["caption"] == "16777216"


def test_malformed_csv_rows_are_counted_and_their_neighbours_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('url,caption\nu0,c0\nu1,c1,too many\nu2,"c\n2"\ntoo few\nu4,c4\nx,y,z,last\n')
    rows, by_number, malformed = read(source(path))
    assert {number: row["url"] for number, row in by_number.items()} == {1: "u0", 3: "u2", 5: "u4"}
    assert malformed == [(2, "u1,c1,too many"), (4, "too few"), (6, "x,y,z,last")]
    assert len(rows) == 3


def test_numbers_hold_over_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    num_rows, broken = 60_000, {1, 777, 20_000, 41_111, 60_000}
    with path.open("w") as out:
        out.write("url,caption\n")
        for number in range(1, num_rows + 1):
            out.write(f'http://a/{number}.jpg,"caption\n{number}"{",odd" if number in broken else ""}\n')
    _, by_number, malformed = read(source(path))
    assert {number for number, _ in malformed} == broken
    assert len(by_number) == num_rows - len(broken)
    assert all(row["url"] == f"http://a/{number}.jpg" for number, row in by_number.items())


def test_all_values_are_texts_as_written(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("url,caption\n007,1.50\ntrue,2024-01-01\n")
    rows, _, _ = read(source(path))
    assert rows == [{"url": "007", "caption": "1.50"}, {"url": "true", "caption": "2024-01-01"}]


def test_of_a_caption_in_a_list_the_first_text_counts_and_an_object_is_none(
    tmp_path: Path, read_whole: Callable[[SourceSettings], tuple[list[dict[str, Any]], list[tuple[Any, ...]]]]
) -> None:
    """As it was found: lists and structs of Parquet and json became captions as json writes them."""
    lists = [["a red fruit", "a second"], ["", None, "the third"], [], None]
    pq.write_table(pa.table({"url": [f"http://a/{n}" for n in range(4)], "caption": lists}), tmp_path / "l.parquet")
    pq.write_table(pa.table({"url": ["http://a/0"], "caption": [{"en": "a rose"}]}), tmp_path / "s.parquet")
    lines = [["a red fruit", "a second"], {"en": "a rose"}, "[sic] a rose", "[2019]", [{"en": "a"}]]
    text = "".join(json.dumps({"url": f"http://a/{n}", "caption": each}) + "\n" for n, each in enumerate(lines))
    (tmp_path / "l.jsonl").write_text(text)
    rows, lost = read_whole(source(tmp_path / "l.parquet"))
    assert ([row.get("caption") for row in rows], lost) == (["a red fruit", "the third", "", None], [])
    assert read_whole(source(tmp_path / "s.parquet"))[1] == [(0, "malformed_row", "http://a/0", '{"en": "a rose"}')]
    rows, lost = read_whole(source(tmp_path / "l.jsonl"))
    assert [row["caption"] for row in rows] == ["a red fruit", "[sic] a rose", "[2019]"]
    assert [(number, value) for number, _, _, value in lost] == [(1, '{"en": "a rose"}'), (4, '[{"en": "a"}]')]
    both = source(tmp_path / "l.parquet", columns={"url": "url", "caption": ["caption", "url"]})
    assert read_whole(both)[0][0]["caption"] == "a red fruit http://a/0"


def test_tsv_splits_at_tabs_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('caption\turl\na, b\tu0\n"with\ttab"\tu1\n')
    rows, _, _ = read(source(path))
    assert rows == [{"url": "u0", "caption": "a, b"}, {"url": "u1", "caption": "with\ttab"}]


def test_a_table_of_a_header_alone_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption\n")
    (tmp_path / "b.csv").write_text("url,caption\nu0,c0\n")
    check_source(source(tmp_path / "a.csv"))
    assert read(source(tmp_path / "a.csv")) == ([], {}, [])
    rows, by_number, _ = read(source(tmp_path))
    assert rows == [{"url": "u0", "caption": "c0"}]
    assert list(by_number) == [1]


# ---- jsonl


def test_jsonl_with_nested_values_and_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        '{"url": "u0", "caption": "c0", "more": 1}',
        "{broken",
        '{"url": "u2", "caption": {"en": "oak", "de": ["Eiche", "Éiche"]}}',
        "",
        '["a list"]',
        '{"url": 5, "caption": true}',
        '{"url": "u6"}',
        '{"url": "half a pair \\ud800", "caption": ""}',
        "   ",
        '{"url": null, "caption": ""}',
    ]
    path.write_text("\n".join(lines) + "\n")
    check_source(source(path))
    _, by_number, malformed = read(source(path))
    assert by_number == {
        0: {"url": "u0", "caption": "c0"},
        2: {"url": "u2", "caption": '{"en": "oak", "de": ["Eiche", "Éiche"]}'},
        5: {"url": "5", "caption": "true"},
        6: {"url": "u6", "caption": None},
        9: {"url": None, "caption": ""},
    }
    assert malformed == [(1, "{broken"), (4, '["a list"]'), (7, lines[7])]


def test_a_broken_first_line_of_jsonl_is_no_reason_to_refuse_the_table(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('oops\n{"url": "u", "caption": "c"}\n')
    check_source(source(path))
    assert table(source(path)).columns_of(str(path)) == ["url", "caption"]


def test_a_rare_key_of_jsonl_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("w") as out:
        for number in range(300):
            out.write(json.dumps({"url": f"u{number}"} | ({"caption": "rare"} if number == 250 else {})) + "\n")
    check_source(source(path))
    rows, _, _ = read(source(path))
    assert [row["caption"] for row in rows if row["caption"]] == ["rare"]


def test_jsonl_comes_in_batches_that_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.rows.BATCH_ROWS", 7)
    path = tmp_path / "a.jsonl"
    path.write_text("".join("bad\n" if n % 5 == 1 else f'{{"url": "u{n}", "caption": "c"}}\n' for n in range(53)))
    _, by_number, malformed = read(source(path))
    assert {number: row["url"] for number, row in by_number.items()} == {n: f"u{n}" for n in range(53) if n % 5 != 1}
    assert [number for number, _ in malformed] == [n for n in range(53) if n % 5 == 1]


# ---- json


ARRAY = (
    '[{"url": "u0", "caption": "c0", "n": 1.50}, 7, {"url": 2, "caption": {"en": "oak"}},\n {"url": "half \\ud800"}]'
)


@pytest.mark.parametrize("head", ["", "\ufeff", " \n "])
def test_a_json_array_comes_object_by_object(tmp_path: Path, head: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(head + ARRAY)
    check_source(source(path))
    assert table(source(path)).columns_of(str(path)) == ["url", "caption", "n"]
    _, by_number, malformed = read(source(path, columns={"url": "url", "caption": "caption", "extra": ["n"]}))
    assert by_number == {
        0: {"url": "u0", "caption": "c0", "n": "1.5"},
        2: {"url": "2", "caption": '{"en": "oak"}', "n": None},
        3: {"url": "half ?", "caption": None, "n": None},
    }
    assert malformed == [(1, "7")]


def test_a_json_file_of_lines_is_read_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"url": "u0", "caption": "c"}\nbroken\n{"url": "u2", "caption": "c"}\n')
    check_source(source(path))
    _, by_number, malformed = read(source(path))
    assert (list(by_number), malformed) == ([0, 2], [(1, "broken")])


def test_a_json_array_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.rows.BATCH_ROWS", 7)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"url": f"u{n}", "caption": "c"} for n in range(30)]))
    assert [row["url"] for row in read(source(path))[0]] == [f"u{n}" for n in range(30)]


# ---- parquet


def test_parquet_with_columns_that_are_no_strings(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    moment = datetime.datetime(2024, 5, 1, 12)
    columns = {
        "url": pa.array(["u0", None]),
        "id": pa.array([7, 8], pa.int64()),
        "big": pa.array(["x", "y"], pa.large_string()),
        "word": pa.array(["rose", "rose"]).dictionary_encode(),
        "when": pa.array([moment, None]),
        "price": pa.array([Decimal("1.50"), None]),
        "flag": pa.array([True, False]),
        "list": pa.array([["a", "b"], None]),
        "struct": pa.array([{"at": moment, "n": 1}, None]),
        "raw": pa.array([b"bytes", None]),
        "none": pa.nulls(2),
        "unused": pa.array([1.5, 2.5]),
    }
    pq.write_table(pa.table(columns), path)
    wanted = [name for name in columns if name not in ("url", "unused")]
    rows, _, _ = read(source(path, columns={"url": "url", "caption": wanted}))
    assert rows[0] == {
        "url": "u0",
        "id": "7",
        "big": "x",
        "word": "rose",
        "when": "2024-05-01 12:00:00.000000",
        "price": "1.50",
        "flag": "true",
        "list": '["a", "b"]',
        "struct": '{"at": "2024-05-01 12:00:00", "n": 1}',
        "raw": "bytes",
        "none": None,
    }
    assert rows[1]["url"] is None
    assert rows[1]["list"] is None


def test_parquet_streams_row_groups_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BATCH_ROWS", 10)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"url": [f"u{n}" for n in range(37)], "caption": ["c"] * 37}), path, row_group_size=7)
    _, by_number, _ = read(source(path))
    assert {number: row["url"] for number, row in by_number.items()} == {n: f"u{n}" for n in range(37)}


def test_an_empty_parquet_file_first(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"url": pa.array([], pa.string()), "caption": pa.array([], pa.string())}), tmp_path / "a.parquet"
    )
    pq.write_table(pa.table({"url": ["u"], "caption": ["c"]}), tmp_path / "b.parquet")
    assert read(source(tmp_path))[1] == {0: {"url": "u", "caption": "c"}}


# ---- compressed, folders, globs, addresses


def zipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("__MACOSX/._inner", b"junk")
        archive.writestr("inner", content)
    return stream.getvalue()


def zstandard(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content[:5], asbytes=True) + pa.Codec("zstd").compress(content[5:], asbytes=True)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zip", zipped),
        (".zst", zstandard),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl"])
def test_compressed_tables(tmp_path: Path, suffix: str, compress: Any, kind: str) -> None:
    text = {"csv": "url,caption\nu,c\n", "tsv": "url\tcaption\nu\tc\n", "jsonl": '{"url":"u","caption":"c"}\n'}
    text = (text | {"json": f"[{text['jsonl']}]"})[kind]
    path = tmp_path / f"a.{kind}{suffix}"
    path.write_bytes(compress(text.encode()))
    check_source(source(path))
    assert read(source(path))[0] == [{"url": "u", "caption": "c"}]


def test_a_folder_is_read_in_name_order_with_numbers_going_on(tmp_path: Path) -> None:
    (tmp_path / "2.csv").write_text("url,caption\nu3,c\nbad\n")
    (tmp_path / "1.csv").write_text("url,caption\nu0,c\nbad\nu2,c\nbad\n")
    (tmp_path / "3.jsonl").write_text('{"url": "u6", "caption": "c"}\n')
    (tmp_path / "readme.txt").write_text("no table")
    _, by_number, malformed = read(source(tmp_path))
    assert {number: row["url"] for number, row in by_number.items()} == {1: "u0", 3: "u2", 6: "u3", 8: "u6"}
    assert [number for number, _ in malformed] == [2, 4, 7]


def test_json_beside_other_tables_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "00000.jsonl").write_text('{"url": "u", "caption": "c"}\n')
    (tmp_path / "00000_stats.json").write_text('{"count": 1}')
    assert [Path(file).name for file in table(source(tmp_path)).files()] == ["00000.jsonl"]
    (tmp_path / "00000.jsonl").unlink()
    assert [Path(file).name for file in table(source(tmp_path)).files()] == ["00000_stats.json"]


def test_a_glob_takes_what_it_names(tmp_path: Path) -> None:
    for name in ("plants-1.csv", "plants-2.csv", "animals.csv"):
        (tmp_path / name).write_text(f"url,caption\n{name},c\n")
    given = source(tmp_path / "plants-*.csv")
    assert [Path(file).name for file in table(given).files()] == ["plants-1.csv", "plants-2.csv"]
    assert [row["url"] for row in read(given)[0]] == ["plants-1.csv", "plants-2.csv"]


def test_an_object_store_address(tmp_path: Path) -> None:
    import fsspec

    address = f"memory://{tmp_path.name}/a.csv"
    with fsspec.open(address, "wb") as stream:
        stream.write(b"url,caption\nu,c\n")
    check_source(source(address))
    assert read(source(address))[0] == [{"url": "u", "caption": "c"}]
    assert table(source(address)).files()[0].startswith("memory://")


def test_the_format_can_be_said(tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    path.write_text("url\tcaption\nu\tc\n")
    told = "the name does not tell the format; set `format` to parquet, csv, tsv, json, jsonl, xlsx, or urls"
    with pytest.raises(ConfigError, match=told):
        check_source(source(path))
    assert read(source(path, format="tsv"))[0] == [{"url": "u", "caption": "c"}]
