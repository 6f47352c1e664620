"""Workbooks are tables: values as the sheet shows them, the sheet that is asked for, one line for what is none."""

from __future__ import annotations

import datetime
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from building import run_here, write_small_config
from PIL import Image

from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError
from manifests.services import workbook
from manifests.services.workbook import open_sheet
from pipeline.sources.reading import check_source
from pipeline.sources.settings import SourceSettings
from pipeline.sources.table import TableReader
from pipeline.sources.tables import formats

HEADER = ["url", "caption", "n", "when", "ok"]
COLUMNS = {"url": "url", "caption": "caption", "extra": ["n", "when", "ok"]}
Read = Callable[[SourceSettings], tuple[list[dict[str, Any]], list[tuple[Any, ...]]]]


def write_book(path: Path, change: Callable[[Any], None] = lambda book: None, rows: Iterable[Any] = ()) -> Path:
    """A workbook with a sheet `Plants` of a header and rows."""
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Plants"
    sheet.append(HEADER)
    for row in rows or [("http://a/1.jpg", "a rose", 1, None, None), ("http://a/2.jpg", "a lily", 2, None, None)]:
        sheet.append(row)
    change(book)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path


def source(path: Path, **changes: Any) -> SourceSettings:
    values = {"name": "list", "domain": "plant", "table": str(path), "columns": COLUMNS, **changes}
    return parse_settings(values, SourceSettings, "test")


def table_of(path: Path, sheet: str | int | None = None) -> list[dict[str, str | None]]:
    (columns,) = [TableReader.of("here", str(path), ["url"], sheet=sheet).columns_of(str(path))]
    batches = TableReader.of("here", str(path), columns, sheet=sheet).batches()
    return [row for batch in batches for row in batch.rows.to_pylist()]


def remarks(given: SourceSettings) -> list[str]:
    return given.reader.remarks()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12, "12"),
        (12.0, "12"),
        (1234567890123456, "1234567890123456"),
        (0.1 + 0.2, "0.3"),
        (-2.5, "-2.5"),
        (1e20, "1e+20"),
        (True, "TRUE"),
        (False, "FALSE"),
        (datetime.date(2024, 5, 1), "2024-05-01"),
        (datetime.datetime(2024, 5, 1, 13, 45), "2024-05-01T13:45:00"),
        (datetime.time(3, 4), "03:04:00"),
        (datetime.timedelta(hours=30, seconds=5), "30:00:05"),
        ("007", "007"),
        (" Köln \n", " Köln \n"),
        ("#N/A", None),
        ("#DIV/0!", None),
        ("=1+1", None),  # no program has reckoned it: it has no stored value
    ],
)
def test_values_are_texts_as_the_sheet_shows_them(value: Any, text: str | None, tmp_path: Path) -> None:
    path = write_book(tmp_path / "a.xlsx", rows=[("u", "c", value, None, None)])
    assert table_of(path) == [{"url": "u", "caption": "c", "n": text, "when": None, "ok": None}]


