"""What the work folder's takedown list (manifests/takedowns.py) names: a table that select joins.

Every fetched row counts, whether or not it passed the rules: a near copy of a picture that was taken down must not
come in because the picture itself fell to a caption rule since.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from manifests.takedowns import Entry

_LIST = pa.schema([("by", pa.string()), ("key", pa.string()), ("value", pa.string()), ("reason", pa.string())])
_KEYS = {  # by -> (table, column) pairs that an entry's key is compared with
    "url": (("candidates", "url"), ("candidates", "reference_url"), ("facts", "final_url")),
    "owner": (("candidates", "lower(trim(rights_holder))"), ("candidates", "lower(trim(creator))")),
    "id": (("candidates", "sample_id"), ("facts", "image_id"), ("facts", "stored_sha256")),
}


def judge_takedowns(sql: Any, entries: Sequence[Entry]) -> None:
    """Make the table `taken`: rows of candidates and facts that an entry names, with the entry as value and reason."""
    find_named(sql, entries)
    sql.execute(
        "CREATE TABLE taken AS SELECT sample_id, any_value(phash) AS phash, any_value(image_id) AS image_id, "
        "any_value(pixels_sha256) AS pixels_sha256, min(n.by || ' ' || value) AS value, "
        "arg_min(reason, n.by || ' ' || value) AS threshold "
        "FROM named n JOIN facts USING (sample_id) WHERE outcome = 'ok' GROUP BY sample_id"
    )


def find_named(sql: Any, entries: Sequence[Entry]) -> None:
    """Make the table `named`: of every row of candidates and facts that an entry names, its sample_id and the entry."""
    rows = [{"by": entry.by, "key": entry.key[1], "value": entry.value, "reason": entry.reason} for entry in entries]
    sql.register("takedown_list", pa.Table.from_pylist(rows, schema=_LIST))
    found = " UNION ALL ".join(
        f"SELECT t.sample_id, l.by, l.key, l.value, l.reason FROM {table} t JOIN takedown_list l ON l.key = {column} "
        f"WHERE l.by = '{by}'"
        for by, columns in _KEYS.items()
        for table, column in columns
    )
    nothing = "SELECT NULL::VARCHAR AS sample_id, * FROM takedown_list"  # no reading of tables for an empty list
    sql.execute(f"CREATE TABLE named AS {found if rows else nothing}")
