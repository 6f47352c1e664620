"""The parsers of outside data: what is given to each, and what it may raise."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from fuzz.answering import ANSWERS, WORDS, Asker
from fuzz.seeds import (
    ARRAY,
    CSV,
    JSON,
    LINES,
    META,
    NUMBERS,
    RECORD,
    ROBOTS,
    TAR_WORDS,
    TEXTS,
    URLS,
    XML,
    make_parquet,
    make_picture,
    make_sheet,
    make_tar,
    make_zip,
    put_sheet,
)
from misbehaving.consent import licence
from misbehaving.owners import mining, xmp
from PIL import Image

from manifests.contract.release import read_record
from manifests.errors import ConfigError, IntegrityError
from manifests.masking import hide_secrets
from manifests.names.scientific import parse_name
from manifests.pictures.authors import MAX_CHARS, authors_of
from manifests.pictures.opening import without_pillow_warnings
from manifests.samples.tars import ALL_TEXTS, samples_in
from manifests.samples.unpacking import Unpacked
from manifests.services.untrusted import BrokenTarError, parse_json, tar_members
from manifests.services.workbook import open_sheet
from pipeline.fetching.answers import parse_retry_after
from pipeline.fetching.consent import rsl
from pipeline.fetching.consent.statements import ALLOW_ALL, no_training, parse_robots, parse_tdmrep, statements_of
from pipeline.fetching.pictures.consent import data_mining
from pipeline.fetching.pictures.image import measure_image
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.fetching.urls import BadURL, follow, parse_url
from pipeline.judging.captions.clean import clean_captions
from pipeline.judging.vocabulary.licences import normalise_licence
from pipeline.judging.vocabulary.taxa import taxon_texts
from pipeline.sources.biology.archive import parse_meta, read_archive
from pipeline.sources.files import reading, split_locator
from pipeline.sources.reading import check_source, read_rows
from pipeline.sources.settings import SourceSettings
from pipeline.sources.tables.delimited import Dialect, read_delimited, read_header

_SMALL = ImageSettings(max_pixels=4_000_000)  # 8 bytes a pixel: 32 MB


@dataclass(frozen=True)
class Parser:
    """One parser: what is given to it, what it may raise, and words that its kind stumbles over."""

    parse: Callable[[bytes], Any]
    seeds: tuple[bytes, ...]
    raises: tuple[type[Exception], ...] = ()
    words: tuple[bytes, ...] = ()


def _table(name: str, folder: Path) -> Callable[[bytes], None]:
    columns = {"url": "url", "caption": "caption"}
    path = folder / name
    given = SourceSettings.model_validate({"name": "s", "domain": "d", "table": str(path), "columns": columns})
    return lambda content: _read(given, path, content)


def _read(given: SourceSettings, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    check_source(given)
    for _ in read_rows(given, _no_scratch):
        pass


def _no_scratch() -> Any:
    raise AssertionError("no join is needed")


def _shard(folder: Path, side: bool) -> Callable[[bytes], None]:
    (folder / "s").mkdir(exist_ok=True)
    tar, parquet = folder / "s" / "0.tar", folder / "s" / "0.parquet"
    fields = {"caption": "parquet.caption"} if side else None
    values = {"name": "s", "domain": "d", "webdataset": {"path": str(tar), "fields": fields}}
    given = SourceSettings.model_validate(values)

    def parse(content: bytes) -> None:
        if side:
            tar.write_bytes(make_tar())
        else:
            parquet.unlink(missing_ok=True)
        _read(given, parquet if side else tar, content)

    return parse


def _folder(folder: Path) -> Callable[[bytes], None]:
    place = folder / "pictures"
    place.mkdir(exist_ok=True)
    (place / "a.jpg").write_bytes(b"p")
    columns = {"file": "file", "caption": "caption"}
    values = {"name": "s", "domain": "d", "folder": {"path": str(place), "table": "t.csv", "columns": columns}}
    given = SourceSettings.model_validate(values)
    return lambda content: _read(given, place / "t.csv", content)


def _rows(content: bytes) -> None:
    """Rows of a data file, in a way of writing that the first bytes choose."""
    kinds = (
        Dialect(","), Dialect("\t", None), Dialect("\t", '"', "utf-8", "\n"), Dialect("|", "'", "latin-1", "\r\n"),
        Dialect(",", '"', "utf-16", "\n"), Dialect(",", '"', "cp1252", "##"),
    )  # fmt: skip
    dialect = kinds[content[0] % len(kinds)] if content else kinds[0]
    with reading("rows", "rows"):
        names = [f"f{number}" for number in range(len(read_header(io.BytesIO(content), dialect)))]
        for _ in read_delimited(io.BytesIO(content), names, names[:3], dialect, 1):
            pass


def _unpacked(content: bytes) -> None:
    list(samples_in(Unpacked(io.BytesIO(content), "zstd" if content.startswith(b"(") else "gzip"), ALL_TEXTS))


def _sheet(book: bytes) -> None:
    sheet = open_sheet(book)
    list(sheet.rows(sheet.columns))


def _zipped(folder: Path) -> Callable[[bytes], None]:
    path = folder / "a.zip"
    values = {"name": "s", "domain": "d", "dwca": {"path": str(path)}}
    given = SourceSettings.model_validate(values)

    def parse(content: bytes) -> None:
        path.write_bytes(content)
        read_archive(str(path), "here")
        check_source(given)

    return parse


def _url(content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    hide_secrets(text)
    with suppress(BadURL):
        target = parse_url(text)
        assert parse_url(target.url).url == target.url
    follow(parse_url("http://user:pw@a.org/x"), content.decode("latin-1"))


def _headers(content: bytes) -> None:
    value = content.decode("latin-1")
    parse_retry_after(value, value[:40])
    no_training(value)
    statements_of({name: [value] for name in ("x-robots-tag", "content-usage", "tdm-reservation")})


def _robots(content: bytes) -> None:
    rules = parse_robots(content, "plantmix")
    for path in ("/", "/a/b", "/x?y=1"):
        rules.allows(path)
        rules.allows_training(path)
    assert rules.crawl_delay_seconds is None or rules.crawl_delay_seconds >= 0


def _tdmrep(content: bytes) -> None:
    rules = replace(ALLOW_ALL, tdm=parse_tdmrep(content))
    for path in ("/", "/a/b", "/a*b/*"):
        rules.reserves(path)


def _rsl(content: bytes) -> None:
    rules = rsl.parse_rsl(content, parse_url("https://a.org/"))
    for path in ("/", "/a/b", "/a*b/*") if rules is not None else ():
        assert rsl.refusal(rules, path) in ("", *rsl.REFUSALS)


def _texts(content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    clean_captions(pa.array([text]))
    parse_name(text)
    normalise_licence(text, text)
    taxon_texts((text,) * 7, text, text)
    with suppress(ValueError):
        split_locator(text)


def _record(folder: Path) -> Callable[[bytes], None]:
    def parse(content: bytes) -> None:
        (folder / "release.json").write_bytes(content)
        read_record(str(folder))

    return parse


def _eval_set(place: Path, name: str, beside: str, there: bytes) -> Callable[[bytes], None]:
    """A set whose file of this name is the parser's, with one more file beside it."""
    from training.evaluation.set_layouts import open_eval_set

    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / beside).write_bytes(there)

    def parse(content: bytes) -> None:
        (place / name).write_bytes(content)
        open_eval_set(str(place), "test")

    return parse


