"""Rows that must stay out, since the takedown list names them or what they are copies of. SQL over tables.

What an entry names is known by its hashes from then on: the list keeps them, so that copies are met in every later
build, whoever fetched the picture, in any size or quality, and also when no source has it any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import pyarrow as pa

from manifests.contract.copies import RADIUS
from manifests.contract.takedowns import Entry, Picture, each_once, find_named
from pipeline.judging.matching.looks import find_near_looks

TAKEN = pa.schema(
    [
        ("sample_id", pa.string()),
        ("value", pa.string()),  # the entry that names it, or how it is like which picture
        ("threshold", pa.string()),  # the reason that was given
        ("other_sample_id", pa.string()),  # of a copy: the sample that is named, where this build has it
        ("distance", pa.uint8()),  # of a copy: of the pHashes
    ]
)
PICTURES = pa.schema(
    [(field.name, pa.list_(pa.string()) if field.name == "addresses" else pa.string()) for field in fields(Picture)]
)
_ASKED = pa.schema(
    [("hash", pa.uint64()), ("middle", pa.uint64()), ("mirrored", pa.bool_()), ("image_id", pa.string())]
)


_NAMED = """
    CREATE TABLE named_rows AS SELECT sample_id, min(n.by || ' ' || value) AS value,
        arg_min(reason, n.by || ' ' || value) AS threshold, any_value(s.image_id) AS image_id
        FROM named n JOIN shown s USING (sample_id) GROUP BY sample_id
"""
_FOUND = """
    SELECT DISTINCT ON (image_id) s.*, threshold AS reason FROM shown s JOIN named_rows USING (sample_id)
    ORDER BY s.image_id, sample_id
"""
_ADDRESSES = """
    SELECT image_id, list(DISTINCT c.url) FROM shown JOIN held USING (image_id) JOIN candidates c USING (sample_id)
    WHERE c.locator IS NULL AND c.url IS NOT NULL GROUP BY image_id
"""
_TAKEN = """
    CREATE TABLE likeness AS
        SELECT sample_id, 0 AS rank, 0 AS distance, image_id FROM shown JOIN pictures USING (image_id)
        UNION ALL SELECT sample_id, 1, 0, p.image_id FROM shown JOIN pictures p USING (pixels_sha256)
        UNION ALL SELECT sample_id, 2 + n.mirrored::INTEGER, n.distance, n.image_id
            FROM shown JOIN near_looks n USING (look);
    CREATE TABLE copies AS SELECT sample_id, unnest(min({'rank': rank, 'distance': distance, 'image_id': image_id}))
        FROM likeness ANTI JOIN named_rows USING (sample_id) GROUP BY sample_id;
    CREATE TABLE taken AS SELECT sample_id, value, threshold, NULL AS other_sample_id, NULL AS distance FROM named_rows
        UNION ALL SELECT c.sample_id, CASE rank WHEN 0 THEN 'same bytes as ' WHEN 1 THEN 'same pixels as '
                WHEN 2 THEN 'pHash distance ' || distance || ' to '
                ELSE 'pHash distance ' || distance || ' to the mirror image of ' END || image_id,
            reason, first_id, distance FROM copies c JOIN pictures USING (image_id)
            LEFT JOIN (SELECT image_id, min(sample_id) AS first_id FROM named_rows GROUP BY ALL) USING (image_id)
"""


def judge_taken(sql: Any, entries: Sequence[Entry], pictures: Sequence[Picture], radius: int) -> None:
    """Make the tables `taken` (TAKEN), and `pictures` (PICTURES): those of the list and those that entries name.

    Reads `candidates`, `facts` and `shown` (looks.py).
    """
    find_named(sql, entries)
    sql.execute(_NAMED)
    found = [Picture.of_fact(fact, fact["reason"]) for fact in sql.sql(_FOUND).to_arrow_table().to_pylist()]
    held = each_once([*pictures, *found])
    sql.register("held", pa.table({"image_id": pa.array([picture.image_id for picture in held], pa.string())}))
    addresses = dict(sql.execute(_ADDRESSES).fetchall())
    held = each_once(replace(one, addresses=(*one.addresses, *addresses.get(one.image_id, ()))) for one in held)
    sql.register("pictures", pa.Table.from_pylist([asdict(picture) for picture in held], PICTURES))
    asked = [
        {"hash": whole, "middle": middle, "mirrored": bool(mirrored), "image_id": picture.image_id}
        for picture in held
        for mirrored, (whole, middle) in enumerate(picture.turns)
    ]
    sql.register("asked", pa.Table.from_pylist(asked, _ASKED))
    find_near_looks(sql, max(radius, RADIUS))
    sql.execute(_TAKEN)