def test_of_a_formula_the_stored_value_counts(tmp_path: Path) -> None:
    path = write_book(tmp_path / "a.xlsx", rows=[("u", "c", "=40+2", None, None)])
    rewrite(path, b"<f>40+2</f><v></v>", b"<f>40+2</f><v>42</v>")
    assert table_of(path)[0]["n"] == "42"


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    """The first sheet with other XML."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for form in (old, old.replace(b"<v></v>", b"<v />"), old.replace(b"<v></v>", b"<v/>")):
        if form in parts["xl/worksheets/sheet1.xml"]:
            parts["xl/worksheets/sheet1.xml"] = parts["xl/worksheets/sheet1.xml"].replace(form, new)
            break
    else:
        raise AssertionError(parts["xl/worksheets/sheet1.xml"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def test_a_sheet_as_labs_have_it(tmp_path: Path, read: Read) -> None:
    """The table begins somewhere; rows and columns between are empty; cells are merged; some hold errors."""

    def change(book: Any) -> None:
        sheet = book.active
        sheet.insert_cols(1, 2)
        sheet.insert_rows(1, 3)
        sheet.insert_cols(4)  # no name: left out
        sheet.insert_rows(6)  # empty
        sheet["D7"] = "a remark in a column without a name"
        sheet.merge_cells("E7:E9")
        sheet["F5"] = "#N/A"

    rows = [(f"http://a/{n}.jpg", f"caption {n}" if n != 2 else "of both", n, None, None) for n in range(1, 5)]
    path = write_book(tmp_path / "a.xlsx", change, rows)
    found, lost = read(source(path))
    assert lost == []
    assert [(row["url"], row["caption"], row["row_number"]) for row in found] == [
        ("http://a/1.jpg", "caption 1", 4),  # row 5 of the sheet
        ("http://a/2.jpg", "of both", 6),
        ("http://a/3.jpg", "of both", 7),
        ("http://a/4.jpg", "of both", 8),
    ]
    assert '"n": null' in found[0]["extra"]
    assert '"n": "2"' in found[1]["extra"]
    assert remarks(source(path)) == [f"{path}: 1 cells of 'Plants' hold an error such as #N/A: empty"]


def with_more_sheets(book: Any) -> None:
    for name, rows in (("Empty", []), ("Notes", [["only a title"]]), ("More", [HEADER, ["http://b/1.jpg", "b"]])):
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.create_sheet("Secret", 0).append(HEADER)
    book["Secret"].append(["http://c/1.jpg", "c"])
    book["Secret"].sheet_state = "hidden"


@pytest.mark.parametrize(
    ("sheet", "url"),
    [(None, "http://a/1.jpg"), (1, "http://a/1.jpg"), ("More", "http://b/1.jpg"), (4, "http://b/1.jpg"),
     ("Secret", "http://c/1.jpg")],
)  # fmt: skip
def test_the_sheet_may_be_said(sheet: Any, url: str, tmp_path: Path, read: Read) -> None:
    path = write_book(tmp_path / "a.xlsx", with_more_sheets)
    given = source(path, sheet=sheet)
    assert read(given)[0][0]["url"] == url
    several = [f"{path}: its sheet 'Plants' is read; 'More', 'Secret' hold rows too (`sheet`)"]
    assert remarks(given) == ([] if sheet else several)
    assert given.identity().get("sheet") == sheet


@pytest.mark.parametrize(
    ("sheet", "told"),
    [
        ("Animals", "it has no sheet 'Animals'; it has 'Plants', 'Empty', 'Notes', 'More', 'Secret'"),
        (6, "it has no sheet 6; it has 'Plants'"),
        ("Empty", "its sheet 'Empty' is empty; name another one in `sheet`"),
    ],
)
def test_a_sheet_that_is_not_there_or_empty(sheet: Any, told: str, tmp_path: Path) -> None:
    path = write_book(tmp_path / "a.xlsx", with_more_sheets)
    with pytest.raises(ConfigError, match=told):
        check_source(source(path, sheet=sheet))


def test_a_sheet_belongs_to_a_workbook(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption\nu,c\n")
    with pytest.raises(ConfigError, match=r"a\.csv is no workbook, so it has no sheet; leave `sheet` out"):
        check_source(source(tmp_path / "a.csv", sheet="Plants", columns={"url": "url", "caption": "caption"}))


def compound(*names: str) -> bytes:
    """The beginning of a file of old Excel, or of one that is encrypted, with entries of these names."""
    return bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504) + b"".join(name.encode("utf-16-le") for name in names)


def cut(path: Path) -> bytes:
    content = write_book(path).read_bytes()
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (compound("EncryptedPackage"), "is protected by a password; open it, take the password off"),
        (compound("Workbook"), r"is a workbook of an old Excel \(\.xls\), whatever its name; open it and save it as"),
        (b"url;caption\nu;c\n", r"is no workbook: it begins with b'url;caption.*name it \.csv or \.tsv, or set"),
        (b"", "is no workbook: it begins with b''"),
        (cut, "is damaged, or no workbook .*; open it and save it as .xlsx again"),
        (b"PK\x05\x06" + bytes(18), "is damaged, or no workbook"),
    ],
)
def test_what_is_no_workbook_is_one_line_with_the_cure(content: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    path.write_bytes(content if isinstance(content, bytes) else content(path))
    with pytest.raises(ConfigError, match=rf"sources\.list: .*a\.xlsx cannot be read as xlsx: it {told}") as error:
        check_source(source(path))
    assert "\n" not in str(error.value)


def test_a_text_that_is_called_a_workbook_can_be_read_as_it_is(tmp_path: Path, read: Read) -> None:
    (tmp_path / "a.xlsx").write_text("url,caption\nhttp://a/1.jpg,a rose\n")
    given = source(tmp_path / "a.xlsx", format="csv", columns={"url": "url", "caption": "caption"})
    assert read(given)[0][0]["caption"] == "a rose"


def test_a_workbook_that_names_a_far_cell_takes_no_memory(tmp_path: Path) -> None:
    """calamine would ask for 550 GB and end the process."""

    def change(book: Any) -> None:
        book.active["XFD1048576"] = "far"

    path = write_book(tmp_path / "a.xlsx", change)
    tracemalloc.start()
    with pytest.raises(ConfigError, match=r"spans 1,048,576 rows and 16,384 columns, .* delete what lies far"):
        check_source(source(path))
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'<row r="3"', b'<row r="99999999"'),
        (b' r="A3"', b" r = 'ZZZZ3000'"),
        (b' r="A3"', b' r="zzzz9999"'),
    ],
)
def test_no_spelling_hides_a_far_cell(old: bytes, new: bytes, tmp_path: Path) -> None:
    path = write_book(tmp_path / "a.xlsx")
    rewrite(path, old, new)
    with pytest.raises(ValueError, match="delete what lies far"):
        open_sheet(path.read_bytes())


def test_a_workbook_is_not_believed_in_how_large_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that says that it has few bytes is read up to there; one that says many is refused."""
    path = write_book(tmp_path / "a.xlsx")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/more.xml", bytes(70 << 20))
    with pytest.raises(ValueError, match="over 100 times as much"):
        open_sheet(path.read_bytes())
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 1000)
    with pytest.raises(ValueError, match="damaged"):
        open_sheet(bytes(content))
    monkeypatch.setattr(workbook, "MAX_BOOK_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1,000 bytes; save the sheet as `CSV UTF-8`"):
        open_sheet(write_book(tmp_path / "b.xlsx").read_bytes())


