"""One decision a candidate, by hand: rules, duplicates, takedowns and caps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from selecting import FLAT, flat, run_decide, sample

from manifests.contract.takedowns import Entry
from pipeline.judging.quotas.balance import BalanceSettings, CapSettings
from pipeline.judging.vocabulary.licences import LicenceSettings


def test_every_candidate_has_one_decision_with_its_reason(tmp_path: Path) -> None:
    samples = [
        sample("fine"),
        sample("gone", outcome="http_404", detail="not found", phash=None, image_id=None, pixels_sha256=None),
        sample("short", keep=False, reason="caption_too_short", value="1", threshold=">= 3"),
        sample("owned", licence_id="all-rights-reserved"),
        sample("twin-b", image_id="same", pixels_sha256="same", phash=7),
        sample("twin-a", image_id="same", pixels_sha256="same", phash=7),
        sample("turned", image_id="other", pixels_sha256="same", phash=7),
        sample("near", phash=7 ^ 0b11000),
    ]
    found, result = run_decide(tmp_path, samples)
    told = {name: (row["keep"], row["stage"], row["reason"]) for name, row in found.items()}
    assert told["fine"] == (True, None, None)
    assert told["gone"] == (False, "fetch", "http_404")
    assert told["short"] == (False, "caption", "caption_too_short")
    assert told["owned"][:2] == (False, "select")
    assert found["near"]["keep"] is True  # the first sample id of the four wins a tie
    assert {found[name]["other_sample_id"] for name in ("twin-a", "twin-b", "turned")} == {"near"}
    assert {told[name] for name in ("twin-a", "twin-b", "turned")} == {(False, "select", "near_duplicate")}
    assert {found[name]["distance"] for name in ("twin-a", "twin-b", "turned")} == {2}
    assert (result.funnel.num_in, result.funnel.num_kept) == (6, 2)
    assert result.funnel.reasons == {"near_duplicate": 3, "licence": 1}
    assert result.notes["domains"] == {"plant": 2}


def test_exact_duplicates_say_how_they_are_the_same(tmp_path: Path) -> None:
    samples = [
        sample("a", image_id="same", pixels_sha256="p", phash=7),
        sample("b", image_id="same", pixels_sha256="p", phash=7),
        sample("c", image_id="other", pixels_sha256="p", phash=7),
        sample("d", phash=7),
    ]
    found, _ = run_decide(tmp_path, samples)
    assert {name: (row["reason"], row["value"]) for name, row in found.items()} == {
        "a": (None, None),
        "b": ("exact_duplicate", "same bytes"),
        "c": ("exact_duplicate", "same pixels"),
        "d": ("near_duplicate", "pHash distance 0"),
    }


def test_a_duplicate_whose_better_twin_fell_to_a_rule_stays(tmp_path: Path) -> None:
    samples = [
        sample("best", width_px=900, phash=7, keep=False, reason="caption_too_short"),
        sample("second", phash=7),
    ]
    found, _ = run_decide(tmp_path, samples)
    assert (found["best"]["keep"], found["second"]["keep"]) == (False, True)
    samples[0] = sample("best", width_px=900, phash=7, licence_id="all-rights-reserved")
    found, _ = run_decide(tmp_path / "licence", samples)
    assert [found[name]["reason"] for name in ("best", "second")] == ["licence", "conflicting_licence"]


@pytest.mark.parametrize(
    ("prefer", "winner"),
    [("pixels", "large"), ("caption", "wordy"), ("priority", "chosen"), ("licence", "chosen")],
)
def test_who_stays_is_a_written_policy(tmp_path: Path, prefer: str, winner: str) -> None:
    samples = [
        sample("large", phash=7, width_px=5000, height_px=5000),
        sample("wordy", phash=7, num_words=50),
        sample("chosen", phash=7, source="cc"),
    ]
    found, _ = run_decide(tmp_path, samples, (prefer,))
    assert [name for name, row in found.items() if row["keep"]] == [winner]


def test_a_picture_with_its_species_stays_before_a_longer_caption(tmp_path: Path) -> None:
    web = {"domain": "general", "num_words": 50, "width_px": 5000, "height_px": 5000}
    samples = [
        sample("a species", phash=7, taxon_name="Rosa canina"),
        sample("its web copy", phash=7, **web),
        sample("b rose", phash=0xFFFF),
        sample("b web copy", phash=0xFFFF, **web),
    ]
    found, result = run_decide(tmp_path, samples)
    assert [name for name, row in found.items() if row["keep"]] == ["a species", "b web copy"]
    assert found["its web copy"]["kept_because"] == "it names a taxon"
    assert result.notes["kept_elsewhere"] == {"general": {"plant": 1}, "plant": {"general": 1}}


def test_priority_comes_before_a_taxon_and_licence_before_both(tmp_path: Path) -> None:
    # of the two sources of these samples, cc has the higher priority
    samples = [
        sample("chosen", phash=7, source="cc"),
        sample("named", phash=7, taxon_name="Rosa canina"),
        sample("z licensed", phash=0xFFFF, taxon_name="Rosa canina"),
        sample("z unknown", phash=0xFFFF, source="cc", licence_id="unknown"),
    ]
    found, _ = run_decide(tmp_path, samples, licences=LicenceSettings(allow=("known", "unknown")))
    assert [name for name, row in found.items() if row["keep"]] == ["chosen", "z licensed"]
    assert found["named"]["kept_because"] == "its source has a higher priority"


def test_unlike_flat_pictures_are_no_duplicates(tmp_path: Path) -> None:
    samples = [
        flat("grey"),
        flat("diagram"),
        flat("lines", FLAT | 0b101),
        flat("copy of grey", pixels_sha256="pixels of grey"),
    ]
    found, _ = run_decide(tmp_path, samples)
    assert {name: row["reason"] for name, row in found.items() if not row["keep"]} == {"grey": "exact_duplicate"}


def test_a_picture_of_one_colour_is_dropped_for_that(tmp_path: Path) -> None:
    samples = [
        sample("a blank", pixel_std=0.5),
        sample("copy of a blank", pixel_std=0.5, pixels_sha256="pixels of a blank", licence_id="CC0-1.0"),
        sample("owned", pixel_std=0.5, licence_id="all-rights-reserved"),
        sample("colours of one light", pixel_std=0.5, colour_std=20.0),
        sample("pale", pixel_std=2.1),
    ]
    found, result = run_decide(tmp_path, samples)
    assert [name for name, row in found.items() if row["keep"]] == ["colours of one light", "pale"]
    assert (found["a blank"]["value"], found["a blank"]["threshold"]) == ("0.5", ">= 2 (spread of light)")
    assert result.funnel.reasons == {"flat_picture": 2, "licence": 1}


def test_a_copy_of_a_flat_picture_that_was_taken_down_goes_too(tmp_path: Path) -> None:
    samples = [flat("a"), flat("b", pixels_sha256="pixels of a"), flat("c")]
    found, _ = run_decide(tmp_path, samples, takedowns=[Entry("id", "a", "asked")])
    assert {name: row["reason"] for name, row in found.items()} == {"a": "takedown", "b": "takedown", "c": None}


def test_a_copy_blown_up_to_more_stored_pixels_does_not_either(tmp_path: Path) -> None:
    """Both are smaller than what is stored, so the copy has more pixels and more bytes, and less detail."""
    samples = [
        sample("original", phash=7, width_px=200, height_px=200, num_bytes=9_000, detail_px=30_000),
        sample("blown up", phash=7, width_px=250, height_px=250, length=20_000, detail_px=28_000),
        sample("near", phash=7 ^ 0b11, width_px=240, height_px=240, length=18_000, detail_px=27_000),
        sample("same size", phash=7, width_px=200, height_px=200, num_bytes=8_000, detail_px=35_000),
    ]
    found, _ = run_decide(tmp_path, samples)
    assert [name for name, row in found.items() if row["keep"]] == ["original"]
    assert found["same size"]["kept_because"] == "it has more bytes as downloaded"


def test_a_larger_copy_with_more_detail_stays(tmp_path: Path) -> None:
    samples = [
        sample("reduced", phash=7, width_px=200, height_px=200, length=30_000, detail_px=30_000),
        sample("larger", phash=7, width_px=250, height_px=250, length=20_000, detail_px=33_000),
        sample("alone", phash=7 ^ 0xFFFF, width_px=10, height_px=10),
    ]
    found, _ = run_decide(tmp_path, samples)
    assert [name for name, row in found.items() if row["keep"]] == ["alone", "larger"]


def test_what_was_taken_down_stays_out_with_all_its_copies(tmp_path: Path) -> None:
    samples = [
        sample("taken", url="http://a.example/1.jpg", phash=7),
        sample("copy", image_id="bytes of taken", pixels_sha256="p", phash=7, width_px=9000),
        sample("near", phash=7 ^ 0b11, width_px=9000, height_px=9000),
        sample("ruled-out", phash=2**64 - 1, keep=False, reason="min_words", rights_holder=" Ada  "),
        sample("like it", phash=2**64 - 1),
        sample("by id", image_id="f00", licence_id="all-rights-reserved"),
        sample("fine"),
    ]
    entries = [Entry("url", "http://a.example/1.jpg", "asked"), Entry("owner", "ADA"), Entry("id", "f00", "court")]
    found, result = run_decide(tmp_path, samples, takedowns=entries)
    assert [name for name, row in found.items() if row["keep"]] == ["fine"]
    assert found["ruled-out"]["reason"] == "min_words"
    told = {name: (row["value"], row["threshold"], row["other_sample_id"]) for name, row in found.items()}
    assert told["taken"] == ("url http://a.example/1.jpg", "asked", None)
    assert told["by id"] == ("id f00", "court", None)
    assert told["copy"] == ("same bytes as bytes of taken", "asked", "taken")
    assert told["near"] == ("pHash distance 2 to bytes of taken", "asked", "taken")
    assert told["like it"] == ("pHash distance 0 to bytes of ruled-out", "not stated", "ruled-out")
    assert result.funnel.reasons == {"takedown": 5}
    again, _ = run_decide(tmp_path / "none", samples)
    assert [name for name, row in again.items() if row["keep"]] == ["fine", "like it", "near"]


def test_the_answer_does_not_hang_on_the_order_of_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [
        sample(f"s{number:02d}", phash=1 << int(rng.integers(0, 8)), width_px=int(rng.integers(1, 4)))
        for number in range(30)
    ]
    first, one = run_decide(tmp_path / "1", samples)
    rng.shuffle(samples)
    second, two = run_decide(tmp_path / "2", samples)
    assert first == second
    assert one.notes["content"] == two.notes["content"]
    assert one.decisions.equals(two.decisions)


def test_caps_count_what_duplicates_left_and_say_what_they_cut(tmp_path: Path) -> None:
    samples = [
        sample(
            f"{number:032x}",
            taxon_name="Rosa canina",
            host=f"h{number % 2}.org",
            phash=number * 0x9E3779B97F4A7C15 % 2**64,
        )
        for number in range(1, 31)
    ]
    samples += [sample(f"{40:032x}", taxon_name="Iris tectorum", host="h0.org")]
    samples += [
        sample(f"{41:032x}", taxon_name="Rosa canina", image_id=samples[0]["image_id"], phash=samples[0]["phash"])
    ]
    balance = BalanceSettings(caps=(CapSettings(by="taxon", at_most=10), CapSettings(by="host", at_most=4)))
    found, result = run_decide(tmp_path, samples, balance=balance)
    reasons = result.funnel.reasons
    assert result.funnel.num_kept == 8, "4 of each host"
    assert sum(reasons.values()) + 8 == len(samples)
    cut = next(row for row in found.values() if (row["value"] or "").startswith("Rosa"))
    assert (cut["stage"], cut["reason"], cut["threshold"]) == ("select", "balance", "<= 10 of one taxon")
    num_roses = 31 - (reasons.get("exact_duplicate", 0) + reasons.get("near_duplicate", 0))
    assert cut["value"] == f"Rosa canina: {num_roses}", "duplicates are no longer counted"
    first, second = result.notes["balance"]
    assert (first["num_before"], first["num_after"]) == (num_roses + 1, 11)
    assert first["head"] == [["Rosa canina", num_roses, 10], ["Iris tectorum", 1, 1]]
    assert (second["num_before"], second["num_after"]) == (11, 8), "the second cap counts what the first left"
