from __future__ import annotations

import pyarrow as pa
import pytest

from manifests.contract.tables import CAPTIONS
from pipeline.judging.captions.measure import measure_captions, text_keys
from pipeline.judging.captions.settings import CaptionSettings


def measure_one(make_candidates, caption: str | None, **row) -> dict:
    return measure_captions(make_candidates([{"caption": caption, **row}])).to_pylist()[0]


def test_the_schema_is_the_contract(make_candidates) -> None:
    table = measure_captions(make_candidates([{"caption": "a rose"}, {}]))
    assert table.schema == CAPTIONS
    assert measure_captions(make_candidates([])).schema == CAPTIONS


def test_counts(make_candidates) -> None:
    row = measure_one(make_candidates, "  Rosa 'Peace', 12 blooms!  ")
    assert (row["given_chars"], row["given_words"]) == (28, 4)
    assert (row["num_chars"], row["num_words"]) == (24, 4)
    assert row["letter_ratio"] == pytest.approx(15 / 21)


@pytest.mark.parametrize(
    ("caption", "words"), [("a red rose", 3), ("红色的玫瑰花", 4), ("สวนดอกไม้", 5), ("", 0), ("rose", 1)]
)
def test_words_also_in_scripts_without_spaces(make_candidates, caption: str, words: int) -> None:
    assert measure_one(make_candidates, caption)["num_words"] == words


@pytest.mark.parametrize(
    "caption",
    ["IMG_1234", "IMG_1234.JPG", "DSC00012", "dscn0815", "P1020304", "Screenshot 2020-01-01", "rose.jpg",
     "8f14e45fceea167a", "20140115_123456", "image 12", "untitled-1", "PXL_20210101_120000",
     "123456.png", "Picture 0B", "2014-01-15 12.30.01", "00123456"],
)  # fmt: skip
def test_file_names_are_seen(make_candidates, caption: str) -> None:
    assert measure_one(make_candidates, caption)["filename_like"]


@pytest.mark.parametrize(
    "caption",
    ["red rose", "gold-theme", "Boeing 747", "Apollo 11", "Rosa 'Peace'", "Fig tree with ripe figs", "Image of a rose",
     "Photo album on a table", "flag: Serbia", "PC on a desk", "Scan of a brain", "F-16", "Room 101", "glace_06",
     "Switch_Cisco_3750_1", "red_apple", "144", "9-11", "1.2.1", "1000000", "2004-2005"],
)  # fmt: skip
def test_captions_are_not_taken_for_file_names(make_candidates, caption: str) -> None:
    assert not measure_one(make_candidates, caption)["filename_like"]


@pytest.mark.parametrize(
    "caption",
    ["image not available", "No image", "Photo", "No photo available.", "[image]", "HASH(0x862bbb8)", "untitled", "n/a",
     "NULL", "undefined", "[object Object]", "{{title}}", "image coming soon", "Lorem ipsum dolor sit amet",
     "image 3 of 5", "Click to enlarge", "placeholder image", "This image is no longer available", "no description"],
)  # fmt: skip
def test_placeholders_are_seen(make_candidates, caption: str) -> None:
    assert measure_one(make_candidates, caption)["placeholder_like"]


@pytest.mark.parametrize(
    "caption",
    ["image of a rose", "photo album", "a picture frame", "home sweet home", "error message on a screen", "blank page",
     "the unknown soldier", "picture book", "test tube", "next to the house", "no smoking", "close-up of a rose",
     # names of icons, words of other languages (zero, old, Thai province), a text about the filler text
     "home", "download", "error", "Menu", "Null.", "Alt", "Na", "Nan", "Nil", "Lorem Ipsum generator"],
)  # fmt: skip
def test_captions_are_not_taken_for_placeholders(make_candidates, caption: str) -> None:
    assert not measure_one(make_candidates, caption)["placeholder_like"]


