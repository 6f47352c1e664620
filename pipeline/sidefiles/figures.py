"""Figures of a release's card and report, as plain values: counts, histograms, some pictures.

Reads samples.parquet by column through DuckDB, so memory stays small at any size, and a few pictures out of the shards.
Every count is exact, and sample ids alone decide which pictures are shown: the same release has the same figures
whenever and wherever they are taken. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from manifests.contract.reader import rows_of
from manifests.contract.release import path_of_shard
from manifests.contract.tables import TAXON_RANKS
from manifests.stores.ranges import read_range
from pipeline.sidefiles.citation import counts_of
from pipeline.store.sql import empty_columns, view_parquet

SHEET_IMAGES = 12  # of each domain
SHEET_BYTES = 4_000_000  # of all pictures; a page must stay under 10 MB, and base64 adds a third
HEADS = 7  # images that stayed for most duplicates
HEADS_BYTES = 800_000
WORD_EDGES = (1, 2, 3, 5, 8, 13, 21, 34, 55)
SIDE_EDGES_PX = (64, 128, 256, 512, 1024, 2048, 4096)
KILOBYTE_EDGES = (5, 10, 20, 40, 80, 160, 320)
TAXON_EDGES = (2, 5, 10, 20, 50, 100, 1000)  # images of a taxon
MOST_FREQUENT = 15
COMMON = 0.5  # a rank is shown when this part of the images with a taxon have it,
MOST_OF_ONE = 0.8  # and no name of it has more than this part

_TAXON = "coalesce(nullif(taxon_scientific_name, ''), taxon_species)"
_IS_OTHER = " OR ".join(
    f"(trim({of_file}) <> '' AND lower(trim({of_file})) <> lower(trim({stated})))"
    for stated, of_file in (("creator", "file_creator"), ("rights_holder", "file_rights"))
)  # where the source states none, the file's stands there
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
    "taxa": "SELECT domain, coalesce(sum(images), 0)::BIGINT AS images, count(name) FILTER (images > 0) AS names "
    "FROM (SELECT DISTINCT domain FROM images) LEFT JOIN named_in_domains USING (domain) GROUP BY ALL ORDER BY domain",
    "hosts": "SELECT coalesce(nullif(regexp_extract(url, '^[a-z]+://([^/:?#]+)', 1), ''), '(local)') AS host, "
    "count(*) AS images FROM images GROUP BY ALL ORDER BY images DESC, host",
    "languages": "SELECT coalesce(language, '(not told)') AS language, count(*) AS images FROM images GROUP BY ALL "
    "ORDER BY images DESC, language",
    "marks": "SELECT mark, count(*) AS images FROM (SELECT unnest(string_split(marks, ' ')) AS mark FROM images) "
    "WHERE mark <> '' GROUP BY ALL ORDER BY mark",
    "other_owners": f"SELECT count(*) FILTER ({_IS_OTHER}) AS others, "
    "count(*) FILTER (file_creator IS NULL) AS unlooked FROM images",
    "frequent_taxa": f"SELECT name, images, samples FROM named ORDER BY images DESC, name LIMIT {MOST_FREQUENT}",
    "rare_taxa": f"SELECT name, images, samples FROM named ORDER BY images, md5(name) LIMIT {MOST_FREQUENT}",
}
# most texts have single spaces alone; counting those takes half the CPU of splitting at them (2026-11-27)
_ODD_SPACES = " OR ".join(
    ["trim(text[1]) = ''", "trim(text[-1]) = ''", "contains(text, '  ')"]
    + [f"contains(text, chr({code}))" for code in range(9, 14)]
)
_NUM_WORDS = (
    f"if({_ODD_SPACES}, len(string_split_regex(trim(text), '\\s+')) * (trim(text) <> '')::INTEGER, "
    "strlen(text) - strlen(replace(text, ' ', '')) + (text <> '')::INTEGER)"
)
_SHOWN = "sample_id, domain, split, shard, left(text, 400) AS text, licence, source, jpg_offset, jpg_length"
# the ids of the first ones are found alone: sorting all rows with their texts takes 0.6 kB a row
_SHEET = f"""
    WITH first_ones AS (
        SELECT unnest(min({{'hash': md5('sheet ' || sample_id), 'id': sample_id}}, {SHEET_IMAGES})).id AS sample_id
        FROM images WHERE split = 'train' AND jpg_length <= $most / 4 GROUP BY domain
    )
    SELECT * FROM (
        SELECT {_SHOWN}, row_number() OVER hashed AS place, sum(jpg_length) OVER hashed AS bytes
        FROM images SEMI JOIN first_ones USING (sample_id)
        WINDOW hashed AS (PARTITION BY domain ORDER BY md5('sheet ' || sample_id), sample_id)
    ) WHERE place <= {SHEET_IMAGES} AND bytes <= $most ORDER BY domain, place
