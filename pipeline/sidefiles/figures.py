"""What the card and the report of a release say of its samples, as plain values: counts, histograms, some pictures.

Reads samples.parquet by column through DuckDB, so memory stays small at any size, and a few pictures out of the shards.
Every count is exact, and sample ids alone decide which pictures are shown: the same release has the same figures
whenever and wherever they are taken. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from manifests import storage
from manifests.release import path_of_shard
from pipeline.store.sql import view_parquet

SHEET_IMAGES = 12  # of each domain
WORD_EDGES = (1, 2, 3, 5, 8, 13, 21, 34, 55)
SIDE_EDGES_PX = (64, 128, 256, 512, 1024, 2048, 4096)

# `images` are distinct pictures, `samples` count repeats
_COUNTS = {
    "domains": "SELECT split, domain, count(*) FILTER (copy = 0) AS images FROM samples GROUP BY ALL "
    "ORDER BY split DESC, domain",
    "sources": "SELECT domain, source, count(*) AS images FROM images GROUP BY ALL ORDER BY domain, source",
    "licences": "SELECT licence, count(*) AS images FROM images GROUP BY ALL ORDER BY images DESC, licence",
    "owners": "SELECT licence, coalesce(nullif(rights_holder, ''), nullif(creator, ''), '(nobody named)') AS owner, "
    "count(*) AS images FROM images GROUP BY ALL ORDER BY licence, images DESC, owner",
    "text_types": "SELECT domain, coalesce(text_type, 'none') AS text_type, count(*) AS samples FROM samples "
    "GROUP BY ALL ORDER BY domain, samples DESC, text_type",
    "taxa": "SELECT domain, count(name) AS images, count(DISTINCT name) AS names FROM (SELECT domain, "
    "coalesce(taxon_scientific_name, taxon_species) AS name FROM images) GROUP BY ALL ORDER BY domain",
    "hosts": "SELECT coalesce(nullif(regexp_extract(url, '^[a-z]+://([^/:?#]+)', 1), ''), '(local)') AS host, "
    "count(*) AS images FROM images GROUP BY ALL ORDER BY images DESC, host",
}
_NUM_WORDS = "len(string_split_regex(trim(text), '\\s+')) * (trim(text) <> '')::INTEGER"
_SHEET = f"""
    SELECT domain, split, shard, text, licence, source, jpg_offset, jpg_length FROM (
        SELECT *, row_number() OVER (PARTITION BY domain ORDER BY md5('sheet ' || sample_id), sample_id) AS place
        FROM images WHERE split = 'train'
    ) WHERE place <= {SHEET_IMAGES} ORDER BY domain, place
"""


def collect(connection: Any, samples: str, folder: str) -> dict[str, Any]:
    """All figures. `samples` is the samples table, `folder` the release, whose shards hold the pictures."""
    view_parquet(connection, "samples", [samples])
    connection.execute(
        "CREATE VIEW images AS SELECT * REPLACE (coalesce(licence_id, 'unknown') AS licence) FROM samples "
        "WHERE copy = 0"
    )
    return {
        **{name: _rows(connection, query) for name, query in _COUNTS.items()},
        "words": _histogram(connection, _NUM_WORDS, WORD_EDGES, "samples", "0"),
        "sides": _histogram(connection, "least(width_px, height_px)", SIDE_EDGES_PX, "images", f"< {SIDE_EDGES_PX[0]}"),
        "sheet": [{**row, "jpg": _picture(row, folder)} for row in _rows(connection, _SHEET)],
    }


def _rows(connection: Any, query: str) -> list[dict[str, Any]]:
    return list(connection.sql(query).to_arrow_table().to_pylist())


def _histogram(connection: Any, value: str, edges: Sequence[int], view: str, below: str) -> dict[str, Any]:
    """For each domain the share of its rows in each bin. A bin is named by where it begins, the last one is open."""
    labels = [below, *(str(edge) for edge in edges[:-1]), f"{edges[-1]}+"]
    reached = " + ".join(f"(value >= {edge})::INTEGER" for edge in edges)  # the number of edges reached is the bin
    counts: dict[str, list[int]] = {}
    for row in _rows(
        connection,
        f"SELECT domain, {reached} AS bin, count(*) AS num FROM "
        f"(SELECT domain, coalesce({value}, 0) AS value FROM {view}) GROUP BY ALL ORDER BY ALL",
    ):
        counts.setdefault(row["domain"], [0] * len(labels))[row["bin"]] = row["num"]
    return {
        "labels": labels,
        "shares": {domain: [num / sum(nums) for num in nums] for domain, nums in counts.items()},
    }


def _picture(row: Mapping[str, Any], folder: str) -> bytes:
    fs, inner = storage.filesystem(path_of_shard(folder, row["split"], row["shard"]))
    start = row["jpg_offset"]
    return bytes(fs.cat_file(inner, start=start, end=start + row["jpg_length"]))
