"""Delimited text, row by row, so that no row swallows its neighbours: csv, tsv, and what Darwin Core archives describe.

A quote that is opened and never closed would make a csv parser take all that follows for one value. So the text is
first cut, on raw bytes, into blocks of whole well-formed records and single broken ones; blocks go through pyarrow's
parser, a broken record ends as malformed and reading goes on with the next line. What cannot be told apart from a value
with line breaks (a stray quote whose partner closes at the end of a later field) is taken as one.
Reads a binary stream, holds one block (4 MiB) of it. Gives up with ValueError or ArrowInvalid for text that is no text.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

BLOCK_BYTES = 4 << 20
MAX_RECORD_BYTES = 4 << 20  # a longer one is taken for a quote that nobody closed
_CAREFUL_BYTES = 64 << 10  # read record by record behind a stray quote, where others are likely
MAX_TOLD_CHARS = 200


@dataclass(frozen=True)
class Dialect:
    """How a text is delimited; `line_end` other than a newline is what Darwin Core archives may say."""

    delimiter: str = ","
    quote: str | None = '"'
    encoding: str = "utf-8"
    line_end: str | None = None
    """None: newline or carriage return, whichever the text uses."""


@dataclass
class RawBatch:
    """Rows of a table: string columns as the table names them, and rows that could not be read.

    `numbers` int64 (rows,) holds the 0-based row of the source of each of `rows`; `malformed` (number, text) the
    rows that are not among them.
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
    """A record that is none: its first line."""

    text: bytes


