from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipeline.judging.captions.measure import measure_captions
from pipeline.judging.captions.preview import describe_preview, preview_captions
from pipeline.judging.captions.rules import RULE_OF_REASON
from pipeline.judging.captions.settings import CaptionSettings
from pipeline.judging.captions.verdicts import count_reasons, judge_captions

NULLS = {"width_px": pa.int32(), "height_px": pa.int32()}
CONFIG = {
    "rules": [
        {"domains": ["plant"], "preset": "plant"},
        {"preset": "general", "min_words": 2, "max_repeats": 2, "min_side_px": 100},
    ],
    "text": {"choices": [{"domains": ["plant"], "any_of": ["sci"]}, {"any_of": ["caption"]}]},
}
CAPTIONS = ["IMG_1", "a red <b>rose</b>", "gramastar ad", "gramastar ad", "gramastar ad", "", "Iris tectorum", "oak",
            "HASH(0x858b108)", "a tree | example.com"]  # fmt: skip


def report_of(make_candidates, sizes: list[int] | None = None) -> tuple[dict[str, Any], pa.Table, pa.Table]:
    general = make_candidates([{"caption": caption} for caption in CAPTIONS])
    taxon = {"taxon_scientific_name": "Iris tectorum", "caption": "My iris"}
    candidates = pa.concat_tables([general, make_candidates([taxon], source="gbif", domain="plant")])
    num = len(candidates)
    joined = {name: pa.nulls(num, kind) for name, kind in NULLS.items()}
    joined["num_same_text"] = pa.array([CAPTIONS.count(c) for c in candidates["caption"].to_pylist()], pa.int64())
    if sizes:
        joined["width_px"] = joined["height_px"] = pa.array((sizes * num)[:num], pa.int32())
    settings = CaptionSettings.model_validate(CONFIG)
    report = preview_captions(candidates, joined, settings)
    rows = measure_captions(candidates)
    for name, column in (*joined.items(), ("domain", candidates["domain"]), ("source", candidates["source"])):
        rows = rows.append_column(name, column)
    return report, judge_captions(rows, settings), candidates


def test_the_preview_counts_what_the_rules_do(make_candidates) -> None:
    report, verdicts, candidates = report_of(make_candidates)
    counted = count_reasons(verdicts)
    assert {rule["rule"]: rule["num_dropped"] for rule in report["rules"] if rule["num_dropped"]} == {
        RULE_OF_REASON[reason]: num for reason, num in counted.items() if reason != "kept"
    }
    assert report["kept"]["num"] == counted["kept"]
    assert report["num_rows"] == len(candidates) == counted["kept"] + sum(r["num_dropped"] for r in report["rules"])
    by_domain = report["kept"]["by_domain"]
    assert sum(counts["rows"] for counts in by_domain.values()) == len(candidates)
    assert by_domain["plant"] == {"rows": 1, "kept": 1}


def test_a_rule_alone_drops_at_least_what_it_drops_in_its_turn(make_candidates) -> None:
    report, _, _ = report_of(make_candidates)
    rules = {rule["rule"]: rule for rule in report["rules"]}
    assert all(rule["num_alone"] >= rule["num_dropped"] for rule in report["rules"])
    assert (rules["min_words"]["num_dropped"], rules["min_words"]["num_alone"]) == (1, 3)
    assert rules["min_words"]["thresholds"] == [">= 2"]
    assert [e["caption"] for e in rules["max_repeats"]["examples"]] == ["gramastar ad"], "no example twice"


def test_rules_over_pictures_that_are_not_fetched_are_listed(make_candidates) -> None:
    report, _, _ = report_of(make_candidates)
    assert report["not_judged"] == ["min_side_px"]
    assert "(not judged: nothing is known yet)" in "\n".join(describe_preview(report))
    seen, _, _ = report_of(make_candidates, sizes=[50, 500])
    assert seen["not_judged"] == []
    assert next(rule for rule in seen["rules"] if rule["rule"] == "min_side_px")["num_alone"] == 5


def test_a_person_reads_before_and_after(make_candidates) -> None:
    report, _, _ = report_of(make_candidates)
    lines = "\n".join(describe_preview(report))
    assert "cleaning changes 3 of 11 captions" in lines
    assert "'a red <b>rose</b>'  ->  'a red rose'" in lines
    assert "plant     a photo of Iris tectorum.   <- sci, given 'My iris'" in lines
    long = make_candidates([{"caption": "word " * 30 + "&amp; more"}])
    joined = {name: pa.nulls(1, kind) for name, kind in {**NULLS, "num_same_text": pa.int64()}.items()}
    settings = CaptionSettings.model_validate({**CONFIG, "rules": [{"preset": "plant"}]})
    lines = "\n".join(describe_preview(preview_captions(long, joined, settings)))
    assert "word &amp; more'  ->  '…" in lines, "a change far behind is shown, not cut off"