@pytest.mark.parametrize(
    ("caption", "has", "bare"),
    [
        ("Iris tectorum", True, True),
        ("Quercus robur L.", True, True),
        ("Mentha × piperita", True, True),
        ("Capsella bursa-pastoris (L.) Medik.", True, True),
        ("A pond with Iris tectorum in bloom", True, False),
        ("Rosaceae", False, True),
        ("Red rose", False, False),
        ("Toyota Corolla parked on a road", False, False),
        ("Paris is beautiful", False, False),
        ("Africa map", False, False),
        ("Viola odorata L.", True, True),
        ("Amanita muscaria (L.) Lam.", True, True),
        ("Paris opera at night", False, False),
        # read on real captions: a sentence in another language or a common name behind make no bare name
        ("Lucertola arrotolata", True, False),
        ("Una rana.", True, False),
        ("Uma iguana", True, False),
        ("Chelmon rostratus Kupferstreifen Pinzettfisch", True, False),
        ("Linia aeriana Tux.", True, False),
        ("Africa orientale", True, False),
        ("Lira italiana", True, False),
        ("Idiomas indo-europeus", True, False),
        ("Tunisia dinarii", True, False),
        ("Discussion forum", False, False),
        ("Ulmus americana", True, True),
        ("Larus fuscus Linnaeus, 1758", True, True),
    ],
)
def test_binomials(make_candidates, caption: str, has: bool, bare: bool) -> None:
    row = measure_one(make_candidates, caption)
    assert (row["has_binomial"], row["bare_name"]) == (has, bare)


def test_a_known_taxon_settles_what_a_bare_name_is(make_candidates) -> None:
    taxon = {"taxon_scientific_name": "Zea mays L."}
    assert measure_one(make_candidates, "zea mays", **taxon)["bare_name"]
    assert measure_one(make_candidates, "Ripe zea mays on a field", **taxon)["has_binomial"]


def test_a_taxon_stands_in_for_an_empty_caption(make_candidates) -> None:
    row = measure_one(make_candidates, "OLYMPUS DIGITAL CAMERA", taxon_scientific_name="Iris tectorum Maxim.",
                      taxon_vernacular_name="Wall iris")  # fmt: skip
    assert row["text"] == "Iris tectorum, commonly known as Wall iris."
    assert (row["text_source"], row["text_key"]) == ("taxon", None)
    assert measure_one(make_candidates, None)["text_source"] == "none"


def test_repeated_ngrams(make_candidates) -> None:
    assert measure_one(make_candidates, "rose garden in spring " * 5)["repeated_ratio"] > 0.7
    assert measure_one(make_candidates, "a rose in the garden and a rose in the house")["repeated_ratio"] < 0.3
    assert measure_one(make_candidates, "a red rose in the garden")["repeated_ratio"] == 0


def test_languages_of_plain_sentences(make_candidates) -> None:
    captions = {"en": "A red rose in the garden of my aunt", "de": "Eine rote Rose im Garten meiner Tante",
                "fr": "Une rose rouge dans le jardin de ma tante", "zh": "我阿姨花园里的一朵红玫瑰"}  # fmt: skip
    rows = measure_captions(make_candidates([{"caption": c} for c in captions.values()]))
    assert rows["language"].to_pylist() == list(captions)
    assert measure_captions(make_candidates([{"caption": "12 + 3"}]))["language"].to_pylist() == [None]


def test_no_ascii_caption_is_in_a_language_of_another_script(make_candidates) -> None:
    rows = measure_captions(make_candidates([{"caption": "Slim Blue Cell phone"}]))
    assert rows["language"][0].as_py() not in {"th", "ja", "zh", "ru"}


def test_keys_are_blind_to_case_and_punctuation() -> None:
    keys = text_keys(pa.array(["A red rose!", "a  red-rose", "a red roses", "", None, "!!!", "???"])).to_pylist()
    assert keys[0] == keys[1]
    assert keys[3] is None
    assert keys[4] is None
    assert len({keys[0], keys[2], keys[5], keys[6]}) == 4


def test_a_threshold_is_no_part_of_what_is_measured() -> None:
    strict = CaptionSettings.model_validate({"rules": [{"preset": "general", "min_words": 5}]})
    assert strict.measure_identity() == CaptionSettings().measure_identity()
    assert strict.rules_identity() != CaptionSettings().rules_identity()


@pytest.mark.parametrize("caption", ["a", "x.", "12", "花", ""])
def test_a_taxon_stands_in_for_a_caption_that_is_too_short(make_candidates, caption: str) -> None:
    row = measure_one(make_candidates, caption, taxon_scientific_name="Iris tectorum Maxim.")
    assert (row["text"], row["text_source"]) == ("Iris tectorum.", "taxon")


@pytest.mark.parametrize("caption", ["oak", "玫瑰"])
def test_a_short_caption_stays_beside_a_taxon(make_candidates, caption: str) -> None:
    row = measure_one(make_candidates, caption, taxon_scientific_name="Iris tectorum Maxim.")
    assert (row["text"], row["text_source"]) == (caption, "caption")


def test_a_short_caption_stays_where_no_taxon_is_known(make_candidates) -> None:
    row = measure_one(make_candidates, "a")
    assert (row["text"], row["text_source"]) == ("a", "caption")