def _members(content: bytes) -> None:
    from training.data.shards import text_members

    text_members(content, "a")


_DC = 'xmlns:dc="http://purl.org/dc/elements/1.1/"'


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x013B], exif[0x8298], exif[0x9C9D] = "Ann Field", "(c) 2020 Ann Field", "Ann".encode("utf-16-le")
    return exif.tobytes()


def _authors(content: bytes) -> None:
    for info in ({"exif": content}, {"xmp": content}, {"photoshop": {0x0404: content}}):
        image = Image.new("RGB", (1, 1))
        image.info = info
        with without_pillow_warnings:
            assert all(len(text) <= MAX_CHARS for text in authors_of(image))


def parsers(folder: Path) -> dict[str, Parser]:
    """Every parser by name; `folder` takes the files of those that read files."""
    refused = (ConfigError,)
    pictures = tuple(
        make_picture(kind, mode, **how)
        for kind, mode, how in (
            ("JPEG", "RGB", {}), ("JPEG", "CMYK", {"progressive": True}), ("PNG", "RGBA", {}), ("PNG", "I;16", {}),
            ("PNG", "P", {"transparency": 0}), ("WEBP", "RGBA", {}), ("GIF", "P", {}), ("TIFF", "RGB", {}),
            ("TIFF", "L", {"compression": "tiff_lzw"}), ("BMP", "RGB", {}), ("TGA", "RGB", {}), ("PPM", "RGB", {}),
            ("JPEG2000", "RGB", {}), ("AVIF", "RGB", {}),
        )
    )  # fmt: skip
    return {
        "meta.xml": Parser(lambda content: parse_meta(content, "meta.xml"), (META,), refused, (*XML, *NUMBERS)),
        "dwca rows": Parser(_rows, (CSV, CSV.replace(b",", b"\t")), refused, (b'"', b",", b"\t", b"##", b"'")),
        "dwca zip": Parser(_zipped(folder), (make_zip(META.replace(b"\\t", b",")),), refused, (b"PK\3\4", b"PK\1\2")),
        "tar": Parser(
            lambda content: list(tar_members(io.BytesIO(content))),
            (make_tar(), make_tar(tarfile.PAX_FORMAT), make_tar(tarfile.USTAR_FORMAT)), (BrokenTarError,), TAR_WORDS,
        ),
        "compressed tar": Parser(
            _unpacked, (gzip.compress(make_tar()), bytes(pa.compress(make_tar(), "zstd", asbytes=True))),
            (BrokenTarError,), TAR_WORDS,
        ),
        "sheet": Parser(
            lambda content: _sheet(put_sheet(content)), (make_sheet(),), (ValueError,),
            (*XML, *NUMBERS, b"<c ", b' r="B3"', b' t="s"', b' t="e"', b"</row>", b"<mergeCell ref='A1:C3'/>"),
        ),
        "workbook": Parser(_sheet, (put_sheet(make_sheet()),), (ValueError,), (b"PK\3\4", b"PK\1\2", *XML)),
        "webdataset": Parser(
            _shard(folder, side=False), (make_tar(), make_tar(tarfile.PAX_FORMAT)), refused, (*TAR_WORDS, *JSON)
        ),
        "parquet beside a tar": Parser(_shard(folder, side=True), (make_parquet(),), refused, (b"PAR1",)),
        "tar members of a release": Parser(_members, (make_tar(), make_tar()[512:]), (), TAR_WORDS),
        "csv": Parser(_table("a.csv", folder), (CSV, CSV.replace(b",", b";")), refused, (b'"', b",", b";", b"\t")),
        "tsv": Parser(_table("a.tsv", folder), (CSV.replace(b",", b"\t"),), refused, (b'"', b"\t")),
        "jsonl": Parser(_table("a.jsonl", folder), (LINES,), refused, JSON),
        "json table": Parser(_table("a.json", folder), (ARRAY, LINES), refused, JSON),
        "parquet": Parser(_table("a.parquet", folder), (make_parquet(), make_parquet("snappy")), refused, (b"PAR1",)),
        "json": Parser(parse_json, (LINES.splitlines()[0], ARRAY), (ValueError,), JSON),
        "urls": Parser(_url, URLS, (BadURL,), (b"@", b":", b"/", b"%", b"[", b"xn--", b"?token=", b"\xc3\x9f")),
        "robots.txt": Parser(_robots, (ROBOTS,), (), (b"*", b"$", b"Crawl-delay: ", b"User-agent: ", b"Disallow: /%")),
        "tdmrep.json": Parser(
            _tdmrep, (b'[{"location": "/a*b/%2A$", "tdm-reservation": 1}, {"location": "/", "tdm-reservation": 0}]',),
            (), (*JSON, b"*", b"$", b"%2"),
        ),
        "rsl": Parser(
            _rsl, (licence('<permits type="usage">ai-train search</permits><payment type="free"/>', "/a*b/").encode(),),
            (), (*XML, b"<!DOCTYPE rsl [", b"&a;", b"<prohibits type='usage'>all</prohibits>", b"https://*", b"$"),
        ),
        "xmp": Parser(data_mining, (mining("DMI-PROHIBITED"),), (), (b"<!DOCTYPE x [", b"&a;", b"<plus:DataMining>")),
        "authors": Parser(
            _authors, (_exif(), xmp("", f'{_DC} dc:creator="Ann" dc:rights="(c) Ann"'), b"\x1c\x02\x50\0\x03Ann"), (),
            (b"Exif\0\0", b"II*\0", b"\x1c\x02\x74", b"<rdf:li>", b"<!DOCTYPE x [", b"\xff\xff"),
        ),
        "headers": Parser(
            _headers,
            (b"120", b"Wed, 21 Oct 2026 07:28:00 GMT", b"other: noindex, noai, plantmix: none", b"train-ai=n, bots=y"),
            (), (b":", b",", b"=", b"GMT", b"-", b"\xb2"),
        ),
        "http answers": Parser(Asker(), ANSWERS, (), WORDS),
        "pictures": Parser(
            lambda content: measure_image(content, _SMALL), pictures, (), (b"IHDR", b"\xff\xd8\xff", b"Exif\0\0")
        ),
        "texts": Parser(
            _texts, TEXTS, (), (b"<!-- ", b"#a ", b"&amp;", b"photo by ", b"(", b"http://", "×".encode(), b"@")
        ),
        "release records": Parser(_record(folder), (RECORD,), (ConfigError, IntegrityError), JSON),
        "table of a folder": Parser(
            _folder(folder), (b"url,file,caption\nu,a.jpg,c\nv,b/../a.jpg,c\n",), refused, (b'"', b",", b"/", b"..")
        ),
        "tars of an evaluation set": Parser(
            _eval_set(folder / "set", "test/0.tar", "classnames.txt", b"rose\niris\n"),
            (make_tar(), make_tar(tarfile.PAX_FORMAT)), refused, TAR_WORDS,
        ),
        "table of an evaluation set": Parser(
            _eval_set(folder / "tables", "metadata.csv", "a.jpg", b"p"),
            (b"filepath,class,split\na.jpg,rose,test\na.jpg,iris,train\n",), refused, (b'"', b","),
        ),
    }  # fmt: skip
