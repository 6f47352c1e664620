"""A sheet of a workbook (.xlsx, .xlsm) as rows of texts, written as the sheet shows them.

Integers have no `.0`, dates are ISO, booleans TRUE and FALSE; of a formula its stored value counts. An error such as
#N/A is an empty cell. The value of merged cells stands in each of them. Empty rows are left out, and so are columns
without a name in the first row that holds anything, the header.
python-calamine reads the sheet. It believes what the file says, and ends the process where memory does not suffice: so
it gets only the parts that it needs, unpacked and measured here, and no sheet that spans more than MAX_CELLS. Holds one
sheet in memory. Raises ValueError, with the cure.
"""

from __future__ import annotations

import datetime
import io
import posixpath
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from manifests.services.untrusted import UNREADABLE, check_packing, is_read_xml

MAX_BOOK_BYTES = 1 << 30
"""Of a workbook, and of the parts of it that are read, unpacked."""
MAX_CELLS = 30_000_000
"""That a sheet spans, empty ones too: calamine takes 32 bytes for each."""
AS_CSV = "save the sheet as `CSV UTF-8` (File, Save as) and name that file"
_OLD_MAGIC = bytes.fromhex("d0cf11e0a1b11ae1")
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_MAIN_STRICT = "http://purl.oclc.org/ooxml/spreadsheetml/main"
_CELL = re.compile(rb"<(?:\w+:)?c[\s/>]")
_ROW = re.compile(rb"<(?:\w+:)?row(?:\s[^>]*)?(?<!/)>")
_REFERENCE = re.compile(rb"\sr\s*=\s*[\"']([A-Za-z]*)(\d+)[\"']")
_ERROR = re.compile(rb"<(?:\w+:)?c\b[^>]*\st\s*=\s*[\"']e[\"']")
_LOOKED_AT_BYTES = 64 << 10  # of a sheet that is not read, to see whether it has rows


@dataclass(frozen=True)
class Sheet:
    """A sheet that is read. `others` are sheets with rows too; `num_errors` counts cells that hold an error."""

    name: str
    others: tuple[str, ...]
    num_errors: int
    packed_bytes: int
    _sheet: Any

    @cached_property
    def _header(self) -> tuple[int, list[str]]:
        """The number of the first row that holds anything, and its texts; empty where a column has no name."""
        for number, cells in enumerate(self._sheet.iter_rows()):
            if any(texts := [(_text(cell) or "").strip() for cell in cells]):
                return number, texts
        raise ValueError(f"its sheet {self.name!r} is empty; name another one in `sheet`")

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return [name for name in self._header[1] if name]

    def rows(self, columns: list[str]) -> Iterator[tuple[int, list[str | None]]]:
        """Yield number in the sheet, and texts, of each row below the header that is not empty."""
        total = 0
        for number, texts in self._texts([self._header[1].index(name) for name in columns]):
            total += sum(len(text) for text in texts if text)
            check_packing(self.packed_bytes, total, MAX_BOOK_BYTES)
            yield number, texts

    def _texts(self, indexes: list[int]) -> Iterator[tuple[int, list[str | None]]]:
        """Yield number and texts of the rows below the header that are not empty."""
        header, left = self._header[0], self._sheet.start[1]
        merged: dict[int, list[tuple[int, int, int]]] = {}
        for (top, first), (bottom, last) in self._sheet.merged_cell_ranges or ():
            merged.setdefault(top, []).append((first - left, last - left, bottom))
        spread: dict[int, tuple[Any, int]] = {}  # of a column: the value of merged cells, and their last row
        for number, cells in enumerate(self._sheet.iter_rows()):
            if number <= header:
                continue
            for first, last, bottom in merged.get(number, ()):
                if 0 <= first < len(cells):
                    spread |= {at: (cells[first], bottom) for at in indexes if first <= at <= last}
            if all(cell == "" for cell in cells):
                continue
            values = [spread[at][0] if at in spread and number <= spread[at][1] else cells[at] for at in indexes]
            yield number, [_text(value) for value in values]


def open_sheet(content: bytes, wanted: str | int | None = None) -> Sheet:
    """Return the sheet of a workbook with this name or number, from 1; None: the first one that has rows.

    Raises: ValueError for what is no such workbook, has no such sheet, or is too large.
    """
    from python_calamine import CalamineError, CalamineWorkbook  # most builds read none

    if len(content) > MAX_BOOK_BYTES:
        raise ValueError(f"it has more than {MAX_BOOK_BYTES:,} bytes; {AS_CSV}")
    if not content.startswith(b"PK"):
        raise ValueError(_what_it_is(content))
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = _sheets_in(archive)
            with_rows = [name for name, part in parts.items() if _has_rows(archive, part)]
            name = _choose(parts, with_rows, wanted)
            xml, book = _only(archive, parts, name, len(content))
        _check_span(xml)
        sheet = CalamineWorkbook.from_filelike(io.BytesIO(book)).get_sheet_by_name(name)
    except ValueError:
        raise
    except (CalamineError, KeyError, *UNREADABLE) as error:
        raise ValueError(f"it is damaged, or no workbook ({error}); open it and save it as .xlsx again") from None
    others = tuple(other for other in with_rows if other != name)
    return Sheet(name, others, sum(1 for _ in _ERROR.finditer(xml)), len(content), sheet)


