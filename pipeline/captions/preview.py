"""What cleaning and each rule would do to a sample of candidates: counts with examples, as plain values and as lines.

Pure: reads a table of candidates joined with what is known of their pictures; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captions.measure import measure_captions
from pipeline.captions.rules import RULES, columns_needed, judge_captions
from pipeline.captions.settings import CaptionSettings, RuleSet
from pipeline.captions.texts import choose_texts

NUM_EXAMPLES = 3
NUM_KEPT_EXAMPLES = 5
_PICTURE_RULES = {"min_side_px", "max_aspect_ratio", "min_area_px", "min_pixel_std"}


def preview_captions(
    candidates: pa.Table, joined: Mapping[str, pa.Array], settings: CaptionSettings, names: pa.Table | None = None
) -> dict[str, Any]:
    """Counts and examples as plain values.

    `joined` holds, row for row, num_same_text, num_same_text_host, width_px, height_px and pixel_std; a column of
    nulls is one that nothing is known of, and its rules are listed under `not_judged`. `names` (schema NAMES) resolves
    the taxa, where a backbone is given.
    """
    measured = measure_captions(candidates, settings, names)
    rows = measured.append_column("domain", candidates["domain"]).append_column("source", candidates["source"])
    for name, column in joined.items():
        rows = rows.append_column(name, column)
    unknown = {name for name, column in joined.items() if column.null_count == len(column)}
    verdicts = judge_captions(rows, settings)
    given = candidates["caption"].fill_null("").to_pylist()
    clean = measured["text"].to_pylist()
    kept = pc.indices_nonzero(verdicts["keep"]).to_pylist()
    chosen = choose_texts(rows, settings.text)
    return {
        "num_rows": candidates.num_rows,
        "cleaning": _cleaning(given, measured),
        "rules": _rules(rows, verdicts, settings, given, clean),
        "not_judged": sorted(_resting_on(settings, unknown)),
        "kept": {
            "num": len(kept),
            "by_domain": _by_domain(rows, verdicts),
            "examples": [
                {
                    "caption": given[row],
                    "text": chosen["txt"][row].as_py(),
                    "text_type": chosen["txt_type"][row].as_py(),
                    "domain": rows["domain"][row].as_py(),
                }
                for row in _of_each_domain(kept, rows["domain"])
            ],
        },
    }


def _cleaning(given: list[str], measured: pa.Table) -> dict[str, Any]:
    """How many captions each step changes, with the whole change of some of them."""
    clean, steps = measured["text"].to_pylist(), measured["steps"].to_pylist()
    changed = [row for row, names in enumerate(steps) if names]
    by_step: dict[str, list[int]] = {}
    for row in changed:
        for name in steps[row]:
            by_step.setdefault(name, []).append(row)
    listed = [
        {
            "step": name,
            "num_changed": len(rows),
            "examples": [{"caption": given[row], "text": clean[row]} for row in _spread(rows, NUM_EXAMPLES)],
        }
        for name, rows in sorted(by_step.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return {"num_changed": len(changed), "steps": listed}


def _rules(
    rows: pa.Table, verdicts: pa.Table, settings: CaptionSettings, given: list[str], clean: list[str]
) -> list[dict[str, Any]]:
    """One entry a rule, in the order in which they speak: what it drops here, and what it would drop alone."""
    reasons, values, thresholds = (verdicts[name].to_pylist() for name in ("reason", "value", "threshold"))
    listed = []
    for name in dict.fromkeys(name for rules in settings.rules for name in rules.thresholds()):
        alone = _only(settings, name)
        spoken = [row for row, reason in enumerate(reasons) if reason == name]
        num_alone = pc.sum(pc.invert(judge_captions(rows, alone)["keep"])).as_py() or 0
        listed.append(
            {
                "rule": name,
                "thresholds": _written(alone, name),
                "num_dropped": len(spoken),
                "num_alone": num_alone,
                "examples": [
                    {"caption": given[row], "text": clean[row], "value": values[row], "threshold": thresholds[row]}
                    for row in _distinct(spoken, given)
                ],
            }
        )
    return listed


def _only(settings: CaptionSettings, name: str) -> CaptionSettings:
    """The same rule sets with one rule left in each."""
    sets = [
        RuleSet(domains=rules.domains, sources=rules.sources, **{name: rules.thresholds().get(name)})
        for rules in settings.rules
    ]
    return settings.model_copy(update={"rules": tuple(sets)})


def _written(settings: CaptionSettings, name: str) -> list[str]:
    given = [rules.thresholds()[name] for rules in settings.rules if name in rules.thresholds()]
    return sorted({RULES[name].written(threshold) for threshold in given})


def _resting_on(settings: CaptionSettings, unknown: set[str]) -> Iterable[str]:
    for name in {name for rules in settings.rules for name in rules.thresholds()}:
        if columns_needed(_only(settings, name)) & unknown:
            yield name


def _by_domain(rows: pa.Table, verdicts: pa.Table) -> dict[str, dict[str, int]]:
    frame = pa.table({"domain": rows["domain"], "keep": pc.cast(verdicts["keep"], pa.int64())})
    counted = frame.group_by("domain").aggregate([("keep", "count"), ("keep", "sum")]).sort_by("domain")
    return {row["domain"]: {"rows": row["keep_count"], "kept": row["keep_sum"]} for row in counted.to_pylist()}


def _spread(rows: list[int], num: int) -> list[int]:
    """`num` of the rows, evenly apart."""
    return [rows[place * len(rows) // num] for place in range(num)] if len(rows) > num else rows


def _of_each_domain(kept: list[int], domains: pa.ChunkedArray) -> list[int]:
    by_domain: dict[str, list[int]] = {}
    for row, domain in zip(kept, domains.take(pa.array(kept, pa.int64())).to_pylist(), strict=True):
        by_domain.setdefault(domain, []).append(row)
    return [row for name in sorted(by_domain) for row in _spread(by_domain[name], NUM_KEPT_EXAMPLES)]


def _distinct(rows: list[int], given: list[str]) -> list[int]:
    """Some of the rows, no caption twice."""
    return _spread(list({given[row]: row for row in reversed(rows)}.values())[::-1], NUM_EXAMPLES)


def describe_preview(report: Mapping[str, Any]) -> list[str]:
    """The lines that a person reads."""
    num = max(report["num_rows"], 1)
    cleaning = report["cleaning"]
    lines = [f"cleaning changes {cleaning['num_changed']:,} of {report['num_rows']:,} captions", ""]
    for step in cleaning["steps"]:
        lines.append(f"  {step['step']:<12}{step['num_changed']:>7,}")
        lines += [f"      {before}  ->  {after}" for before, after in map(_change, step["examples"])]
    lines += ["", f"{'rule, in the order they speak':<32}{'drops':>8}{'alone':>8}  allowed", ""]
    for rule in report["rules"]:
        said = "; ".join(rule["thresholds"])
        unknown = "  (not judged: not known yet)" if rule["rule"] in report["not_judged"] else ""
        lines.append(f"  {rule['rule']:<30}{rule['num_dropped']:>8,}{rule['num_alone']:>8,}  {said}{unknown}")
        for example in rule["examples"]:
            value = "" if example["value"] in (example["text"], "", None) else f"  [{_cut(example['value'], 40)}]"
            lines.append(f"      {_quote(example['caption'])}{value}")
    kept = report["kept"]
    lines += ["", f"  {'kept':<30}{kept['num']:>8,}  ({kept['num'] / num:.1%})"]
    lines += [
        f"      {domain}: {counts['kept']:,} of {counts['rows']:,}" for domain, counts in kept["by_domain"].items()
    ]
    lines += ["", "some that stay, as they would be written to txt:", ""]
    for example in kept["examples"]:
        same = example["caption"] == example["text"]
        came = "" if same else f"   <- {example['text_type']}, given {_quote(example['caption'])}"
        lines.append(f"  {example['domain']:<10}{_cut(example['text'] or '', 90)}{came}")
    if _PICTURE_RULES & set(report["not_judged"]):
        lines += ["", "rules over pictures are judged once they are fetched: build to fetch, then look again"]
    return lines


def _change(example: Mapping[str, str]) -> tuple[str, str]:
    """Before and after, both from a little before their first difference on."""
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
