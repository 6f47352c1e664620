"""CITATION.cff and croissant.json of a release that knows the downloads it was made from."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import yaml

from pipeline.sidefiles.citation import citations_of, write_citation
from pipeline.sidefiles.croissant import write_croissant

CITED = "GBIF.org (26 November 2026) GBIF Occurrence Download https://doi.org/10.15468/dl.abc123"
FILE = {"num_bytes": 10, "sha256": "ab" * 32}
RECORD = {
    "name": "plants",
    "version": "0123456789ab",
    "fingerprint": "cd" * 32,
    "recipe": {
        "sources": [
            {"name": "gbif", "domain": "plant", "cites": {"doi": "10.15468/dl.abc123", "citation": CITED}},
            {"name": "own", "domain": "plant"},
        ]
    },
    "counts": {
        "samples": 1234,
        "domains": {"plant": 1234},
        "stages": {"mix": {"in": 5, "kept": 3, "reasons": {"x": 2}}},
    },
    "splits": {"train": {"num_samples": 1234, "shards": [{"shard": "plants-000000.tar"}]}},
    "files": dict.fromkeys(("samples.parquet", "attribution.parquet", "shards/plants-000000.tar"), FILE),
}
FACTS: dict[str, Any] = {"address": "https://example.org/plants", "authors": ["A", "B"], "date": "2026-11-26"}


def test_the_citation_file_names_the_download_and_its_doi() -> None:
    found = yaml.safe_load(write_citation(RECORD, **FACTS))
    assert found["references"] == [
        {"type": "data", "title": CITED, "authors": [{"name": "GBIF.org"}], "doi": "10.15468/dl.abc123"}
    ]
    assert "and the data it was made from" in found["message"]


def test_a_release_without_citations_has_no_references() -> None:
    record = RECORD | {"recipe": {"sources": [{"name": "own", "cites": {}}]}}
    assert citations_of(record) == []
    assert "references" not in yaml.safe_load(write_citation(record, **FACTS))


def test_a_copy_without_a_web_page_names_none() -> None:
    facts = FACTS | {"address": None}
    assert "url" not in yaml.safe_load(write_citation(RECORD, **facts))
    found = json.loads(write_croissant(RECORD, pa.schema([]), [], **facts))
    assert "url" not in found
    assert found["citeAs"] == "A, B (2026): plants 0123456789ab."


def test_croissant_says_where_the_data_comes_from_and_under_which_licences() -> None:
    schema = pa.schema([("key", pa.string()), ("split", pa.string()), ("phash", pa.uint64()), ("width_px", pa.int32())])
    found = json.loads(write_croissant(RECORD, schema, ["CC-BY-4.0", "unknown"], **FACTS))
    assert found["license"] == ["https://creativecommons.org/licenses/by/4.0/", "unknown"]
    assert found["citation"] == [CITED]
    assert found["prov:wasDerivedFrom"] == [
        {"@type": "prov:Entity", "prov:label": CITED, "@id": "https://doi.org/10.15468/dl.abc123"},
        {"@type": "prov:Entity", "prov:label": "own"},
    ]
    assert found["rai:dataPreprocessingProtocol"] == ["mix: 3 of 5 rows kept"]
    fields = {field["name"]: field["dataType"] for field in found["recordSet"][1]["field"]}
    assert fields == {"key": "sc:Text", "split": "sc:Text", "phash": "cr:UInt64", "width_px": "sc:Integer"}
    (shard,) = [entry for entry in found["distribution"] if entry["@id"].endswith(".tar")]
    assert (shard["sha256"], shard["contentSize"]) == ("ab" * 32, "10 B")
