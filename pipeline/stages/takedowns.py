"""What the work folder's takedown list (pipeline/releases/takedown_list.py) names: a table that select joins.

Every fetched row counts, whether or not it passed the rules: a near copy of a picture that was taken down must not
come in because the picture itself fell to a caption rule since.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.releases.takedown_list import Entry, normal_owner

_LIST = pa.schema([("by", pa.string()), ("key", pa.string()), ("value", pa.string()), ("reason", pa.string())])
_KEYS = {
    "url": ("c.url", "c.reference_url", "f.final_url"),
    "owner": ("lower(trim(c.rights_holder))", "lower(trim(c.creator))"),
    "id": ("c.sample_id", "f.image_id", "f.stored_sha256"),
}


def judge_takedowns(sql: Any, entries: Sequence[Entry]) -> None:
    """Make the table `taken`: rows of candidates and facts that an entry names, with the entry as value and reason."""
    rows = [
        {
            "by": entry.by,
            "key": normal_owner(entry.value) if entry.by == "owner" else entry.value,
            "value": entry.value,
            "reason": entry.reason,
        }
        for entry in entries
    ]
    sql.register("takedown_list", pa.Table.from_pylist(rows, schema=_LIST))
    found = " UNION ALL ".join(
        "SELECT sample_id, f.phash, f.image_id, f.pixels_sha256, l.by || ' ' || l.value AS value, l.reason "
        f"FROM candidates c JOIN facts f USING (sample_id) JOIN takedown_list l ON l.key = {key} "
        f"WHERE l.by = '{by}' AND f.outcome = 'ok'"
        for by, keys in _KEYS.items()
        for key in keys
    )
    empty = "SELECT sample_id, phash, image_id, pixels_sha256, '' AS value, '' AS reason FROM facts WHERE false"
    sql.execute(
        "CREATE TABLE taken AS SELECT sample_id, any_value(phash) AS phash, any_value(image_id) AS image_id, "
        "any_value(pixels_sha256) AS pixels_sha256, min(value) AS value, arg_min(reason, value) AS threshold "
        f"FROM ({found if rows else empty}) GROUP BY sample_id"
    )
