"""A preview of cleaning and each rule on a sample of candidates: counts with examples, as plain values and as lines.

Pure: a table of candidates in, joined with what is known of their pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.judging.captions.measure import measure_captions
from pipeline.judging.captions.rules import RULE_OF_REASON, RULES
from pipeline.judging.captions.settings import CaptionSettings, RuleSet
from pipeline.judging.captions.texts import choose_texts
from pipeline.judging.captions.verdicts import judge_captions

NUM_EXAMPLES = 3
NUM_KEPT_EXAMPLES = 5
_PICTURE_RULES = {"min_side_px", "max_aspect_ratio"}


def preview_captions(
    candidates: pa.Table,
    joined: Mapping[str, pa.Array],
    settings: CaptionSettings,
    names: pa.Table | None = None,
    texts: pa.Table | None = None,
) -> dict[str, Any]:
    """Return counts and examples as plain values.

    `joined` holds, row for row, num_same_text, width_px and height_px. Where nothing is known of one of
    them it is a column of nulls, and the rules that read it are listed under `not_judged`. `names` (schema NAMES)
    resolves the taxa, where a backbone is given. `texts` (schema JOINED_TEXTS) are those of other tables, as judged.
    """
    measured = measure_captions(candidates, names)
    if texts is not None:
        measured = measured.set_column(measured.column_names.index("texts"), "texts", _with_joined(measured, texts))
    rows = measured.append_column("domain", candidates["domain"]).append_column("source", candidates["source"])
    for name, column in joined.items():
        rows = rows.append_column(name, column)
    unknown = {name for name, column in joined.items() if column.null_count == len(column)}
    verdicts = judge_captions(rows, settings)
    raw = candidates["caption"].fill_null("").to_pylist()
    kept = pc.indices_nonzero(verdicts["keep"]).to_pylist()
    chosen = choose_texts(rows, settings.text)
    return {
        "num_rows": candidates.num_rows,
        "texts": [] if texts is None else _by_kind(texts),
        "cleaning": _cleaning(raw, measured),
        "rules": _rules(rows, verdicts, settings, raw),
        "not_judged": sorted(name for name in _rule_names(settings) if set(RULES[name].needs) & unknown),
        "kept": {
            "num": len(kept),
            "by_domain": _by_domain(rows, verdicts),
            "examples": [
                {
                    "caption": raw[row],
                    "text": chosen["txt"][row].as_py(),
                    "text_type": chosen["txt_type"][row].as_py(),
                    "domain": rows["domain"][row].as_py(),
                }
                for row in _of_each_domain(kept, rows["domain"])
            ],
        },
    }


def _with_joined(measured: pa.Table, texts: pa.Table) -> pa.Array:
    """Return the texts of each row by name, with the joined ones that stay.

    The one called caption is that of its row.
    """
    more: dict[str, list[tuple[str, str]]] = {}
    for sample_id, name, text in zip(*(texts[name].to_pylist() for name in ("sample_id", "name", "text")), strict=True):
        if name not in (None, "caption"):
            more.setdefault(sample_id, []).append((name, text))
    rows = zip(measured["sample_id"].to_pylist(), measured["texts"].to_pylist(), strict=True)
    return pa.array([[*(pairs or ()), *more.get(sample_id, ())] for sample_id, pairs in rows], measured["texts"].type)


def _by_kind(texts: pa.Table) -> list[dict[str, Any]]:
    """Return how many joined texts of each kind stay (no reason) or go for a reason, with an example."""
    counted = texts.group_by(["kind", "reason"]).aggregate([("text", "count"), ("text", "min")])
    counted = counted.rename_columns({"text_count": "num", "text_min": "example"})
    rows: list[dict[str, Any]] = counted.sort_by([("kind", "ascending"), ("num", "descending")]).to_pylist()
    return rows


def _cleaning(raw: list[str], measured: pa.Table) -> dict[str, Any]:
    """Return how many captions each step changes, with some of them before and after all steps."""
    clean = measured["text"].to_pylist()
    by_step: dict[str, list[int]] = {}
    changed = 0
    for row, steps in enumerate(measured["steps"].to_pylist()):
        changed += bool(steps)
        for step in steps:
            by_step.setdefault(step, []).append(row)
    listed = [
        {
            "step": step,
            "num_changed": len(rows),
            "examples": [{"caption": raw[row], "text": clean[row]} for row in _spread(rows, NUM_EXAMPLES)],
        }
        for step, rows in sorted(by_step.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return {"num_changed": changed, "steps": listed}


def _rules(rows: pa.Table, verdicts: pa.Table, settings: CaptionSettings, raw: list[str]) -> list[dict[str, Any]]:
    """One entry a rule, in the order in which they are applied: what it drops there, and what it would drop alone."""
    reasons, values, thresholds = (verdicts[name].to_pylist() for name in ("reason", "value", "threshold"))
    clean = rows["text"].to_pylist()
    listed = []
    for name in _rule_names(settings):
        alone = _only(settings, name)
        num_alone = pc.sum(pc.invert(judge_captions(rows, alone)["keep"])).as_py() or 0
        dropped = [row for row, reason in enumerate(reasons) if RULE_OF_REASON.get(reason) == name]
        distinct = list({raw[row]: row for row in reversed(dropped)}.values())[::-1]  # no caption twice
        written = {RULES[name].written(rules.thresholds()[name]) for rules in alone.rules if rules.thresholds()}
        listed.append(
            {
                "rule": name,
                "thresholds": sorted(written),
                "num_dropped": len(dropped),
                "num_alone": num_alone,
                "examples": [
                    {"caption": raw[row], "text": clean[row], "value": values[row], "threshold": thresholds[row]}
                    for row in _spread(distinct, NUM_EXAMPLES)
                ],
            }
        )
    return listed


def _rule_names(settings: CaptionSettings) -> list[str]:
    return list(dict.fromkeys(name for rules in settings.rules for name in rules.thresholds()))


def _only(settings: CaptionSettings, name: str) -> CaptionSettings:
    sets = [
        RuleSet(domains=rules.domains, sources=rules.sources, **{name: rules.thresholds().get(name)})
        for rules in settings.rules
    ]
    return settings.model_copy(update={"rules": tuple(sets)})


def _by_domain(rows: pa.Table, verdicts: pa.Table) -> dict[str, dict[str, int]]:
    frame = pa.table({"domain": rows["domain"], "keep": pc.cast(verdicts["keep"], pa.int64())})
    counted = frame.group_by("domain").aggregate([("keep", "count"), ("keep", "sum")]).sort_by("domain")
    return {row["domain"]: {"rows": row["keep_count"], "kept": row["keep_sum"]} for row in counted.to_pylist()}


def _of_each_domain(kept: list[int], domains: pa.ChunkedArray) -> list[int]:
    """Return some kept rows of each domain."""
    by_domain: dict[str, list[int]] = {}
    for row, domain in zip(kept, domains.take(pa.array(kept, pa.int64())).to_pylist(), strict=True):
        by_domain.setdefault(domain, []).append(row)
    return [row for name in sorted(by_domain) for row in _spread(by_domain[name], NUM_KEPT_EXAMPLES)]


def _spread(rows: list[int], num: int) -> list[int]:
    """At most `num` of the rows, evenly apart."""
    return [rows[index * len(rows) // num] for index in range(num)] if len(rows) > num else rows


# ---- as lines


def describe_preview(report: Mapping[str, Any]) -> list[str]:
    """Return the preview as lines for a person."""
    cleaning, kept = report["cleaning"], report["kept"]
    lines = [f"cleaning changes {cleaning['num_changed']:,} of {report['num_rows']:,} captions", ""]
    for step in cleaning["steps"]:
        lines.append(f"  {step['step']:<12}{step['num_changed']:>7,}")
        lines += [f"      {before}  ->  {after}" for before, after in map(_change, step["examples"])]
    lines += ["", f"{'rule, in the order of use':<32}{'drops':>8}{'alone':>8}  allowed", ""]
    for rule in report["rules"]:
        allowed = "; ".join(rule["thresholds"])
        unknown = "  (not judged: nothing is known yet)" if rule["rule"] in report["not_judged"] else ""
        lines.append(f"  {rule['rule']:<30}{rule['num_dropped']:>8,}{rule['num_alone']:>8,}  {allowed}{unknown}")
        for example in rule["examples"]:
            value = "" if example["value"] in (example["text"], "", None) else f"  [{_cut(example['value'], 40)}]"
            lines.append(f"      {_quote(example['caption'])}{value}")
    lines += ["", f"  {'kept':<30}{kept['num']:>8,}  ({kept['num'] / max(report['num_rows'], 1):.1%})"]
    lines += [f"      {domain}: {num['kept']:,} of {num['rows']:,}" for domain, num in kept["by_domain"].items()]
    lines += ["", "some that stay, as they would be written to txt:", ""]
    for example in kept["examples"]:
        same = example["caption"] == example["text"]
        origin = "" if same else f"   <- {example['text_type']}, given {_quote(example['caption'])}"
        lines.append(f"  {example['domain']:<10}{_cut(example['text'] or '', 90)}{origin}")
    lines += [""] if report["texts"] else []
    for row in report["texts"]:
        name = f"joined {row['kind']}: {row['reason'] or 'stays'}"
        lines.append(f"  {name:<48}{row['num']:>8,}  {_quote(row['example'])}")
    if _PICTURE_RULES & set(report["not_judged"]):
        lines += [
            "",
            "rules over pictures need fetched pictures: run `plantmix build CONFIG --to fetch`, then preview again",
        ]
    return lines


def _change(example: Mapping[str, str]) -> tuple[str, str]:
    """Before and after, both from shortly before their first difference."""
    before, after = (" ".join(example[name].split()) for name in ("caption", "text"))
    same = next((at for at, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after))
    start = 0 if same < 50 else same - 20
    lead = "…" if start else ""
    return _quote(lead + before[start:]), _quote(lead + after[start:])


def _quote(text: str) -> str:
    return repr(_cut(text, 70))


def _cut(text: str, most: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"
