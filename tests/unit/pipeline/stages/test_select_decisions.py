"""One decision a candidate, by hand, and the same however many buckets and companies there are."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hashed_pairs import pairs_of

from manifests import tables
from manifests.catalog import Catalog
from manifests.records import Funnel
from manifests.takedowns import Entry
from pipeline.config import BuildConfig
from pipeline.quotas.balance import BalanceSettings, CapSettings
from pipeline.runner.runner import Runner
from pipeline.stages import select
from pipeline.stages.select import Choice, SelectInputs
from pipeline.store import buckets
from pipeline.store.files import Files
from pipeline.vocabulary.licences import LicenceSettings

# ---- the whole stage

CONFIG = {
    "name": "x",
    "work_dir": "work",
    "sources": [{"name": "gbif", "domain": "plant", "table": "t.csv", "columns": {"url": "url", "caption": "c"}}],
    "fetch": {"network": {"contact": "nobody@example.org"}},
    "mix": {"ratio": {"plant": 1}},
    "run": {"executor": "inline", "memory_gb": 1},
}


@dataclass(frozen=True)
class Selected:
    """What select makes."""

    funnel: Funnel
    notes: Any
    decisions: pa.Table
    extra_captions: list[dict[str, Any]]
    num_parts: dict[str, int]


def decide(folder: Path, inputs: SelectInputs) -> Selected:
    """Run the stage over given tables, in a work folder of its own."""
    config = BuildConfig.model_validate(CONFIG)
    stage = replace(select.STAGE, inputs=lambda _: inputs)
    work = tempfile.mkdtemp(dir=folder)
    with Catalog.open(work) as catalog:
        sealed = Runner(config, [stage], catalog).run().stages["select"]
        parts = catalog.parts_of(sealed.fingerprint)
    found: dict[str, list[pa.Table]] = {"decisions": [], "extra_captions": []}
    for part in parts:
        for file in part.files:
            found.setdefault(file.table, []).append(pq.read_table(Path(work, file.path)))
    num_parts = {step.name: sum(part.step == step.name for part in parts) for step in stage.steps}
    extra = pa.concat_tables([tables.EXTRA_CAPTIONS.empty_table(), *found["extra_captions"]]).to_pylist()
    return Selected(sealed.funnel, sealed.notes, pa.concat_tables(found["decisions"]), extra, num_parts)


ORDINARY = 0xAAAA_AAAA_AAAA_AAAA
FLAT = 1 << 63


def flat(name: str, phash: int = FLAT, **changes: Any) -> dict[str, Any]:
    """A picture without light and shade: its hash has the first bit alone, or a few more."""
    return sample(name, **changes) | {"phash": phash, "pixel_std": 9.0}


def sample(name: str, **changes: Any) -> dict[str, Any]:
    """A fetched image that passes every rule and looks like no other.

    `phash` is taken as its distance to a hash of 32 set bits, as photos have.
    """
    row = {
        "sample_id": name,
        "source": "gbif",
        "domain": "plant",
        "outcome": "ok",
        "phash": int.from_bytes(name.encode().ljust(8, b"\0"), "big") * 0x9E3779B97F4A7C15 % 2**64,
        "image_id": f"bytes of {name}",
        "pixels_sha256": f"pixels of {name}",
        "width_px": 100,
        "height_px": 100,
        "num_words": 5,
        "licence_id": "CC-BY-4.0",
        "keep": True,
        "length": 1000,
        "pixel_std": 50.0,
        **changes,
    }
    if changes.get("phash") is not None:
        row["phash"] ^= ORDINARY
    return {"stored_width_px": row["width_px"], "stored_height_px": row["height_px"], **row}


def run_decide(
    folder: Path,
    samples: list[dict[str, Any]],
    prefer: tuple[str, ...] = ("licence", "pixels", "caption", "priority"),
    balance: BalanceSettings = BalanceSettings(),  # noqa: B008  # frozen
    takedowns: list[Entry] | None = None,
    leaks: list[dict[str, Any]] | None = None,
    extra_captions: int = 0,
    semantic: list[dict[str, Any]] | None = None,
) -> tuple[dict[str, dict[str, Any]], Selected]:
    folder.mkdir(parents=True, exist_ok=True)

    def written(name: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> Files:
        picked = [{key: value for key, value in row.items() if key in schema.names} for row in rows]
        pq.write_table(pa.Table.from_pylist(picked, schema=schema), folder / f"{name}.parquet")
        return Files((str(folder / f"{name}.parquet"),))

    fetched = [row for row in samples if row["outcome"] == "ok"]
    hashes = np.array([row["phash"] for row in fetched], np.uint64)
    pq.write_table(pairs_of(hashes), folder / "pairs.parquet")
    inputs = SelectInputs(
        choice=Choice(
            prefer=prefer,
            extra_captions=extra_captions,
            priority={"gbif": 0, "cc": 1, "folders": 0},
            class_folders=("folders",),
            licences=LicenceSettings(),
            balance=balance,
            takedowns=tuple(takedowns or ()),
            limits={"image_too_small": "32"},
        ),
        candidates=written("candidates", tables.CANDIDATES, samples),
        facts=written("facts", tables.FACTS, samples),
        captions=written("captions", tables.CAPTIONS, samples),
        caption_verdicts=written("caption_verdicts", tables.VERDICTS, fetched),
        score_verdicts=Files(),
        pairs=Files((str(folder / "pairs.parquet"),)),
        details=written("details", tables.DETAILS, [row for row in fetched if "detail_px" in row]),
        leaks=written("leaks", tables.LEAKS, leaks or []),
        semantic_pairs=written("semantic_pairs", tables.SEMANTIC_PAIRS, semantic) if semantic else Files(),
    )
    result = decide(folder, inputs)
    decisions = result.decisions.to_pylist()
    assert [row["sample_id"] for row in decisions] == sorted(row["sample_id"] for row in samples)
    return {row["sample_id"]: row for row in decisions}, result


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
    assert (found["best"]["keep"], found["second"]["keep"]) == (False, True)


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


def test_pictures_that_an_earlier_version_measured_are_compared_by_what_is_known(tmp_path: Path) -> None:
    older: dict[str, Any] = {"colour_std": None, "has_camera": None, "format": "JPEG"}
    samples = [
        sample("a: grey", phash=7, mode="L", num_bytes=9, **older),
        sample("b: colour", phash=7, mode="RGB", num_bytes=8, **older),
        sample("c: other", phash=0xFFFF, mode="RGB", num_bytes=9, **older),
        sample("d: camera", phash=0xFFFF, mode="RGB", num_bytes=8) | {"has_camera": True, "format": "JPEG"},
    ]
    found, _ = run_decide(tmp_path, samples)
    assert {name: row["kept_because"] for name, row in found.items()} == {
        "a: grey": "it is in colour",
        "b: colour": None,
        "c: other": "its EXIF names the camera",
        "d: camera": None,
    }


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
        sample("an older blank", pixel_std=0.5, colour_std=None),
        sample("copy of a blank", pixel_std=0.5, pixels_sha256="pixels of a blank", licence_id="CC0-1.0"),
        sample("owned", pixel_std=0.5, licence_id="all-rights-reserved"),
        sample("colours of one light", pixel_std=0.5, colour_std=20.0),
        sample("pale", pixel_std=2.1),
    ]
    found, result = run_decide(tmp_path, samples)
    assert [name for name, row in found.items() if row["keep"]] == ["colours of one light", "pale"]
    assert (found["a blank"]["value"], found["a blank"]["threshold"]) == ("0.5", ">= 2 (spread of light)")
    assert result.funnel.reasons == {"flat_picture": 3, "licence": 1}


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
    assert told["copy"] == ("same bytes", "of taken", "taken")
    assert told["near"] == ("pHash distance 2", "of taken", "taken")
    assert told["like it"] == ("pHash distance 0", "of ruled-out", "ruled-out")
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


# ---- leaks of evaluation sets


def leak(sample_id: str, matched: str = "near", distance: int | None = 3, via: str | None = None) -> dict[str, Any]:
    return {
        "sample_id": sample_id,
        "evaluation_set": "held",
        "evaluation_member": "m.jpg",
        "matched": matched,
        "distance": distance,
        "via_sample_id": via,
    }


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
    }
    assert [name for name, row in found.items() if row["keep"]] == ["masked", "nothing stated"]
    assert result.funnel.num_in == result.funnel.num_kept + sum(result.funnel.reasons.values())


def test_copies_that_contradict_the_one_that_stays_are_listed(tmp_path: Path) -> None:
    rose, oak = ({"taxon_name": name, "taxon_ranks": {"class": "Magnoliopsida", "genus": name.split()[0]}}
                 for name in ("Rosa canina", "Quercus robur"))  # fmt: skip
    before, capped, dropped = (f"{number:032x}" for number in (1, 2, 3))
    samples = [
        sample("a", width_px=900, phash=7, **rose),
        sample("b: near, owned", phash=7 ^ 0b11, licence_id="all-rights-reserved"),
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
            ("licence", "near copy", "CC-BY-4.0", "all-rights-reserved", "b: near, owned"),
        ],
        "e": [("licence", "same bytes", "CC0-1.0", "CC-BY-ND-4.0", "f: same bytes")],
        "g": [("label", "near copy", "cat", "dog", "h: folder")],
    }
    assert [found[name]["reason"] for name in (capped, dropped, before)] == ["balance", "near_duplicate", None], (
        "a cap cut it"
    )
    assert result.notes["conflicts"] == {"licence": 2, "label": 2}


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
                row |= {"pixel_std": 0.1}
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
    assert set(whole.notes["conflicts"]) == {"licence", "label"}
    monkeypatch.setattr(buckets, "ROW_BYTES", 1e9 / most_rows)
    _, cut = run_decide(tmp_path / "cut", samples, **told)
    assert cut.num_parts["duplicates"] >= 2
    assert cut.num_parts["decide"] == cut.num_parts["keys"] == -(-len(samples) // most_rows)
    assert cut.decisions.equals(whole.decisions)
    assert cut.extra_captions == whole.extra_captions
    assert (cut.funnel, cut.notes) == (whole.funnel, whole.notes)
