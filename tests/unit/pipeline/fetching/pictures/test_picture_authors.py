"""Author and rights holder out of EXIF, IPTC and XMP, in every form that tools write, and out of broken ones."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import PLAIN, encode, picture
from misbehaving.owners import with_xmp, xmp
from PIL import Image

from manifests.pictures.authors import MAX_CHARS, Authors, authors_of, holder_in
from pipeline.fetching.pictures.image import StoredImage, measure_image

DC = 'xmlns:dc="http://purl.org/dc/elements/1.1/"'


def listed(name: str, kind: str, *texts: str) -> str:
    items = "".join(f'<rdf:li xml:lang="x-default">{text}</rdf:li>' for text in texts)
    return f"<dc:{name}><rdf:{kind}>{items}</rdf:{kind}></dc:{name}>"


def exif(artist: object = None, notice: object = None, xp: str = "") -> bytes:
    made = Image.Exif()
    for tag, value in ((0x013B, artist), (0x8298, notice), (0x9C9D, xp.encode("utf-16-le"))):
        if value:
            made[tag] = value
    return made.tobytes()


def iptc(*records: tuple[int, int, bytes]) -> bytes:
    """The marker segment APP13 as Photoshop writes it."""
    block = b"".join(b"\x1c" + struct.pack(">BBH", *kind, len(value)) + value for *kind, value in records)
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(block)) + block + b"\0" * (len(block) % 2)
    content = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content


def with_iptc(*records: tuple[int, int, bytes]) -> bytes:
    body = encode(picture(), "JPEG")
    return body[:2] + iptc(*records) + body[2:]


def in_jpeg(**more: bytes) -> bytes:
    return encode(picture(), "JPEG", **more)


ANN, JOSE = "Ann Field", "José Müller"
FORMS = {
    "no metadata": (in_jpeg(), "", ""),
    "exif": (in_jpeg(exif=exif(ANN, "Copyright 2019 Ann Field")), ANN, ANN),
    "exif in UTF-8": (in_jpeg(exif=exif(JOSE.encode(), "©".encode() + JOSE.encode())), JOSE, JOSE),
    "exif in Latin-1": (in_jpeg(exif=exif(JOSE.encode("latin-1"))), JOSE, ""),
    "exif of Windows": (in_jpeg(exif=exif(xp=JOSE)), JOSE, ""),
    "exif of an editor too": (in_jpeg(exif=exif(notice="Ann Field\0The Editors")), "", "Ann Field The Editors"),
    "exif of a PNG": (encode(picture(), "PNG", exif=exif(ANN)), ANN, ""),
    "exif of a WebP": (encode(picture(), "WEBP", exif=exif(ANN, ANN)), ANN, ANN),
    "xmp": (with_xmp(xmp(listed("creator", "Seq", ANN) + listed("rights", "Alt", "© Us"), DC)), ANN, "Us"),
    "xmp of two": (with_xmp(xmp(listed("creator", "Seq", ANN, JOSE), DC)), f"{ANN}; {JOSE}", ""),
    "xmp as attributes": (with_xmp(xmp("", f'{DC} dc:creator="{ANN}" dc:rights="(c) 2020, {JOSE}"')), ANN, JOSE),
    "xmp of a PNG": (with_xmp(xmp(listed("creator", "Seq", ANN), DC), "PNG"), ANN, ""),
    "xmp of a TIFF": (with_xmp(xmp(listed("creator", "Seq", ANN), DC), "TIFF"), ANN, ""),
    "iptc": (with_iptc((2, 80, ANN.encode()), (2, 116, b"2020 Ann Field. All rights reserved.")), ANN, ANN),
    "iptc in UTF-8": (with_iptc((1, 90, b"\x1b%G"), (2, 80, JOSE.encode())), JOSE, ""),
    "iptc in Latin-1": (with_iptc((2, 80, JOSE.encode("latin-1")), (2, 80, ANN.encode())), f"{JOSE}; {ANN}", ""),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_authors_are_read_and_the_stored_picture_has_none(form: str) -> None:
    body, creator, rights = FORMS[form]
    result = measure_image(body, PLAIN)
    assert isinstance(result, StoredImage)
    assert (result.original.file_creator, result.original.file_rights) == (creator, rights)
    with Image.open(io.BytesIO(result.body)) as again:
        assert authors_of(again) == Authors()


def test_xmp_counts_before_exif_and_what_it_lacks_is_taken_from_there() -> None:
    packet = xmp(listed("creator", "Seq", ANN), DC)
    body = in_jpeg(xmp=packet, exif=exif(JOSE.encode(), JOSE.encode()))
    result = measure_image(body, PLAIN)
    assert (result.original.file_creator, result.original.file_rights) == (ANN, JOSE)


@pytest.mark.parametrize(
    ("notice", "holder"),
    [
        ("© 2019-2021 Ann Field. All rights reserved.", ANN),
        ("(C) Ann Field 2020", ANN),
        ("Copyright by Ann Field", ANN),
        ("Ann Field / CC BY 4.0", "Ann Field / CC BY 4.0"),
        ("Byron Field", "Byron Field"),
        ("Copyrighted Works Ltd", "Copyrighted Works Ltd"),
        ("© 2020", ""),
        ("all rights reserved", ""),
        ("", ""),
    ],
)
def test_a_notice_names_its_holder(notice: str, holder: str) -> None:
    assert holder_in(notice) == holder


@pytest.mark.parametrize(
    "body",
    [
        with_xmp(xmp("<dc:creator><rdf:Seq><rdf:li>" + "<a>" * 5000, DC)),
        with_xmp(xmp(listed("creator", "Seq", "&a;"), DC, before='<!DOCTYPE x [<!ENTITY a "Ann">]>')),
        with_iptc((2, 80, b"")),
        in_jpeg()[:2] + b"\xff\xed\0\x1aPhotoshop 3.0\x008BIM\x04\x04\0\0\xff\xff" + in_jpeg()[2:],
    ],
)  # fmt: skip
def test_hostile_metadata_says_nothing_and_costs_no_picture(body: bytes) -> None:
    result = measure_image(body, PLAIN)
    assert isinstance(result, StoredImage)
    assert (result.original.file_creator, result.original.file_rights) == ("", "")


def test_a_long_text_with_a_secret_is_cut_and_masked() -> None:
    said = "Ann\u0007\u2028Field https://u:pw@a.example/x?token=abcdefgh12345678 " + "x" * 5000
    result = measure_image(in_jpeg(exif=exif(said.encode())), PLAIN)
    creator = result.original.file_creator
    assert len(creator) == MAX_CHARS
    assert creator.startswith("Ann Field https://a.example/x?token=*** x")


@given(st.binary(max_size=300))
def test_any_bytes_of_metadata_are_harmless(noise: bytes) -> None:
    image = picture()
    for name in ("exif", "xmp"):
        image.info = {name: noise}
        said = authors_of(image)
        "".join(said).encode()
    image.info = {"photoshop": {0x0404: b"\x1c\x02\x50" + noise}}
    assert all(len(text) <= MAX_CHARS for text in authors_of(image))
