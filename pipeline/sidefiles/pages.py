"""The pages that a release carries: README.md (the dataset card), ATTRIBUTION.md and report.html.

Pure: record, mixture and figures go in, text comes out. All words and all markup stand in templates/. Here the record
and the mixture are put in the order in which the pages show them. Values in HTML are escaped. In Markdown, what comes
from outside goes through `plain`, or `cell` within a table. The same release gives the same bytes on any machine.
"""

from __future__ import annotations

import base64
import functools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from manifests.contract.release import SPLIT_FOLDERS
from manifests.drawing.panels import draw_svg
from manifests.drawing.theme import SERIES, theme_css
from manifests.publishing.markdown import markdown_cell, plain_markdown
from pipeline.config import STAGES
from pipeline.sidefiles.mixture_panels import cautions_of, panels_of

if TYPE_CHECKING:  # an extra brings it, and a release is read without
    import jinja2

MOST_OUTER = 12  # taxa of the first rank that are compared
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"))  # fmt: skip

_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))

Values = Mapping[str, Any]


def write_report(record: Values, mixture: Values, figures: Values, dropped: Values | None = None) -> str:
    """report.html: one page that loads nothing from elsewhere.

    `dropped` is what a work folder knows beside the release (dropped.py).
    """
    colours = {row["domain"]: f"var(--series-{at % len(SERIES)})" for at, row in enumerate(mixture["domains"])}
    owners: Counter[str] = Counter()
    for row in figures["owners"]:
        owners[row["owner"]] += row["images"]
    law = mixture.get("law")
    return _render(
        "report.html",
        **_in_order(record, mixture, figures),
        theme=theme_css(),
        colours=colours,
        owners=_most_first(owners),
        drawings=[draw_svg(panel) for panel in panels_of(law)] if law and law.get("drawn") else [],
        taxa=_taxa(figures["ranks"]) if figures["ranks"] else None,
        recipe=json.dumps(record["recipe"], indent=1, ensure_ascii=False),
        dropped=dropped,
    )


def write_card(record: Values, mixture: Values, figures: Values) -> str:
    """README.md: the dataset card, with the front matter that Hugging Face `datasets` reads."""
    num = sum(split["num_samples"] for split in record["splits"].values())
    recipe = record["recipe"]
    return _render(
        "card.md",
        **_in_order(record, mixture, figures),
        size_category=next((name for limit, name in _SIZES if num < limit), "n>100M"),
        languages=_languages(figures["languages"]),
        split_folders=SPLIT_FOLDERS,
        radius=(recipe.get("dedup") or {}).get("radius"),
        members=record.get("members", ["jpg", "txt", "json"]),  # releases of before 0.4 name none
    )


def _languages(rows: Sequence[Values]) -> list[str]:
    """Codes of the languages that a hundredth of the texts are in, the most frequent first."""
    told = [row for row in rows if re.fullmatch("[a-z]{2,3}", row["language"])]
    least = sum(row["images"] for row in told) / 100
    return [row["language"] for row in told if row["images"] >= least]


def write_attribution_page(record: Values, figures: Values) -> str:
    """ATTRIBUTION.md: under each licence the owners to be named and how many images each has."""
    return _render("attribution.md", record=record, figures=figures)


def _in_order(record: Values, mixture: Values, figures: Values) -> dict[str, Any]:
    """Return the entries that card and report both show."""
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
        "joins": [join for name in ("join", "captions") for join in counts.get("ingest", {}).get(name, [])],
    }


def _law(law: Values) -> dict[str, Any]:
    """Return the evidence of a mixing law as rows; empty where the mixture file has none."""
    intervals, predicted = law.get("interval") or {}, law.get("predicted") or {}
    fitted = (law.get("law") or {}).get("losses") or {}
    return {
        "shares": [
            {"domain": domain, "share": share, "low": intervals[domain][0], "high": intervals[domain][1]}
            for domain, share in law["ratio"].items()
            if domain in intervals
        ],
        "losses": [{"name": name, "predicted": predicted.get(name), **row} for name, row in fitted.items()],
        "warnings": cautions_of(law),
    }


def _taxa(ranks: Values) -> dict[str, Any]:
    """Return the numbers of names at both ranks, and the share of each outer name among images and among samples."""
    images: Counter[str] = Counter()
    samples: Counter[str] = Counter()
    for row in ranks["rows"]:
        images[row["outer_name"]] += row["images"]
        samples[row["outer_name"]] += row["samples"]
    totals = [max(1, sum(counts.values())) for counts in (images, samples)]
    balance = [
        {"name": name, "of_images": num / totals[0], "of_samples": samples[name] / totals[1]}
        for name, num in _most_first(images)[:MOST_OUTER]
    ]
    return {**{name: ranks[name] for name in ("outer", "inner", "num_outer", "num_inner")}, "balance": balance}


# ---- templates


def _render(template: str, **values: Any) -> str:
    """Return the text of a template with these values. A value that the template needs and does not get is an error."""
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.sidefiles"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cell": markdown_cell,
        "data_url": lambda jpg: "data:image/jpeg;base64," + base64.b64encode(jpg).decode(),
        "most_first": _most_first,
        "number": lambda value, layout=",": format(value, layout),
        "pick": lambda row, *names: tuple(row[name] for name in names),
        "plain": plain_markdown,
        "size": _size,
        "words": lambda name: name.replace("_", " "),  # `http_404` as `http 404`
    }
    return environment


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Names and their counts, the largest count first, equal counts by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _size(num_bytes: int) -> str:
    for unit, size in _UNITS:
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} B"
