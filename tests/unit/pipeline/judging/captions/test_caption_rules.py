from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from manifests.contract.outcomes import REASON_OF_RULE
from manifests.contract.tables import VERDICTS
from manifests.errors import ConfigError
from pipeline.judging.captions.measure import measure_captions
from pipeline.judging.captions.settings import CaptionSettings, TextChoice, TextSettings
from pipeline.judging.captions.texts import choose_texts, members_by_row, members_of
from pipeline.judging.captions.verdicts import columns_needed, judge_captions


def judged(candidates: pa.Table, config: dict, **columns) -> pa.Table:
    checked = CaptionSettings.model_validate(config)
    measured = measure_captions(candidates)
    joined = measured.append_column("domain", candidates["domain"]).append_column("source", candidates["source"])
    keys = Counter(measured["text_key"].to_pylist())
    repeats = [keys[key] if key else None for key in measured["text_key"].to_pylist()]
    joined = joined.append_column("num_same_text", pa.array(repeats, pa.int64()))
    for name, values in columns.items():
        joined = joined.append_column(name, pa.array(values))
    return judge_captions(joined, checked)


ONE_RULE = [
    ("not_empty", True, "", ""),
    ("not_placeholder_like", True, "no image available", "no image available"),
    ("not_filename_like", True, "IMG_1234.jpg", "IMG_1234.jpg"),
    ("not_spam_like", True, "click here to buy now!!! $$$", "click here to buy now!!! $$$"),
    ("min_given_words", 3, "two words", "2"),
    ("min_given_chars", 6, "a b c", "5"),
    ("min_chars", 5, "rose", "4"),
    ("max_chars", 5, "a rose", "6"),
    ("min_words", 3, "a rose", "2"),
    ("max_words", 1, "a rose", "2"),
    ("min_letter_ratio", 0.6, "12345 rose", "0.4444"),
    ("max_repeated_ratio", 0.5, "buy a rose buy a rose buy a rose buy a rose", "0.7"),
    ("not_bare_name", True, "Iris tectorum", "Iris tectorum"),
    ("languages", {"allow": ["en"]}, "Eine rote Rose im Garten meiner Tante", "de 0.99"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "threshold", "caption", "value"), ONE_RULE)
def test_each_rule_drops_with_its_value(make_candidates, rule: str, threshold, caption: str, value: str) -> None:
    good = {"max_words": "rose", "max_chars": "rose"}
    rows = [{"caption": caption}, {"caption": good.get(rule, "A red rose grows in the garden")}]
    rules = {rule: threshold}
    if rule.startswith("min_given"):
        rules = {"preset": "datacomp-basic", "min_side_px": None, "max_aspect_ratio": None}
    verdicts = judged(make_candidates(rows), {"rules": [rules]})
    assert verdicts.schema == VERDICTS
    assert verdicts["keep"].to_pylist() == [False, True]
    assert verdicts["reason"].to_pylist() == [REASON_OF_RULE.get(rule, rule), None]
    assert verdicts["value"][0].as_py() == value
    assert verdicts["threshold"][0].as_py()
    assert verdicts["threshold"][1].as_py() is None


def test_a_bare_name_is_a_caption_where_the_taxon_is_stated(make_candidates) -> None:
    rows = [
        {"caption": "Iris tectorum", "taxon_scientific_name": "Iris tectorum Maxim."},
        {"caption": "Iris tectorum"},
    ]
    verdicts = judged(make_candidates(rows), {"rules": [{"preset": "general"}]})
    assert verdicts["reason"].to_pylist() == [None, "bare_scientific_name"]


def test_a_caption_is_foreign_only_where_that_is_sure(make_candidates) -> None:
    """Read on real captions: the bare guess dropped key words and names at 0.6, short English ones at 0.72."""
    rows = ["card, diamond, game, suit", "bulb, comic, electric, idea, light", "Castillo de San Marcos",
            "France - Nord pas de Calais", "France - Provence Alpes Cote d'Azur", "Naval Semaphore Flag annul",
            "Hotel Icon Non Smoking Room", "Vincent van Gogh, The Harvest - 1888", "A good allround potato",
            "for example chili con carne"]  # fmt: skip
    foreign = [
        "direction à suivre 3",
        "Eine Schiefertafel mit Schwamm und Kreide",
        "Sacco a pelo per campeggio",
        "Le mie tigri preferite",
        "Bottiglia di vino pregiato e bicchiere",
    ]
    verdicts = judged(make_candidates([{"caption": c} for c in rows + foreign]), {"rules": [{"languages": {}}]})
    assert verdicts["keep"].to_pylist() == [True] * len(rows) + [False] * len(foreign)


