"""croissant.json: a release as Croissant 1.1 describes datasets. Pure: record and schema go in, bytes come out.

Names every file that a reader needs with its sha256, and three record sets: the splits, the rows of samples.parquet,
and the pictures of the shards, which share `key` with the rows. Addresses are relative to the file, so that a copy of
the folder reads as well as the original.
Source: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html; its RAI vocabulary; PROV-O of the W3C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from manifests.contract.release import RECORD_FILE, SAMPLES_FILE, SPLIT_FOLDERS
from pipeline.judging.vocabulary.licences import licence_address
from pipeline.sidefiles.citation import citations_of
from pipeline.sidefiles.write import json_bytes

_PARQUET, _TAR, _JPEG = "application/x-parquet", "application/x-tar", "image/jpeg"
_SPLIT_TYPES = {"train": "cr:TrainingSplit", "heldout": "cr:TestSplit"}
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{
        name: f"cr:{name}"
        for name in (
            "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field", "fileObject",
            "fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5",
            "parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate",
            "separator", "source", "subField", "transform",
        )
    },
}  # fmt: skip


def write_croissant(
    record: Mapping[str, Any],
    schema: pa.Schema,
    licences: Sequence[str],
    *,
    address: str | None,
    authors: Sequence[str],
    date: str,
) -> bytes:
    """croissant.json of a release whose samples.parquet has `schema`; `address` is its web page, if it has one.

    `date` is YYYY-MM-DD.
    """
    citations = citations_of(record)
    counts = record["counts"]
    content = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": record["name"],
        "description": f"{counts['samples']:,} training samples of image and text in webdataset shards, with "
        "licence, owner and address of every image. README.md is the dataset card.",
        "version": f"1.0.0+{record['version']}",  # semver asks for numbers, but releases have no order
        **({"url": address} if address else {}),
        "datePublished": date,
        "creator": [{"@type": "sc:Organization", "name": name} for name in authors],
        "license": [licence_address(licence) for licence in licences],
        "citeAs": f"{', '.join(authors)} ({date[:4]}): {record['name']} {record['version']}. {address or ''}".rstrip(),
        "keywords": ["image-text pairs", "webdataset", *counts["domains"]],
        "usageInfo": "ATTRIBUTION.md",
        **_provenance(record, citations),
        "distribution": _distribution(record),
        "recordSet": [_splits(record), _samples(schema), _images()],
    }
    return json_bytes(content)


def _provenance(record: Mapping[str, Any], citations: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Where the data comes from and what was done with it."""
    cited = {row["source"]: row for row in citations}
    sources = []
    for source in record["recipe"].get("sources", []):
        row = cited.get(source["name"], {})
        entity = {"@type": "prov:Entity", "prov:label": row.get("citation") or source["name"]}
        sources.append(entity | ({"@id": f"https://doi.org/{row['doi']}"} if row.get("doi") else {}))
    stages = record["counts"].get("stages", {})
    return {
        "citation": [row["citation"] for row in citations],
        "prov:wasDerivedFrom": sources,
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "prov:label": f"plantmix build, recipe {record['fingerprint']} (in {RECORD_FILE})",
        },
        "rai:dataCollection": "Images were fetched from the addresses that the sources list.",
        "rai:dataPreprocessingProtocol": [
            f"{name}: {stage['kept']:,} of {stage['in']:,} rows kept" for name, stage in stages.items()
        ],
        "rai:dataLimitations": [
            "Licences and owners are what the sources state.",
            "Nobody checked that a text describes its picture.",
        ],
        "rai:dataReleaseMaintenancePlan": "An image that its owner wants removed is left out of the next version.",
    }


def _distribution(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    def file(path: str, encoding: str) -> dict[str, Any]:
        entry = record["files"][path]
        return {
            "@type": "cr:FileObject",
            "@id": path,
            "name": path,
            "contentUrl": path,
            "contentSize": f"{entry['num_bytes']} B",
            "sha256": entry["sha256"],
            "encodingFormat": encoding,
        }

    shards = [
        f"{SPLIT_FOLDERS[split]}/{shard['shard']}"
        for split, entry in record["splits"].items()
        for shard in entry["shards"]
    ]
    pictures = {
        "@type": "cr:FileSet",
        "@id": "pictures",
        "name": "pictures",
        "containedIn": [{"@id": shard} for shard in shards],
        "includes": "*.jpg",
        "encodingFormat": _JPEG,
    }
    tables = [file(path, _PARQUET) for path in (SAMPLES_FILE, "attribution.parquet")]
    return [*tables, *(file(shard, _TAR) for shard in shards), pictures]


def _records(name: str, key: str, fields: Mapping[str, Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """Return a record set; `fields` holds by its name what is said of each."""
    listed = [{"@type": "cr:Field", "@id": f"{name}/{field}", "name": field, **note} for field, note in fields.items()]
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "key": {"@id": f"{name}/{key}"}, "field": listed} | more


def _splits(record: Mapping[str, Any]) -> dict[str, Any]:
    data = [{"splits/name": split, "splits/url": _SPLIT_TYPES[split]} for split in record["splits"]]
    fields = {"name": {"dataType": "sc:Text"}, "url": {"dataType": "sc:URL"}}
    return _records("splits", "name", fields, dataType="cr:Split", data=data)


def _samples(schema: pa.Schema) -> dict[str, Any]:
    fields = {
        column.name: {
            "dataType": _type_of(column.type),
            "source": {"fileObject": {"@id": SAMPLES_FILE}, "extract": {"column": column.name}},
        }
        | ({"references": {"field": {"@id": "splits/name"}}} if column.name == "split" else {})
        for column in schema
    }
    about = "One row a sample: text, licence, owner, taxon, sizes, and its place in a shard."
    return _records("samples", "key", fields, description=about)


def _type_of(kind: pa.DataType) -> str:
    if pa.types.is_uint64(kind):
        return "cr:UInt64"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else "sc:Text"


def _images() -> dict[str, Any]:
    pictures = {"fileSet": {"@id": "pictures"}}
    key = pictures | {"extract": {"fileProperty": "filename"}, "transform": {"regex": r"^(.+)\.jpg$"}}
    fields = {
        "key": {"dataType": "sc:Text", "source": key},
        "image": {"dataType": "sc:ImageObject", "source": pictures | {"extract": {"fileProperty": "content"}}},
    }
    return _records("images", "key", fields, description="The pictures of the shards; `key` is that of samples.")
