"""One bad member, row or line costs itself alone, and none takes all the memory that there is."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tars import tar_of

from manifests.errors import ConfigError
from manifests.services.untrusted import BrokenTarError, tar_members
from pipeline.sources.reading import check_source, read_rows
from pipeline.sources.settings import SourceSettings


def shards(folder: Path, **changes: Any) -> SourceSettings:
    values = {"name": "old", "domain": "plant", "webdataset": {"path": str(folder), **changes}}
    return SourceSettings.model_validate(values)


def table(path: Path) -> SourceSettings:
    columns = {"url": "url", "caption": "caption"}
    return SourceSettings.model_validate({"name": "t", "domain": "plant", "table": str(path), "columns": columns})


def read(given: SourceSettings) -> tuple[list[str], list[tuple[str, str]]]:
    """Keys of the rows, and reason and value of the lost ones."""
    check_source(given)
    keys, lost = [], []
    for batch in read_rows(given, lambda: pytest.fail("no join is needed")):
        keys += batch.rows["record_key"].to_pylist()
        lost += [(row["reason"], row["value"]) for row in batch.lost.to_pylist()]
    return keys, lost


def header(name: str | bytes, size: int | bytes, kind: bytes = b"0") -> bytes:
    """A header of a tar with any size, negative ones too, and a sum that fits."""
    info = tarfile.TarInfo("x")
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[:100] = (name.encode() if isinstance(name, str) else name).ljust(100, b"\0")
    if isinstance(size, bytes):
        block[124:136] = size.ljust(12, b"\0")
    elif 0 <= size < 8**11:
        block[124:136] = b"%011o\0" % size
    else:
        block[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 256**11).to_bytes(11, "big")
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: str | bytes, content: bytes, kind: bytes = b"0") -> bytes:
    return header(name, len(content), kind) + content + bytes(-len(content) % 512)


def pax(*records: tuple[str, bytes]) -> bytes:
    found = b""
    for name, value in records:
        rest = b" " + name.encode() + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        found += str(length).encode() + rest
    return member("pax", found, b"x")


def sample(key: str) -> bytes:
    return member(f"{key}.jpg", b"picture") + member(f"{key}.txt", b"a rose")


END = bytes(1024)
SPARSE = pax(("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.size", b"junk"))
DEEP = b'{"caption": ' + b"[" * 80_000 + b"]" * 80_000 + b"}"

# What lies between the samples `a` and `z`, and how the row that it costs ends.
ODD = {
    "a name that is no UTF-8": (member(b"b\xff.jpg", b"p"), "no_image", "has a name that is no UTF-8"),
    "a name of 5,004 bytes": (
        pax(("path", b"b" * 5000 + b".jpg")) + member("b.jpg", b"p"), "no_image", "has a name of 5,004 bytes"),
    "sparse by its header": (header("b.jpg", 512, b"S") + bytes(512), "no_image", "is stored as a sparse file"),
    "sparse by pax, with junk": (SPARSE + member("b.jpg", b"p"), "no_image", "is stored as a sparse file"),
    "a link for a picture": (header("b.jpg", 0, b"2"), "no_image", "is no regular file"),
    "a pax header of 2 MB": (pax(("comment", b"x" * 2_000_000)) + member("b.jpg", b"p"), "no_image", "has a header of"),
    "a long name of 100 kB": (
        member("l", b"n" * 100_000 + b"\0", b"L") + member("b.jpg", b"p"), "no_image", "has a header of"),
    "a pax size of 5,000 digits": (
        pax(("size", b"9" * 5000)) + member("b.jpg", b"p"), "no_image", "a size that is none"),
    "nested json": (member("b.jpg", b"p") + member("b.json", DEEP), "malformed_row", "nested more than 64 deep"),
    "a json of 2 MB": (
        member("b.jpg", b"p") + member("b.json", bytes(2_000_000)), "malformed_row", "more than 1,048,576"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_an_odd_member_costs_its_sample_alone(case: str, tmp_path: Path) -> None:
    between, reason, value = ODD[case]
    (tmp_path / "0.tar").write_bytes(sample("a") + between + sample("z") + END)
    (tmp_path / "1.tar").write_bytes(sample("n") + END)
    keys, lost = read(shards(tmp_path))
    assert keys == ["0/a", "0/z", "1/n"]
    assert len(lost) == 1
    assert lost[0][0] == reason
    assert value in lost[0][1]


@pytest.mark.parametrize(
    ("size", "value"),
    [
        (-1024, r"0.tar: the member at byte 2,048 says that it has -1,024 bytes, and"),
        (2**50, r"0.tar: the member at byte 2,048 says that it has 1,125,899,906,842,624 bytes, and"),
        (b"junk", r"0.tar: no tar member and no end mark at byte 2,048"),
    ],
)
def test_a_size_that_cannot_be_costs_the_rest_of_its_shard(size: int | bytes, value: str, tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(sample("a") + header("b.jpg", size) + sample("z") + END)
    (tmp_path / "1.tar").write_bytes(sample("n") + END)
    keys, lost = read(shards(tmp_path))
    named = size != b"junk"  # without a name, `a` may have had further members
    assert keys == (["0/a", "1/n"] if named else ["1/n"])
    assert [reason for reason, _ in lost] == ["broken_shard"]
    assert lost[0][1].startswith(value)
    assert lost[0][1].endswith("in or behind a")


def test_a_damaged_parquet_file_costs_what_it_would_have_said(tmp_path: Path) -> None:
    for name in ("0", "1"):
        (tmp_path / f"{name}.tar").write_bytes(sample("a") + END)
        pq.write_table(pa.table({"key": ["a"], "title": ["roses"]}), tmp_path / f"{name}.parquet")
    (tmp_path / "0.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    keys, lost = read(shards(tmp_path))
    assert keys == ["0/a", "1/a"]
    assert lost == [("broken_shard", lost[0][1])]
    assert lost[0][1].startswith("0.parquet cannot be read")
    keys, lost = read(shards(tmp_path, fields={"caption": "parquet.title"}))
    assert keys == ["1/a"]
    assert [reason for reason, _ in lost] == ["broken_shard", "malformed_row"]


def test_a_parquet_file_beside_a_shard_has_a_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.tars.beside.MAX_SIDE_ROWS", 10)
    (tmp_path / "0.tar").write_bytes(sample("a") + END)
    pq.write_table(pa.table({"key": [str(number) for number in range(11)]}), tmp_path / "0.parquet")
    keys, lost = read(shards(tmp_path))
    assert keys == ["0/a"]
    assert lost == [("broken_shard", "0.parquet cannot be read: it has 11 rows, more than 10")]


def test_links_among_shards_stay_in_their_folder(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "shards"
    for folder in (outside, inside):
        folder.mkdir()
        (folder / "0.tar").write_bytes(sample("a") + END)
    (inside / "1.tar").symlink_to(inside / "0.tar")
    assert read(shards(inside))[0] == ["0/a", "1/a"]
    (outside / "one.tar").symlink_to(outside / "0.tar")
    assert read(shards(outside / "one.tar"))[0] == ["one/a"]  # the config itself names this one
    for make in (
        lambda path: path.symlink_to(outside / "0.tar"),
        lambda path: path.symlink_to("/etc/passwd"),
        os.mkfifo,
    ):
        path = inside / "2.tar"
        make(path)
        for asked in (inside, inside / "*.tar", inside / "{0..2}.tar"):
            with pytest.raises(ConfigError, match=r"2\.tar is no regular file of .*shards"):
                check_source(shards(asked))
        path.unlink()
    (inside / "more").symlink_to(outside)
    with pytest.raises(ConfigError, match=r"more/ is a link to a folder"):
        check_source(shards(inside))


def test_a_tar_is_walked_as_tarfile_walks_it(tmp_path: Path) -> None:
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{kind}.tar"
        with tarfile.open(path, "w", format=kind) as tar:
            for name in ("a.jpg", "d/b.jpg", "d" * 90 + "/" + "n" * 80 + ".jpg", "ü.txt"):
                info = tarfile.TarInfo(name)
                info.size = 700
                tar.addfile(info, io.BytesIO(bytes(700)))
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        with path.open("rb") as stream, tarfile.open(path) as tar:
            expected = [(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
            assert [(each.name, each.offset, each.num_bytes) for each in tar_members(stream)] == expected
    with pytest.raises(BrokenTarError):
        list(tar_members(io.BytesIO(b"")))


# ---- tables


def test_one_bad_line_of_json_costs_itself_alone(tmp_path: Path) -> None:
    good = '{"url": "http://a/%s.jpg", "caption": "c"}'
    lines = [good % 1, DEEP.decode(), good % 2, '{"url": "' + "x" * 9_000_000 + '"}', good % 3, "\ud800"]
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    keys, lost = read(table(path))
    assert keys == [f"http://a/{number}.jpg" for number in (1, 2, 3)]
    assert [reason for reason, _ in lost] == ["malformed_row"] * 3


def test_one_deep_item_of_json_costs_itself_alone_and_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"url": "http://a/1.jpg"}, ' + DEEP + b', {"url": "http://a/2.jpg", "caption": [[1], "x"]}, 5]')
    tracemalloc.start()
    keys, lost = read(table(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert keys == ["http://a/1.jpg", "http://a/2.jpg"]
    assert lost == [("malformed_row", "nested more than 64 deep"), ("malformed_row", "5")]
    assert peak < 64 << 20  # it took 3.9 GB


def test_an_item_of_json_that_is_too_long_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"url": "http://a/1.jpg", "caption": "c"}, {"url": "' + b"x" * 9_000_000 + b'"}]')
    with pytest.raises(ConfigError, match=r"a\.json cannot be read as json: an item of more than 4,194,304 bytes"):
        read(table(path))


@pytest.mark.parametrize(("name", "start"), [("a.jsonl.gz", b'{"url": "'), ("a.csv.gz", b"u,")])
def test_a_line_that_unpacks_to_any_length_takes_little_memory(name: str, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    rows = {
        "a.jsonl.gz": (b'{"url": "http://a/1", "caption": "c"}\n', b'{"url": "http://a/2", "caption": "c"}\n'),
        "a.csv.gz": (b"url,caption\nhttp://a/1,c\n", b"http://a/2,c\n"),
    }[name]
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(rows[0] + start)
        for _ in range(60):
            stream.write(b"x" * 1_000_000)
        stream.write(b"\n" + rows[1])
    tracemalloc.start()
    keys, lost = read(table(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert keys == ["http://a/1", "http://a/2"]
    assert [reason for reason, _ in lost] == ["malformed_row"]
    assert peak < 48 << 20


def test_bytes_that_are_no_text_cost_their_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = [f"http://a/{number}.jpg,c,x" for number in range(100)]
    content = "\n".join(["url,caption,other", *lines]).encode()
    path.write_bytes(content.replace(b"7.jpg,c", b"7.jpg,K\xf6ln").replace(b"5.jpg,c,x", b"5.jpg,c,\xff"))
    keys, lost = read(table(path))
    assert keys == [f"http://a/{number}.jpg" for number in range(100) if number % 10 != 7]
    assert lost[0] == ("malformed_row", "http://a/7.jpg, K\ufffdln")
    assert len(lost) == 10  # a bad byte in a column that nobody reads costs nothing


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"url,caption," + b"x" * 140_000 + b"\n", "field larger than field limit"),
        (b"url,caption" + b",x" * 50_000 + b"\n" + b"u,c" + b",x" * 50_000, "it has 50,002 columns, more than 4,096"),
    ],
)
def test_a_header_has_bounds(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"a\.csv cannot be read as csv: .*{message}"):
        check_source(table(tmp_path / "a.csv"))


def test_a_row_of_parquet_has_a_length(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"url": ["http://a/1", "http://a/2"], "caption": ["c", "x" * 5_000_000]}), path)
    assert read(table(path)) == (["http://a/1"], [("malformed_row", "a row of 5,000,010 bytes")])


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "0.tar"])
def test_the_texts_of_a_row_have_a_length(tmp_path: Path, name: str) -> None:
    rows = [{"url": "http://a/1", "caption": "c"}, {"url": "http://a/2", "caption": "x" * 300_000}]
    if name == "0.tar":
        texts = [(f"{number}.txt", row["caption"].encode()) for number, row in enumerate(rows)]
        (tmp_path / name).write_bytes(tar_of([("0.jpg", b"p"), texts[0], ("1.jpg", b"p"), texts[1]]))
    elif name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    elif name == "a.csv":
        (tmp_path / name).write_text("url,caption\n" + "".join(f"{row['url']},{row['caption']}\n" for row in rows))
    else:
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    keys, lost = read(shards(tmp_path) if name == "0.tar" else table(tmp_path / name))
    assert len(keys) == 1
    ((reason, value),) = lost
    assert reason == "malformed_row"
    assert value.startswith("a row of 300,0")


def test_a_long_value_in_the_parquet_beside_a_shard_breaks_the_shard(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of([("0.jpg", b"")]))
    rows = {"key": ["0"] * 81, "caption": pa.array([os.urandom(1_700_000).hex()] * 81).dictionary_encode()}
    pq.write_table(pa.table(rows), tmp_path / "0.parquet", dictionary_pagesize_limit=64 << 20)
    _, lost = read(shards(tmp_path, fields={"caption": "parquet.caption"}))
    assert ("broken_shard", "0.parquet cannot be read: its rows have more than 268,435,456 bytes") in lost


def test_a_pipe_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    for path in (tmp_path, tmp_path / "a.csv", tmp_path / "*.csv"):
        with pytest.raises(ConfigError, match=r"a\.csv is no regular file"):
            check_source(table(path))


# ---- archive bombs

HEAD, MILLION = b"url,caption\n", b"https://a.b/c.jpg,%b\n" % (b"rose " * 2_000) * 100


def zipped(*blocks: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        packed.writestr("t.csv", b"".join(blocks))
    return stream.getvalue()


def packed_by(pack: Callable[[bytes], bytes]) -> Callable[..., bytes]:
    """Several packed streams behind one another, as each of these formats allows."""
    return lambda head, *blocks: pack(head) + pack(blocks[0]) * len(blocks)


def as_zst(content: bytes) -> bytes:
    return bytes(pa.compress(content, "zstd", asbytes=True))


PACKINGS = [("gz", packed_by(gzip.compress)), ("bz2", packed_by(bz2.compress)), ("xz", packed_by(lzma.compress))]


@pytest.mark.parametrize(("ending", "pack"), [*PACKINGS, ("zst", packed_by(as_zst)), ("zip", zipped)])
def test_a_small_packed_table_holds_no_more_than_a_bound(
    ending: str, pack: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"t.csv.{ending}"
    path.write_bytes(pack(HEAD, *[MILLION] * 70))
    assert path.stat().st_size < 500_000
    with pytest.raises(ConfigError, match=r"t\.csv\.\w+ cannot be read as csv: its [\d,]+ bytes unpack to \d\d,"):
        read(table(path))


@pytest.mark.parametrize(("ending", "pack"), PACKINGS)
@pytest.mark.slow
def test_a_large_table_of_regular_text_is_read_however_much_it_holds(
    ending: str, pack: Callable[..., bytes], tmp_path: Path
) -> None:
    captions = [b" ".join(b"%d" % (number * times) for times in range(200)) for number in range(1_000)]
    block = b"".join(b"https://a.b/%d.jpg,%b\n" % pair for pair in enumerate(captions))
    path = tmp_path / f"t.csv.{ending}"
    path.write_bytes(pack(HEAD, *[block] * 70))
    assert 70 * len(block) > 64 << 20
    keys, lost = read(table(path))
    assert (len(keys), lost) == (70_000, [])


def test_a_parquet_of_repeated_values_holds_no_more_than_a_bound(tmp_path: Path) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"url": values, "caption": ["rose"] * 400}), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(ConfigError, match=r"its [0-9]{3} bytes unpack to [23][0-9]{2},"):
        read(table(tmp_path / "a.parquet"))


def test_many_broken_records_are_read_together(tmp_path: Path) -> None:
    """Each good piece between two broken records was parsed by itself: 35 kB took 0.3 s."""
    path = tmp_path / "a.csv"
    rows = [f"http://a/{n}.jpg,c" if n % 2 else f'http://a/{n}.jpg,"never closed {n}' for n in range(400)]
    path.write_text("\n".join(["url,caption", *rows]))
    batches = list(read_rows(table(path), lambda: pytest.fail("no join is needed")))
    assert len(batches) == 1
    assert [row["url"] for row in batches[0].rows.to_pylist()][:2] == ["http://a/1.jpg", "http://a/3.jpg"]
    assert batches[0].numbers.tolist() == list(range(2, 401, 2))
    lost = [(row["row_number"], row["value"]) for row in batches[0].lost.to_pylist()]
    assert lost[:2] == [(1, 'http://a/0.jpg,"never closed 0'), (3, 'http://a/2.jpg,"never closed 2')]
    assert len(lost) == 200
