"""The pages that a release carries: README.md (the dataset card), ATTRIBUTION.md and report.html.

Pure: record, mixture and figures go in, text comes out. All words and all markup stand in templates/. Here the record
and the mixture are put in the order in which the pages show them. The same release gives the same bytes on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from manifests.release import SPLIT_FOLDERS
from pipeline.sidefiles.rendering import most_first, render
from pipeline.vocabulary.taxa import MEMBER_NAMES

STAGES = ("ingest", "fetch", "dedup", "caption", "score", "select", "mix")  # of FLOW, which imports this
COLOURS = ("var(--a)", "var(--b)", "var(--c)", "var(--d)")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"))  # fmt: skip

Values = Mapping[str, Any]


def write_report(record: Values, mixture: Values, figures: Values, duplicates: Values | None = None) -> str:
    """report.html: one page that loads nothing from elsewhere.

    `duplicates` is what a work folder knows beside the release (contact_sheets.py).
    """
    colours = {row["domain"]: COLOURS[at % len(COLOURS)] for at, row in enumerate(mixture["domains"])}
    owners: dict[str, int] = {}
    for row in figures["owners"]:
        owners[row["owner"]] = owners.get(row["owner"], 0) + row["images"]
    return render(
        "report.html",
        **_in_order(record, mixture, figures),
        colours=colours,
        owners=most_first(owners),
        duplicates=duplicates,
    )


def write_card(record: Values, mixture: Values, figures: Values) -> str:
    """README.md: the dataset card, with the front matter that Hugging Face `datasets` reads."""
    num = sum(split["num_samples"] for split in record["splits"].values())
    recipe = record["recipe"]
    names = recipe.get("caption", {}).get("text", {}).get("members", ())
    return render(
        "card.md",
        **_in_order(record, mixture, figures),
        size_category=next((name for limit, name in _SIZES if num < limit), "n>100M"),
        split_folders=SPLIT_FOLDERS,
        radius=(recipe.get("dedup") or {}).get("radius"),
        members=["jpg", "txt", "json", *(MEMBER_NAMES[name] for name in names)],
    )


def write_attribution_page(record: Values, figures: Values) -> str:
    """ATTRIBUTION.md: under each licence the owners to be named and how many images each has."""
    return render("attribution.md", record=record, figures=figures)


def _in_order(record: Values, mixture: Values, figures: Values) -> dict[str, Any]:
    """What card and report both show."""
    counts = record["counts"]["stages"]
    images = {row["domain"]: row["images"] for row in figures["domains"] if row["split"] == "train"}
    return {
        "record": record,
        "figures": figures,
        "stages": [{"name": name, **counts[name]} for name in sorted(counts, key=STAGES.index)],
        "domains": [{**row, "images": images.get(row["domain"], 0)} for row in mixture["domains"]],
        "law": _law(mixture["law"]) if mixture.get("law") else None,
        "evaluation": record.get("evaluation") or [],
        "takedowns": record.get("takedowns") or [],
    }


def _law(law: Values) -> dict[str, Any]:
    """The evidence of a mixing law as rows; empty where the mixture file has none."""
    intervals, predicted = law.get("interval") or {}, law.get("predicted") or {}
    fitted = (law.get("law") or {}).get("losses") or {}
    return {
        "shares": [
            {"domain": domain, "share": share, "low": intervals[domain][0], "high": intervals[domain][1]}
            for domain, share in law["ratio"].items()
            if domain in intervals
        ],
        "losses": [{"name": name, "predicted": predicted.get(name), **row} for name, row in fitted.items()],
        "trade_off": _trade_off(law["trade_off"], predicted) if law.get("trade_off") else None,
        "warnings": law.get("warnings") or (),
    }


def _trade_off(trade_off: Values, predicted: Values) -> dict[str, Any]:
    """Pairs of two losses as places in a drawing 100 wide and 100 high, and the range that each axis shows."""
    one, two = trade_off["between"]
    points = [(point["losses"][one]["loss"], point["losses"][two]["loss"]) for point in trade_off["points"]]
    chosen = [(predicted[one]["loss"], predicted[two]["loss"])] if one in predicted and two in predicted else []
    ranges = [(min(values), max(values)) for values in zip(*points, *chosen, strict=True)]
    (low_x, high_x), (low_y, high_y) = ranges

    def placed(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        width, height = (high_x - low_x) or 1, (high_y - low_y) or 1
        return [(100 * (x - low_x) / width, 100 * (high_y - y) / height) for x, y in pairs]

    axes = [{"name": name, "low": low, "high": high} for name, (low, high) in zip((one, two), ranges, strict=True)]
    return {"axes": axes, "points": placed(points), "chosen": placed(chosen)}
