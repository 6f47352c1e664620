"""No row of a delimited text swallows another, and none is lost; other values are as any csv parser reads them."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.tables import delimited
from pipeline.sources.tables.delimited import Broken, Dialect, cut_records, read_delimited, read_header

COMMA = Dialect()


def read(
    text: str | bytes, num_columns: int = 2, dialect: Dialect = COMMA
) -> tuple[dict[int, list[Any]], dict[int, str]]:
    """Values by row number, and malformed rows by row number."""
    names = [f"c{number}" for number in range(num_columns)]
    rows: dict[int, list[Any]] = {}
    malformed: dict[int, str] = {}
    stream = io.BytesIO(text.encode() if isinstance(text, str) else text)
    for batch in read_delimited(stream, names, names, dialect):
        found = [list(row.values()) for row in batch.rows.to_pylist()]
        rows |= dict(zip(batch.numbers.tolist(), found, strict=True))
        malformed |= dict(batch.malformed)
    assert not rows.keys() & malformed.keys()
    assert sorted([*rows, *malformed]) == list(range(len(rows) + len(malformed)))
    return rows, malformed


# ---- quotes that nobody closed


def test_an_unclosed_quote_costs_its_own_row() -> None:
    rows, malformed = read('u0,c0\nu1,"broken\nu2,"fine, too"\nu3,"two\nlines"\n')
    assert rows == {0: ["u0", "c0"], 2: ["u2", "fine, too"], 3: ["u3", "two\nlines"]}
    assert malformed == {1: 'u1,"broken'}


def test_unclosed_quotes_one_after_another() -> None:
    rows, malformed = read('u0,"a\nu1,"b\nu2,c\nu3,"d\nu4,"""e""\nu5,f')
    assert rows == {2: ["u2", "c"], 5: ["u5", "f"]}
    assert list(malformed) == [0, 1, 3, 4]


def test_an_unclosed_quote_at_the_end_and_one_far_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_RECORD_BYTES", 2000)
    lines = ['u0,"never closed', *(f"u{number},c{number}" for number in range(1, 5000)), 'u5000,"last']
    rows, malformed = read("\n".join(lines))
    assert list(malformed) == [0, 5000]
    assert len(rows) == 4999
    assert rows[4999] == ["u4999", "c4999"]


def test_marks_that_are_no_quotes_are_text() -> None:
    rows, malformed = read('5" pot,c\n"a"b,c""d\n"","he said ""no"""\n')
    assert rows == {0: ['5" pot', "c"], 1: ["ab", 'c""d'], 2: [None, 'he said "no"']}
    assert malformed == {}


def test_a_line_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_RECORD_BYTES", 10_000)
    pieces = list(cut_records(io.BytesIO(b"x" * 100_000), COMMA, 4096))
    assert all(isinstance(piece, Broken) or len(piece) < 20_000 for piece in pieces)
    assert isinstance(pieces[0], Broken)


# ---- what csv writers write


FIELD = st.text(st.sampled_from('ab",\n\r éж\t'), max_size=6)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.tuples(FIELD, FIELD, FIELD), min_size=1, max_size=12),
    line_end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    block=st.sampled_from([3, 7, 64, 4096]),
)
def test_what_a_csv_writer_wrote_comes_back(rows: Any, line_end: str, quoting: Any, block: int) -> None:
    if quoting == csv.QUOTE_MINIMAL:  # it leaves a carriage return without quotes: to every reader the row ends there
        rows = [tuple(field.replace("\r", "") for field in row) for row in rows]
    rows = [row for row in rows if any(row)]  # a row of nothing is a blank line
    if not rows:
        return
    out = io.StringIO()
    csv.writer(out, lineterminator=line_end, quoting=quoting).writerows(rows)
    text = out.getvalue().encode()
    assert b"".join(cut_records(io.BytesIO(text), COMMA, block)).strip() == text.strip()
    found, malformed = read(text, 3)
    assert malformed == {}
    assert list(found.values()) == [[field or None for field in row] for row in rows]


@settings(max_examples=300, deadline=None)
@given(
    good=st.lists(st.sampled_from(["a,b", '"a",b', '"a\nb",c', 'a,"x ""y"" z"']), max_size=8),
    place=st.integers(0, 8),
    block=st.sampled_from([3, 7, 64, 4096]),
)
def test_a_broken_row_anywhere_leaves_its_neighbours(good: list[str], place: int, block: int) -> None:
    before, after = good[:place], good[place:]
    lines = [*before, 'BAD,"open', *after]
    text = "\n".join(lines).encode() + b"\n"
    pieces = list(cut_records(io.BytesIO(text), COMMA, block))
    broken = [piece for piece in pieces if isinstance(piece, Broken)]
    assert [piece.text.strip() for piece in broken] == [b'BAD,"open']
    kept = b"".join(piece for piece in pieces if isinstance(piece, bytes)).decode().splitlines()
    assert kept == "\n".join([*before, *after]).splitlines()


# ---- dialects of Darwin Core archives


def test_without_quotes_they_are_text() -> None:
    rows, malformed = read('u0\t"open\nu1\tsay "hi"\n', dialect=Dialect("\t", None))
    assert rows == {0: ["u0", '"open'], 1: ["u1", 'say "hi"']}
    assert malformed == {}


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r", "|\n", "~~"])
@pytest.mark.parametrize("block", [1, 5, 4096])
def test_line_ends_as_described(line_end: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", block)
    text = line_end.join(["a;b", "c;d e", "f;g", ""])
    dialect = Dialect(";", None, line_end=line_end)
    names = ["x", "y"]
    found = [
        row
        for piece in cut_records(io.BytesIO(text.encode()), dialect, block)
        for row in read_delimited(io.BytesIO(piece), names, names, Dialect(";", None)).__next__().rows.to_pylist()
    ]
    assert [list(row.values()) for row in found] == [["a", "b"], ["c", "d e"], ["f", "g"]]


def test_a_carriage_return_within_a_field_is_no_line_end() -> None:
    rows, _ = read(b"a;b\rc\nd;e\r\n", dialect=Dialect(";", None, line_end="\n"))
    assert rows == {0: ["a", "b c"], 1: ["d", "e"]}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "cp1252"])
def test_other_encodings(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 3)
    rows, _ = read("Größe,Müller\nà,é\n".encode(encoding), dialect=Dialect(encoding=encoding))
    assert rows == {0: ["Größe", "Müller"], 1: ["à", "é"]}


def test_a_header_may_be_quoted_and_span_lines() -> None:
    assert read_header(io.BytesIO(b'\xef\xbb\xbf\r\n"a ""b""","two\nlines",c\r\n1,2,3\r\n'), COMMA) == [
        'a "b"',
        "two\nlines",
        "c",
    ]
    with pytest.raises(ValueError, match="the file is empty"):
        read_header(io.BytesIO(b"\n\n"), COMMA)
    with pytest.raises(ValueError, match="the first row is broken"):
        read_header(io.BytesIO(b'a,"b\nc,d\n'), COMMA)
