"""What the report shows of a release, as plain values: histograms, hosts, and the samples of its contact sheet.

Reads samples.parquet through DuckDB and the chosen pictures out of the shards. Every count is exact and every choice
follows from the sample ids, so a report is the same bytes whenever it is made. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from manifests import storage
from manifests.release import SPLIT_FOLDERS
from pipeline.sidefiles.summary import summarise

MAX_ROWS = 12  # of tables that may be long: owners, hosts
SHEET_IMAGES = 12  # a domain
WORD_EDGES = (1, 2, 3, 5, 8, 13, 21, 34, 55)
SIDE_EDGES_PX = (64, 128, 256, 512, 1024, 2048, 4096)


def collect(connection: Any, samples: str, folder: str) -> dict[str, Any]:
    """All figures of a report; `folder` is the release, whose shards hold the pictures."""
    summary = summarise(connection, samples)

    def rows(sql: str) -> list[dict[str, Any]]:
        return list(connection.sql(sql).to_arrow_table().to_pylist())

    words = "len(string_split_regex(trim(text), '\\s+')) * (trim(text) <> '')::INTEGER"
    return {
        **summary,
        "hosts": rows(
            "SELECT coalesce(nullif(regexp_extract(url, '^[a-z]+://([^/:?#]+)', 1), ''), '(local)') AS host, "
            "count(*) AS images FROM samples WHERE copy = 0 GROUP BY ALL ORDER BY images DESC, host"
        ),
        "words": _histogram(rows(_binned(words, WORD_EDGES, "true"))),
        "sides": _histogram(rows(_binned("least(width_px, height_px)", SIDE_EDGES_PX, "copy = 0"))),
        "sheet": [_picture(row, folder) for row in rows(_SHEET.format(num=SHEET_IMAGES))],
    }


# the bin of a value is the number of edges that it reaches
def _binned(value: str, edges: Sequence[int], where: str) -> str:
    reached = " + ".join(f"(value >= {edge})::INTEGER" for edge in edges)
    return (
        f"SELECT domain, {reached} AS bin, count(*) AS num FROM "
        f"(SELECT domain, coalesce({value}, 0) AS value FROM samples WHERE {where}) GROUP BY ALL ORDER BY ALL"
    )


_SHEET = """
    SELECT sample_id, domain, split, shard, key, text, licence_id, source, jpg_offset, jpg_length FROM (
        SELECT *, row_number() OVER (PARTITION BY domain ORDER BY md5('sheet ' || sample_id), sample_id) AS place
        FROM samples WHERE copy = 0 AND split = 'train'
    ) WHERE place <= {num} ORDER BY domain, place
"""


def _histogram(rows: list[dict[str, Any]]) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {}
    for row in rows:
        found.setdefault(row["domain"], {})[row["bin"]] = row["num"]
    return found


def _picture(row: Mapping[str, Any], folder: str) -> dict[str, Any]:
    fs, inner = storage.filesystem(storage.join(folder, SPLIT_FOLDERS[row["split"]], row["shard"]))
    start = row["jpg_offset"]
    return {**row, "jpg": fs.cat_file(inner, start=start, end=start + row["jpg_length"])}