def test_one_character_can_be_a_word(make_candidates) -> None:
    rows = [{"caption": caption} for caption in ("熊", "곰", "ox", "A", "ഉ")]
    verdicts = judged(make_candidates(rows), {"rules": [{"min_chars": 2}]})
    assert verdicts["keep"].to_pylist() == [True, True, True, False, False]
    assert verdicts["value"].to_pylist()[3:] == ["1", "1"]


def test_two_characters_of_chinese_or_korean_and_a_time_say_enough(make_candidates) -> None:
    rows = [{"caption": caption} for caption in ("韩元 (1945–1953)", "7", "10:30", "10:30 点", "1945–1953")]
    verdicts = judged(make_candidates(rows), {"rules": [{"min_letter_ratio": 0.2}]})
    assert verdicts["keep"].to_pylist() == [True, True, True, False, False]


def test_rules_over_joined_columns(make_candidates) -> None:
    rows = [{"caption": f"rose number {n}"} for n in "abcd"]
    config = {"rules": [{"min_side_px": 200, "max_aspect_ratio": 3}]}
    sizes = {"width_px": [199, 800, 400, None], "height_px": [900, 200, 400, 400]}
    verdicts = judged(make_candidates(rows), config, **sizes)
    assert verdicts["reason"].to_pylist() == ["min_side_px", "max_aspect_ratio", None, None]
    assert verdicts["value"].to_pylist() == ["199", "4", None, None]


def test_boilerplate_goes_and_repeated_species_names_stay(make_candidates) -> None:
    rows = [{"caption": "gramastar"}] * 3 + [{"caption": "Iris tectorum"}] * 3 + [{"caption": "a rose"}]
    verdicts = judged(make_candidates(rows), {"rules": [{"max_repeats": 2}]})
    assert verdicts["keep"].to_pylist() == [False] * 3 + [True] * 4
    assert verdicts["value"][0].as_py() == "3"


def test_a_scientific_name_alone_is_a_fine_plant_caption_and_a_bad_web_caption(make_candidates) -> None:
    config = {"rules": [{"domains": ["plant"], "preset": "plant"}, {"preset": "general"}]}
    rows = [{"caption": "Iris tectorum"}]
    assert judged(make_candidates(rows, domain="plant"), config)["keep"].to_pylist() == [True]
    assert judged(make_candidates(rows), config)["reason"].to_pylist() == ["bare_scientific_name"]


def test_the_first_set_that_fits_judges_and_overrides_its_preset(make_candidates) -> None:
    config = {"rules": [{"sources": ["web"], "preset": "general", "min_chars": 30, "not_bare_name": None},
                        {"preset": "general"}]}  # fmt: skip
    rows = [{"caption": "Iris tectorum"}]
    assert judged(make_candidates(rows), config)["threshold"].to_pylist() == [">= 30"]
    assert judged(make_candidates(rows, source="other"), config)["reason"].to_pylist() == ["bare_scientific_name"]


def test_the_first_rule_that_fails_is_the_reason(make_candidates) -> None:
    rows = [{"caption": "IMG_1"}]
    both = {"min_words": 3, "not_filename_like": True}
    assert judged(make_candidates(rows), {"rules": [both]})["reason"].to_pylist() == ["looks_like_a_filename"]


def test_rows_without_rules_are_an_error_that_names_them(make_candidates) -> None:
    with pytest.raises(ConfigError, match=r"no caption rule set fits the rows of web \(domain general\)"):
        judged(make_candidates([{"caption": "a"}]), {"rules": [{"domains": ["plant"], "preset": "plant"}]})


def test_a_missing_column_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"columns that are missing: .*num_same_text"):
        judge_captions(pa.table({"sample_id": ["a"]}), CaptionSettings())
    assert "width_px" in columns_needed(CaptionSettings.model_validate({"rules": [{"min_side_px": 1}]}))
    assert "width_px" not in columns_needed(CaptionSettings())


@pytest.mark.parametrize("bad", [{"preset": "plants"}, {"min_wrods": 3}, {"min_words": -1}, {"max_host_repeats": 2}])
def test_wrong_rules_are_refused(bad: dict) -> None:
    with pytest.raises(ValidationError):
        CaptionSettings.model_validate({"rules": [bad]})


