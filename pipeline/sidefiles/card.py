"""The dataset card of a release: README.md, with the front matter that Hugging Face `datasets` reads. Pure.

Takes the record, the mixture and counts over the samples; gives Markdown. States what is known and what nobody checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from manifests.release import SPLIT_FOLDERS
from pipeline.vocabulary.taxa import MEMBER_NAMES

STAGES = ("ingest", "fetch", "dedup", "caption", "score", "select", "mix")  # of FLOW, which imports this
LAW_SHARES = ("domain", "chosen share", "90 % interval of the optimum")
LAW_LOSSES = (
    "loss",
    "predicted at these shares (90 %)",
    "form of the law",
    "error on runs left out",
    "of the mean alone",
)
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"))  # fmt: skip


def write_card(record: Mapping[str, Any], mixture: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """README.md of a release; the same record gives the same text."""
    parts = [
        _front_matter(record),
        _opening(record),
        _contents(record, mixture, summary),
        _origins(summary),
        _making(record),
        _mixture(mixture),
        _evaluation(record),
        _takedowns(record),
        _reading(record),
        _limits(record),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table; numbers get thousands separators and stand to the right."""

    def cell(value: object) -> str:
        text = f"{value:,}" if isinstance(value, int) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    numeric = [bool(rows) and all(isinstance(row[at], int | float) for row in rows) for at in range(len(head))]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join('---:' if right else '---' for right in numeric)}|"]
    return lines + [f"| {' | '.join(cell(value) for value in row)} |" for row in rows]


def _front_matter(record: Mapping[str, Any]) -> list[str]:
    num = sum(split["num_samples"] for split in record["splits"].values())
    size = next((name for limit, name in _SIZES if num < limit), "n>100M")
    lines = ["---", f"pretty_name: {record['name']}", "license: other", "license_name: per-image"]
    lines += ["license_link: ATTRIBUTION.md", "size_categories:", f"- {size}", "task_categories:"]
    lines += ["- zero-shot-image-classification", "- image-to-text", "configs:", "- config_name: default"]
    lines.append("  data_files:")
    for split in sorted(record["splits"], reverse=True):
        name = "train" if split == "train" else "test"
        lines += [f"  - split: {name}", f"    path: {SPLIT_FOLDERS[split]}/*.tar"]
    return [*lines, "---"]


def _opening(record: Mapping[str, Any]) -> list[str]:
    counts = record["counts"]
    kinds = {
        "mixed": "the ratio is baked in and the samples are shuffled over all shards",
        "stratified": "each training shard holds one domain, so that any ratio can be drawn at load time",
    }
    return [
        f"# {record['name']} {record['version']}",
        "",
        f"{counts['samples']:,} training samples of image and text in webdataset shards ({record['kind']}: "
        f"{kinds[record['kind']]}). {counts['distinct_samples']:,} distinct images, held-out ones included.",
    ]


