"""Delimited text, row by row, so that no row swallows its neighbours: csv, tsv, and what Darwin Core archives describe.

A csv parser takes everything behind a quote that is never closed for one value. So the text is first cut, on raw
bytes, into blocks of whole records and single broken records. pyarrow parses the blocks. A broken record ends as
malformed, and reading goes on with the next line. One mistake looks like a value with line breaks, and is read as one:
a stray quote whose partner closes at the end of a later field. A row with bytes that are no text in a column that is
read is malformed too.
Reads a binary stream, and holds a few blocks (4 MiB) of it. Raises ValueError for a first row that is no header.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from pipeline.sources.limits import MAX_COLUMNS, MAX_RECORD_BYTES

BLOCK_BYTES = 4 << 20
MAX_SHOWN_CHARS = 200  # of a malformed row
NOT_TEXT = "\ufdd0"  # stands for bytes that are no text; Unicode has it for such uses, and no text holds it
_LINE_CHUNK_BYTES = 1 << 20
_MAX_BROKEN = 10_000  # records that are shown at once
_SPACES = bytes.maketrans(b"\r\n", b"  ")
HEAD_BYTES = 1 << 20  # of a table, to tell its encoding and its delimiter by
_SNIFFED_CHARS, _SNIFFED_ROWS = 1 << 16, 50
_DELIMITERS = (",", ";", "\t", "|")
_UTF8_SEQUENCE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_NOT_CP1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d\xfe\xff]")  # not assigned, or letters that broken bytes look like


@dataclass(frozen=True)
class Dialect:
    """The delimiters of a text. Only Darwin Core archives may set a `line_end` of their own."""

    delimiter: str = ","
    quote: str | None = '"'
    encoding: str = "utf-8"
    line_end: str | None = None
    """None: newline or carriage return, whichever the text uses."""
    lines_before: int = 0
    """Lines before the header: Excel's `sep=;`."""


def sniff_dialect(head: bytes, delimiter: str) -> Dialect:
    """Return how a table is delimited and encoded, from its first bytes; `delimiter` is what its name promises.

    Another delimiter is taken only where it cuts header and rows into the same number of fields, and into more than
    the promised one does. Text without one valid UTF-8 sequence, but with bytes that are letters or signs in
    Windows-1252 (the superset of Latin-1 that Excel writes), is read as that.
    """
    encoding = _encoding_of(head)
    text = head[: 4 * _SNIFFED_CHARS].decode(encoding, "replace").removeprefix("\ufeff")
    first = text.partition("\n")[0]
    if stated := re.fullmatch(r'"?sep=(.)"?\r?', first):
        return Dialect(stated[1], encoding=encoding, lines_before=1)
    sample = text[:_SNIFFED_CHARS]
    lines = sample if sample == text else sample.rpartition("\n")[0]
    marks = [delimiter, *(mark for mark in _DELIMITERS if mark != delimiter)]
    return Dialect(max(marks, key=lambda mark: _num_even_fields(lines, mark)), encoding=encoding)  # the first of equals


def _num_even_fields(lines: str, delimiter: str) -> int:
    """Fields of the header, if most rows have as many; else 0."""
    records = csv.reader(io.StringIO(lines, newline=None), delimiter=delimiter)
    try:
        rows = [row for row in islice(records, _SNIFFED_ROWS) if row]
    except csv.Error:  # a field that is too long, or a NUL
        return 0
    even = sum(len(row) == len(rows[0]) for row in rows)
    return len(rows[0]) if rows and 2 * even > len(rows) else 0


