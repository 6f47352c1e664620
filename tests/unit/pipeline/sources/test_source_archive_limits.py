"""A Darwin Core Archive says nothing that takes all the memory there is, and what it may not say is named."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.errors import ConfigError
from pipeline.sources.biology import archive

MILLION = b"https://a.b/c.jpg,%b\n" % (b"rose " * 2_000) * 100
META = """<archive xmlns="http://rs.tdwg.org/dwc/text/"><core rowType="Occurrence" encoding="{encoding}"
 fieldsTerminatedBy="," ignoreHeaderLines="{lines}"><files><location>o.csv</location></files><id index="{index}"/>
<field index="1" term="http://rs.tdwg.org/dwc/terms/associatedMedia"/></core></archive>"""


def write_archive(path: Path, encoding: str = "UTF-8", lines: str = "1", index: str = "0") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("meta.xml", META.format(encoding=encoding, lines=lines, index=index))
        packed.writestr("o.csv", "id,associatedMedia\n1,http://a/1.jpg\n" * 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": "²"}, "index of id: '²' is not a whole number"),
        ({"index": "9" * 5000}, "index of id: '9{100}' is not a whole number"),
        ({"index": "99999999"}, "index of id is 99,999,999, and only 4,096 are read"),
        ({"lines": "-1"}, "ignoreHeaderLines: '-1' is not a whole number"),
        ({"encoding": "hex"}, "no such encoding: hex"),
        ({"encoding": "unicode_escape"}, "no such encoding: unicode_escape"),
        ({"encoding": "idna"}, "no such encoding: idna"),
    ],
)
def test_a_description_has_bounds(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    write_archive(path, **changes)
    with pytest.raises(ConfigError, match=rf"a\.zip.*{message}"):
        archive.read_archive(str(path), "here")


def broken_deflate(content: bytes) -> bytes:
    """The zip with other bytes where its first file is packed."""
    start = 30 + struct.unpack("<H", content[26:28])[0]
    return content[:start] + b"\xff" * 20 + content[start + 20 :]


def a_large_description(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("meta.xml", b"<archive>" + b" " * 300_000_000)
    return stream.getvalue()


def a_bomb(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        packed.writestr("meta.xml", META.format(encoding="UTF-8", lines="1", index="0"))
        packed.writestr("o.csv", MILLION * 70)
    return stream.getvalue()


def a_file_named_twice(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        meta = META.format(encoding="UTF-8", lines="1", index="0")
        packed.writestr("meta.xml", meta.replace("<location>", "<location>o.csv</location><location>"))
        packed.writestr("o.csv", "id,associatedMedia\n")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken_deflate, "meta.xml cannot be read"),
        (a_large_description, "meta.xml has more than 1,048,576 bytes"),
        (a_bomb, r"a\.zip cannot be read: its [\d,]+ bytes unpack to 70,"),
        (a_file_named_twice, "Occurrence names a file twice"),
    ],
)
def test_a_broken_or_huge_archive_is_named(change: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    write_archive(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ConfigError, match=message):
        archive.read_archive(str(path), "here")