def _contents(record: Mapping[str, Any], mixture: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    drawn = {row["domain"]: row for row in mixture["domains"]}
    total = max(record["counts"]["samples"], 1)
    rows = []
    for domain, quota in drawn.items():
        found = {row["split"]: row for row in summary["domains"] if row["domain"] == domain}
        train, heldout = found.get("train", {}), found.get("heldout", {})
        num = train.get("samples", 0)
        share = f"{num / total:.2%}"
        rows.append(
            (domain, num, train.get("images", 0), share, f"{quota['target_share']:.2%}", heldout.get("images", 0))
        )
    head = ("domain", "training samples", "distinct images", "share", "share asked for", "held out")
    lines = ["## What is in it", "", *table(head, rows)]
    named = [row for row in summary["taxa"] if row["images"]]
    if named:
        lines += ["", *(f"{r['images']:,} {r['domain']} images name {r['names']:,} taxa." for r in named)]
    types = [
        f"{row['domain']}: {row['samples']:,} {row['text_type'].replace('_', ' ')}" for row in summary["text_types"]
    ]
    return [*lines, "", f"Texts by what they were made from: {'; '.join(types)}."]


def _origins(summary: Mapping[str, Any]) -> list[str]:
    sources = [(row["source"], row["domain"], row["images"]) for row in summary["sources"]]
    licences = [(row["licence"], row["images"]) for row in summary["licences"]]
    return [
        "## Where it comes from",
        "",
        *table(("source", "domain", "images"), sources),
        "",
        "## Licences",
        "",
        *table(("licence", "images"), licences),
        "",
        "The licence, owner and address of every image: `attribution.parquet`; counts by owner: `ATTRIBUTION.md`.",
    ]


def _making(record: Mapping[str, Any]) -> list[str]:
    rows = []
    stages = record["counts"]["stages"]
    for stage, funnel in sorted(stages.items(), key=lambda item: STAGES.index(item[0])):
        reasons = sorted(funnel["reasons"].items(), key=lambda item: (-item[1], item[0]))
        rows.append(
            (stage, funnel["in"], funnel["kept"], ", ".join(f"{num:,} {name}" for name, num in reasons) or "none")
        )
    tools = ", ".join(f"{tool} {version}" for tool, version in record["tools"].items())
    return [
        "## How it was made",
        "",
        *table(("stage", "in", "kept", "dropped"), rows),
        "",
        f"The whole recipe with every threshold is in `release.json`. Made with {tools}.",
    ]


def _mixture(mixture: Mapping[str, Any]) -> list[str]:
    law = mixture.get("law")
    if not law:
        return ["## Mixture", "", "The shares were given by the configuration; no mixing law was fitted for them."]
    lines = ["## Mixture", "", "The shares were chosen by a mixing law fitted on proxy runs (`mixture.json`)."]
    shares, losses = law_rows(law)
    if shares:
        lines += ["", *table(LAW_SHARES, shares)]
    if losses:
        lines += ["", *table(LAW_LOSSES, losses)]
    return lines + [f"\nWarning of the planner: {text}" for text in law.get("warnings") or ()]


def law_rows(law: Mapping[str, Any]) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
    """Rows under LAW_SHARES and LAW_LOSSES from the evidence in a mixture file; empty where it has none."""
    intervals, predicted = law.get("interval") or {}, law.get("predicted") or {}
    shares: list[Sequence[str]] = [
        (domain, f"{share:.4f}", f"{intervals[domain][0]:.4f} to {intervals[domain][1]:.4f}")
        for domain, share in law["ratio"].items()
        if domain in intervals
    ]
    losses: list[Sequence[str]] = []
    for name, row in ((law.get("law") or {}).get("losses") or {}).items():
        told = predicted.get(name) or {}
        foretold = f"{told['loss']:.4f}" if told else ""
        foretold += f" ({told['low']:.4f} to {told['high']:.4f})" if "low" in told else ""
        form = row["form"].replace("_", " ")
        losses.append((name, foretold, form, f"{row['cv_error']:.4g}", f"{row['cv_error_mean']:.4g}"))
    return shares, losses


def _evaluation(record: Mapping[str, Any]) -> list[str]:
    rows = evaluation_rows(record)
    if not rows:
        return []
    head = ("set", "pHash radius", "images found in the sources")
    return ["## Evaluation sets kept out", "", *table(head, rows), "", "What was found of them was dropped."]


def evaluation_rows(record: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Name, radius and images that leaked of each evaluation set the build matched."""
    return [(one["name"], one["radius"], one["num_leaks"]) for one in record.get("evaluation") or []]


def _takedowns(record: Mapping[str, Any]) -> list[str]:
    takedowns = record.get("takedowns") or []
    if not takedowns:
        return []
    rows = [(entry["num_images"], entry["reason"], entry["from"]) for entry in takedowns]
    return [
        "## Taken down",
        "",
        "Images that an earlier version held and that were removed since:",
        "",
        *table(("images", "reason", "from version"), rows),
    ]


def _reading(record: Mapping[str, Any]) -> list[str]:
    text = record["recipe"].get("caption", {}).get("text", {})
    names = ["jpg", "txt", "json", *(MEMBER_NAMES[name] for name in text.get("members", ()))]
    members = ", ".join(f"`{name}`" for name in names)
    return [
        "## How to read it",
        "",
        f"Any webdataset reader takes `shards/*.tar` (members {members}). `shards/sizes.json` serves",
        "open_clip, `shards/wids.json` the indexed reader `wids`, the front matter above Hugging Face `datasets`.",
        f"`plantmix export {record['name']}-{record['version']} --for open_clip` prints arguments ready to paste;",
        "`plantmix verify --deep` checks every byte.",
    ]


def _limits(record: Mapping[str, Any]) -> list[str]:
    recipe = record["recipe"]
    radius = (recipe.get("dedup") or {}).get("radius")
    return [
        "## Limits",
        "",
        "- Licences and owners are what the sources state; nobody asked the owners.",
        "- Texts are the sources' own, cleaned by rules; that a text describes its picture was not checked by people.",
        f"- Near-duplicates are those within {radius} bits of a 64-bit perceptual hash; others may remain.",
        "- There is no filter for people, faces or unsafe pictures beyond what the recipe names.",
        "- Addresses may have changed or died since the download.",
    ]