def _what_it_is(content: bytes) -> str:
    if content.startswith(_OLD_MAGIC) and _ENCRYPTED in content:
        return "it is protected by a password; open it, take the password off (File, Info), and save it again"
    if content.startswith(_OLD_MAGIC):
        return "it is a workbook of an old Excel (.xls), whatever its name; open it and save it as .xlsx"
    return f"it is no workbook: it begins with {content[:30]!r}; if it is a text, name it .csv or .tsv, or set `format`"


def _sheets_in(archive: zipfile.ZipFile) -> dict[str, str]:
    """Return the part of each sheet by its name, in the order of the tabs; hidden ones come last."""
    names: list[tuple[bool, str, str]] = []
    targets: dict[str, str] = {}

    def sheet(element: str, fields: Mapping[str, str]) -> None:
        if element in (f"{_MAIN} sheet", f"{_MAIN_STRICT} sheet"):
            key = next((value for name, value in fields.items() if name.endswith("/relationships id")), "")
            names.append((fields.get("state", "visible") != "visible", fields["name"], key))

    def relation(element: str, fields: Mapping[str, str]) -> None:
        if element.endswith(" Relationship") and fields["Type"].endswith("/worksheet"):
            targets[fields["Id"]] = posixpath.normpath(posixpath.join("/xl", fields["Target"])).lstrip("/")

    for path, start in (("xl/workbook.xml", sheet), ("xl/_rels/workbook.xml.rels", relation)):
        if not is_read_xml(archive.read(path), start, lambda _: None, lambda _: None):
            raise ValueError(f"its {path} is no XML; open it and save it as .xlsx again")
    return {name: targets[key] for _, name, key in sorted(names, key=lambda entry: entry[0]) if key in targets}


def _has_rows(archive: zipfile.ZipFile, part: str) -> bool:
    """Return whether a sheet has a header and a row, or more, by its beginning."""
    with archive.open(part) as stream:
        return len(_ROW.findall(stream.read(_LOOKED_AT_BYTES))) > 1


def _choose(parts: Mapping[str, str], with_rows: list[str], wanted: str | int | None) -> str:
    names = list(parts)
    if wanted is None and names:
        return (with_rows or names)[0]
    if isinstance(wanted, int) and 1 <= wanted <= len(names):
        return names[wanted - 1]
    if wanted in parts:
        return str(wanted)
    raise ValueError(f"it has no sheet {wanted!r}; it has {', '.join(map(repr, names)) or 'none'}")


def _only(archive: zipfile.ZipFile, parts: Mapping[str, str], name: str, packed_bytes: int) -> tuple[bytes, bytes]:
    """Return the XML of a sheet, and a workbook without other sheets, pictures and the like.

    No more of a part is unpacked than it says that it has.
    """
    left_out = {part for other, part in parts.items() if other != name}
    needed = [info for info in archive.infolist() if info.filename.endswith((".xml", ".rels"))]
    needed = [info for info in needed if info.filename not in left_out]
    num_bytes = sum(info.file_size for info in needed)
    check_packing(packed_bytes, num_bytes)
    if num_bytes > MAX_BOOK_BYTES:
        raise ValueError(f"its sheet has {num_bytes:,} bytes, more than {MAX_BOOK_BYTES:,}; {AS_CSV}")
    made, xml = io.BytesIO(), b""
    with zipfile.ZipFile(made, "w") as book:
        for info in needed:
            content = archive.read(info)
            book.writestr(info.filename, content)
            xml = content if info.filename == parts[name] else xml
    return xml, made.getvalue()


def _check_span(xml: bytes) -> None:
    """Raise ValueError for a sheet whose cells lie so far apart that they would fill the memory."""
    num_rows, num_columns, num_named = len(_ROW.findall(xml)), 0, 0
    for letters, digits in (match.groups() for match in _REFERENCE.finditer(xml)):
        num_rows = max(num_rows, int(digits[:9]))
        if letters:
            num_named += 1
            num_columns = max(num_columns, _column_of(letters))
    num_columns += max(0, len(_CELL.findall(xml)) - num_named)  # cells without a name lie side by side
    if num_rows * num_columns > MAX_CELLS:
        raise ValueError(
            f"its sheet spans {num_rows:,} rows and {num_columns:,} columns, more than {MAX_CELLS:,} cells; delete "
            f"what lies far from the table, or {AS_CSV}"
        )


def _column_of(letters: bytes) -> int:
    """Return the number of a column, from 1: A, B, ..., Z, AA."""
    number = 0
    for letter in letters.upper():
        number = 26 * number + letter - ord("A") + 1
    return number


def _text(value: Any) -> str | None:
    """Return a cell as its sheet shows it, as far as its type tells; None for an empty one."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        is_whole = value.is_integer() and abs(value) <= 1 << 53
        return str(int(value)) if is_whole else format(value, ".15g")  # the digits that Excel keeps
    if isinstance(value, datetime.timedelta):
        seconds = round(value.total_seconds())
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) or None
