"""One decision a candidate, by hand: leaks, captions and labels of copies, likeness; the same in any buckets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selecting import ORDINARY, flat, run_decide, sample

from manifests.contract.takedowns import Entry
from pipeline.judging.quotas.balance import BalanceSettings, CapSettings
from pipeline.store import buckets


def leak(sample_id: str, matched: str = "near", distance: int | None = 3, via: str | None = None) -> dict[str, Any]:
    return {
        "sample_id": sample_id,
        "evaluation_set": "held",
        "evaluation_member": "m.jpg",
        "matched": matched,
        "distance": distance,
        "via_sample_id": via,
    }


# ---- leaks of evaluation sets


def test_a_leak_is_dropped_before_duplicates_are_chosen(tmp_path: Path) -> None:
    """The larger of two twins leaks: the other one, which does not, is kept and stands for nobody."""
    samples = [sample("large", phash=77, width_px=900), sample("small", phash=77), sample("other")]
    found, result = run_decide(tmp_path, samples, leaks=[leak("large")])
    assert found["large"]["reason"] == "eval_leak"
    assert found["large"]["value"] == "pHash distance 3"
    assert (found["large"]["evaluation_set"], found["large"]["evaluation_member"]) == ("held", "m.jpg")
    assert (found["large"]["distance"], found["large"]["other_sample_id"]) == (3, None)
    assert found["small"]["keep"]
    assert dict(result.funnel.reasons) == {"eval_leak": 1}


def test_what_matches_a_leak_goes_with_it(tmp_path: Path) -> None:
    samples = [sample("a", phash=77), sample("b", phash=76), sample("c")]
    found, _ = run_decide(tmp_path, samples, leaks=[leak("a", "bytes", None), leak("b", "duplicate", 1, "a")])
    assert {name for name, row in found.items() if row["keep"]} == {"c"}
    assert found["a"]["value"] == "same bytes"
    assert (found["b"]["value"], found["b"]["other_sample_id"]) == ("pHash distance 1 to the leak a", "a")


def test_a_leak_that_a_rule_dropped_keeps_the_rule_as_reason(tmp_path: Path) -> None:
    samples = [sample("a", keep=False, reason="min_words", value="1", threshold=">= 2"), sample("b")]
    found, result = run_decide(tmp_path, samples, leaks=[leak("a")])
    assert (found["a"]["reason"], found["a"]["value"], found["a"]["evaluation_set"]) == ("min_words", "1", None)
    assert result.funnel.num_in == 1


# ---- captions of dropped duplicates


def test_captions_of_duplicates_are_kept_with_the_image_that_stays(tmp_path: Path) -> None:
    same = {"phash": 77, "text_source": "caption"}
    samples = [
        sample("stays", width_px=900, text="a red poppy", **same),
        sample("again", text="A red Poppy", **same),  # says nothing new
        sample("short", text="flower", num_words=1, **same),
        sample("long", text="a poppy in a field of wheat", num_words=7, **same),
        sample("twice", text="Flower", num_words=1, **same),
        sample("taxon", text="a photo of Papaver rhoeas", phash=77, text_source="taxon"),  # not a caption
        sample("alone", text="an oak", text_source="caption"),
    ]
    _, result = run_decide(tmp_path, samples, extra_captions=3)
    kept = result.extra_captions
    assert [(row["sample_id"], row["place"], row["text"], row["from_sample_id"]) for row in kept] == [
        ("stays", 1, "a poppy in a field of wheat", "long"),
        ("stays", 2, "flower", "short"),
    ]
    _, result = run_decide(tmp_path / "one", samples, extra_captions=1)
    assert [row["from_sample_id"] for row in result.extra_captions] == ["long"]
    _, result = run_decide(tmp_path / "off", samples)
    assert result.extra_captions == []


# ---- semantic duplicates


def close(a: str, b: str, cosine: float) -> dict[str, Any]:
    return {"pixels_a": f"pixels of {a}", "pixels_b": f"pixels of {b}", "cosine": cosine}


def test_semantic_duplicates_fall_to_the_better_image(tmp_path: Path) -> None:
    large, small, third, last = (f"{number}{number} image" for number in (1, 4, 6, 9))
    samples = [sample(large, width_px=900), sample(small, width_px=500), sample(third), sample(last)]
    pairs = [close(large, small, 0.96), close(large, third, 0.99), close(small, third, 0.97), close(third, last, 0.98)]
    found, result = run_decide(tmp_path, samples, semantic=pairs)
    dropped = {name: (row["other_sample_id"], row["value"]) for name, row in found.items() if not row["keep"]}
    # the last is close to the third alone, which goes: it stays, nothing chains
    assert dropped == {small: (large, "cosine 0.9600"), third: (large, "cosine 0.9900")}
    assert dict(result.funnel.reasons) == {"semantic_duplicate": 2}


def test_semantic_duplicates_are_sought_among_what_hashes_left(tmp_path: Path) -> None:
    samples = [sample("a", width_px=900, phash=77), sample("b", width_px=500, phash=77), sample("c")]
    found, _ = run_decide(tmp_path, samples, semantic=[close("b", "c", 0.99)])
    assert found["b"]["reason"] == "near_duplicate"
    assert found["c"]["keep"]


def test_what_is_of_one_group_with_a_leak_leaves_with_it(tmp_path: Path) -> None:
    samples = [
        sample("leaked", group_id="1"),
        sample("sister", group_id="1"),
        sample("other source", group_id="1", source="cc"),
        sample("other group", group_id="2"),
        sample("without"),
        sample("short and leaked", group_id="3", keep=False, reason="caption_too_short"),
        sample("its sister", group_id="3"),
        sample("leaked without"),
    ]
    found, result = run_decide(
        tmp_path, samples, leaks=[leak("leaked"), leak("short and leaked"), leak("leaked without")]
    )
    assert [name for name, row in found.items() if row["keep"]] == ["other group", "other source", "without"]
    for name, via in (("sister", "leaked"), ("its sister", "short and leaked")):
        row = found[name]
        assert (row["reason"], row["value"]) == ("eval_leak", f"one group with the leak {via}")
        assert (row["other_sample_id"], row["distance"]) == (via, None)
        assert row["evaluation_set"] == found["leaked"]["evaluation_set"]
    assert result.funnel.reasons == {"eval_leak": 4}


# ---- copies that contradict each other


def test_one_picture_under_a_licence_that_is_not_allowed_is_not_used(tmp_path: Path) -> None:
    address = {"url": "http://a.example/1.jpg"}
    samples = [
        sample("allowed", **address, image_id="x"),
        sample("unstated", **address, image_id="x", licence_id="unknown"),
        sample("refused", **address, outcome="http_404", licence_id="all-rights-reserved", phash=None)
        | {"phash": None},
        sample("same bytes", image_id="y"),
        sample("of the same bytes", image_id="y", keep=False, reason="min_words", licence_id="conflicting"),
        sample("same pixels", pixels_sha256="p"),
        sample("of the same pixels", pixels_sha256="p", licence_id="all-rights-reserved"),
        sample("near copy", phash=0xFF),
        sample("of the near copy", phash=0xFC, keep=False, reason="min_words", licence_id="all-rights-reserved"),
        sample("sheet of one layout", phash=0xFF, middle_hash=0xFF),
        sample("masked", url="http://a.example/?key=***"),
        sample("masked too", url="http://a.example/?key=***", licence_id="all-rights-reserved"),
        sample("nothing stated", image_id="z"),
        sample("nothing stated either", image_id="z", licence_id="unknown", phash=0) | {"phash": 1},
    ]
    found, result = run_decide(tmp_path, samples)
    told = {
        name: (row["value"], row["threshold"], row["other_sample_id"])
        for name, row in found.items()
        if row["reason"] == "conflicting_licence"
    }
    assert told == {
        "allowed": ("CC-BY-4.0 here, all-rights-reserved there", "one licence for the same address", "refused"),
        "same bytes": ("CC-BY-4.0 here, conflicting there", "one licence for the same bytes", "of the same bytes"),
        "same pixels": (
            "CC-BY-4.0 here, all-rights-reserved there",
            "one licence for the same pixels",
            "of the same pixels",
        ),
        "near copy": (
            "CC-BY-4.0 here, all-rights-reserved there",
            "one licence for the near copy",
            "of the near copy",
        ),
    }
    assert [name for name, row in found.items() if row["keep"]] == ["masked", "nothing stated", "sheet of one layout"]
    assert result.funnel.num_in == result.funnel.num_kept + sum(result.funnel.reasons.values())


def test_copies_that_contradict_the_one_that_stays_are_listed(tmp_path: Path) -> None:
    rose, oak = ({"taxon_name": name, "taxon_ranks": {"class": "Magnoliopsida", "genus": name.split()[0]}}
                 for name in ("Rosa canina", "Quercus robur"))  # fmt: skip
    before, capped, dropped = (f"{number:032x}" for number in (1, 2, 3))
    samples = [
        sample("a", width_px=900, phash=7, **rose),
        sample("b: near, free", phash=7 ^ 0b11, licence_id="CC0-1.0"),
        sample("c: near, other", phash=7 ^ 0b11, **oak),
        sample("d: genus", phash=7, licence_id="CC-BY-2.0", taxon_name="Rosa", taxon_ranks={"genus": "Rosa"}),
        sample("e", phash=0xFFFF, image_id="same", licence_id="CC0-1.0"),
        sample("f: same bytes", phash=0xFFFF, image_id="same", licence_id="CC-BY-ND-4.0"),
        sample("g", phash=0xFF00FF00, source="folders", caption="cat"),
        sample("h: folder", phash=0xFF00FF00, source="folders", caption="dog"),
        sample("i: no class", phash=0xFF00FF00, caption="a dog"),
        sample(capped, phash=0xF0F0F0F0F0F0, host="h", **rose),
        sample(dropped, phash=0xF0F0F0F0F0F0, num_words=1, host="h", **oak),
        sample(before, host="h"),
    ]
    found, result = run_decide(
        tmp_path, samples, balance=BalanceSettings(caps=(CapSettings(by="host", at_most=1),), seed=1)
    )
    conflicts = {
        name: [tuple(each.values()) for each in row["conflicts"]] for name, row in found.items() if row["conflicts"]
    }
    assert conflicts == {
        "a": [
            ("label", "near copy", "Rosa canina", "Quercus robur", "c: near, other"),
            ("licence", "near copy", "CC-BY-4.0", "CC0-1.0", "b: near, free"),
        ],
        "e": [("licence", "same bytes", "CC0-1.0", "CC-BY-ND-4.0", "f: same bytes")],
        "g": [("label", "near copy", "cat", "dog", "h: folder")],
    }
    assert [found[name]["reason"] for name in (capped, dropped, before)] == ["balance", "near_duplicate", None], (
        "a cap cut it"
    )
    assert result.notes["conflicts"] == {"licence": 2, "label": 2}


def test_copies_under_other_labels_may_all_be_dropped(tmp_path: Path) -> None:
    rose, oak = ({"taxon_name": name, "taxon_ranks": {"genus": name.split()[0]}} for name in ("Rosa canina", "Quercus"))
    samples = [
        sample("a", phash=7, **rose),
        sample("b", phash=7, **rose),
        sample("c: near", phash=7 ^ 0b11, **oak),
        sample("d: its genus", phash=7, taxon_name="Rosa", taxon_ranks={"genus": "Rosa"}),
        sample("e: nothing said", phash=7),
        sample("f", phash=0xFFFF, **rose),
        sample("g: of one taxon", phash=0xFFFF, **rose),
        sample("h: a rule fell", phash=0xFFFF, keep=False, reason="min_words", **oak),
        sample("i: sheet of one layout", phash=0xFFFF, middle_hash=0xFF, **oak),
    ]
    found, result = run_decide(tmp_path, samples, other_labels="drop")
    assert {name[0]: row["reason"] for name, row in found.items() if row["reason"]} == {
        **dict.fromkeys("abcd", "conflicting_label"),
        "g": "near_duplicate",
        "h": "min_words",
    }
    assert (found["a"]["value"], found["a"]["other_sample_id"]) == ("Rosa canina here, Quercus there", "c: near")
    assert result.funnel.num_in == result.funnel.num_kept + sum(result.funnel.reasons.values())


# ---- in buckets


def crowd(seed: int) -> list[dict[str, Any]]:
    """Chains of hashes a few bits apart, stars and pairs, over rows of every other kind."""
    rng = np.random.default_rng(seed)
    samples = []
    for company in range(42):
        phash = ORDINARY ^ int(rng.integers(0, 1 << 62))
        for number in range(int(rng.integers(1, 40 if company < 2 else 6 if company < 12 else 2))):
            name = rng.bytes(16).hex()
            row = sample(
                name,
                source=str(rng.choice(["gbif", "cc"])),
                width_px=int(rng.integers(50, 900)),
                num_words=int(rng.integers(1, 9)),
                text=f"words {int(rng.integers(0, 30))}",
                text_source="caption",
                taxon_name=f"taxon {int(rng.integers(0, 3))}",
                group_id=f"group {int(rng.integers(0, 40))}" if number % 3 else None,
                url=f"http://a.example/{company}-{number}",
                detail_px=int(rng.integers(2_000, 90_000)),
            )
            fate = int(rng.integers(0, 12))
            if fate == 0:
                row |= {"keep": False, "reason": "min_words", "value": "1", "threshold": ">= 2"}
            elif fate == 1:
                row |= {"licence_id": "all-rights-reserved", "image_id": f"bytes {int(rng.integers(0, 9))}"}
            elif fate == 2:
                row |= {"licence_id": "CC-BY-ND-4.0", "image_id": f"bytes {int(rng.integers(0, 19))}"}
            elif fate == 3:
                row |= {"pixel_std": 0.1, "colour_std": 0.1}
            elif fate == 4:
                row |= {"url": f"http://a.example/{int(rng.integers(0, 9))}-1"}
            samples.append(row | {"phash": phash})
            phash ^= 1 << (number + 5) if company % 2 else 1 << int(rng.integers(0, 3))
    return samples + [flat(rng.bytes(16).hex(), pixels_sha256=f"p{number % 2}") for number in range(5)]


@pytest.mark.parametrize(("seed", "most_rows"), [(2, 9), (12, 30)])
@pytest.mark.slow
def test_buckets_and_companies_decide_as_all_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, most_rows: int
) -> None:
    samples = crowd(seed)
    names = [row["sample_id"] for row in samples]
    groups = [(row["source"], row["group_id"]) if row.get("group_id") else None for row in samples]
    grouped = [name for name, group in zip(names, groups, strict=True) if group and groups.count(group) > 1]
    lone = [*names[-38:-5], *names[:3]]  # most of these have a company of their own
    told: dict[str, Any] = {
        "takedowns": [Entry("url", "http://a.example/1-3", "asked"), Entry("id", names[5])],
        "leaks": [leak(grouped[0]), leak(grouped[-1]), leak(names[21], "duplicate", 2, grouped[0])],
        "balance": BalanceSettings(caps=(CapSettings(by="taxon", at_most=9), CapSettings(by="source", about=7))),
        "extra_captions": 2,
        "semantic": [
            close(*sorted(pair), 0.2 if number == 0 else 0.99 + 0.0001 * number)
            for number, pair in enumerate(
                (lone[at], lone[at + more]) for at in range(0, len(lone), 3) for more in (1, 2)
            )
        ],
    }
    found, whole = run_decide(tmp_path / "whole", samples, **told)
    assert set(whole.num_parts.values()) == {1}
    reasons = {
        "conflicting_licence",
        "flat_picture",
        "near_duplicate",
        "exact_duplicate",
        "semantic_duplicate",
        "eval_leak",
        "takedown",
        "licence",
        "balance",
    }
    assert reasons <= set(whole.funnel.reasons) | {row["reason"] for row in found.values()}
    assert whole.extra_captions
    assert whole.notes["conflicts"]["label"]
    monkeypatch.setattr(buckets, "ROW_BYTES", 1e9 / most_rows)
    _, cut = run_decide(tmp_path / "cut", samples, **told)
    assert cut.num_parts["duplicates"] >= 2
    assert cut.num_parts["decide"] == cut.num_parts["keys"] == -(-len(samples) // most_rows)
    assert cut.decisions.equals(whole.decisions)
    assert cut.extra_captions == whole.extra_captions
    assert (cut.funnel, cut.notes) == (whole.funnel, whole.notes)
