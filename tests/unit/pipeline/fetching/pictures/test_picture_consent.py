"""What a picture says of itself is read before its metadata goes, in every format; hostile packets do no harm."""

from __future__ import annotations

import time

import pytest
from misbehaving.answers import photo
from misbehaving.owners import PLUS, RDF, VOCABULARY, mining, with_xmp, xmp

from pipeline.fetching.pictures.consent import counting, data_mining
from pipeline.fetching.pictures.image import StoredImage, measure_image
from pipeline.fetching.pictures.settings import ImageSettings


def said(body: bytes) -> str | None:
    measured = measure_image(body, ImageSettings(min_side_px=16))
    assert isinstance(measured, StoredImage), measured
    assert b"DataMining" not in measured.body, "metadata is removed from what is stored"
    return measured.detail


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_format_is_read(kind: str) -> None:
    assert said(with_xmp(mining("DMI-PROHIBITED"), kind)) == "XMP plus:DataMining: DMI-PROHIBITED"


@pytest.mark.parametrize(
    ("value", "forbids"),
    [
        ("DMI-UNSPECIFIED", False),
        ("DMI-ALLOWED", False),
        ("DMI-PROHIBITED-AIMLTRAINING", True),
        ("DMI-PROHIBITED-GENAIMLTRAINING", True),
        ("DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING", True),
        ("DMI-PROHIBITED", True),
        ("DMI-PROHIBITED-SEECONSTRAINT", True),
        ("DMI-PROHIBITED-SEEEMBEDDEDRIGHTSEXPR", True),
        ("DMI-PROHIBITED-SEELINKEDRIGHTSEXPR", True),
        ("", False),
    ],
)
def test_values_of_the_vocabulary(value: str, forbids: bool) -> None:
    assert data_mining(mining(value)) == (value if forbids else None)


@pytest.mark.parametrize(
    "packet",
    [
        xmp(f"<plus:DataMining>{VOCABULARY}DMI-PROHIBITED</plus:DataMining>"),
        xmp(f"<plus:DataMining>\n {VOCABULARY}DMI-PROHIBITED </plus:DataMining>"),
        xmp(f'<plus:DataMining rdf:resource="{VOCABULARY}DMI-PROHIBITED"/>'),
        xmp("", 'plus:DataMining="DMI-PROHIBITED"'),
        f'<a:RDF xmlns:a="{RDF}" xmlns:b="{PLUS}"><a:Description b:DataMining="DMI-PROHIBITED"/></a:RDF>'.encode(),
    ],
)
def test_forms_in_which_it_is_written(packet: bytes) -> None:
    assert data_mining(packet) == "DMI-PROHIBITED"


@pytest.mark.parametrize(
    "packet",
    [
        b"DataMining",
        b"<DataMining",
        mining("DMI-PROHIBITED")[:-60],
        xmp("<DataMining>DMI-PROHIBITED</DataMining>"),  # of another name space
        xmp("", before='<!DOCTYPE x [<!ENTITY a "DMI-PROHIBITED">]>') + b"DataMining",
        mining("DMI-PROHIBITED") + b" " * (1 << 20),
    ],
)
def test_what_is_not_understood_forbids_nothing(packet: bytes) -> None:
    assert data_mining(packet) is None


def test_entities_are_not_expanded() -> None:
    lol = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<!DOCTYPE x [<!ENTITY l0 "DataMining">{lol}]><x>&l11;</x>'.encode()
    began = time.thread_time()
    assert data_mining(bomb) is None
    assert data_mining(b"<a>" * 300_000 + b"DataMining") is None
    assert time.thread_time() - began < 2


def test_a_picture_that_says_nothing() -> None:
    assert said(photo()) is None
    assert said(with_xmp(xmp("", 'xmlns:dc="d" dc:title="DataMining of plants"'))) is None


def test_what_a_picture_says_counts_where_the_signal_does() -> None:
    words = said(with_xmp(mining("DMI-PROHIBITED"))) or ""
    assert counting(words, ["iptc_data_mining"])
    assert not counting(words, ["content_usage"])
    assert not counting("C2PA training-mining: ai_training=notAllowed", ["iptc_data_mining"]), "of d1ccf785's folders"


def test_a_text_in_a_million_pieces_takes_no_time() -> None:
    began = time.thread_time()
    assert data_mining(
        xmp(f"{VOCABULARY}DMI-PROHIBITED".join(["<plus:DataMining>", "&#10;" * 160_000 + "</plus:DataMining>"]))
    )
    assert time.thread_time() - began < 2
