"""The takedown list of a work folder: what was added is read back, whatever its texts hold."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from release_writer import drawn_samples, write_work_folder

from manifests.contract.catalog_file import CATALOG_FILE, TAKEDOWNS_FILE
from manifests.contract.copies import RADIUS, near_pairs
from manifests.contract.release import Release
from manifests.contract.takedowns import (
    Entry,
    Picture,
    add_entries,
    find_copies,
    find_named,
    read_list,
    say_taken_down,
    with_rows_of_secrets,
)
from manifests.errors import ConfigError

LINE_BREAKS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n", "\r\n"]


@pytest.mark.parametrize("line_break", LINE_BREAKS, ids=ascii)
def test_a_reason_with_any_line_break_stops_no_later_build(tmp_path: Path, line_break: str) -> None:
    """As it was found: the takedown succeeded, then every build and takedown on the folder failed."""
    entry = Entry("owner", f"A.{line_break}Photographer", f"asked by mail{line_break}on Monday")
    add_entries(str(tmp_path), [entry])
    assert read_list(str(tmp_path)).entries == [entry]
    other = Entry("id", "0" * 32)
    add_entries(str(tmp_path), [entry, other])
    assert read_list(str(tmp_path)).entries == sorted([entry, other])


@given(value=st.text(min_size=1), reason=st.text(min_size=1))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, value: str, reason: str) -> None:
    folder = str(tmp_path_factory.mktemp("work"))
    add_entries(folder, [Entry("owner", value, reason)])
    assert read_list(folder).entries == [Entry("owner", value, reason)]


def test_a_list_written_by_hand_on_windows_is_read(tmp_path: Path) -> None:
    lines = [{"by": "owner", "value": "A"}, {"by": "url", "value": "http://u:pw@a.example/1?token=x"}]
    (tmp_path / TAKEDOWNS_FILE).write_bytes("\r\n".join(map(json.dumps, lines)).encode() + b"\r\n\r\n")
    assert read_list(str(tmp_path)).entries == [
        Entry("owner", "A"),
        Entry("url", "http://a.example/1?token=***#" + sha256(b"http://u:pw@a.example/1?token=x").hexdigest()[:8]),
    ]


def test_a_line_that_is_no_entry_is_named(tmp_path: Path) -> None:
    (tmp_path / TAKEDOWNS_FILE).write_text('{"by": "owner", "value": "A"}\n{"by": "url", "value": 7}\n')
    with pytest.raises(ConfigError, match="line 2: not an entry"):
        read_list(str(tmp_path))
    (tmp_path / TAKEDOWNS_FILE).write_bytes(
        '{"by": "id", "value": "0"}\n{"by": "owner", "value": "Mü"}\n'.encode("latin1")
    )
    with pytest.raises(ConfigError, match=r"line 2: not an entry .*in UTF-8"):
        read_list(str(tmp_path))


def _picture(number: int, **hashes: str) -> Picture:
    return Picture(f"{number:064x}", "asked", **hashes)


def test_hashes_of_pictures_stay_beside_the_entries(tmp_path: Path) -> None:
    folder, entry = str(tmp_path), Entry("owner", "A")
    pictures = [_picture(2, phash="00ff00ff00ff00ff", middle_hash="1" * 16), _picture(1, pixels_sha256="ab")]
    add_entries(folder, [entry], pictures)
    add_entries(folder, [Entry("owner", "B")], [_picture(2, phash="0" * 16)])
    assert read_list(folder) == ([entry, Entry("owner", "B")], sorted(pictures))
    line = (tmp_path / TAKEDOWNS_FILE).read_text().splitlines()[-1]
    (tmp_path / TAKEDOWNS_FILE).write_text(line.replace("00ff00ff00ff00ff", "a picture"))
    with pytest.raises(ConfigError, match="line 1: not an entry"):
        read_list(folder)


def test_copies_are_told_by_both_hashes_mirrored_or_not() -> None:
    phash, mirrored, middle, turned = 0x00FF00FF00FF00FF, 0xF0F0F0F0F0F0F0F0, 0x123456789ABCDEF0, 0x0FEDCBA987654321
    hashes = {"phash": phash, "phash_mirrored": mirrored, "middle_hash": middle, "middle_mirrored": turned}
    fact = {"image_id": "a" * 64, "pixel_std": 40.0, **hashes}
    flat = {"image_id": "b" * 64, "phash": phash, "pixels_sha256": "c" * 64, "pixel_std": 1.0}
    pictures = [Picture.of_fact(fact, "asked"), Picture.of_fact(flat, "asked")]
    rows = {
        "the same bytes": ("a" * 64, 1, 2, None),
        "a copy": (None, phash ^ 0b1111, middle ^ 0b1111111, None),
        "another pHash": (None, phash ^ 0b11111, middle, None),
        "another sheet of one layout": (None, phash, middle ^ 0b11111111, None),
        "its mirror image": (None, mirrored, turned, None),
        "a mirrored sheet of one layout": (None, mirrored, middle, None),
        "measured by an earlier version": (None, phash, None, None),
        "a flat one of the same pixels": (None, 0, 0, "c" * 64),
        "a failed row": (None, None, None, None),
    }
    names = ["image_id", "phash", "middle_hash", "pixels_sha256"]
    types = [pa.string(), pa.uint64(), pa.uint64(), pa.string()]
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows.values(), strict=True), types, strict=True)]
    found = dict(zip(rows, find_copies(pictures, pa.table(columns, names)).tolist(), strict=True))
    copies = {"the same bytes": 0, "a copy": 0, "its mirror image": 0, "measured by an earlier version": 0}
    assert found == dict.fromkeys(rows, -1) | copies | {"a flat one of the same pixels": 1}


@given(st.data())
def test_pairs_of_near_hashes_are_those_of_a_double_loop(data: st.DataObject) -> None:
    some = data.draw(st.lists(st.integers(0, 2**64 - 1), max_size=20))
    near = [value ^ sum(1 << bit for bit in data.draw(st.sets(st.integers(0, 63), max_size=6))) for value in some]
    hashes, others = (np.array(values, np.uint64) for values in (some, near))
    pairs = {
        (i, j) for i, one in enumerate(some) for j, other in enumerate(near) if (one ^ other).bit_count() <= RADIUS
    }
    place, at = near_pairs(hashes, others)
    assert list(zip(place.tolist(), at.tolist(), strict=True)) == sorted(pairs)


def named_by(entries: list[Entry], **columns: list[str | None]) -> list[int]:
    """The rows of candidates that the entries name."""
    num = len(next(iter(columns.values())))
    with duckdb.connect() as sql:
        sql.register("candidates", pa.table({"sample_id": [f"{n}" for n in range(num)], **columns}))
        sql.register("facts", pa.table({"sample_id": pa.array([], pa.string())}))
        find_named(sql, entries)
        return sorted({int(row) for (row,) in sql.execute("SELECT sample_id FROM named").fetchall()})


def test_an_entry_by_hand_names_what_its_address_its_owner_and_its_id_mean() -> None:
    urls = ["https://www.A.example/p/1.jpg", "http://a.example:80/p/1.jpg/", "https://a.example/p/2.jpg", None]
    assert named_by([Entry("url", " http://a.example/p/1.jpg ")], url=urls) == [0, 1]
    owners = ["Ann Field; Bob Hill", "bob  HILL", "Ann Fields"]
    assert named_by([Entry("owner", "Ann Field"), Entry("owner", "Bob Hill")], creator=owners) == [0, 1]
    entries = [Entry("owner", "Ann Field"), Entry("owner", "Bob Hill")]
    with duckdb.connect() as sql:
        sql.register("candidates", pa.table({"sample_id": ["0"], "creator": owners[:1]}))
        sql.register("facts", pa.table({"sample_id": pa.array([], pa.string())}))
        find_named(sql, entries)
        assert len(sql.execute("SELECT DISTINCT key FROM named").fetchall()) == 2, "each owner of a field is met"
    assert named_by([Entry("id", " 7 ")], sample_id=["7", "8"]) == [7]


def test_an_address_with_a_secret_names_its_own_row_alone(tmp_path: Path) -> None:
    whole = [f"http://a.example/photo?key=k3y{n}" for n in range(10)]
    shown = [f"http://a.example/photo?key=***#{sha256(url.encode()).hexdigest()[:8]}" for url in whole]
    entry = Entry("url", whole[1])
    assert (entry.value, entry.is_of_secret) == (shown[1], True)
    assert Entry("url", shown[1]) == entry, "as the list holds it"
    assert named_by([entry], url=["http://a.example/photo?key=***"] * 10) == []
    pq.write_table(pa.table({"sample_id": [f"{n}" for n in range(10)], "address": shown}), tmp_path / "secrets.parquet")
    rows = with_rows_of_secrets([entry, Entry("owner", "A")], [str(tmp_path / "secrets.parquet")])
    assert rows == [Entry("id", "1"), Entry("owner", "A")]
    assert with_rows_of_secrets([Entry("url", "http://a.example/photo?key=other")], [])[0].is_of_secret


def test_a_training_is_told_what_cannot_be_known_and_goes_on(tmp_path: Path) -> None:
    work = write_work_folder(tmp_path, drawn_samples(4, 2), shard_size=2)
    release = Release.open(str(work))
    assert say_taken_down(release) is None
    (work / CATALOG_FILE).write_bytes(b"no catalogue")  # whether it knows of a list cannot be asked
    assert "not known whether pictures of it were taken down since" in str(say_taken_down(release))
    (gone,) = release.samples(columns=["sample_id"]).to_pylist()[:1]
    add_entries(str(work), [Entry("id", gone["sample_id"])])
    assert "holds 1 images that were taken down since" in str(say_taken_down(release))