def test_one_text_that_many_cells_share_is_read_in_small_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_BATCH_BYTES", 100_000)
    path = write_book(tmp_path / "a.xlsx", rows=[(f"u{n}", "x" * 30_000, n, None, None) for n in range(20)])
    batches = list(TableReader.of("here", str(path), ["url", "caption"]).batches())
    assert [batch.rows.num_rows for batch in batches] == [4, 4, 4, 4, 4, 0]
    monkeypatch.setattr(formats, "MAX_RECORD_BYTES", 30_002)
    (batch,) = list(TableReader.of("here", str(path), ["url", "caption"]).batches())[-1:]
    assert [number for number, _ in batch.malformed] == list(range(11, 21))


def test_a_folder_of_workbooks_leaves_out_the_locks_of_open_ones(tmp_path: Path, read: Read) -> None:
    for number in range(2):
        write_book(tmp_path / f"lists/{number}.xlsx", rows=[(f"http://a/{number}.jpg", "c", 1, None, None)])
    (tmp_path / "lists/~$0.xlsx").write_bytes(b"somebody")
    found, _ = read(source(tmp_path / "lists"))
    assert [row["url"] for row in found] == ["http://a/0.jpg", "http://a/1.jpg"]
    done = run_here("init", "--domain", f"plant={tmp_path / 'lists'}", "--out", tmp_path / "first.yaml")
    assert done.returncode == 0, done.stderr
    assert "*.xlsx" in (tmp_path / "first.yaml").read_text()
    assert "~$" not in (tmp_path / "first.yaml").read_text()


@pytest.mark.parametrize("sheet", [None, "More"])
def test_a_workbook_names_pictures_and_another_has_their_texts(sheet: str | None, tmp_path: Path) -> None:
    """As `init` finds them, and as a build reads them."""
    lab = tmp_path / "lab"
    (lab / "img").mkdir(parents=True)
    for number in range(6):
        Image.effect_noise((64, 64), 40 + number).convert("RGB").save(lab / f"img/{number}.jpg")
    book = openpyxl.Workbook()
    book.active.append(["file", "id", "species"])
    for number in range(6):
        book.active.append([f"{number}.jpg", 100 + number, "Rosa canina"])
    book.save(lab / "list.xlsx")
    texts = openpyxl.Workbook()
    texts.active.append(["id", "trait"])
    for number in range(6):
        texts.active.append([100 + number, f"number {number} has five petals"])
    if sheet:
        texts.move_sheet(texts.active, 1)
        texts.active.title = sheet
        texts.create_sheet("Zero", 0).append(["id", "trait"])
        texts["Zero"].append([1, "other"])
    texts.save(tmp_path / "texts.xlsx")
    done = run_here("init", "--domain", f"plant={lab}", "--out", tmp_path / "first.yaml")
    assert done.returncode == 0, done.stderr
    assert "table: ../list.xlsx" in (tmp_path / "first.yaml").read_text()
    folder = {"path": str(lab / "img"), "table": "../list.xlsx", "columns": {"file": "file", "extra": ["id"]}}
    captions = {"join": str(tmp_path / "texts.xlsx"), "on": "extra.id", "text": "trait", "kind": "caption"}
    given = {
        "name": "ours",
        "domain": "plant",
        "folder": folder,
        "defaults": {"licence": "CC0"},
        "captions": [captions | ({"sheet": sheet} if sheet else {})],
    }
    done = run_here("build", write_small_config(tmp_path, given), "--to", "caption")
    assert done.returncode == 0, done.stderr
    assert "0 of 6 pictures (0.0%) have no partner among 6 rows" in done.stderr


def test_a_packed_workbook_is_read_too(tmp_path: Path) -> None:
    content, packed = write_book(tmp_path / "a.xlsx").read_bytes(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.xlsx", content)
    (tmp_path / "b.xlsx.zip").write_bytes(packed.getvalue())
    assert table_of(tmp_path / "b.xlsx.zip") == table_of(tmp_path / "a.xlsx")