def _encoding_of(head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    high = head.translate(None, bytes(range(128)))
    is_utf8 = not high or _UTF8_SEQUENCE.search(head)
    return "utf-8" if is_utf8 or _NOT_CP1252.search(high) else "cp1252"


@dataclass
class RawBatch:
    """Rows of a table: string columns as the table names them, and rows that could not be read.

    `numbers` int64 (rows,) holds the row number in the source of each of `rows`, from 0; rows of a header count.
    `malformed` holds number and text of the rows that are not among them.
    """

    rows: pa.Table
    numbers: np.ndarray
    malformed: list[tuple[int, str]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The number after the last one in this batch."""
        last = int(self.numbers[-1]) if len(self.numbers) else -1
        return 1 + max([last, *(number for number, _ in self.malformed)])


@dataclass(frozen=True)
class Broken:
    """A record or a line that cannot be read: how it begins."""

    text: bytes


def read_header(stream: Any, dialect: Dialect, skip_rows: int = 0) -> list[str]:
    """Return the values of a record: the first after `skip_rows` others, or the last where the text has no more.

    Raises: ValueError when there is none, or it is broken, or has too many values.
    """
    for piece in cut_records(stream, dialect, BLOCK_BYTES // 64):
        if isinstance(piece, Broken):
            raise ValueError(f"the first row is broken: {_shown(piece.text)}")
        lines = (line.decode() for line in piece.lstrip(b"\r\n").replace(b"\r\n", b"\n").splitlines(keepends=True))
        quoting: Any = csv.QUOTE_NONE if dialect.quote is None else csv.QUOTE_MINIMAL
        records = csv.reader(lines, delimiter=dialect.delimiter, quotechar=dialect.quote, quoting=quoting)
        try:
            *_, names = islice(records, skip_rows + 1)
        except csv.Error as error:
            raise ValueError(f"the first row is broken: {error}") from None
        if len(names) > MAX_COLUMNS:
            raise ValueError(f"it has {len(names):,} columns, more than {MAX_COLUMNS:,}")
        return names
    raise ValueError("the file is empty")


def read_delimited(
    stream: Any, names: list[str], columns: list[str], dialect: Dialect, skip_rows: int = 0
) -> Iterator[RawBatch]:
    """Yield some `columns` of every record after the first `skip_rows`; `names` are those of all fields.

    An empty field is null, quoted or not. Rows are numbered as in a spreadsheet, from 0: a header counts, `sep=;` not.
    """
    number = -dialect.lines_before
    first = skip_rows + number
    for block, broken in _with_broken(cut_records(stream, dialect)):
        batch = _parse(block, names, columns, dialect, number)
        batch.malformed = [(at, broken.get(text, text).replace(NOT_TEXT, "\ufffd")) for at, text in batch.malformed]
        start, number = number, number + batch.rows.num_rows + len(batch.malformed)
        if start < first:
            behind = batch.numbers >= first
            malformed = [(at, text) for at, text in batch.malformed if at >= first]
            batch = RawBatch(batch.rows.filter(pa.array(behind)), batch.numbers[behind], malformed)
        yield batch


def _with_broken(pieces: Iterator[bytes | Broken]) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Large blocks of text. A mark takes the row of each broken record; the mapping says which record that was.

    Without marks a text full of broken records would be parsed piece by piece, at 0.8 ms a piece.
    """
    block: list[bytes] = []
    broken: dict[str, str] = {}
    num_bytes = 0
    for piece in pieces:
        if isinstance(piece, Broken):
            mark = f"{NOT_TEXT}{len(broken)}"
            broken[mark] = _shown(piece.text)
            block.append(mark.encode() + b"\n")
        else:
            block.append(piece)
            num_bytes += len(piece)
        if num_bytes >= BLOCK_BYTES // 2 or len(broken) >= _MAX_BROKEN:
            yield b"".join(block), broken
            block, broken, num_bytes = [], {}, 0
    if block:
        yield b"".join(block), broken


def read_lines(stream: Any) -> Iterator[bytes | Broken]:
    """Yield the lines of a text without their ends; one that is longer than a record may be is broken."""
    rest = b""
    too_long: Broken | None = None
    while True:
        chunk = stream.read(_LINE_CHUNK_BYTES)
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop() if chunk else b""
        for line in lines:
            short = line if len(line) <= MAX_RECORD_BYTES else _cut(line)
            yield too_long or short
            too_long = None
        if too_long is not None or len(rest) > MAX_RECORD_BYTES:
            too_long, rest = too_long or _cut(rest), b""
        if not chunk:
            return


def _cut(record: bytes) -> Broken:
    return Broken(record[: 4 * MAX_SHOWN_CHARS])


def _parse(block: bytes, names: list[str], columns: list[str], dialect: Dialect, first: int) -> RawBatch:
    malformed: list[tuple[int, str]] = []
    block = _marked(block)

    def note(row: Any) -> str:
        malformed.append((first + row.number - 1, (row.text or "")[:MAX_SHOWN_CHARS]))  # it counts from 1
        return "skip"

    rows = pacsv.read_csv(
        pa.BufferReader(block),
        # only one thread numbers the malformed rows
        read_options=pacsv.ReadOptions(use_threads=False, column_names=names, block_size=len(block) + 1),
        parse_options=pacsv.ParseOptions(
            delimiter=dialect.delimiter,
            quote_char=dialect.quote or False,
            newlines_in_values=dialect.quote is not None,
            invalid_row_handler=note,
        ),
        convert_options=pacsv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    numbers = np.arange(first, first + rows.num_rows + len(malformed))
    batch = RawBatch(rows, np.delete(numbers, [number - first for number, _ in malformed]), malformed)
    return batch if NOT_TEXT.encode() not in block else only_texts(batch)


def _marked(block: bytes) -> bytes:
    """Return the block, with marks in place of bytes that are no UTF-8."""
    try:
        block.decode()
    except UnicodeDecodeError:
        return block.decode(errors=_mark_errors()).encode()
    return block


def _mark_errors() -> str:
    """Return the name of the handler that puts a mark in place of bytes that are no text."""
    codecs.register_error("plantmix.mark", lambda error: (NOT_TEXT, getattr(error, "end", 0)))
    return "plantmix.mark"


def only_texts(batch: RawBatch) -> RawBatch:
    """Return the batch, where rows with a mark are malformed."""
    bad = np.zeros(batch.rows.num_rows, bool)
    for column in batch.rows.columns:
        bad |= pc.fill_null(pc.match_substring(column, NOT_TEXT), False).to_numpy()
    values = batch.rows.filter(pa.array(bad)).to_pylist()
    texts = [", ".join(value for value in row.values() if value)[:MAX_SHOWN_CHARS] for row in values]
    shown = [text.replace(NOT_TEXT, "\ufffd") for text in texts]
    malformed = list(zip(batch.numbers[bad].tolist(), shown, strict=True))
    return RawBatch(batch.rows.filter(pa.array(~bad)), batch.numbers[~bad], sorted([*batch.malformed, *malformed]))


def _shown(text: bytes) -> str:
    return text[: 4 * MAX_SHOWN_CHARS].decode("utf-8", "replace").strip()[:MAX_SHOWN_CHARS]


# ---- cutting


def cut_records(stream: Any, dialect: Dialect, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes | Broken]:
    """Blocks of whole records, and the broken records between them, in order, as UTF-8."""
    chunks = _utf8_chunks(stream, dialect, block_bytes)
    first = next(chunks, b"").removeprefix(codecs.BOM_UTF8)
    newline = b"\r" if b"\r" in first and b"\n" not in first else b"\n"
    quote = (dialect.quote or "").encode()
    lines, records = re.compile(b"(?s:.*%b)?" % newline), _whole_records(dialect, newline.decode())
    buffer = b""
    skipping = False  # the rest of a line that is too long
    for chunk in chain([first], chunks, [None]):
        at_end = chunk is None
        buffer += chunk or b""
        if skipping:
            _, line_end, buffer = buffer.partition(newline)
            skipping = not line_end
        if at_end and not buffer.endswith(newline):
            buffer += newline
        start = 0
        while start < len(buffer):
            match = (records if quote and quote in buffer else lines).match(buffer, start)
            block = match[0] if match else b""
            if block and not block.isspace():
                yield block
            start += len(block)
            # the last record may go on in the next chunk, up to a length
            if start == len(buffer) or (not at_end and len(buffer) - start <= MAX_RECORD_BYTES):
                break
            end = buffer.find(newline, start) + 1 or len(buffer)
            skipping = not buffer.endswith(newline, start, end)
            yield _cut(buffer[start:end])
            start = end
        buffer = buffer[start:]


def _whole_records(dialect: Dialect, newline: str) -> re.Pattern[bytes]:
    """Return a pattern that matches as many whole records as there are; it never steps back, so it reads 280 MB/s.

    A quote counts only at the start of a field. A quoted value with line breaks must fill its field; behind one
    without, more text may follow.
    """
    d, n, q = re.escape(dialect.delimiter), re.escape(newline), re.escape(dialect.quote or '"')
    on_one_line = rf"{q}[^{q}{n}]*+(?:{q}{q}[^{q}{n}]*+)*+{q}"
    on_several = rf"{q}[^{q}]*+(?:{q}{q}[^{q}]*+)*+{q}(?=[{d}\r\n])"
    at_start = rf"(?<![^{d}\r\n])(?:{on_one_line}|{on_several})"
    elsewhere = rf"(?<=[^{d}\r\n]){q}"
    return re.compile(rf"(?:(?:[^{q}{n}]++|{at_start}|{elsewhere})*+{n})*+".encode())


def _utf8_chunks(stream: Any, dialect: Dialect, num_bytes: int) -> Iterator[bytes]:
    """Return the text in pieces of about `num_bytes`, in UTF-8, its records ended by line breaks."""
    chunks: Iterator[bytes] = iter(partial(stream.read, num_bytes), b"")
    if codecs.lookup(dialect.encoding).name != "utf-8":
        chunks = (text.encode() for text in codecs.iterdecode(chunks, dialect.encoding, _mark_errors()))
    return chunks if dialect.line_end is None else _with_newlines(chunks, dialect.line_end.encode())


def _with_newlines(chunks: Iterator[bytes], mark: bytes) -> Iterator[bytes]:
    """Each end mark of a record becomes a newline, and every other line break a space."""
    first = next(chunks, b"")
    wrong = mark == b"\r\n" and mark not in first  # the description of an archive often is
    ends = re.compile(rb"\r?\n" if wrong or mark == b"\n" else re.escape(mark))
    held_back = max(len(mark), 2) - 1  # bytes: an end mark may be cut in two
    rest = b""
    for chunk in chain([first], chunks):
        *records, tail = ends.split(rest + chunk)
        cut = max(0, len(tail) - held_back)
        rest = tail[cut:]
        yield b"\n".join(record.translate(_SPACES) for record in [*records, tail[:cut]])
    yield rest.translate(_SPACES)
