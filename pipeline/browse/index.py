"""Make the index of a session: `session.images`, one narrow row an image, sorted by sample id.

Sorted, so that an image and a page are found without a scan; `place` counts the rows in that order. What images are
filtered and counted by is stored as enumerations, whose numbers codes.py takes into memory. `session.taxa` counts the
taxa once.
"""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.browse.snapshot import Snapshot

SHOWN_CHARS = 300  # of a caption in the grid
SEARCHED_CHARS = 10_000
MAX_SCORERS = 4
NO_VALUE = ""

SIZES = ((128, "under 128 px"), (256, "128 to 255 px"), (512, "256 to 511 px"), (1024, "512 to 1,023 px"),
         (2048, "1,024 to 2,047 px"))  # fmt: skip
LARGEST = "2,048 px or more"
_SIZE = (
    "CASE "
    + " ".join(f"WHEN greatest(width_px, height_px) < {limit} THEN '{name}'" for limit, name in SIZES)
    + f" WHEN width_px IS NULL THEN '' ELSE '{LARGEST}' END"
)


@dataclass(frozen=True)
class Facet:
    """A property that images are counted by: its column in the index, and what the pages call it."""

    name: str
    label: str


FACETS = (
    Facet("stage", "Where it ended"),
    Facet("reason", "Drop reason"),
    Facet("domain", "Domain"),
    Facet("source", "Source"),
    Facet("outcome", "Download"),
    Facet("licence", "Licence"),
    Facet("class", "Class"),
    Facet("family", "Family"),
    Facet("size", "Longer side"),
    Facet("language", "Language"),
    Facet("host", "Host"),
    Facet("split", "Split"),
    Facet("evaluation", "Leaks into"),
)

LINEAGE = Facet("lineage", "Taxon")  # searched by a part of its values, not listed on a page

PART_IMAGES = 1_000_000  # are joined at a time, so that the joins of millions of images fit into the memory

# A work folder: what every stage knows of a candidate. {mixed} tells whether the last build has mixed. $within stands
# for the ids of one part.
_FROM_WORK_FOLDER = """
    SELECT c.sample_id::UUID AS sample_id,
        CASE WHEN d.keep IS FALSE THEN d.stage
             WHEN d.keep IS NULL AND f.outcome <> 'ok' THEN 'fetch'
             WHEN p.sample_id IS NOT NULL THEN 'packed'
             WHEN d.keep AND w.sample_id IS NULL AND {mixed} THEN 'mix'
             ELSE 'under way' END AS stage,
        CASE WHEN d.keep IS FALSE THEN d.reason
             WHEN d.keep IS NULL AND f.outcome <> 'ok' THEN f.outcome
             WHEN d.keep AND w.sample_id IS NULL AND {mixed} THEN 'left_out_by_ratio'
             ELSE '' END AS reason,
        c.domain, c.source, f.outcome, coalesce(t.licence_id, c.licence) AS licence,
        coalesce(t.taxon_ranks['class'], c.taxon_class) AS class,
        coalesce(t.taxon_ranks['family'], c.taxon_family) AS family,
        f.width_px, f.height_px, t.language, f.host, p.split, d.evaluation_set AS evaluation, {scores}
        coalesce(t.text, c.caption, '') AS text, coalesce(c.caption, '') AS given,
        coalesce(t.taxon_name, c.taxon_scientific_name, '') AS taxon,
        concat_ws(' ', c.taxon_kingdom, c.taxon_phylum, c.taxon_class, c.taxon_order, c.taxon_family, c.taxon_genus,
            c.taxon_species, c.taxon_scientific_name, c.taxon_vernacular_name, t.taxon_name) AS lineage,
        d.value, d.threshold, d.other_sample_id::UUID AS other, d.distance, f.phash,
        f.pool_file, f."offset" AS pool_offset, f.length AS pool_length,
        p.shard, p.key, p.jpg_offset, p.jpg_length
    FROM (SELECT * FROM candidates WHERE $within) c
    LEFT JOIN (SELECT * FROM facts WHERE $within) f USING (sample_id)
    LEFT JOIN (SELECT * FROM captions WHERE $within) t USING (sample_id)
    LEFT JOIN (SELECT * FROM decisions WHERE $within) d USING (sample_id)
    LEFT JOIN (SELECT DISTINCT sample_id FROM draws WHERE $within) w USING (sample_id)
    LEFT JOIN (SELECT * FROM placements WHERE copy = 0 AND $within) p USING (sample_id)
    {joins}
"""
_FROM_RELEASE = """
    SELECT sample_id::UUID AS sample_id, 'packed' AS stage, '' AS reason, domain, source, 'ok' AS outcome,
        licence_id AS licence, taxon_class AS class, taxon_family AS family, width_px, height_px,
        language, regexp_extract(url, '^[a-z]+://([^/:?#]+)', 1) AS host, split, '' AS evaluation,
        coalesce(text, caption, '') AS text, coalesce(caption, '') AS given,
        coalesce(taxon_scientific_name, '') AS taxon,
        concat_ws(' ', taxon_kingdom, taxon_phylum, taxon_class, taxon_order, taxon_family, taxon_genus,
            taxon_species, taxon_scientific_name, taxon_vernacular_name) AS lineage,
        NULL::VARCHAR AS value, NULL::VARCHAR AS threshold, NULL::UUID AS other, NULL::UTINYINT AS distance, phash,
        NULL::VARCHAR AS pool_file, NULL::BIGINT AS pool_offset, NULL::BIGINT AS pool_length,
        shard, key, jpg_offset, jpg_length
    FROM samples WHERE copy = 0 AND $within
"""
_IMAGES = f"""
    SELECT place, sample_id, left(text, {SHOWN_CHARS}) AS caption,
        lower(left(CASE WHEN text = given THEN text ELSE text || ' ' || given END, {SEARCHED_CHARS})) AS words,
        taxon, left(value, 200) AS value, left(threshold, 200) AS threshold,
        other, distance, phash, width_px, height_px, pool_file, pool_offset, pool_length, shard, key, jpg_offset,
        jpg_length, {{facets}}
    FROM session.staged ORDER BY place
"""
_TAXA = """
    CREATE TABLE session.taxa AS SELECT taxon, count(*) AS num, count(*) FILTER (stage = 'packed') AS packed,
        min(sample_id) FILTER (coalesce(pool_file, shard) IS NOT NULL) AS example
    FROM session.images WHERE taxon <> '' GROUP BY taxon
"""


