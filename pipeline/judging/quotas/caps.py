"""Caps per taxon, host or other key, over the rows that rules and duplicates left. SQL over scratch tables.

A key's rows lie anywhere, so caps are no work for buckets of sample ids. Buckets pick the keys of their rows
(`keys_sql`), and one pass over these narrow rows judges. Only rows of keys above their cap leave DuckDB.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from manifests.contract import tables
from manifests.contract.reader import literals
from manifests.names.equal import name_key
from manifests.names.sql import json_text
from pipeline.judging.quotas.balance import BalanceSettings, CapSettings, judge_cap

NUM_SHOWN = 5

_OWNERS = ("creator", "rights_holder")
_KEYS = {
    "taxon": "t.taxon_name",
    **{rank: f"t.taxon_ranks['{rank}']" for rank in tables.TAXON_RANKS},
    "host": "f.host",
    "source": "c.source",
    "creator": "coalesce(nullif(trim(c.creator), ''), f.file_creator)",
    "rights_holder": "coalesce(nullif(trim(c.rights_holder), ''), f.file_rights)",
    "text": "CASE WHEN t.text_source = 'caption' THEN lower(t.text) END",
}


def keys_schema(settings: BalanceSettings) -> pa.Schema:
    """Return the schema of rows that caps count.

    Rows with one `unit` share a draw; key_0 is the key of the first cap.
    """
    keys = [(f"key_{number}", pa.string()) for number in range(len(settings.caps))]
    return pa.schema([("sample_id", pa.string()), ("domain", pa.string()), ("unit", pa.string()), *keys])


def keys_sql(settings: BalanceSettings) -> str:
    """Return the columns of `keys_schema`, over candidates c, facts f and captions t that are joined by sample."""
    keys = [f"nullif({_key_column(cap)}, '') AS key_{number}" for number, cap in enumerate(settings.caps)]
    unit = "coalesce(md5(c.source || '/' || c.group_id), c.sample_id) AS unit"
    return ", ".join(["c.sample_id", "c.domain", unit, *keys])


def judge_caps(sql: Any, settings: BalanceSettings) -> list[dict[str, Any]]:
    """Make the table `cap_verdicts`, rows that a cap drops, from `keyed` (keys_schema).

    Returns what the caps did to the most and the least frequent keys, for `status`.
    """
    sql.register("no_verdicts", tables.VERDICTS.empty_table())
    sql.execute("CREATE TABLE cap_verdicts AS SELECT * FROM no_verdicts")
    notes = []
    for number, cap in enumerate(settings.caps):
        keyed, of_domains = f"keyed_{number}", f" AND domain IN ({literals(cap.domains)})" if cap.domains else ""
        sql.execute(
            f"CREATE TABLE {keyed} AS SELECT sample_id, key_{number} AS key, unit FROM keyed "
            f"WHERE sample_id NOT IN (SELECT sample_id FROM cap_verdicts){of_domains}"
        )
        if cap.by in _OWNERS:
            _join_spellings(sql, keyed)
        rows = sql.sql(
            f"SELECT sample_id, key, unit FROM {keyed} "
            f"JOIN (SELECT key FROM {keyed} WHERE key IS NOT NULL GROUP BY key "
            f"HAVING count(*) > {cap.most}) USING (key) ORDER BY sample_id"
        ).to_arrow_table()
        verdicts = judge_cap(rows, cap, settings.seed)
        sql.register(f"capped_{number}", verdicts.filter(pa.compute.invert(verdicts["keep"])))
        sql.execute(f"INSERT INTO cap_verdicts SELECT * FROM capped_{number}")
        notes.append(_describe(sql, cap, keyed, f"capped_{number}"))
        sql.execute(f"DROP TABLE {keyed}")
    return notes


def _join_spellings(sql: Any, keyed: str) -> None:
    """Give all spellings of an owner one key: the first of them."""
    first: dict[str, str] = {}
    names = [name for (name,) in sql.execute(f"SELECT DISTINCT key FROM {keyed} WHERE key IS NOT NULL").fetchall()]
    keys = [first.setdefault(name_key(name), name) for name in sorted(names)]
    sql.register(
        "spellings", pa.table({"name": pa.array(sorted(names), pa.string()), "key": pa.array(keys, pa.string())})
    )
    sql.execute(f"UPDATE {keyed} SET key = s.key FROM spellings s WHERE {keyed}.key = s.name AND s.name <> s.key")


def _key_column(cap: CapSettings) -> str:
    if cap.extra_column:
        return json_text("c.extra", cap.extra_column)
    return _KEYS[cap.by]


def _describe(sql: Any, cap: CapSettings, keyed: str, capped: str) -> dict[str, Any]:
    """Head and tail before and after one cap, as plain values: [key, rows before, rows after], most first."""
    sql.execute(
        f"CREATE OR REPLACE TEMP TABLE by_key AS SELECT key, count(*) AS before, "
        f"count(*) - count(d.sample_id) AS after FROM {keyed} k LEFT JOIN {capped} d USING (sample_id) "
        "WHERE key IS NOT NULL GROUP BY key"
    )
    ((num_keys, num_over, before, after, head_before, head_after),) = sql.execute(
        f"SELECT count(*), count(*) FILTER (before > {cap.most}), sum(before), sum(after), "
        f"sum(before) FILTER (before > {cap.most}), sum(after) FILTER (before > {cap.most}) FROM by_key"
    ).fetchall()
    order = "SELECT key[:60], before, after FROM by_key ORDER BY before"
    head = sql.execute(f"{order} DESC, key LIMIT {NUM_SHOWN}").fetchall()
    tail = sql.execute(f"{order}, key LIMIT {min(NUM_SHOWN, max(0, num_keys - NUM_SHOWN))}").fetchall()
    return {
        "by": cap.by,
        "cap": f"about {cap.about}" if cap.about else f"at most {cap.at_most}",
        "domains": list(cap.domains),
        "num_keys": num_keys,
        "num_keys_over": num_over,
        "num_before": int(before or 0),
        "num_after": int(after or 0),
        "num_head_before": int(head_before or 0),  # rows of the keys over the cap
        "num_head_after": int(head_after or 0),
        "head": [list(row) for row in head],
        "tail": [list(row) for row in reversed(tail)],
    }
