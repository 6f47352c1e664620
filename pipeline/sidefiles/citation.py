"""CITATION.cff: how to cite a release, and what it is made of. Pure: a record goes in, bytes come out.

Source: Citation File Format 1.2.0, https://github.com/citation-file-format/citation-file-format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml


def citations_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a release says must be cited: `source`, `doi` and `citation` of each source that has them."""
    citations = []
    for source in record["recipe"].get("sources", []):
        cites = source.get("cites") or {}
        if cites.get("citation") or cites.get("doi"):
            citations.append(
                {"source": source["name"]} | {key: str(cites.get(key) or "") for key in ("doi", "citation")}
            )
    return citations


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