def make_index(snapshot: Snapshot) -> tuple[Facet, ...]:
    """Fill `session.images`; returns the facets in the order of the pages."""
    sql = snapshot.connection
    scorers = _scorers(snapshot)
    facets = (*FACETS, *(Facet(f"score_{at}", f"Score: {name}") for at, name in enumerate(scorers)))
    searched = (*facets, LINEAGE)
    columns = ", ".join(_expression(facet) + f' AS "{facet.name}"' for facet in searched)
    kept = "text, given, taxon, value, threshold, other, distance, phash, width_px, height_px"
    places = "pool_file, pool_offset, pool_length, shard, key, jpg_offset, jpg_length"
    source = _FROM_RELEASE if snapshot.release else _work_folder_query(sql, scorers)
    ids = "SELECT sample_id FROM samples WHERE copy = 0" if snapshot.release else "SELECT sample_id FROM candidates"
    sql.execute(
        "CREATE TABLE session.places AS SELECT sample_id::UUID AS sample_id, "
        f"row_number() OVER (ORDER BY sample_id::UUID) - 1 AS place FROM ({ids})"
    )
    ((num_images,),) = sql.execute("SELECT count(*) FROM session.places").fetchall()
    into = "CREATE TABLE session.staged AS"
    for within in _parts_of_ids(num_images):
        sql.execute(
            f"{into} SELECT place, sample_id, {kept}, {places}, {columns} "
            f"FROM ({source.replace('$within', within)}) JOIN session.places USING (sample_id)"
        )
        into = "INSERT INTO session.staged"
    for facet in searched:
        values = f'SELECT DISTINCT "{facet.name}" FROM session.staged ORDER BY 1'
        sql.execute(f"CREATE TYPE session.{facet.name}_values AS ENUM ({values})")
    numbered = ", ".join(f'"{facet.name}"::session.{facet.name}_values AS "{facet.name}"' for facet in searched)
    sql.execute(f"CREATE TABLE session.images AS {_IMAGES.format(facets=numbered)}")
    sql.execute("DROP TABLE session.staged")
    sql.execute("DROP TABLE session.places")
    sql.execute(_TAXA)
    sql.execute("CHECKPOINT session")
    return facets


def _parts_of_ids(num_images: int) -> list[str]:
    """Conditions on `sample_id` that part all ids, which are even hexadecimal numbers, into parts of equal size."""
    num_parts = max(1, math.ceil(num_images / PART_IMAGES))
    bounds = ["", *(f"{at * 16**6 // num_parts:06x}" for at in range(1, num_parts)), "g"]
    return [f"sample_id >= '{low}' AND sample_id < '{high}'" for low, high in itertools.pairwise(bounds)]


def _expression(facet: Facet) -> str:
    if facet is LINEAGE:
        return "lower(lineage)"
    return _SIZE if facet.name == "size" else f"coalesce(\"{facet.name}\", '{NO_VALUE}')"


def _scorers(snapshot: Snapshot) -> list[str]:
    if snapshot.release:
        return []
    rows = snapshot.connection.execute("SELECT DISTINCT scorer FROM scores ORDER BY 1").fetchall()
    return [row[0] for row in rows[:MAX_SCORERS]]


def _work_folder_query(sql: Any, scorers: Sequence[str]) -> str:
    mixed = bool(sql.execute("SELECT 1 FROM current_stages WHERE stage = 'mix'").fetchall())
    scores, joins = "", ""
    for at, scorer in enumerate(scorers):
        low = f"floor(s{at}.score * 20) / 20"
        scores += f"printf('%.2f to %.2f', {low}, {low} + 0.05) AS score_{at}, "
        named = scorer.replace("'", "''")
        joins += f" LEFT JOIN (SELECT * FROM scores WHERE scorer = '{named}' AND $within) s{at} USING (sample_id)"
    return _FROM_WORK_FOLDER.format(mixed=mixed, scores=scores, joins=joins)


def as_id(text: str) -> uuid.UUID | None:
    """A sample id (32 hex digits) as DuckDB holds it here, or None for anything else."""
    try:
        return uuid.UUID(hex=text) if len(text) == 32 else None
    except ValueError:
        return None
