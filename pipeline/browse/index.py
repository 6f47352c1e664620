"""Make the index from which the pages answer at once, for millions of images.

Reads every table once and deals its rows into parts by sample id, so that joining a part takes little memory.
Writes two files into a folder:

- `images.duckdb`: table `images`, one narrow row per image.
  `place` numbers the images in the order of their ids. The rows of a part lie together, so a look-up reads one part.
- `facets.arrow`: what images are filtered and counted by, as numbers (codes.py). Written last: it makes an index whole.
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests.contract.reader import SAMPLE_VIEWS, literals, paths_of_current
from manifests.names.sql import identifier
from pipeline.browse.snapshot import FACETS_FILE, IMAGES_FILE, INDEX_FOLDER, Snapshot
from pipeline.releases.opening import samples_path

SHOWN_CHARS = 300  # of a caption in the grid
SEARCHED_CHARS = 10_000  # of text and caption
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

LINEAGE = Facet("lineage", "Taxon")  # searched by any part of it, not listed on a page

PART_IMAGES = 500_000  # joined at a time: more take more memory, fewer take more time
DEALT_FOLDER = "dealt"

# What the index takes from each table.
_TAKEN = {
    "candidates": "domain, source, caption, licence, taxon_kingdom, taxon_phylum, taxon_class, taxon_order, "
    "taxon_family, taxon_genus, taxon_species, taxon_scientific_name, taxon_vernacular_name",
    "facts": 'outcome, host, width_px, height_px, phash, pool_file, "offset", length',
    "captions": "text, taxon_name, licence_id, taxon_ranks['class'] AS class, taxon_ranks['family'] AS family, "
    "language",
    "decisions": "keep, stage, reason, value, threshold, other_sample_id, distance, evaluation_set",
    "scores": "scorer, score",
    "draws": "copy",
    "placements": "copy, split, shard, key, jpg_offset, jpg_length",
    "samples": "copy, domain, source, licence_id, width_px, height_px, language, url, split, text, caption, "
    "taxon_kingdom, taxon_phylum, taxon_class, taxon_order, taxon_family, taxon_genus, taxon_species, "
    "taxon_scientific_name, taxon_vernacular_name, phash, shard, key, jpg_offset, jpg_length",
}

# A work folder: what every stage knows of a candidate. {mixed}: whether the last build reached mix.
_FROM_WORK_FOLDER = """
    SELECT c.sample_id,
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
        coalesce(t.class, c.taxon_class) AS class, coalesce(t.family, c.taxon_family) AS family,
        f.width_px, f.height_px, t.language, f.host, p.split, d.evaluation_set AS evaluation, {scores}
        coalesce(t.text, c.caption, '') AS text, coalesce(c.caption, '') AS source_caption,
        coalesce(t.taxon_name, c.taxon_scientific_name, '') AS taxon,
        concat_ws(' ', c.taxon_kingdom, c.taxon_phylum, c.taxon_class, c.taxon_order, c.taxon_family, c.taxon_genus,
            c.taxon_species, c.taxon_scientific_name, c.taxon_vernacular_name, t.taxon_name) AS lineage,
        d.value, d.threshold, d.other_sample_id::UUID AS other, d.distance, f.phash,
        f.pool_file, f."offset" AS pool_offset, f.length AS pool_length,
        p.shard, p.key, p.jpg_offset, p.jpg_length
    FROM part_candidates c
    LEFT JOIN part_facts f USING (sample_id)
    LEFT JOIN part_captions t USING (sample_id)
    LEFT JOIN part_decisions d USING (sample_id)
    LEFT JOIN (SELECT DISTINCT sample_id FROM part_draws) w USING (sample_id)
    LEFT JOIN (FROM part_placements WHERE copy = 0) p USING (sample_id)
    {joins}
"""
_FROM_RELEASE = """
    SELECT sample_id, 'packed' AS stage, '' AS reason, domain, source, 'ok' AS outcome,
        licence_id AS licence, taxon_class AS class, taxon_family AS family, width_px, height_px,
        language, regexp_extract(url, '^[a-z]+://([^/:?#]+)', 1) AS host, split, '' AS evaluation,
        coalesce(text, caption, '') AS text, coalesce(caption, '') AS source_caption,
        coalesce(taxon_scientific_name, '') AS taxon,
        concat_ws(' ', taxon_kingdom, taxon_phylum, taxon_class, taxon_order, taxon_family, taxon_genus,
            taxon_species, taxon_scientific_name, taxon_vernacular_name) AS lineage,
        NULL::VARCHAR AS value, NULL::VARCHAR AS threshold, NULL::UUID AS other, NULL::UTINYINT AS distance, phash,
        NULL::VARCHAR AS pool_file, NULL::BIGINT AS pool_offset, NULL::BIGINT AS pool_length,
        shard, key, jpg_offset, jpg_length
    FROM part_samples WHERE copy = 0