"""
_HEADS = f"""
    SELECT * FROM (
        SELECT {_SHOWN}, g.images AS stands_for, sum(jpg_length) OVER (ORDER BY g.images DESC, sample_id) AS bytes
        FROM images JOIN (SELECT unnest($largest, recursive := true)) g USING (sample_id)
    ) WHERE bytes <= {HEADS_BYTES} ORDER BY stands_for DESC, sample_id LIMIT {HEADS}
"""


def collect(
    connection: Any, samples: str, folder: str, record: Mapping[str, Any], gone: Collection[str] = ()
) -> dict[str, Any]:
    """Return all figures. `samples` is the samples table, `folder` the release, whose shards hold the pictures.

    No picture of a sample in `gone` is shown.
    """
    view_parquet(connection, "stored_samples", [samples])
    held = set(connection.table("stored_samples").columns)  # an older release tells less
    later = {"language", "marks", "file_creator", "file_rights"} - held
    absent = "".join(f", NULL::VARCHAR AS {name}" for name in sorted(later))
    connection.execute(f"CREATE VIEW samples AS SELECT *{absent} FROM stored_samples")
    connection.execute(
        "CREATE VIEW images AS SELECT * REPLACE (coalesce(licence_id, 'unknown') AS licence) FROM samples "
        "WHERE copy = 0"
    )
    connection.execute(
        f"CREATE TABLE named_in_domains AS SELECT domain, {_TAXON} AS name, count(*) FILTER (copy = 0) AS images, "
        f"count(*) FILTER (split = 'train') AS samples FROM samples WHERE {_TAXON} IS NOT NULL GROUP BY ALL"
    )
    connection.execute(
        "CREATE TABLE named AS SELECT name, sum(images)::BIGINT AS images, sum(samples)::BIGINT AS samples "
        "FROM named_in_domains GROUP BY name"
    )
    counts = {name: rows_of(connection, query) for name, query in _COUNTS.items()}
    most = SHEET_BYTES // max(1, len({row["domain"] for row in counts["domains"]}))
    largest = (record.get("duplicates") or {}).get("largest")
    return {
        **counts,
        "tables": counts_of(record, connection),
        "words": word_counts(connection, "samples"),
        "sides": _histogram(connection, "least(width_px, height_px)", SIDE_EDGES_PX, "images", f"< {SIDE_EDGES_PX[0]}"),
        "kilobytes": _histogram(connection, "jpg_length / 1000", KILOBYTE_EDGES, "images", f"< {KILOBYTE_EDGES[0]}"),
        "taxon_sizes": _taxon_sizes(connection),
        "ranks": _ranks(connection, empty_columns(connection, [samples])),
        "sheet": _shown(rows_of(connection, _SHEET, {"most": most}), folder, gone),
        "heads": _shown(rows_of(connection, _HEADS, {"largest": largest}) if largest else [], folder, gone),
    }


def word_counts(connection: Any, view: str) -> dict[str, Any]:
    """For each `domain` of a view the share of its texts (`text`) in each bin of numbers of words."""
    return _histogram(connection, _NUM_WORDS, WORD_EDGES, view, "0")


def _histogram(connection: Any, value: str, edges: Sequence[int], view: str, below: str) -> dict[str, Any]:
    """For each domain the share of its rows in each bin. A bin is named by where it begins, the last one is open."""
    labels = [below, *(str(edge) for edge in edges[:-1]), f"{edges[-1]}+"]
    counts: dict[str, list[int]] = {}
    for row in rows_of(
        connection,
        f"SELECT domain, {_bin(edges)} AS bin, count(*) AS num FROM "
        f"(SELECT domain, coalesce({value}, 0) AS value FROM {view}) GROUP BY ALL ORDER BY ALL",
    ):
        counts.setdefault(row["domain"], [0] * len(labels))[row["bin"]] = row["num"]
    shares = {domain: [num / sum(nums) for num in nums] for domain, nums in counts.items()}
    return {"labels": labels, "shares": shares}


def _bin(edges: Sequence[int]) -> str:
    """Return SQL for the bin of a value: the number of edges that it reaches."""
    return " + ".join(f"(value >= {edge})::INTEGER" for edge in edges)


def _taxon_sizes(connection: Any) -> list[dict[str, Any]]:
    """Return how many taxa have how many images: the tail, in bins."""
    starts, ends = (1, *TAXON_EDGES), (*TAXON_EDGES, None)
    names = [
        f"{start:,}" if end == start + 1 else f"{start:,} to {end - 1:,}" if end else f"{start:,} or more"
        for start, end in zip(starts, ends, strict=True)
    ]
    bins = rows_of(
        connection,
        f"SELECT {_bin(TAXON_EDGES)} AS bin, count(*) AS taxa, sum(value)::BIGINT AS images "
        "FROM (SELECT images AS value FROM named) GROUP BY ALL ORDER BY ALL",
    )
    return [{"name": names[row["bin"]], "taxa": row["taxa"], "images": row["images"]} for row in bins]


def _ranks(connection: Any, empty: Collection[str]) -> dict[str, Any] | None:
    """Return the two ranks that part the images best, and the images and training samples of each pair of their names.

    The outer rank is the highest that most images have and that no single name fills; the inner one is the next below
    it with more names. None where no rank does. Of columns that are `empty` nothing is asked.
    """
    ((whole,),) = connection.execute("SELECT coalesce(sum(images), 0)::BIGINT FROM named").fetchall()
    num_names: dict[str, int] = {}
    for rank in (rank for rank in TAXON_RANKS if f"taxon_{rank}" not in empty):
        ((names, num, most),) = connection.execute(
            f"SELECT count(name), sum(num), max(num) FROM (SELECT taxon_{rank} AS name, count(*) AS num FROM images "
            f"WHERE taxon_{rank} IS NOT NULL GROUP BY ALL)"
        ).fetchall()
        if names >= 2 and num >= COMMON * whole and most <= MOST_OF_ONE * num:
            num_names[rank] = names
    usable = list(num_names)
    if not usable:
        return None
    outer = usable[0]
    inner = next((rank for rank in usable if num_names[rank] > num_names[outer]), outer)
    rows = rows_of(
        connection,
        f"SELECT coalesce(taxon_{outer}, '(not told)') AS outer_name, "
        f"coalesce(taxon_{inner}, '(not told)') AS inner_name, "
        "count(*) FILTER (copy = 0) AS images, count(*) FILTER (split = 'train') AS samples FROM samples "
        f"WHERE {_TAXON} IS NOT NULL OR taxon_{outer} IS NOT NULL GROUP BY ALL ORDER BY ALL",
    )
    return {"outer": outer, "inner": inner, "num_outer": num_names[outer], "num_inner": num_names[inner], "rows": rows}


def _shown(rows: Sequence[Mapping[str, Any]], folder: str, gone: Collection[str]) -> list[dict[str, Any]]:
    """Return the rows with their pictures, without those that are gone."""
    return [{**row, "jpg": _picture(row, folder)} for row in rows if row["sample_id"] not in gone]


def _picture(row: Mapping[str, Any], folder: str) -> bytes:
    shard = path_of_shard(folder, row["split"], row["shard"])
    return read_range(shard, row["jpg_offset"], row["jpg_length"])
