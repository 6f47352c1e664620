"""What a picture says of itself is read before its metadata goes, in every format; hostile packets do no harm."""

from __future__ import annotations

import importlib.util
import io
import time

import pytest
from misbehaving.answers import photo
from misbehaving.owners import PLUS, RDF, VOCABULARY, mining, signed, with_xmp, xmp
from PIL import Image

from manifests.errors import ConfigError
from pipeline.fetching.pictures import consent
from pipeline.fetching.pictures.consent import c2pa_training, counting, data_mining
from pipeline.fetching.pictures.image import StoredImage, measure_image
from pipeline.fetching.pictures.settings import ImageSettings


def said(body: bytes, *, with_c2pa: bool = False) -> str | None:
    measured = measure_image(body, ImageSettings(min_side_px=16), with_c2pa=with_c2pa)
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
    assert said(photo(), with_c2pa=True) is None
    assert said(with_xmp(xmp("", 'xmlns:dc="d" dc:title="DataMining of plants"'))) is None


# ---- C2PA


@pytest.mark.parametrize(
    ("entries", "label", "found"),
    [
        ({"cawg.ai_training": {"use": "notAllowed"}}, "cawg.training-mining", "ai_training=notAllowed"),
        ({"c2pa.ai_training": {"use": "notAllowed"}}, "c2pa.training-mining", "ai_training=notAllowed"),
        ({"cawg.data_mining": {"use": "constrained"}}, "cawg.training-mining", "data_mining=constrained"),
        (
            {"cawg.ai_training": {"use": "allowed"}, "cawg.ai_generative_training": {"use": "notAllowed"}},
            "cawg.training-mining",
            "ai_generative_training=notAllowed",
        ),
        ({"cawg.ai_training": {"use": "allowed"}}, "cawg.training-mining", None),
        ({"cawg.ai_inference": {"use": "notAllowed"}}, "cawg.training-mining", None),
        ({"org.example.ai_training": {"use": "notAllowed"}}, "org.example.training", None),
        ({}, "", None),
    ],
)
def test_a_signed_picture_is_read(entries: dict[str, dict[str, str]], label: str, found: str | None) -> None:
    body = signed(entries, label)
    assert said(body, with_c2pa=True) == (f"C2PA training-mining: {found}" if found else None)
    assert said(body) is None, "it is read only where it counts"


def test_a_refusal_survives_an_edit() -> None:
    before = signed({"cawg.ai_training": {"use": "notAllowed"}})
    assert c2pa_training(signed({}, ingredient=before)) == "ai_training=notAllowed"


def test_a_changed_picture_still_refuses_and_a_broken_manifest_says_nothing() -> None:
    body = signed({"cawg.ai_training": {"use": "notAllowed"}})
    changed = bytearray(body)
    changed[-100] ^= 1
    assert c2pa_training(bytes(changed)) == "ai_training=notAllowed"
    start = body.index(b"jumb")
    for cut in (start + 8, start + 400, start + 2000):
        broken = bytearray(body)
        broken[cut : cut + 64] = bytes(64)
        assert c2pa_training(bytes(broken)) in (None, "ai_training=notAllowed")


def test_both_are_said() -> None:
    image = Image.open(io.BytesIO(signed({"cawg.ai_training": {"use": "notAllowed"}})))
    image.info["xmp"] = mining("DMI-PROHIBITED")
    words = consent.refusal_of(image, signed({"cawg.ai_training": {"use": "notAllowed"}}), with_c2pa=True)
    assert words == "XMP plus:DataMining: DMI-PROHIBITED; C2PA training-mining: ai_training=notAllowed"
    assert counting(words, ["c2pa_training"])
    assert counting(words, ["iptc_data_mining"])
    assert not counting(words, ["content_usage"])


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    consent.require_library(["iptc_data_mining"])
    with pytest.raises(ConfigError, match=r"pip install .*\[c2pa\]"):
        consent.require_library(["c2pa_training"])