"""
_IMAGES = f"""
    SELECT place, sample_id, left(text, {SHOWN_CHARS}) AS caption,
        lower(left(CASE WHEN text = source_caption THEN text ELSE text || ' ' || source_caption END,
            {SEARCHED_CHARS})) AS words,
        taxon, left(value, 200) AS value, left(threshold, 200) AS threshold,
        other, distance, phash, width_px, height_px, pool_file, pool_offset, pool_length, shard, key, jpg_offset,
        jpg_length, stage, reason, outcome, domain, source, split
    FROM joined
"""
Tell = Callable[[float], None]


def make_index(snapshot: Snapshot, tell: Tell = lambda share: None) -> None:
    """Write the index into the private folder of the session. `tell` is given the share that is done, 0 to 1."""
    sql, first = snapshot.connection, "samples" if snapshot.release else "candidates"
    copies = " WHERE copy = 0" if snapshot.release else ""
    ((num_images,),) = sql.execute(f"SELECT count(*) FROM {first}{copies}").fetchall()
    num_parts = max(1, math.ceil(num_images / PART_IMAGES))
    tables = ["samples"] if snapshot.release else [table for table in _TAKEN if table != "samples"]
    num_steps, done = len(tables) + num_parts, 0
    paths = {table: _paths(snapshot, table) for table in tables}
    scorers = _scorers(snapshot)
    query = _FROM_RELEASE if snapshot.release else _work_folder_query(sql, scorers)
    facets = (*FACETS, *(Facet(f"score_{at}", f"Score: {name}") for at, name in enumerate(scorers)), LINEAGE)
    coded = [_Coded(facet, num_images) for facet in facets]
    folder = snapshot.private / INDEX_FOLDER
    folder.mkdir()
    with snapshot.attached(folder / IMAGES_FILE):
        dealt = {}
        for table in tables:
            dealt[table] = _deal(snapshot, table, paths[table], num_parts)
            tell((done := done + 1) / num_steps)
        start = 0
        for part in range(num_parts):
            for table, source in dealt.items():
                sql.execute(f"CREATE OR REPLACE TEMP VIEW part_{table} AS SELECT * FROM {source} WHERE part = {part}")
            start = _add_part(sql, query, f"SELECT sample_id FROM part_{first}{copies}", start, coded, part == 0)
            tell((done := done + 1) / num_steps)
        sql.execute("DROP TABLE joined")
        sql.execute("DROP TABLE places")
        sql.execute("CHECKPOINT session")
    _write_facets(coded, folder / FACETS_FILE)
    shutil.rmtree(snapshot.private / DEALT_FOLDER, ignore_errors=True)


def _paths(snapshot: Snapshot, table: str) -> list[str]:
    if snapshot.release:
        return [samples_path(snapshot.release)]
    return paths_of_current(snapshot.connection, str(snapshot.folder.resolve()))[SAMPLE_VIEWS[table][0], table]


def _deal(snapshot: Snapshot, table: str, paths: Sequence[str], num_parts: int) -> str:
    """Cut the rows of a table into parts. Returns what SQL selects them from, with a column `part`.

    Ids are hashes, so equal ranges of ids make parts of about equal size.
    """
    taken = _TAKEN[table]
    nothing = f"(SELECT sample_id::UUID AS sample_id, {taken}, 0 AS part FROM {table} LIMIT 0)"
    if not paths:
        return nothing
    part = f"('0x' || left(sample_id, 4))::UINTEGER * {num_parts} // 65536" if num_parts > 1 else "0"
    rows = (
        f"SELECT sample_id::UUID AS sample_id, {taken}, ({part})::USMALLINT AS part "
        f"FROM read_parquet([{literals(map(str, paths))}])"
    )
    if num_parts == 1:
        return f"({rows})"
    folder = snapshot.private / DEALT_FOLDER / table
    folder.parent.mkdir(exist_ok=True)
    how = "FORMAT parquet, COMPRESSION lz4_raw, PARTITION_BY (part)"
    ((num_rows,),) = snapshot.connection.execute(f"COPY ({rows}) TO {literals([str(folder)])} ({how})").fetchall()
    return (
        f"read_parquet({literals([str(folder / '*' / '*.parquet')])}, hive_partitioning = true)"
        if num_rows
        else nothing
    )


def _add_part(sql: Any, query: str, ids: str, start: int, coded: Sequence[_Coded], first: bool) -> int:
    """Add the images of a part, numbered from `start`; returns how many there are so far."""
    sql.execute(
        "CREATE OR REPLACE TEMP TABLE places AS SELECT sample_id, "
        f"(row_number() OVER (ORDER BY sample_id) - 1 + {start})::UINTEGER AS place FROM ({ids})"
    )
    columns = ", ".join(f"{_expression(one.facet)} AS {identifier(one.facet.name)}" for one in coded)
    names = ", ".join(identifier(one.facet.name) for one in coded)
    others = "text, source_caption, taxon, value, threshold, other, distance, phash, width_px, height_px"
    stored = "pool_file, pool_offset, pool_length, shard, key, jpg_offset, jpg_length"
    sql.execute(
        f"CREATE OR REPLACE TEMP TABLE joined AS SELECT place, sample_id, {others}, {stored}, {columns} "
        f"FROM ({query}) JOIN places USING (sample_id)"
    )
    sql.execute(f"{'CREATE TABLE session.images AS' if first else 'INSERT INTO session.images'} {_IMAGES}")
    for batch in sql.sql(f"SELECT place, {names} FROM joined").to_arrow_reader(1 << 17):
        places = batch["place"].to_numpy()
        for one in coded:
            one.add(places, batch[one.facet.name])
    ((num,),) = sql.execute("SELECT count(*) FROM places").fetchall()
    return start + int(num)


class _Coded:
    """One facet while images are added: each distinct value gets a number, each image the number of its value."""

    def __init__(self, facet: Facet, num_images: int) -> None:
        self.facet = facet
        self._codes: npt.NDArray[Any] = np.zeros(num_images, np.uint8)  # wider only once there are more values
        self._numbers: dict[str, int] = {}

    def add(self, places: npt.NDArray[Any], values: pa.Array) -> None:
        """Add the values of the images at these places."""
        coded = values.dictionary_encode()
        numbers = [self._numbers.setdefault(value, len(self._numbers)) for value in coded.dictionary.to_pylist()]
        kind = np.min_scalar_type(max(numbers, default=0))
        if kind.itemsize > self._codes.itemsize:
            self._codes = self._codes.astype(kind)
        self._codes[places] = np.array(numbers, kind)[coded.indices.to_numpy()]

    def column(self) -> tuple[pa.Field, pa.Array]:
        """Return the facet as a dictionary column with sorted values.

        The metadata of its field holds label and counts.
        """
        values = sorted(self._numbers)
        order = np.zeros(len(values), np.min_scalar_type(max(len(values) - 1, 0)))
        order[[self._numbers[value] for value in values]] = np.arange(len(values))
        codes = self._codes = order[self._codes]  # frees the old numbers
        counts = np.bincount(codes, minlength=len(values)).tolist()
        column = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(values, pa.string()))
        about = {"label": self.facet.label, "counts": json.dumps(counts)}
        return pa.field(self.facet.name, column.type, metadata=about), column


def _write_facets(coded: list[_Coded], path: Path) -> None:
    fields, columns = zip(*(one.column() for one in coded), strict=True)
    batch = pa.record_batch(list(columns), schema=pa.schema(fields))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _expression(facet: Facet) -> str:
    if facet is LINEAGE:
        return "lower(lineage)"
    return _SIZE if facet.name == "size" else f"coalesce({identifier(facet.name)}, '{NO_VALUE}')"


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
        joins += f" LEFT JOIN (FROM part_scores WHERE scorer = '{named}') s{at} USING (sample_id)"
    return _FROM_WORK_FOLDER.format(mixed=mixed, scores=scores, joins=joins)


def as_id(text: str) -> uuid.UUID | None:
    """Return a sample id (32 hex digits) as DuckDB holds it here, or None for anything else."""
    try:
        return uuid.UUID(hex=text) if len(text) == 32 else None
    except ValueError:
        return None
