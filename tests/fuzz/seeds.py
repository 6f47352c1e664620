"""Seeds of the fuzzer, small good inputs of every kind, and the words that parsers of a kind stumble over."""

from __future__ import annotations

import datetime
import io
import json
import tarfile
import zipfile
from functools import cache
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tars import tar_of

_SHEET = "xl/worksheets/sheet1.xml"


def make_picture(kind: str, mode: str = "RGB", **how: Any) -> bytes:
    stream = io.BytesIO()
    image = Image.effect_noise((40, 40), 60).convert("RGB" if mode in ("I;16", "P") else mode)
    if mode == "I;16":
        image = Image.frombytes("I;16", (40, 40), bytes(range(256)) * 12 + bytes(128))
    elif mode == "P":
        image = image.quantize(8)
    image.save(stream, kind, **how)
    return stream.getvalue()


def make_sheet() -> bytes:
    """The XML of a sheet with all kinds of cells."""
    with zipfile.ZipFile(io.BytesIO(_book())) as archive:
        return archive.read(_SHEET)


def put_sheet(xml: bytes) -> bytes:
    """A workbook with this XML as its sheet."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_book())) as archive, zipfile.ZipFile(stream, "w") as made:
        for name in archive.namelist():
            made.writestr(name, xml if name == _SHEET else archive.read(name))
    return stream.getvalue()


@cache
def _book() -> bytes:
    book, stream = openpyxl.Workbook(), io.BytesIO()
    moment = datetime.datetime(2024, 5, 1, 3, 4)
    for row in (["url", "caption", "n"], ["u", "c", 1.5], [True, "#N/A", moment], [None, "=1+1"]):
        book.active.append(row)
    book.active.merge_cells("A3:B4")
    book.save(stream)
    return stream.getvalue()


def make_tar(kind: int = tarfile.GNU_FORMAT) -> bytes:
    members = (("a.jpg", b"picture"), ("a.txt", b"a rose"), ("a.json", b'{"url": "http://a/1", "caption": "c"}'))
    return tar_of((*members, ("d" * 120 + "/b.jpg", b"p"), ("ü.cls", b"0"), ("ü.jpg", b"p")), kind)


def make_parquet(compression: str = "zstd") -> bytes:
    stream = io.BytesIO()
    rows = {"url": ["http://a/1", None, "http://a/2"], "caption": ["a", "b", "ü"], "key": ["a", "b", "c"]}
    pq.write_table(pa.table(rows), stream, compression=compression)
    return stream.getvalue()


def make_zip(meta: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("meta.xml", meta)
        packed.writestr("o.csv", "id,associatedMedia\n1,http://a/1.jpg\n2,http://a/2.jpg\n")
    return stream.getvalue()


META = b"""<archive xmlns="http://rs.tdwg.org/dwc/text/"><core rowType="http://rs.tdwg.org/dwc/terms/Occurrence"
 encoding="UTF-8" fieldsTerminatedBy="\\t" linesTerminatedBy="\\n" fieldsEnclosedBy='"' ignoreHeaderLines="1">
<files><location>o.csv</location></files><id index="0"/><field index="1"
 term="http://rs.tdwg.org/dwc/terms/associatedMedia" default="x"/></core><extension rowType="x"><files><location>m.txt
</location></files><coreid index="0"/><field index="2" term="a"/></extension></archive>"""
CSV = b'url,caption,note\nhttp://a/1.jpg,"a ""red"" rose",x\r\nhttp://a/2.jpg,"two\nlines",\nhttp://a/3.jpg,c,d\n'
LINES = b'{"url": "http://a/1.jpg", "caption": "c", "n": [1, {"a": null}]}\n{"url": "u", "caption": "\\u00fc"}\n\n[1]\n'
ARRAY = b'[{"url": "http://a/1.jpg", "caption": "c"}, {"url": 5, "caption": ["x", {"y": 1.5e3}]}, null, true]'
RECORD = json.dumps(
    {
        "format": "plantmix-release/1", "name": "n", "version": "v", "fingerprint": "f", "kind": "mixed",
        "splits": {"train": {"num_samples": 1, "shards": [{"shard": "a.tar", "domains": {"plant": 1}}]}},
        "files": {"shards/a.tar": {"num_bytes": 1, "sha256": "00"}}, "counts": {"domains": {"plant": 1}},
    }
).encode()  # fmt: skip
ROBOTS = (
    b"User-agent: *\nDisallow: /a*b$\nAllow: /\nCrawl-delay: 2\n\nUser-agent: plantmix/2.0\nDisallow: /x\n"
    b"Request-rate: 1/10s\nVisit-time: 0600-0845\nContent-Usage: /y train-ai=n\nSitemap: http://a/s.xml\n"
)
URLS = (
    b"http://user:pw@a.org:8080/p/%41?q=1&token=abc#f", b"https://[::1]:443/",
    b"HTTP://B\xc3\xbccher.example/\xc3\xa4 b", b"//x/y", b"/rel/../x?y", b"data:image/png;base64,AA",
)  # fmt: skip
TEXTS = (
    b"Photo by A. Smith / Getty Images &amp; <b>rose</b> http://a.org/x #a #b @c +1 555 123 4567",
    "Rosa × damascena 'Kazanlik' Mill., 1768 subsp. x (L.) DC.".encode(),
    b"Creative Commons Attribution-NonCommercial 4.0 https://creativecommons.org/licenses/by-nc/4.0/",
    "ÃƒÂ© â€œquotesâ€\x9d <!-- x --> <script>y</script> (c) 2001".encode(),
)
NUMBERS = (b"-1", b"0", b"99999999999999999999", b"9" * 5000, "²".encode(), "٣".encode(), b"1e999", b"NaN", b"0x10")
ODD = (
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\xe2\x80\xa8",
    b"\r",
    b"\n",
    b"\x1b[2J",
    b"../",
    b"\xef\xb7\x90",
)
JSON = (b"[", b"{", b"}", b"]", b'"', b"\\ud800", b'{"a":' * 80, b"[" * 3000, b",", b":", b"null", b"1" * 400)
XML = (
    b"<",
    b"/>",
    b'encoding="hex"',
    b'encoding="utf-16"',
    b'index="-1"',
    b"&#0;",
    b"<!DOCTYPE a [",
    b"&x;",
    b"<a>" * 2000,
)
TAR_WORDS = (
    b"ustar\x0000",
    b"\xff" * 12,
    b"\x80" + b"\xff" * 11,
    b"12 path=x\n",
    b"L",
    b"x",
    b"S",
    b"GNU.sparse.map=1",
    bytes(512),
)
