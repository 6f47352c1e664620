"""A csv file of runs as columns of plain values.

Cells may be separated by commas, semicolons (then also with decimal commas) or tabs, with or without a byte-order
mark. Writes nothing. Gives up with ConfigError.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError

ROW = "__row"
"""Name of the added column: the 1-based row of the file, before any filter; the header of a csv is a row."""

Columns = dict[str, list[Any]]

_SEPARATORS = ",;\t|"
_DECIMAL_COMMA = re.compile(r"\s*-?\d+,\d+\s*")
_NO_NUMBER = re.compile(r"_|^\s*[+-]?0\d")  # Python alone takes 1_0 for a number, and 007 is a name


def read_csv(file: Path) -> tuple[Columns, str]:
    """Return the columns, `__row` first, and the sha256 of the file.

    Raises: ConfigError for a file that is no csv in UTF-8, a column name that stands twice, and a row of another length
    than the header.
    """
    content = file.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError(f"{file}: the text is UTF-16; save it as UTF-8")
    try:
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: cannot be read as csv: byte {error.start} is no UTF-8; save it as UTF-8") from None
    separator = max(_SEPARATORS, key=text.readline().count)
    text.seek(0)
    reader = csv.reader(text, delimiter=separator)
    try:
        header, *rows = [cells for cells in reader if cells] or [[]]
    except csv.Error as error:
        raise ConfigError(f"{file}: cannot be read as csv: {error} (line {reader.line_num})") from None
    names = [name.strip() for name in header]
    refuse_doubled_names(file, names)
    for row, cells in enumerate(rows, start=2):
        if len(cells) != len(names):
            raise ConfigError(f"{file}: row {row} has {len(cells)} cells, the header {len(names)}")
    if separator == ";" and any(_DECIMAL_COMMA.fullmatch(cell) for cells in rows for cell in cells):
        rows = [
            [cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell for cell in cells] for cells in rows
        ]
    columns: Columns = {ROW: list(range(2, len(rows) + 2))}
    columns |= {name: _typed([cells[i] for cells in rows]) for i, name in enumerate(names)}
    return columns, hashlib.sha256(content).hexdigest()


def is_csv(file: Path) -> bool:
    """Return false for Parquet and for a folder, which `pipeline.commands.plan` reads; any other file is text.

    Raises: ConfigError when there is nothing.
    """
    if not file.exists():
        raise ConfigError(f"{file}: no such table of runs")
    return not file.is_dir() and file.suffix.lower() not in (".parquet", ".pq")


def refuse_doubled_names(file: Path, names: Sequence[str]) -> None:
    """Raise ConfigError for a name that stands twice; a filter ignores upper and lower case."""
    folded = [name.casefold() for name in names]
    twice = sorted({name for name, key in zip(names, folded, strict=True) if name and folded.count(key) > 1})
    if twice:
        raise ConfigError(
            f"{file}: the column {' or '.join(twice)} stands more than once in the header (upper and lower case count "
            "as the same); rename one"
        )


def _typed(cells: list[str]) -> list[Any]:
    """Return the cells of a column as whole numbers, else as numbers, dates, times or texts; None for an empty cell."""
    for read in (_whole, _number, date.fromisoformat, datetime.fromisoformat):
        with suppress(ValueError):
            return [read(cell) if cell else None for cell in cells]
    return [cell or None for cell in cells]


def _whole(cell: str) -> int:
    number = int(cell)
    if _NO_NUMBER.search(cell) or abs(number) >= 1 << 63:  # SQL has no wider type
        raise ValueError(cell)
    return number


def _number(cell: str) -> float:
    if _NO_NUMBER.search(cell):
        raise ValueError(cell)
    return float(cell)