def read_header(stream: Any, dialect: Dialect, skip_rows: int = 0) -> list[str]:
    """The values of the first record behind `skip_rows`, or of the last one that there is.

    Raises: ValueError when there is none, or it is broken.
    """
    for piece in cut_records(stream, dialect, BLOCK_BYTES // 64):
        if isinstance(piece, Broken):
            raise ValueError(f"the first row is broken: {_told(piece.text)}")
        lines = (line.decode() for line in io.BytesIO(piece.lstrip(b"\r\n").replace(b"\r\n", b"\n")))
        quoting: Any = csv.QUOTE_NONE if dialect.quote is None else csv.QUOTE_MINIMAL
        records = csv.reader(lines, delimiter=dialect.delimiter, quotechar=dialect.quote, quoting=quoting)
        return list(islice(records, skip_rows + 1))[-1]
    raise ValueError("the file is empty")


def read_delimited(
    stream: Any, names: list[str], columns: list[str], dialect: Dialect, skip_rows: int = 0
) -> Iterator[RawBatch]:
    """Every record behind the first `skip_rows`, the wanted columns of them; `names` are those of all its fields.

    An empty field that is not quoted is null, and so is one that is.
    """
    number = -skip_rows
    for piece in cut_records(stream, dialect):
        if isinstance(piece, Broken):
            if number >= 0:
                yield RawBatch(_no_rows(columns), np.arange(0), [(number, _told(piece.text))])
            number += 1
            continue
        batch = _parse(piece, names, columns, dialect, number)
        end = number + batch.rows.num_rows + len(batch.malformed)
        yield batch if number >= 0 else _without_head(batch)
        number = end


def _parse(block: bytes, names: list[str], columns: list[str], dialect: Dialect, first: int) -> RawBatch:
    malformed: list[tuple[int, str]] = []

    def note(row: Any) -> str:
        malformed.append((first + row.number - 1, (row.text or "")[:MAX_TOLD_CHARS]))  # it counts from 1
        return "skip"

    rows = pacsv.read_csv(
        pa.BufferReader(block),
        # only one thread numbers the malformed rows
        read_options=pacsv.ReadOptions(use_threads=False, column_names=names, block_size=len(block) + 1),
        parse_options=_parse_options(dialect, note),
        convert_options=pacsv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    free = np.arange(first, first + rows.num_rows + len(malformed))
    skipped = [number for number, _ in malformed]
    return RawBatch(rows, free[~np.isin(free, skipped)] if skipped else free, malformed)


def _without_head(batch: RawBatch) -> RawBatch:
    keep = batch.numbers >= 0
    bad = [(number, text) for number, text in batch.malformed if number >= 0]
    return RawBatch(batch.rows.filter(pa.array(keep)), batch.numbers[keep], bad)


def _parse_options(dialect: Dialect, note: Any) -> pacsv.ParseOptions:
    return pacsv.ParseOptions(
        delimiter=dialect.delimiter,
        quote_char=dialect.quote or False,
        newlines_in_values=dialect.quote is not None,
        invalid_row_handler=note,
    )


def _no_rows(columns: list[str]) -> pa.Table:
    return pa.table({name: pa.array([], pa.string()) for name in columns})


def _told(text: bytes) -> str:
    return text[: 4 * MAX_TOLD_CHARS].decode("utf-8", "replace").strip()[:MAX_TOLD_CHARS]


# ---- cutting


def cut_records(stream: Any, dialect: Dialect, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes | Broken]:
    """Blocks of whole records that no quote runs out of, and the broken records between them, in order, as UTF-8."""
    source = _as_utf8(stream, dialect)
    buffer = source.read(block_bytes).removeprefix(codecs.BOM_UTF8)
    cutter = _Cutter(dialect, b"\n" if b"\n" in buffer or b"\r" not in buffer else b"\r")
    at_end = not buffer
    while True:
        buffer, pieces = cutter.cut(buffer, at_end)
        for piece in pieces:
            if isinstance(piece, Broken) or piece.strip():
                yield piece
        if at_end:
            return
        more = source.read(max(block_bytes - len(buffer), block_bytes // 4, 1))
        at_end = not more
        buffer += more


class _Cutter:
    """The rules of one dialect over one buffer at a time."""

    def __init__(self, dialect: Dialect, newline: bytes) -> None:
        self._newline = newline
        self._quote = dialect.quote.encode() if dialect.quote else b""
        delimiter = dialect.delimiter.encode()
        self._behind = np.zeros(256, bool)  # bytes that may stand behind a closing quote, or before an opening one
        self._behind[[delimiter[0], 10, 13]] = True
        if self._quote:
            quote, end = re.escape(self._quote), b"[^" + re.escape(delimiter) + rb"\r\n]*"
            self._quoted = re.compile(
                quote + b"[^" + quote + b"]*(?:" + quote * 2 + b"[^" + quote + b"]*)*" + quote + b"(?!" + quote + b")"
            )
            self._plain = re.compile(end)

    def cut(self, buffer: bytes, at_end: bool) -> tuple[bytes, list[bytes | Broken]]:
        """What is left of the buffer, and the pieces before it."""
        pieces: list[bytes | Broken] = []
        start = 0
        while start < len(buffer):
            end, clean = self._clean_end(buffer, start, at_end)
            if end > start:
                pieces.append(buffer[start:end])
            if clean:
                start = end
                break
            stop = self._carefully(buffer, end, at_end, pieces)
            if stop == end:  # more of the text is needed to tell
                start = end
                break
            start = stop
        rest = buffer[start:]
        if not at_end and len(rest) > MAX_RECORD_BYTES:
            line = self._line_end(rest, 0)
            pieces.append(Broken(rest[:line] if line else rest[:MAX_TOLD_CHARS]))
            rest = rest[line:] if line else b""
        return rest, pieces

    def _clean_end(self, buffer: bytes, start: int, at_end: bool) -> tuple[int, bool]:
        """Where the last whole record before the first misplaced quote ends; false when there is one."""
        if not self._quote or buffer.find(self._quote, start) < 0:
            return (len(buffer) if at_end else max(start, buffer.rfind(self._newline, start) + 1)), True
        view = np.frombuffer(buffer, np.uint8)[start:]
        quotes = np.flatnonzero(view == self._quote[0])
        openers, closers = quotes[0::2], quotes[1::2]
        fine_open = self._behind[view[openers - 1]]
        fine_open[0] |= openers[0] == 0
        fine_open[1:] |= openers[1:] - 1 == closers[: len(openers) - 1]  # the second of two that stand for one
        at = np.minimum(closers + 1, len(view) - 1)
        fine_close = self._behind[view[at]] | (view[at] == self._quote[0]) | (closers + 1 == len(view))
        wrong = [
            int(places[~fine][0])
            for places, fine in ((openers, fine_open), (closers, fine_close))
            if len(places) and not fine.all()
        ]
        never_closed = at_end and len(quotes) % 2 == 1
        limit = min([*wrong, *([int(openers[-1])] if never_closed else []), len(view)])
        breaks = np.flatnonzero(view[:limit] == self._newline[0])
        outside = breaks[np.searchsorted(quotes, breaks) % 2 == 0]
        clean = limit == len(view)
        if clean and at_end:
            return len(buffer), True
        return start + (int(outside[-1]) + 1 if len(outside) else 0), clean

    def _carefully(self, buffer: bytes, start: int, at_end: bool, pieces: list[bytes | Broken]) -> int:
        """Record by record for a while; returns how far it came."""
        good_from = here = start
        while here < len(buffer) and here - start < _CAREFUL_BYTES:
            end = self._record_end(buffer, here, at_end)
            if end is None:
                break
            if end < 0:
                if here > good_from:
                    pieces.append(buffer[good_from:here])
                end = self._line_end(buffer, here) or len(buffer)
                pieces.append(Broken(buffer[here:end]))
                good_from = end
            here = end
        if here > good_from:
            pieces.append(buffer[good_from:here])
        return here

    def _record_end(self, buffer: bytes, here: int, at_end: bool) -> int | None:
        """Where the record that begins here ends; -1 when a quote runs out of it, None when it cannot be told yet."""
        first = here
        undecided = not at_end and len(buffer) - first <= MAX_RECORD_BYTES
        while True:
            if buffer[here : here + 1] == self._quote:
                found = self._quoted.match(buffer, here)
                if found is None or (found.end() == len(buffer) and undecided):
                    return None if undecided else -1
                here = found.end()
                if here < len(buffer) and not self._behind[buffer[here]] and self._newline in found[0]:
                    return -1
            plain = self._plain.match(buffer, here)
            here = plain.end() if plain else here
            if here == len(buffer):
                return None if not at_end else here
            if buffer[here : here + 1] in (b"\r", b"\n"):
                return self._line_end(buffer, here) or (here + 1 if at_end else None)
            here += 1

    def _line_end(self, buffer: bytes, start: int) -> int:
        """The place behind the next line break; 0 when there is none."""
        return buffer.find(self._newline, start) + 1


# ---- other encodings and line ends


def _as_utf8(stream: Any, dialect: Dialect) -> Any:
    """The stream itself, or one that turns its encoding and line ends into UTF-8 and newlines on the way."""
    plain = codecs.lookup(dialect.encoding).name == "utf-8"
    return stream if plain and dialect.line_end is None else _Turned(stream, dialect)


class _Turned:
    """A stream whose every read gives at least one whole character, in UTF-8, records ended by newlines."""

    def __init__(self, stream: Any, dialect: Dialect) -> None:
        self._stream = stream
        plain = codecs.lookup(dialect.encoding).name == "utf-8"
        self._decoder = None if plain else codecs.getincrementaldecoder(dialect.encoding)()
        self._line_end = (dialect.line_end or "").encode()
        self._carry = b""
        self._first = True

    def read(self, num_bytes: int) -> bytes:
        """About `num_bytes`; none at the end alone."""
        while True:
            raw: bytes = self._stream.read(num_bytes)
            text = raw if self._decoder is None else self._decoder.decode(raw, final=not raw).encode()
            text = self._carry + text
            self._carry = b""
            if self._line_end:
                text = self._turn_lines(text, last=not raw)
            if text or not raw:
                return text

    def _turn_lines(self, text: bytes, last: bool) -> bytes:
        if self._first and text:
            self._first = False
            if self._line_end == b"\r\n" and b"\r\n" not in text:  # the description is wrong, as it often is
                self._line_end = b"\n"
        mark = b"\r\n" if self._line_end == b"\n" else self._line_end
        whole = last or text.endswith(mark)
        for length in range(len(mark) - 1, 0, -1) if not whole else ():  # an end mark may be cut in two
            if text.endswith(mark[:length]):
                text, self._carry = text[:-length], mark[:length]
                break
        if self._line_end == b"\n":
            return text.replace(b"\r\n", b"\n").replace(b"\r", b" ")
        parts = text.split(self._line_end)
        return b"\n".join(part.replace(b"\n", b" ").replace(b"\r", b" ") for part in parts)