def test_datacomp_basic_agrees_with_datacomps_own_conditions(make_candidates) -> None:
    """The published filter, written naively: words > 2, characters > 5, side >= 200, aspect ratio <= 3."""
    random = np.random.default_rng(0)
    pieces = ["rose", "a", "\u00a0", "  ", "\n", "玫瑰", "é", "IMG_1", "\u2003", "-", "\x1c", "\u200b"]
    captions = [" ".join(random.choice(pieces, random.integers(0, 5))) for _ in range(3000)]
    captions += ["".join(random.choice(pieces, random.integers(0, 9))) for _ in range(3000)]
    widths, heights = random.integers(1, 900, 6000), random.integers(1, 900, 6000)
    widths[:50], heights[:50] = 200, 600
    widths[50:100], heights[50:100] = 601, 200
    candidates = make_candidates([{"caption": caption} for caption in captions])
    sizes = {"width_px": widths.astype(np.int32), "height_px": heights.astype(np.int32)}
    verdicts = judged(candidates, {"rules": [{"preset": "datacomp-basic"}]}, **sizes)
    naive = []
    for caption, width, height in zip(captions, widths, heights, strict=True):
        words, chars, low, high = len(caption.split()), len(caption), min(width, height), max(width, height)
        naive.append(words > 2 and chars > 5 and low >= 200 and high / low <= 3.0)
    assert verdicts["keep"].to_pylist() == naive
    assert 100 < sum(naive) < 5000


def test_the_written_text_is_chosen_by_config(make_candidates) -> None:
    iris = {"taxon_scientific_name": "Iris tectorum", "taxon_vernacular_name": "Wall iris"}
    rows = [
        {"caption": "A pond in spring", **iris},
        {"caption": None, **iris},
        {"caption": "A pond"},
        {"caption": None},
    ]
    config = {"text": {"choices": [{"any_of": ["com"]}], "members": ["sci", "common"]}}
    checked = CaptionSettings.model_validate(config)
    candidates = make_candidates(rows)
    measured = measure_captions(candidates)
    joined = measured.append_column("domain", candidates["domain"]).append_column("source", candidates["source"])
    chosen = choose_texts(joined, checked.text)
    assert chosen["txt"].to_pylist() == ["a photo of Wall iris.", "a photo of Wall iris.", "A pond", None]
    assert chosen["txt_type"].to_pylist() == ["com", "com", "caption", None]
    both = choose_texts(joined, TextSettings(choices=(TextChoice(any_of=("caption", "sci")),)))
    assert both["txt_type"].to_pylist()[1] == "sci"  # the sentence in place of a caption is no caption to draw
    texts = dict(measured["texts"][0].as_py())
    picked = [[(name, texts[name]) for name in checked.text.members], [("trait", "blue"), ("trait_2", "tall")], []]
    column = pa.chunked_array([pa.array(picked, pa.map_(pa.string(), pa.string()))])
    members = ["common_name.txt", "sci.txt", "trait.txt", "trait_2.txt"]
    assert members_of(column) == set(members)
    assert [[text for _, text in row] for row in members_by_row(column, members)] == [
        ["Wall iris", "a photo of Iris tectorum.", "", ""],
        ["", "", "blue", "tall"],
        ["", "", "", ""],
    ]
    assert all([name for name, _ in row] == members for row in members_by_row(column, members))
    plain = choose_texts(joined, TextSettings())
    assert plain["txt_type"].to_pylist() == ["caption", "sentence", "caption", None]
    assert plain["txt"].to_pylist() == ["A pond in spring", texts["sentence"], "A pond", None]


def test_a_drawn_text_depends_on_the_sample_alone(make_candidates) -> None:
    rows = [{"caption": f"pond {i}", "taxon_scientific_name": "Iris tectorum"} for i in range(300)]
    text = {"choices": [{"any_of": ["caption", "sci", "taxon"]}], "seed": 1}
    checked = CaptionSettings.model_validate({"text": text})
    candidates = make_candidates(rows)
    measured = measure_captions(candidates)
    joined = measured.append_column("domain", candidates["domain"]).append_column("source", candidates["source"])
    drawn = choose_texts(joined, checked.text)["txt_type"].to_pylist()
    assert choose_texts(joined.slice(100, 50), checked.text)["txt_type"].to_pylist() == drawn[100:150]
    assert all(70 <= drawn.count(name) <= 130 for name in ("caption", "sci", "taxon"))


SPAM = [
    "Tap here to order your bulbs", "Roses for sale, order today!", "Act now !", "Money-back guarantee on all bulbs",
    "Tulips: save up to 40%", "Up to 70 % off garden tools", "Cheap seeds $$$", "Sign up now!!",
]  # fmt: skip
NOT_SPAM = [
    "A sign that says free shipping", "add to basket", "Icon: buy", "A shop window with 20% off", "A formula: $$x$$",
    "A $5 bill, a 5 € note", "They order coffee today", "A click beetle here", "People register now at the desk",
    "Save the whales!", "Order Fagales",
]  # fmt: skip


def test_advertisements_are_told_from_captions(make_candidates) -> None:
    rows = make_candidates([{"caption": text} for text in SPAM + NOT_SPAM])
    verdicts = judged(rows, {"rules": [{"not_spam_like": True}]})
    assert verdicts["keep"].to_pylist() == [text in NOT_SPAM for text in SPAM + NOT_SPAM]
