"""Citation of a release and of its sources: CITATION.cff, and tables of counts that sources ask for.

Reads the record and a view over the samples table. Writes nothing: bytes come out.

Source: Citation File Format 1.2.0, https://github.com/citation-file-format/citation-file-format.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from manifests.contract.reader import rows_of


def citations_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the citations that a release asks for: `source`, `doi` and `citation` of each source that has them."""
    citations = []
    for source in record["recipe"].get("sources", []):
        cites = source.get("cites") or {}
        if cites.get("citation") or cites.get("doi"):
            citations.append(
                {"source": source["name"]} | {key: str(cites.get(key) or "") for key in ("doi", "citation")}
            )
    return citations


def counts_of(record: Mapping[str, Any], connection: Any) -> list[dict[str, Any]]:
    """Return the tables of counts that sources ask for, without empty ones.

    `file`, `by`, `about`, and `rows` (`key`, `num`).

    Pictures count once, however often they are drawn. The connection has the view `samples`.
    """
    asked: dict[tuple[str, str, str], list[str]] = {}
    for source in record["recipe"].get("sources", []):
        if counts := source.get("counts"):
            asked.setdefault((counts["file"], counts["by"], counts["about"]), []).append(source["name"])
    query = (
        "SELECT said AS key, count(DISTINCT sample_id) AS num FROM (SELECT sample_id, "
        "json_extract_string(extra, $by) AS said FROM samples WHERE list_contains($sources, source)) "
        "WHERE said <> '' GROUP BY said ORDER BY num DESC, said"
    )
    tables = [
        {"file": file, "by": by, "about": about, "rows": rows_of(connection, query, {"by": by, "sources": sources})}
        for (file, by, about), sources in sorted(asked.items())
    ]
    return [table for table in tables if table["rows"]]


def write_counts(table: Mapping[str, Any]) -> bytes:
    """One of those tables, as CSV without a header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((row["key"], row["num"]) for row in table["rows"])
    return text.getvalue().encode()


def write_citation(record: Mapping[str, Any], address: str | None, authors: Sequence[str], date: str) -> bytes:
    """CITATION.cff of a release; `address` is its web page, if it has one, and `date` is YYYY-MM-DD."""
    citations = citations_of(record)
    content: dict[str, Any] = {
        "cff-version": "1.2.0",
        "message": "If you use this dataset, please cite it"
        + (", and the data it was made from." if citations else ". ATTRIBUTION.md names the owners of the pictures."),
        "type": "dataset",
        "title": record["name"],
        "version": record["version"],
        "date-released": date,
        "authors": [{"name": name} for name in authors],
    }
    if address:
        content["url"] = address
    if citations:
        content["references"] = [_reference(row) for row in citations]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()


def _reference(row: Mapping[str, str]) -> dict[str, Any]:
    doi = {"doi": row["doi"]} if row["doi"] else {}
    publisher = row["citation"].partition(" (")[0].strip() or row["source"]
    return {"type": "data", "title": row["citation"] or row["source"], "authors": [{"name": publisher}], **doi}
